use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;

use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::postgres::counts::{TALLY, read_tally};
use crate::store::postgres::events::{COLUMNS, POSITION_MAX, read_event};
use crate::store::postgres::pool::Lease;
use crate::store::postgres::segments::spans;
use crate::store::postgres::{BLOCK_BITS, identifications, int, project_number, uint, users};
use crate::store::{Error, ProjectFigures, RowFigures, StoredEvent};

/// Positions walked between two reports of progress: about 100 ms.
const SLICE: u64 = 50_000;

/// The walk over the rows of one project.
pub(super) struct Walk<'w> {
    pub(super) lease: &'w mut Lease,
    pub(super) project: ProjectId,
    pub(super) figures: &'w mut ProjectFigures,
    pub(super) reference: &'w mut Option<String>,
    /// Through where generation 0 of each view goes: rows up to there are about to be dropped, and are not taken once more.
    pub(super) sealed: [u64; 2],
}

impl Walk<'_> {
    /// Walks in slices; stops where the counts are applied to and where the live counters are, to hold both against what
    /// was counted so far.
    pub(super) async fn run(
        &mut self,
        segments: &[i32],
        counters: Option<&(u64, BTreeMap<String, u64>)>,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Error> {
        let number = project_number(self.project);
        self.begin().await?;
        let mut stops = BTreeSet::from([self.figures.applied_to, self.figures.identified_to, POSITION_MAX]);
        stops.extend(self.sealed);
        stops.extend(counters.map(|(applied_to, _)| *applied_to));
        let mut after = 0;
        for stop in stops {
            for segment in segments {
                let mut from = after;
                while let Some(last) = self.next_slice(*segment, from, stop).await? {
                    report(self.slice(*segment, from, last).await?);
                    from = last;
                }
            }
            after = stop;
            if stop == self.figures.applied_to {
                self.compare_rollup().await?;
                self.compare_users().await?;
            }
            if stop == self.figures.identified_to {
                self.compare_identifications().await?;
            }
            if let Some((applied_to, per_name)) = counters
                && stop == *applied_to
            {
                self.figures.counters_example = self.compare_counters(per_name).await?;
            }
        }
        let ids = "SELECT count(DISTINCT id) FROM event WHERE project = $1";
        self.figures.rows.ids = uint(self.lease.query_one(ids, &[&number]).await?.try_get(0)?);
        Ok(())
    }

    /// Returns the last position of the next slice behind `after`, which begins at the next row there is.
    async fn next_slice(&mut self, segment: i32, after: u64, stop: u64) -> Result<Option<u64>, Error> {
        let sql = format!(
            "SELECT min(position) FROM event_{segment} WHERE project = $1 AND position > $2 AND position <= $3"
        );
        let next = self.lease.prepared(&sql).await?;
        let values: [&(dyn ToSql + Sync); 3] = [&project_number(self.project), &int(after), &int(stop)];
        let first: Option<i64> = self.lease.query_one(&next, &values).await?.try_get(0)?;
        Ok(first.map(|first| uint(first).saturating_add(SLICE - 1).min(stop)))
    }

    /// Looks at every row of a slice in every way, and returns how many there are.
    async fn slice(&mut self, segment: i32, after: u64, last: u64) -> Result<u64, Error> {
        self.read_rows(segment, after, last).await?;
        let window = "event.project = $1 AND event.position > $2 AND event.position <= $3";
        let values: [&(dyn ToSql + Sync); 3] = [&project_number(self.project), &int(after), &int(last)];
        let sql = format!(
            "SELECT count(*), min(position), max(position) FROM event_{segment} AS event WHERE {window}"
        );
        let row = self.lease.query_one(&sql, &values).await?;
        let (count, low, high) = (uint(row.try_get(0)?), uint(row.try_get(1)?), uint(row.try_get(2)?));
        let rows: &mut RowFigures = &mut self.figures.rows;
        if rows.count == 0 {
            rows.first = low;
        }
        (rows.last, rows.count) = (rows.last.max(high), rows.count + count);
        let sql = format!(
            "SELECT count(*) FROM event_{segment} AS event
             LEFT JOIN event_block ON event_block.project = event.project AND event_block.block = event.position >> {BLOCK_BITS}
             WHERE {window}
               AND (corrected_ms(time_ms, skew_ms) BETWEEN event_block.from_ms AND event_block.to_ms) IS NOT TRUE"
        );
        rows.hidden += uint(self.lease.query_one(&sql, &values).await?.try_get(0)?);
        self.look_for_identities(segment, window, &values).await?;
        let [counted, identified] = self.sealed;
        if last > counted {
            self.recount(segment, window, &values, last).await?;
        }
        if last > identified && last <= self.figures.identified_to {
            self.identify(segment, after, last).await?;
        }
        Ok(count)
    }

    /// Counts the events of a slice, and their users as far as they are applied.
    async fn recount(
        &mut self,
        segment: i32,
        window: &str,
        values: &[&(dyn ToSql + Sync)],
        last: u64,
    ) -> Result<(), Error> {
        let sql = format!(
            "WITH added AS MATERIALIZED (
                 SELECT {TALLY} FROM event_{segment} AS event WHERE {window} GROUP BY name, hour_ms, position >> {BLOCK_BITS}
             ), upserted AS (
                 INSERT INTO audit_recount AS known SELECT name, hour_ms, sum(count) FROM added GROUP BY name, hour_ms
                 ON CONFLICT (name, hour_ms) DO UPDATE SET count = known.count + excluded.count
             )
             SELECT name, hour_ms, count, users FROM added"
        );
        let values = values.iter().copied();
        let tally = read_tally(self.lease.query_raw(&sql, values).await?).await?;
        if last <= self.figures.applied_to {
            users::add(self.lease, "audit_users", self.project, self.figures.generation, tally).await?;
        }
        Ok(())
    }

    /// Makes of the ids in a slice what the view should.
    async fn identify(&mut self, segment: i32, after: u64, last: u64) -> Result<(), Error> {
        let mut gathered = after;
        while gathered < last {
            let found = identifications::gather(self.lease, self.project, segment, gathered, last).await?;
            let (gathering, through) = found;
            let generation = self.figures.identified_generation;
            identifications::add(self.lease, "audit_identification", self.project, generation, gathering)
                .await?;
            gathered = through;
        }
        Ok(())
    }

    /// Begins with what was sealed in generation 0: what was dropped, and what a drop that failed left behind.
    async fn begin(&mut self) -> Result<(), Error> {
        let clear = "DELETE FROM audit_recount; DELETE FROM audit_users; DELETE FROM audit_identification";
        self.lease.batch_execute(clear).await?;
        let number = project_number(self.project);
        let through = "SELECT coalesce(max(applied_to), 0) FROM view_state
             WHERE view = $1 AND project = $2 AND generation = 0";
        for (sealed, view) in self.sealed.iter_mut().zip(View::ALL) {
            *sealed = uint(self.lease.query_one(through, &[&view.name(), &number]).await?.try_get(0)?);
        }
        let sealed = "INSERT INTO audit_recount SELECT name, hour_ms, count FROM rollup_counts
             WHERE project = $1 AND generation = 0";
        self.lease.execute(sealed, &[&number]).await?;
        let sealed = "INSERT INTO audit_users (project, generation, hours, start_ms, name, sketch)
             SELECT project, $2, hours, start_ms, name, sketch FROM rollup_users WHERE project = $1 AND generation = 0";
        self.lease.execute(sealed, &[&number, &int(self.figures.generation)]).await?;
        let table = &View::Identifications.tables()[0];
        let columns = format!("{}, {}", table.key, table.values);
        let sealed = format!(
            "INSERT INTO audit_identification (project, generation, {columns})
             SELECT project, $2, {columns} FROM identification WHERE project = $1 AND generation = 0"
        );
        self.lease.execute(&sealed, &[&number, &int(self.figures.identified_generation)]).await?;
        Ok(())
    }

    /// Follows each row's identity to the range that its position lies in.
    async fn look_for_identities(
        &mut self,
        segment: i32,
        window: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<(), Error> {
        let sql = format!(
            "SELECT event.position, known.id IS NULL FROM event_{segment} AS event
             LEFT JOIN event_id AS known ON known.project = event.project AND known.id = event.id
             LEFT JOIN ranges ON ranges.id = known.range_id
             WHERE {window} AND (event.position BETWEEN ranges.first AND ranges.last) IS NOT TRUE LIMIT 1"
        );
        let Some(row) = self.lease.query_opt(&sql, values).await? else { return Ok(()) };
        let (position, missing): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
        let what = if missing { "has no identity" } else { "has an identity that leads elsewhere" };
        let project = self.project;
        self.reference.get_or_insert_with(|| format!("the event at {position} of project {project} {what}"));
        Ok(())
    }

    /// Reads every row of a slice as a read would, and where a read would look for it.
    async fn read_rows(&mut self, segment: i32, after: u64, last: u64) -> Result<(), Error> {
        let spans = spans(self.lease, self.project).await?;
        let span = spans.into_iter().find(|span| span.segment == segment);
        let sql = format!(
            "SELECT {COLUMNS} FROM event_{segment} WHERE project = $1 AND position > $2 AND position <= $3 ORDER BY position"
        );
        let values: [&(dyn ToSql + Sync); 3] = [&project_number(self.project), &int(after), &int(last)];
        let mut found = pin!(self.lease.query_raw(&sql, values).await?);
        while let Some(row) = found.try_next().await? {
            let inside = |event: &StoredEvent| {
                span.is_some_and(|span| (span.first..=span.last).contains(&event.position))
            };
            let read = read_event(&row, self.project).and_then(|event| match inside(&event) {
                true => Ok(event),
                false => {
                    let at = event.position;
                    Err(Error::unreadable(format!("the event at {at}, in the wrong segment {segment}")))
                }
            });
            self.figures.rows.add_read(read)?;
        }
        Ok(())
    }
}
