use std::time::Duration;

use super::counts::{COUNTS, lock_live, step};
use super::pool::Lease;
use super::segments::spans;
use super::{Postgres, int, project_id, project_number, uint};
use crate::project::ProjectId;
use crate::store::{Dropped, Error, ViewState};

/// How much longer than the event its identity is kept: the longest that a spool may hold an event back and send it again.
const IDENTITY_DAYS: i32 = 7;

/// Pages of identities looked at in one transaction: 8 MiB, about 80,000 identities, 0.1 s.
const SWEEP_PAGES: i64 = 1_024;

/// How long dropping a segment waits for people's queries over the whole log. It holds up new ones while it waits, so it
/// gives up soon and tries again with the next call.
const DROP_LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'";

impl Postgres {
    /// Seals the views, drops the segments that hold nothing younger, and forgets identities seven days after that.
    pub(in crate::store) async fn drop_before(&self, age: Duration) -> Result<Dropped, Error> {
        let mut dropped = Dropped::default();
        while let Some(segment) = self.oldest_to_drop(age).await? {
            dropped.events += self.drop_segment(segment).await?;
            dropped.segments += 1;
        }
        dropped.identities = self.forget_identities().await?;
        Ok(dropped)
    }

    /// The oldest segment, when the one behind it is old enough itself: then nothing younger was stored in it.
    async fn oldest_to_drop(&self, age: Duration) -> Result<Option<i32>, Error> {
        let lease = self.0.log.lease().await?;
        let select = "SELECT id FROM segment AS oldest
             WHERE EXISTS (SELECT 1 FROM segment AS next
                           WHERE next.id > oldest.id AND next.opened_at < now() - make_interval(secs => $1))
             ORDER BY id LIMIT 1";
        let row = lease.query_opt(select, &[&age.as_secs_f64()]).await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }

    async fn drop_segment(&self, segment: i32) -> Result<u64, Error> {
        let mut lease = self.0.log.lease().await?;
        let ends = ends(&mut lease, segment).await?;
        for (project, last) in &ends {
            while seal_step(&mut lease, *project, *last).await? {}
        }
        lease.begin().await?;
        lease.batch_execute(DROP_LOCK_WAIT).await?;
        let mut events = 0;
        for (project, last) in &ends {
            // Whoever begins a generation waits, and then begins with what is sealed.
            lock_live(&mut lease, *project).await?;
            if !behind(&mut lease, *project, *last).await?.is_empty() {
                return Err(Error::unavailable(
                    "a new generation of a view began while old events were dropped",
                ));
            }
            let number = project_number(*project);
            let update = "UPDATE head SET dropped = $2 FROM head AS before
                 WHERE head.project = $1 AND before.project = $1 RETURNING $2 - before.dropped";
            let update = lease.prepared(update).await?;
            events += uint(lease.query_one(&update, &[&number, &int(*last)]).await?.try_get(0)?);
            let note = "INSERT INTO dropped (project, position) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            lease.execute(note, &[&number, &int(*last)]).await?;
            let blocks = "DELETE FROM event_block WHERE project = $1 AND block < ($2::int8 + 1) >> 12";
            lease.execute(blocks, &[&number, &int(*last)]).await?;
        }
        lease.execute("DELETE FROM segment_project WHERE segment = $1", &[&segment]).await?;
        lease.execute("DELETE FROM segment WHERE id = $1", &[&segment]).await?;
        lease.batch_execute(&format!("DROP TABLE event_{segment}")).await?;
        lease.commit().await?;
        tracing::info!(segment, events, "dropped a segment of the log");
        Ok(events)
    }

    /// Forgets the identities of events that were dropped long enough ago, and folds their ranges into one a project.
    async fn forget_identities(&self) -> Result<u64, Error> {
        let mut lease = self.0.log.lease().await?;
        let cuts = "SELECT project, max(position) FROM dropped
             WHERE at < now() - make_interval(days => $1) GROUP BY project ORDER BY project";
        let cuts = lease.query(cuts, &[&IDENTITY_DAYS]).await?;
        if cuts.is_empty() {
            return Ok(0);
        }
        let mut forgotten = 0;
        let size = "SELECT pg_relation_size('event_id') / current_setting('block_size')::int8";
        let pages: i64 = lease.query_one(size, &[]).await?.try_get(0)?;
        for first in (0..pages).step_by(usize::try_from(SWEEP_PAGES).expect("a small number")) {
            let sweep = format!(
                "DELETE FROM event_id USING ranges, (
                     SELECT project, max(position) AS position FROM dropped
                     WHERE at < now() - make_interval(days => $1) GROUP BY project) AS cut
                 WHERE event_id.ctid >= '({first},0)' AND event_id.ctid < '({},0)'
                   AND ranges.id = event_id.range_id AND cut.project = event_id.project AND ranges.last <= cut.position",
                first + SWEEP_PAGES
            );
            forgotten += lease.execute(&sweep, &[&IDENTITY_DAYS]).await?;
        }
        for cut in cuts {
            let (project, position): (i32, i64) = (cut.try_get(0)?, cut.try_get(1)?);
            fold_ranges(&mut lease, project, position).await?;
        }
        Ok(forgotten)
    }
}

/// The last position of each project in a segment.
async fn ends(lease: &mut Lease, segment: i32) -> Result<Vec<(ProjectId, u64)>, Error> {
    let select = "SELECT project, position FROM segment_project JOIN head USING (project)
         WHERE segment_project.segment = $1 ORDER BY project";
    let mut ends = Vec::new();
    for row in lease.query(select, &[&segment]).await? {
        let (project, head) = (project_id(row.try_get(0)?), uint(row.try_get(1)?));
        let spans = spans(lease, project).await?;
        let span = spans.iter().find(|span| span.segment == segment);
        ends.push((project, span.map_or(head, |span| span.last).min(head)));
    }
    Ok(ends)
}

/// The generations of the counts that lack events up to a position, the seal, which is generation 0, last: so it is never
/// ahead of the live one, and the two can be held against each other.
async fn behind(lease: &mut Lease, project: ProjectId, last: u64) -> Result<Vec<ViewState>, Error> {
    let select = lease
        .prepared(
            "SELECT generation, applied_to FROM view_state
             WHERE view = $1 AND project = $2 AND applied_to < $3 ORDER BY generation DESC",
        )
        .await?;
    let rows = lease.query(&select, &[&COUNTS, &project_number(project), &int(last)]).await?;
    let read = |row: tokio_postgres::Row| {
        Ok(ViewState { generation: uint(row.try_get(0)?), applied_to: uint(row.try_get(1)?) })
    };
    rows.into_iter().map(read).collect()
}

/// Adds some of what is about to be dropped to a generation that lacks it; says whether there may be more.
async fn seal_step(lease: &mut Lease, project: ProjectId, last: u64) -> Result<bool, Error> {
    lease.begin().await?;
    lock_live(lease, project).await?;
    let seal = "INSERT INTO view_state (view, project, generation, applied_to, has_users)
         VALUES ($1, $2, 0, 0, true) ON CONFLICT DO NOTHING";
    lease.execute(seal, &[&COUNTS, &project_number(project)]).await?;
    let behind = behind(lease, project, last).await?;
    if let Some(state) = behind.first() {
        step(lease, project, *state, last).await?;
    }
    lease.commit().await?;
    Ok(!behind.is_empty())
}

/// Replaces the ranges up to a position by one with their sums, so that the ledger goes on balancing.
async fn fold_ranges(lease: &mut Lease, project: i32, position: i64) -> Result<(), Error> {
    let fold = "WITH gone AS (DELETE FROM ranges WHERE project = $1 AND first <= $2 AND last <= $2 RETURNING *)
         INSERT INTO ranges (id, project, part, parts, first, last, batch, received_ms, received, stored, duplicate,
                             quarantined, rejected)
         SELECT max(id), $1, 0, 1, 1, $2, '00000000-0000-0000-0000-000000000000', max(received_ms), sum(received),
                sum(stored), sum(duplicate), sum(quarantined), sum(rejected)
         FROM gone HAVING count(*) > 0";
    lease.execute(fold, &[&project, &position]).await?;
    Ok(())
}
