use std::collections::BTreeMap;
use std::pin::pin;

use eventbucket_protocol::Timestamp;
use futures_util::TryStreamExt;
use tokio_postgres::RowStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::pool::Lease;
use super::segments::spans;
use super::{BLOCK_BITS, Postgres, identifications, int, project_id, project_number, uint, users};
use crate::insight::Tally;
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Applied, CountRow, CountTotals, CountsBy, CountsQuery, Error, ViewProgress, ViewState};

/// The view's name in `view_state` and `view_live`.
pub(super) const COUNTS: &str = "counts";

/// Positions applied in one transaction: 50,000 rows are read and counted in about 50 ms.
pub(super) const STEP_POSITIONS: u64 = 50_000;

/// A rebuild's step holds a project's counts for about 100 ms and its beginning for seconds; all other projects wait while
/// this one does. So a step waits for the first alone, and is tried again with the next look.
const BEGIN_STEP: &str = "BEGIN; SET LOCAL lock_timeout = '150ms'";

const LOCK_LIVE: &str = "SELECT generation FROM view_live WHERE view = $1 AND project = $2 FOR UPDATE";

/// Rows in one answer: 100,000 of 100 B are 10 MB.
const COUNT_ROWS_MAX: usize = 100_000;

/// What the events of a stretch add up to: name, beginning of the hour of the corrected time (also before 1970), count and
/// users. Grouped by name, hour and block of 4,096 positions, so that the users of one row take 8 MiB at most, whatever they
/// call themselves.
pub(super) const TALLY: &str = "
    name,
    corrected_ms(time_ms, skew_ms) - ((corrected_ms(time_ms, skew_ms) % 3600000) + 3600000) % 3600000 AS hour_ms,
    count(*) AS count,
    array_agg(user_id) FILTER (WHERE user_id IS NOT NULL) AS users";

impl Postgres {
    pub(in crate::store) async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        let mut lease = self.0.log.lease().await?;
        // On a connection: one that was just made has looked for another epoch, and what was seen in the last is forgotten.
        let seen = self.0.epoch.before_reading_all();
        let select = lease
            .prepared(
                "SELECT project, generation, applied_to, position,
                        coalesce((SELECT other.applied_to
                                  FROM view_live JOIN view_state AS other USING (view, project, generation)
                                  WHERE view = $2 AND project = head.project), 0)
                 FROM view_live JOIN view_state USING (view, project, generation) JOIN head USING (project)
                 WHERE view = $1 ORDER BY project",
            )
            .await?;
        let mut progress = Vec::new();
        for row in lease.query(&select, &[&COUNTS, &View::Identifications.name()]).await? {
            let state = ViewState { generation: uint(row.try_get(1)?), applied_to: uint(row.try_get(2)?) };
            progress.push(ViewProgress {
                project: project_id(row.try_get(0)?),
                state,
                identified_to: uint(row.try_get(4)?),
                head: uint(row.try_get(3)?),
            });
        }
        if progress.iter().any(|of| seen.is_ahead_of(of.project, of.head)) {
            self.0.epoch.renew(&lease).await?;
        } else {
            // Another process may have renewed it since this connection was made.
            self.0.epoch.reload(&lease).await?;
        }
        progress.iter().for_each(|of| self.0.epoch.saw(of.project, of.head));
        Ok(progress)
    }

    pub(in crate::store) async fn view_state(&self, project: ProjectId) -> Result<ViewState, Error> {
        self.ensure(&[project]).await?;
        live_state(&mut self.0.reads.lease().await?, project).await
    }

    pub(in crate::store) async fn went_back(
        &self,
        project: ProjectId,
        epoch: Uuid,
        seen: ViewState,
    ) -> Result<bool, Error> {
        let mut lease = self.0.log.lease().await?;
        let Some(state) = find_live(&mut lease, View::Counts, project).await? else { return Ok(false) };
        let head = position(&mut lease, project).await?;
        // One that has another epoch by now was found out already.
        let went_back = state.is_behind(head, &seen) && self.0.epoch.id() == epoch;
        if went_back {
            self.0.epoch.renew(&lease).await?;
        }
        Ok(went_back)
    }

    pub(in crate::store) async fn apply_counts(
        &self,
        project: ProjectId,
        through: u64,
    ) -> Result<Applied, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.log.lease().await?;
        lease.begin_as(BEGIN_STEP).await?;
        let lock = lease.prepared(LOCK_LIVE).await?;
        match lease.query_opt(&lock, &[&COUNTS, &project_number(project)]).await {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                lease.rollback().await?;
                let ViewState { generation, applied_to } = live_state(&mut lease, project).await?;
                return Ok(Applied {
                    generation,
                    from: applied_to,
                    through: applied_to,
                    ..Applied::default()
                });
            }
            locked => locked?,
        };
        let state = live_state(&mut lease, project).await?;
        let applied = step(&mut lease, project, state, through).await?;
        let identified = if applied.through > applied.from {
            identifications::follow_from_afar(&mut lease, project, applied.through).await?
        } else {
            identifications::follow(&mut lease, project, through).await?
        };
        lease.commit().await?;
        Ok(Applied { identified, ..applied })
    }

    pub(in crate::store) async fn counts(
        &self,
        project: ProjectId,
        query: &CountsQuery,
    ) -> Result<Vec<CountRow>, Error> {
        let (hour, group) = match query.by {
            CountsBy::Total => ("NULL::int8", "name"),
            CountsBy::Day => ("hour_ms - (hour_ms % 86400000 + 86400000) % 86400000", "name, 2"),
            CountsBy::Hour => ("hour_ms", "name, 2"),
        };
        let only = if query.name.is_some() { "name = $5" } else { "$5::text IS NULL" };
        let sql = format!(
            "SELECT name, {hour}, sum(count)::int8 FROM rollup_counts
             WHERE project = $1
               AND generation = (SELECT generation FROM view_live WHERE view = $2 AND project = $1)
               AND hour_ms >= $3 AND hour_ms < $4 AND {only}
             GROUP BY {group} ORDER BY {group} LIMIT {}",
            COUNT_ROWS_MAX + 1
        );
        let from = query.from_hour.map_or(i64::MIN, Timestamp::ms);
        let to = query.to_hour.map_or(i64::MAX, Timestamp::ms);
        let mut lease = self.0.reads.lease().await?;
        let select = lease.prepared(&sql).await?;
        let number = project_number(project);
        let rows = lease.query(&select, &[&number, &COUNTS, &from, &to, &query.name]).await?;
        if rows.len() > COUNT_ROWS_MAX {
            return Err(Error::TooManyRows { limit: COUNT_ROWS_MAX });
        }
        let read = |row: tokio_postgres::Row| {
            let start = row.try_get::<_, Option<i64>>(1)?.and_then(Timestamp::from_ms);
            Ok(CountRow { name: row.try_get(0)?, start, count: uint(row.try_get(2)?) })
        };
        rows.into_iter().map(read).collect()
    }

    pub(in crate::store) async fn count_totals(
        &self,
        project: ProjectId,
        names_max: usize,
    ) -> Result<CountTotals, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.log.lease().await?;
        // The state and the counts have to come from one snapshot.
        lease.begin_as("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let state = live_state(&mut lease, project).await?;
        let select = lease
            .prepared(
                "SELECT name, sum(count)::int8 FROM rollup_counts WHERE project = $1 AND generation = $2
                 GROUP BY name LIMIT $3",
            )
            .await?;
        let limit = i64::try_from(names_max).unwrap_or(i64::MAX).saturating_add(1);
        let number = project_number(project);
        let rows = lease.query(&select, &[&number, &int(state.generation), &limit]).await?;
        lease.commit().await?;
        if rows.len() > names_max {
            return Ok(CountTotals { state, per_name: BTreeMap::new(), complete: false });
        }
        let read = |row: tokio_postgres::Row| Ok((row.try_get(0)?, uint(row.try_get(1)?)));
        let per_name = rows.into_iter().map(read).collect::<Result<_, Error>>()?;
        Ok(CountTotals { state, per_name, complete: true })
    }
}

pub(super) async fn live_state(lease: &mut Lease, project: ProjectId) -> Result<ViewState, Error> {
    find_live(lease, View::Counts, project).await?.ok_or(Error::CountsMissing(project))
}

/// How far the live generation of a view has come; `None` when there is none.
pub(super) async fn find_live(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
) -> Result<Option<ViewState>, Error> {
    let select = lease
        .prepared(
            "SELECT generation, applied_to FROM view_live JOIN view_state USING (view, project, generation)
             WHERE view = $1 AND project = $2",
        )
        .await?;
    let Some(row) = lease.query_opt(&select, &[&view.name(), &project_number(project)]).await? else {
        return Ok(None);
    };
    Ok(Some(ViewState { generation: uint(row.try_get(0)?), applied_to: uint(row.try_get(1)?) }))
}

/// Locks which generation is live, and reads how far it has come. Whoever changes a view of a project begins with this, so one at
/// a time does. Who locks several views does so in the order of [`View::ALL`].
pub(super) async fn lock_live(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
) -> Result<Option<ViewState>, Error> {
    let lock = lease.prepared(LOCK_LIVE).await?;
    lease.query_opt(&lock, &[&view.name(), &project_number(project)]).await?;
    find_live(lease, view, project).await
}

pub(super) async fn position(lease: &mut Lease, project: ProjectId) -> Result<u64, Error> {
    let select = lease.prepared("SELECT position FROM head WHERE project = $1").await?;
    let row = lease.query_opt(&select, &[&project_number(project)]).await?;
    row.map_or(Ok(0), |row| Ok(uint(row.try_get(0)?)))
}

/// Adds what lies behind a generation's `applied_to` to it, and moves `applied_to`: up to `through`, the head, the end of
/// the segment, or 50,000 positions.
pub(super) async fn step(
    lease: &mut Lease,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<Applied, Error> {
    let ViewState { generation, applied_to: from } = state;
    let head = position(lease, project).await?;
    let through = through.min(head).min(from.saturating_add(STEP_POSITIONS));
    let nothing = Applied { generation, from, through: from, ..Applied::default() };
    if through <= from {
        return Ok(nothing);
    }
    let spans = spans(lease, project).await?;
    let Some(span) = spans.into_iter().find(|span| span.last > from) else { return Ok(nothing) };
    if span.first > from + 1 {
        let what = format!(
            "events of project {project} behind position {from} were dropped before they were counted"
        );
        return Err(Error::corrupt(what));
    }
    let through = through.min(span.last);
    let sql = format!(
        "WITH added AS MATERIALIZED (
             SELECT {TALLY} FROM event_{} AS event
             WHERE project = $1 AND position > $2 AND position <= $3 GROUP BY name, hour_ms, position >> {BLOCK_BITS}
         ), upserted AS (
             INSERT INTO rollup_counts AS known (project, generation, hour_ms, count, name)
             SELECT $1, $4, hour_ms, sum(count), name FROM added GROUP BY name, hour_ms
             ON CONFLICT (project, generation, name, hour_ms) DO UPDATE SET count = known.count + excluded.count
         )
         SELECT name, hour_ms, count, users FROM added",
        span.segment
    );
    let add = lease.prepared(&sql).await?;
    let (number, generation_number) = (project_number(project), int(generation));
    let values: [&(dyn ToSql + Sync); 4] = [&number, &int(from), &int(through), &generation_number];
    let tally = read_tally(lease.query_raw(&add, values).await?).await?;
    let per_name = tally.per_name();
    users::add(lease, "rollup_users", project, generation, tally).await?;
    let update = lease
        .prepared(
            "UPDATE view_state SET applied_to = $4, has_users = has_users OR applied_to = 0
             WHERE view = $1 AND project = $2 AND generation = $3",
        )
        .await?;
    lease.execute(&update, &[&COUNTS, &number, &generation_number, &int(through)]).await?;
    Ok(Applied { generation, from, through, per_name, ..Applied::default() })
}

/// Adds up rows of [`TALLY`], one at a time.
pub(super) async fn read_tally(rows: RowStream) -> Result<Tally, Error> {
    let (mut tally, mut rows) = (Tally::default(), pin!(rows));
    while let Some(row) = rows.try_next().await? {
        let users: Option<Vec<&str>> = row.try_get(3)?;
        let users = users.into_iter().flatten().map(str::as_bytes);
        tally.add(row.try_get(0)?, row.try_get(1)?, uint(row.try_get(2)?), users);
    }
    Ok(tally)
}
