use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::pool::Lease;
use super::{int, uint};
use crate::project::ProjectId;
use crate::store::Error;

/// How often a process looks whether there is a newer segment, or whether it is time for one.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// After how long a new segment begins: a year of events are 52 of them, and retention is exact to a week.
const SEGMENT_DAYS_MAX: i32 = 7;

/// At which size of its table a new segment begins: 8 GiB are 25 million events of 330 B, whose indexes (about 2 GiB)
/// stay in the memory of a small server while they are written to.
const SEGMENT_BYTES_MAX: i64 = 8 * 1024 * 1024 * 1024;

/// What the planner takes for the share of different names and users among the rows. A page of one name must never be read by
/// walking over all positions, however few names there are: the one that is asked for may be a rare one.
const DISTINCT: f32 = -0.01;

/// The lock under which one process at a time opens a segment: "evsegmnt" in ASCII.
const LOCK: i64 = 0x6576_7365_676d_6e74;

/// Which segment new events go to.
#[derive(Default)]
pub(super) struct Segments(Mutex<Option<(i32, Instant)>>);

impl Segments {
    /// Returns the newest segment, and opens the next when it is time.
    pub(super) async fn current(&self, lease: &mut Lease) -> Result<i32, Error> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((segment, looked)) = known
            && looked.elapsed() < LOOK_PERIOD
        {
            return Ok(segment);
        }
        let segment = newest(lease).await?;
        self.note(segment);
        Ok(segment)
    }

    /// Notes a segment that somebody else writes to already.
    pub(super) fn note(&self, segment: i32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = known.map_or(segment, |(known, _)| known.max(segment));
        *known = Some((newest, Instant::now()));
    }
}

async fn newest(lease: &mut Lease) -> Result<i32, Error> {
    match last(lease).await? {
        Some((segment, false)) => Ok(segment),
        _ => open_next(lease).await,
    }
}

/// The newest segment, and whether it is full or old.
async fn last(lease: &mut Lease) -> Result<Option<(i32, bool)>, Error> {
    let select = "SELECT id, opened_at < now() - make_interval(days => $1)
                      OR pg_table_size(to_regclass('event_' || id)) > $2
         FROM segment ORDER BY id DESC LIMIT 1";
    let row = lease.query_opt(select, &[&SEGMENT_DAYS_MAX, &SEGMENT_BYTES_MAX]).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some((row.try_get(0)?, row.try_get::<_, Option<bool>>(1)?.unwrap_or(true))))
}

async fn open_next(lease: &mut Lease) -> Result<i32, Error> {
    lease.begin().await?;
    lease.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let found = last(lease).await?;
    if let Some((segment, false)) = found {
        lease.commit().await?;
        return Ok(segment);
    }
    let segment = found.map_or(1, |(segment, _)| segment + 1);
    // Attaching an empty table takes a lock that neither readers nor writers of the others wait for.
    let open = format!(
        "CREATE TABLE event_{segment} (LIKE event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE,
                                       PRIMARY KEY (project, position));
         ALTER TABLE event_{segment} ALTER COLUMN name SET (n_distinct = {DISTINCT}),
                                     ALTER COLUMN user_id SET (n_distinct = {DISTINCT});
         ALTER TABLE event ATTACH PARTITION event_{segment} FOR VALUES IN ({segment});
         INSERT INTO segment (id) VALUES ({segment});"
    );
    lease.batch_execute(&open).await?;
    lease.commit().await?;
    tracing::info!(segment, "opened a segment of the log");
    Ok(segment)
}

/// A project's positions in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) segment: i32,
    pub(super) first: u64,
    /// The last position; of the newest segment the last there can be.
    pub(super) last: u64,
}

/// Reads which segments hold a project's log, in order.
pub(super) async fn spans(lease: &mut Lease, project: ProjectId) -> Result<Vec<Span>, Error> {
    let statement = lease
        .prepared("SELECT segment, first FROM segment_project WHERE project = $1 ORDER BY segment")
        .await?;
    let rows = lease.query(&statement, &[&super::project_number(project)]).await?;
    let mut spans: Vec<Span> = Vec::with_capacity(rows.len());
    for row in rows {
        let (segment, first) = (row.try_get(0)?, uint(row.try_get(1)?));
        if let Some(before) = spans.last_mut() {
            before.last = first.saturating_sub(1);
        }
        spans.push(Span { segment, first, last: uint(int(u64::MAX >> 1)) });
    }
    Ok(spans)
}
