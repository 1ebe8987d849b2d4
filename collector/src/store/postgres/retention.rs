use std::time::Duration;

use super::counts::lock_live;
use super::pool::Lease;
use super::segments::{When, open_next, spans};
use super::{BLOCK_BITS, Postgres, int, project_id, project_number, rebuild, sweep, uint};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Dropped, Error, ViewState};

/// How long dropping a segment waits for people's queries over the whole log. It holds up new ones while it waits, so it
/// gives up soon and tries again with the next call.
const DROP_LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'";

/// The right to drop what is old: the highest token that the database has seen has it. A lock elsewhere expires, and can't keep a
/// process that was paused from waking up behind it; this is asked within each transaction.
#[derive(Clone, Copy)]
pub(super) struct Fence(i64);

impl Fence {
    /// Makes a token the highest, or takes one that is.
    async fn raise(lease: &mut Lease, token: Option<u64>) -> Result<Self, Error> {
        let raise = "INSERT INTO retention (token) VALUES (coalesce($1::int8, 1))
             ON CONFLICT (only_row) DO UPDATE SET token = coalesce($1, retention.token + 1)
             WHERE $1 IS NULL OR retention.token <= $1 RETURNING token";
        let row = lease.query_opt(raise, &[&token.map(int)]).await?;
        Ok(Self(row.ok_or(Error::TakenOver)?.try_get(0)?))
    }

    /// Begins a transaction beside which there is no other of its kind.
    pub(super) async fn begin(self, lease: &mut Lease) -> Result<(), Error> {
        lease.begin().await?;
        let select = lease.prepared("SELECT token FROM retention FOR UPDATE").await?;
        let row = lease.query_opt(&select, &[]).await?;
        if row.map(|row| row.try_get(0)).transpose()? == Some(self.0) {
            return Ok(());
        }
        lease.rollback().await?;
        Err(Error::TakenOver)
    }
}

impl Postgres {
    pub(in crate::store) async fn begin_segment(&self) -> Result<(), Error> {
        open_next(&mut self.0.log.lease().await?, When::Now).await
    }

    /// Seals the views, drops the segments that hold nothing younger, and forgets identities some days after that. Without a
    /// token it takes the next one, and so takes over from whoever is at it.
    pub(in crate::store) async fn drop_before(
        &self,
        age: Duration,
        token: Option<u64>,
    ) -> Result<Dropped, Error> {
        let fence = Fence::raise(&mut self.0.log.lease().await?, token).await?;
        let mut dropped = Dropped::default();
        while let Some(segment) = self.oldest_to_drop(age).await? {
            dropped.events += self.drop_segment(segment, fence).await?;
            dropped.segments += 1;
        }
        dropped.identities = sweep::forget_identities(&mut self.0.log.lease().await?, fence).await?;
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

    async fn drop_segment(&self, segment: i32, fence: Fence) -> Result<u64, Error> {
        let mut lease = self.0.log.lease().await?;
        let ends = ends(&mut lease, segment).await?;
        for (project, last) in &ends {
            for view in View::ALL {
                while seal_step(&mut lease, view, *project, *last).await? {}
            }
        }
        fence.begin(&mut lease).await?;
        lease.batch_execute(DROP_LOCK_WAIT).await?;
        let mut events = 0;
        for (project, last) in &ends {
            // Whoever begins a generation waits, and then begins with what is sealed.
            for view in View::ALL {
                lock_live(&mut lease, view, *project).await?;
                if !behind(&mut lease, view, *project, *last).await?.is_empty() {
                    return Err(Error::unavailable(
                        "a new generation of a view began while old events were dropped",
                    ));
                }
            }
            let number = project_number(*project);
            let update = "UPDATE head SET dropped = $2 FROM head AS before
                 WHERE head.project = $1 AND before.project = $1 RETURNING $2 - before.dropped";
            let update = lease.prepared(update).await?;
            events += uint(lease.query_one(&update, &[&number, &int(*last)]).await?.try_get(0)?);
            let note = "INSERT INTO dropped (project, position) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            lease.execute(note, &[&number, &int(*last)]).await?;
            let blocks = "DELETE FROM event_block WHERE project = $1 AND block < $2";
            lease.execute(blocks, &[&number, &int((last + 1) >> BLOCK_BITS)]).await?;
        }
        lease.execute("DELETE FROM segment_project WHERE segment = $1", &[&segment]).await?;
        lease.execute("DELETE FROM segment WHERE id = $1", &[&segment]).await?;
        lease.batch_execute(&format!("DROP TABLE event_{segment}")).await?;
        lease.commit().await?;
        tracing::info!(segment, events, "dropped a segment of the log");
        Ok(events)
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

/// The generations of a view that lack events up to a position, the seal, which is generation 0, last: so it is never
/// ahead of the live one, and the two can be held against each other.
async fn behind(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    last: u64,
) -> Result<Vec<ViewState>, Error> {
    let select = lease
        .prepared(
            "SELECT generation, applied_to FROM view_state
             WHERE view = $1 AND project = $2 AND applied_to < $3 ORDER BY generation DESC",
        )
        .await?;
    let rows = lease.query(&select, &[&view.name(), &project_number(project), &int(last)]).await?;
    let read = |row: tokio_postgres::Row| {
        Ok(ViewState { generation: uint(row.try_get(0)?), applied_to: uint(row.try_get(1)?) })
    };
    rows.into_iter().map(read).collect()
}

/// Adds some of what is about to be dropped to a generation that lacks it; says whether there may be more.
async fn seal_step(lease: &mut Lease, view: View, project: ProjectId, last: u64) -> Result<bool, Error> {
    lease.begin().await?;
    if lock_live(lease, view, project).await?.is_none() {
        if view == View::Counts {
            return Err(Error::CountsMissing(project));
        }
        rebuild::mend(lease, view, project).await?;
    }
    let seal = "INSERT INTO view_state (view, project, generation, applied_to, has_users)
         SELECT $1, project, 0, dropped, true FROM head WHERE project = $2 ON CONFLICT DO NOTHING";
    lease.execute(seal, &[&view.name(), &project_number(project)]).await?;
    let behind = behind(lease, view, project, last).await?;
    if let Some(state) = behind.first() {
        rebuild::step(lease, view, project, *state, last).await?;
    }
    lease.commit().await?;
    Ok(!behind.is_empty())
}
