use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;

use super::counts::{COUNTS, TALLY, read_tally};
use super::events::{COLUMNS, POSITION_MAX, read_event, read_ledger, small};
use super::pool::Lease;
use super::segments::spans;
use super::{BLOCK_BITS, Postgres, int, project_id, project_number, soundness, uint, users};
use crate::project::ProjectId;
use crate::store::audit::{RangeRow, users_example};
use crate::store::batches::BatchPart;
use crate::store::{AuditFigures, CountersToCheck, Error, ProjectFigures, RowFigures, StoredEvent};

/// Positions walked between two reports of progress: about 100 ms.
const SLICE: u64 = 50_000;

/// The server looks at every page that it reads; indexes are for its extension amcheck.
const PAGES: &str = "every page of the log could be read";

/// What a walk adds up goes to temporary tables of the database: memory stays bounded on both sides however long the log
/// is. The connection, and the tables with it, is closed at the end.
const TEMPORARY: &str = "
    SET statement_timeout = 0;
    SET idle_in_transaction_session_timeout = 0;
    CREATE TEMP TABLE audit_recount (
        name text COLLATE \"C\", hour_ms bigint, count bigint NOT NULL, PRIMARY KEY (name, hour_ms)
    );
    CREATE TEMP TABLE audit_users (LIKE rollup_users INCLUDING STORAGE INCLUDING INDEXES)";

impl Postgres {
    pub(in crate::store) async fn audit_figures(
        &self,
        counters: CountersToCheck,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<AuditFigures, Error> {
        let _alone = self.0.auditing.lock().await;
        let mut lease = self.0.log.lease().await?;
        lease.will_begin();
        lease.batch_execute(TEMPORARY).await?;
        // One snapshot for everything, taken by its first question; collectors may go on writing beside it.
        lease.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT").await?;
        // Projects may be in another database. Those that are made from now on have nothing in the snapshot.
        let mut projects = BTreeMap::new();
        for project in self.projects(None).await? {
            let figures = ProjectFigures { name: project.name, known: true, ..ProjectFigures::default() };
            projects.insert(project.id, figures);
        }
        let mut progress = progress;
        match figures(&mut lease, projects, &counters, &mut progress).await {
            // The server finds it while the walk reads; nothing else can be said then.
            Err(Error::Corrupt { what }) => {
                Ok(AuditFigures { damage: Some(what.to_string()), ..AuditFigures::default() })
            }
            figures => figures,
        }
    }
}

async fn figures(
    lease: &mut Lease,
    mut projects: BTreeMap<ProjectId, ProjectFigures>,
    counters: &CountersToCheck,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<AuditFigures, Error> {
    read_heads(lease, &mut projects).await?;
    read_ranges(lease, &mut projects).await?;
    let segments = segments_of_rows(lease).await?;
    for project in segments.keys() {
        projects.entry(*project).or_default();
    }
    let total = projects.values().map(|figures| figures.head).sum();
    let (mut done, mut reference) = (0, None);
    progress(done, total);
    for (project, figures) in &mut projects {
        let of_project = segments.get(project).cloned().unwrap_or_default();
        let mut walk =
            Walk { lease: &mut *lease, project: *project, figures, reference: &mut reference, sealed: 0 };
        let mut report = |rows| {
            done += rows;
            progress(done, total);
        };
        walk.run(&of_project, counters.get(project), &mut report).await?;
    }
    let schema = soundness::schema(lease).await?;
    let known = projects.iter().filter(|(_, figures)| figures.known).map(|(id, _)| *id);
    let reference = reference.or(soundness::stray(lease, known).await?);
    Ok(AuditFigures { projects, pages: PAGES, damage: None, schema, reference })
}

/// Reads every head row and the state of its live counts. Missing rows read as zeros and fail the checks.
async fn read_heads(
    lease: &mut Lease,
    projects: &mut BTreeMap<ProjectId, ProjectFigures>,
) -> Result<(), Error> {
    let select = "SELECT head.project, position, received, stored, duplicate, quarantined, rejected,
                view_live.generation, applied_to, dropped, has_users
         FROM head
         LEFT JOIN view_live ON view_live.view = $1 AND view_live.project = head.project
         LEFT JOIN view_state ON view_state.view = $1 AND view_state.project = head.project
                             AND view_state.generation = view_live.generation";
    for row in lease.query(select, &[&COUNTS]).await? {
        let figures = projects.entry(project_id(row.try_get(0)?)).or_default();
        let number =
            |column| -> Result<u64, Error> { Ok(row.try_get::<_, Option<i64>>(column)?.map_or(0, uint)) };
        figures.head_known = true;
        figures.head = number(1)?;
        figures.head_ledger = read_ledger(&row, 2)?;
        figures.live = number(7)? > 0 && row.try_get::<_, Option<i64>>(8)?.is_some();
        (figures.generation, figures.applied_to) = (number(7)?, number(8)?);
        figures.rows.dropped = number(9)?;
        figures.has_users = row.try_get::<_, Option<bool>>(10)?.unwrap_or(false);
    }
    // A project's head is made with its first use; one without any has nothing to check.
    for figures in projects.values_mut().filter(|figures| !figures.head_known) {
        (figures.head_known, figures.live, figures.generation) = (true, true, 1);
        figures.has_users = true;
    }
    Ok(())
}

async fn read_ranges(
    lease: &mut Lease,
    projects: &mut BTreeMap<ProjectId, ProjectFigures>,
) -> Result<(), Error> {
    let select =
        "SELECT received, stored, duplicate, quarantined, rejected, project, id, first, last, part, parts, verdicts, refused,
                first = 1 AND batch = '00000000-0000-0000-0000-000000000000'
         FROM ranges ORDER BY project, first, last";
    let none: [&(dyn ToSql + Sync); 0] = [];
    let mut rows = pin!(lease.query_raw(select, none).await?);
    while let Some(row) = rows.try_next().await? {
        let ledger = read_ledger(&row, 0)?;
        let number = |column| -> Result<u64, Error> { Ok(uint(row.try_get(column)?)) };
        let batch = BatchPart {
            part: small(row.try_get(9)?),
            parts: small(row.try_get(10)?),
            events: ledger.received.saturating_sub(ledger.rejected),
            verdicts: row.try_get(11)?,
            refused: row.try_get(12)?,
        };
        let batch = (!row.try_get::<_, bool>(13)?).then_some(batch);
        let range = RangeRow { id: number(6)?, first: number(7)?, last: number(8)?, ledger, batch };
        projects.entry(project_id(row.try_get(5)?)).or_default().ranges.add(&range);
    }
    Ok(())
}

/// Finds which segments hold rows of which project, by jumping from each project to the next.
async fn segments_of_rows(lease: &mut Lease) -> Result<BTreeMap<ProjectId, Vec<i32>>, Error> {
    let mut found: BTreeMap<ProjectId, Vec<i32>> = BTreeMap::new();
    for row in lease.query("SELECT id FROM segment ORDER BY id", &[]).await? {
        let segment: i32 = row.try_get(0)?;
        let sql = format!("SELECT min(project) FROM event_{segment} WHERE project > $1");
        let next = lease.prepared(&sql).await?;
        let mut after = i32::MIN;
        while let Some(project) = lease.query_one(&next, &[&after]).await?.try_get(0)? {
            found.entry(project_id(project)).or_default().push(segment);
            after = project;
        }
    }
    Ok(found)
}

/// The walk over the rows of one project.
struct Walk<'w> {
    lease: &'w mut Lease,
    project: ProjectId,
    figures: &'w mut ProjectFigures,
    reference: &'w mut Option<String>,
    /// Through where generation 0 counts: rows up to there are about to be dropped, and are not counted once more.
    sealed: u64,
}

impl Walk<'_> {
    /// Walks in slices; stops where the counts are applied to and where the live counters are, to hold both against what
    /// was counted so far.
    async fn run(
        &mut self,
        segments: &[i32],
        counters: Option<&(u64, BTreeMap<String, u64>)>,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Error> {
        let number = project_number(self.project);
        self.begin().await?;
        let mut stops = BTreeSet::from([self.sealed, self.figures.applied_to, POSITION_MAX]);
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
        if last > self.sealed {
            self.recount(segment, window, &values, last).await?;
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

    /// Begins with what was sealed in generation 0: what was dropped, and what a drop that failed left behind.
    async fn begin(&mut self) -> Result<(), Error> {
        self.lease.batch_execute("DELETE FROM audit_recount; DELETE FROM audit_users").await?;
        let number = project_number(self.project);
        let through = "SELECT coalesce(max(applied_to), 0) FROM view_state
             WHERE view = $1 AND project = $2 AND generation = 0";
        self.sealed = uint(self.lease.query_one(through, &[&COUNTS, &number]).await?.try_get(0)?);
        let sealed = "INSERT INTO audit_recount SELECT name, hour_ms, count FROM rollup_counts
             WHERE project = $1 AND generation = 0";
        self.lease.execute(sealed, &[&number]).await?;
        let sealed = "INSERT INTO audit_users (project, generation, hours, start_ms, name, sketch)
             SELECT project, $2, hours, start_ms, name, sketch FROM rollup_users WHERE project = $1 AND generation = 0";
        self.lease.execute(sealed, &[&number, &int(self.figures.generation)]).await?;
        Ok(())
    }

    /// Holds the sketches against those of what was counted so far: the same users give the same bytes.
    async fn compare_users(&mut self) -> Result<(), Error> {
        if !self.figures.has_users {
            return Ok(());
        }
        let only = "WHERE project = $1 AND generation = $2";
        let columns = "hours, start_ms, name, sketch";
        let select = format!(
            "SELECT name, hours, to_char(to_timestamp(start_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00Z')
             FROM ((SELECT {columns} FROM rollup_users {only} EXCEPT SELECT {columns} FROM audit_users {only})
                   UNION (SELECT {columns} FROM audit_users {only} EXCEPT SELECT {columns} FROM rollup_users {only})) AS cell
             GROUP BY hours, start_ms, name ORDER BY hours, start_ms, name"
        );
        let values: [&(dyn ToSql + Sync); 2] = [&project_number(self.project), &int(self.figures.generation)];
        let mut rows = pin!(self.lease.query_raw(&select, values).await?);
        while let Some(row) = rows.try_next().await? {
            self.figures.users_differences += 1;
            if self.figures.users_example.is_none() {
                let (hours, start): (i16, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
                let start = start.unwrap_or_default();
                self.figures.users_example = Some(users_example(row.try_get(0)?, hours.into(), start));
            }
        }
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

    async fn compare_rollup(&mut self) -> Result<(), Error> {
        let values: [&(dyn ToSql + Sync); 2] = [&project_number(self.project), &int(self.figures.generation)];
        let sum =
            "SELECT coalesce(sum(count), 0)::int8 FROM rollup_counts WHERE project = $1 AND generation = $2";
        self.figures.rollup_sum = uint(self.lease.query_one(sum, &values).await?.try_get(0)?);
        let select = "SELECT name, to_char(to_timestamp(hour_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00Z'),
                    sum(rollup)::int8, sum(log)::int8
             FROM (SELECT name, hour_ms, count AS rollup, 0 AS log FROM rollup_counts WHERE project = $1 AND generation = $2
                   UNION ALL SELECT name, hour_ms, 0, count FROM audit_recount) AS counted
             GROUP BY name, hour_ms HAVING sum(rollup) <> sum(log)";
        let mut rows = pin!(self.lease.query_raw(select, values).await?);
        while let Some(row) = rows.try_next().await? {
            self.figures.rollup_differences += 1;
            if self.figures.rollup_example.is_none() {
                let (name, hour): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
                let (rollup, log): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
                let hour = hour.unwrap_or_default();
                let example = format!("{name:?} in the hour {hour}: the view counts {rollup}, the log {log}");
                self.figures.rollup_example = Some(example);
            }
        }
        Ok(())
    }

    /// Returns the first live counter that differs from what was counted so far.
    async fn compare_counters(&mut self, per_name: &BTreeMap<String, u64>) -> Result<Option<String>, Error> {
        let select = "SELECT name, sum(count)::int8 FROM audit_recount GROUP BY name";
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut rows = pin!(self.lease.query_raw(select, none).await?);
        let mut agreeing = 0;
        while let Some(row) = rows.try_next().await? {
            let (name, log): (String, u64) = (row.try_get(0)?, uint(row.try_get(1)?));
            let live = per_name.get(&name).copied().unwrap_or(0);
            if live != log {
                return Ok(Some(format!("{name:?}: the live counter says {live}, the log {log}")));
            }
            agreeing += 1;
        }
        let extra = per_name.len() != agreeing;
        Ok(extra.then(|| format!("{} names are counted live, {agreeing} are in the log", per_name.len())))
    }
}
