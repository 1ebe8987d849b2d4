use std::time::Duration;

use super::counts::lock_live;
use super::pool::Lease;
use super::segments::{When, open_next, spans};
use super::{BLOCK_BITS, Postgres, int, project_id, project_number, rebuild, sweep, uint};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Dropped, Error, ViewState};

/// How long dropping a segment waits for people's queries over it. It holds up new ones while it waits, so it gives up soon and tries
/// again with the next call.
const DROP_LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'";

/// How long it then waits for the log as a whole, which a query keeps that came in between and waits for this segment. Appends want
/// both the heads, which are held by then, and at times the log: whose partition theirs is.
const DROP_LAST_WAIT: &str = "SET LOCAL lock_timeout = '100ms'";

/// Positions of a project taken in one transaction out of a segment that has to stay for another's sake: about 100 ms.
const TRIM_POSITIONS: u64 = 10_000;

/// The right to drop what is old: whoever came last has it. A lock elsewhere expires, and can't keep a process that was paused from
/// waking up behind it; this is asked within each transaction. The tokens are counted here, so no clock can get ahead of them.
#[derive(Clone, Copy)]
pub(super) struct Fence(i64);

impl Fence {
    /// Takes the next token.
    async fn raise(lease: &mut Lease) -> Result<Self, Error> {
        let raise = "INSERT INTO retention (token) VALUES (1)
             ON CONFLICT (only_row) DO UPDATE SET token = retention.token + 1 RETURNING token";
        Ok(Self(lease.query_one(raise, &[]).await?.try_get(0)?))
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

    /// Seals the views, drops the segments that hold nothing younger, and forgets identities some days after that. Takes over from
    /// whoever is at it.
    pub(in crate::store) async fn drop_before(&self, age: Duration) -> Result<Dropped, Error> {
        let mut lease = self.0.log.lease().await?;
        // Where nothing is sent any more no append closes the last one.
        self.0.segments.look(&mut lease).await?;
        let fence = Fence::raise(&mut lease).await?;
        let mut dropped = Dropped::default();
        for segment in due(&mut lease, age).await? {
            let (sealed, all) = seal(&mut lease, segment, &mut dropped).await?;
            if all {
                dropped.events += drop_segment(&mut lease, fence, segment, &sealed).await?;
                dropped.segments += 1;
            } else if dropped.kept.values().any(|error| error.retry().is_some()) {
                // What mends itself is not worth taking a segment apart. Those behind it wait: a log goes from its beginning.
                break;
            } else {
                for (project, last) in sealed {
                    while trim(&mut lease, fence, segment, (project, last), &mut dropped).await? {}
                }
            }
        }
        dropped.identities = sweep::forget_identities(&mut lease, fence).await?;
        Ok(dropped)
    }
}

/// The segments behind which one is old enough itself: then nothing younger was stored in them.
async fn due(lease: &mut Lease, age: Duration) -> Result<Vec<i32>, Error> {
    let select = "SELECT id FROM segment AS old
         WHERE EXISTS (SELECT 1 FROM segment AS next
                       WHERE next.id > old.id AND next.opened_at < now() - make_interval(secs => $1))
         ORDER BY id";
    let rows = lease.query(select, &[&age.as_secs_f64()]).await?;
    rows.into_iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Seals the views of the projects in a segment. Returns the last position of each, in their order, but for those that can't be
/// sealed, which are noted, and whether that is all of them.
async fn seal(
    lease: &mut Lease,
    segment: i32,
    dropped: &mut Dropped,
) -> Result<(Vec<(ProjectId, u64)>, bool), Error> {
    let ends = ends(lease, segment).await?;
    let mut sealed = Vec::with_capacity(ends.len());
    for (project, last) in &ends {
        if dropped.kept.contains_key(project) {
            continue;
        }
        match seal_project(lease, *project, *last).await {
            Ok(()) => sealed.push((*project, *last)),
            Err(error) => {
                // Where not even this is possible it is not about the project.
                lease.rollback().await?;
                dropped.kept.insert(*project, error);
            }
        }
    }
    let all = sealed.len() == ends.len();
    Ok((sealed, all))
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

async fn seal_project(lease: &mut Lease, project: ProjectId, last: u64) -> Result<(), Error> {
    for view in View::ALL {
        while seal_step(lease, view, project, last).await? {}
    }
    Ok(())
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
    if let Some(state) = behind {
        rebuild::step(lease, view, project, state, last).await?;
    }
    lease.commit().await?;
    Ok(behind.is_some())
}

/// The highest generation of a view that lacks events up to a position. The seal, which is generation 0, is the last: so it is
/// never ahead of the live one, and the two can be held against each other. One that isn't copied yet has no position.
async fn behind(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    last: u64,
) -> Result<Option<ViewState>, Error> {
    let select = lease
        .prepared(
            "SELECT generation, applied_to FROM view_state
             WHERE view = $1 AND project = $2 AND applied_to >= 0 AND applied_to < $3 ORDER BY generation DESC LIMIT 1",
        )
        .await?;
    let row = lease.query_opt(&select, &[&view.name(), &project_number(project), &int(last)]).await?;
    let read = |row: tokio_postgres::Row| {
        Ok(ViewState { generation: uint(row.try_get(0)?), applied_to: uint(row.try_get(1)?) })
    };
    row.map(read).transpose()
}

/// Drops a segment whose projects are all sealed. What may have to wait long comes first, the heads, which appends want, last.
async fn drop_segment(
    lease: &mut Lease,
    fence: Fence,
    segment: i32,
    ends: &[(ProjectId, u64)],
) -> Result<u64, Error> {
    fence.begin(lease).await?;
    lease.batch_execute(DROP_LOCK_WAIT).await?;
    lease.batch_execute(&format!("LOCK TABLE ONLY event_{segment} IN ACCESS EXCLUSIVE MODE")).await?;
    lease.execute("DELETE FROM segment_project WHERE segment = $1", &[&segment]).await?;
    lease.execute("DELETE FROM segment WHERE id = $1", &[&segment]).await?;
    let events = move_heads(lease, ends).await?;
    lease.batch_execute(DROP_LAST_WAIT).await?;
    lease.batch_execute(&format!("DROP TABLE event_{segment}")).await?;
    lease.commit().await?;
    tracing::info!(segment, events, "dropped a segment of the log");
    Ok(events)
}

/// Takes some of a project's events out of a segment that has to stay for another's sake; says whether there are more.
async fn trim(
    lease: &mut Lease,
    fence: Fence,
    segment: i32,
    (project, last): (ProjectId, u64),
    dropped: &mut Dropped,
) -> Result<bool, Error> {
    fence.begin(lease).await?;
    let number = project_number(project);
    let from = lease.query_one("SELECT dropped FROM head WHERE project = $1", &[&number]).await?;
    let through = last.min(uint(from.try_get(0)?) + TRIM_POSITIONS);
    let rows = format!("DELETE FROM event_{segment} WHERE project = $1 AND position <= $2");
    lease.execute(&rows, &[&number, &int(through)]).await?;
    if through < last {
        let span = "UPDATE segment_project SET first = $3 WHERE project = $1 AND segment = $2";
        lease.execute(span, &[&number, &segment, &int(through + 1)]).await?;
    } else {
        let span = "DELETE FROM segment_project WHERE project = $1 AND segment = $2";
        lease.execute(span, &[&number, &segment]).await?;
    }
    dropped.events += move_heads(lease, &[(project, through)]).await?;
    lease.commit().await?;
    Ok(through < last)
}

/// Notes through where projects, in their order, are dropped; says how many events that were.
async fn move_heads(lease: &mut Lease, ends: &[(ProjectId, u64)]) -> Result<u64, Error> {
    let (projects, lasts): (Vec<i32>, Vec<i64>) =
        ends.iter().map(|(project, last)| (project_number(*project), int(*last))).unzip();
    // Whoever begins a generation waits, and then begins with what is sealed.
    let views = View::ALL.map(View::name);
    let lock =
        "SELECT FROM view_live WHERE view = ANY($1) AND project = ANY($2) ORDER BY project, view FOR UPDATE";
    lease.execute(lock, &[&&views[..], &projects]).await?;
    let behind = "SELECT EXISTS (
             SELECT FROM unnest($2::int4[], $3::int8[]) AS cut (project, last) JOIN view_state USING (project)
             WHERE view = ANY($1) AND applied_to >= 0 AND applied_to < last)";
    if lease.query_one(behind, &[&&views[..], &projects, &lasts]).await?.try_get(0)? {
        let why = "a new generation of a view began while old events were dropped";
        return Err(Error::unavailable(why));
    }
    let note = "INSERT INTO dropped (project, position) SELECT * FROM unnest($1::int4[], $2::int8[]) ON CONFLICT DO NOTHING";
    lease.execute(note, &[&projects, &lasts]).await?;
    let blocks = format!(
        "DELETE FROM event_block USING unnest($1::int4[], $2::int8[]) AS cut (project, last)
         WHERE event_block.project = cut.project AND block < (last + 1) >> {BLOCK_BITS}"
    );
    lease.execute(&blocks, &[&projects, &lasts]).await?;
    // In the order in which appends lock them.
    let lock = "SELECT coalesce(sum(dropped), 0)::int8
         FROM (SELECT dropped FROM head WHERE project = ANY($1) ORDER BY project FOR UPDATE) AS before";
    let before: i64 = lease.query_one(lock, &[&projects]).await?.try_get(0)?;
    let heads = "UPDATE head SET dropped = last FROM unnest($1::int4[], $2::int8[]) AS cut (project, last)
         WHERE head.project = cut.project";
    lease.execute(heads, &[&projects, &lasts]).await?;
    Ok(uint(lasts.iter().sum::<i64>() - before))
}
