use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::pool::Lease;
use super::{int, uint};
use crate::project::ProjectId;
use crate::store::Error;

/// After how long a new segment begins: a year of events are 52 of them, and retention is exact to a week.
const SEGMENT_DAYS_MAX: i32 = 7;

/// At which size of its table a new segment begins: 8 GiB are 25 million events of 330 B, whose indexes (about 2 GiB)
/// stay in the memory of a small server while they are written to.
const SEGMENT_BYTES_MAX: i64 = 8 * 1024 * 1024 * 1024;

/// What the planner takes for the share of different names and users among the rows. A page of one name must never be read by
/// walking over all positions, however few names there are: the one that is asked for may be a rare one.
const DISTINCT: f32 = -0.01;

/// Begins an append. Until it ends no segment is closed, so all of it goes to the one that is open: whoever opens the next
/// one waits for it. "evsegmnt" in ASCII. It is the first lock of all, so that nobody who holds another waits for it. Each
/// statement has to see what was committed before it, whatever the server's default is. The setting tells what is sent
/// behind it, before it is answered, that it has begun.
pub(super) const BEGIN_APPEND: &str = "
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SELECT set_config('eventbucket.append', 'begun', true),
           pg_advisory_xact_lock_shared(x'65767365676d6e74'::bigint)";

/// Closes the open segment: waits for the appends under way, and holds up new ones.
const CLOSE: &str = "SELECT pg_advisory_xact_lock(x'65767365676d6e74'::bigint)";

/// How long that may take. A process that is paused in the middle of an append must not stop the others; what isn't opened
/// now is with the next look.
const CLOSE_WAIT: &str = "SET LOCAL lock_timeout = '2s'";

/// When this process looked whether it is time for a new segment. Which one is open is not remembered: an append reads it
/// in its own transaction, so that nothing goes to a segment that somebody closed, and that retention may drop.
pub(super) struct Segments {
    period: Duration,
    looked: Mutex<Option<Instant>>,
}

impl Segments {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, looked: Mutex::default() }
    }

    /// Opens the next segment when it is time, and the first when there is none.
    pub(super) async fn look(&self, lease: &mut Lease) -> Result<(), Error> {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|looked| looked.elapsed() < self.period) {
            return Ok(());
        }
        match last(lease).await? {
            Some((_, false)) => {}
            Some((segment, true)) => {
                if let Err(error) = open_next(lease, When::Due).await {
                    lease.rollback().await?;
                    tracing::warn!(%error, segment, "can't open the next segment of the log; this one goes on");
                }
            }
            None => open_next(lease, When::Due).await?,
        }
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    /// Looks again with the next append: there is no segment any more.
    pub(super) fn forget(&self) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

/// When the next segment begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Once the open one is full or old, and somebody else hasn't begun it meanwhile.
    Due,
    Now,
}

pub(super) async fn open_next(lease: &mut Lease, when: When) -> Result<(), Error> {
    lease.begin().await?;
    lease.batch_execute(CLOSE_WAIT).await?;
    lease.batch_execute(CLOSE).await?;
    let found = last(lease).await?;
    if when == When::Due && found.is_some_and(|(_, due)| !due) {
        return lease.commit().await;
    }
    let segment = found.map_or(1, |(segment, _)| segment + 1);
    // Attaching an empty table takes a lock that neither readers nor writers of the others wait for. It opens by the clock,
    // not at the transaction's beginning: all that is in the segment before was stored by then.
    let open = format!(
        "CREATE TABLE event_{segment} (LIKE event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE,
                                       PRIMARY KEY (project, position));
         ALTER TABLE event_{segment} ALTER COLUMN name SET (n_distinct = {DISTINCT}),
                                     ALTER COLUMN user_id SET (n_distinct = {DISTINCT});
         ALTER TABLE event ATTACH PARTITION event_{segment} FOR VALUES IN ({segment});
         INSERT INTO segment (id, opened_at) VALUES ({segment}, clock_timestamp());"
    );
    lease.batch_execute(&open).await?;
    lease.commit().await?;
    tracing::info!(segment, "opened a segment of the log");
    Ok(())
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
