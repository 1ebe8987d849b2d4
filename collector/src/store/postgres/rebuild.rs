use super::counts::{COUNTS, live_state, lock_live, position, step};
use super::pool::Lease;
use super::{Postgres, int, project_number, uint};
use crate::project::ProjectId;
use crate::store::{Error, ViewState};

/// Rows of an old generation removed in one transaction: about 50 ms.
const SWEEP_ROWS: i64 = 10_000;

/// Sketches of an old generation removed in one transaction, at most 3 KiB each.
const SWEEP_SKETCHES: i64 = 2_000;

/// How far a rebuild has come.
struct Rebuilt {
    applied_to: u64,
    head: u64,
    live: bool,
}

impl Postgres {
    pub(in crate::store) async fn rebuild_counts(
        &self,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.log.lease().await?;
        lease.begin().await?;
        let generation = begin(&mut lease, project).await?;
        lease.commit().await?;
        loop {
            lease.begin().await?;
            let done = rebuild_step(&mut lease, project, generation).await?;
            lease.commit().await?;
            progress(done.applied_to, done.head);
            if done.live {
                break;
            }
        }
        while sweep(&mut lease, project).await? {}
        live_state(&mut lease, project).await
    }
}

/// Makes the next generation, or goes on with one that was left unfinished: its `applied_to` says what it contains.
async fn begin(lease: &mut Lease, project: ProjectId) -> Result<u64, Error> {
    let live = match lock_live(lease, project).await {
        Err(Error::CountsMissing(_)) => mend(lease, project).await?,
        found => found?,
    };
    let number = project_number(project);
    let select =
        "SELECT max(generation) FROM view_state WHERE view = $1 AND project = $2 AND generation > $3";
    let row = lease.query_one(select, &[&COUNTS, &number, &int(live.generation)]).await?;
    if let Some(unfinished) = row.try_get::<_, Option<i64>>(0)? {
        return Ok(uint(unfinished));
    }
    let generation = live.generation + 1;
    // Nobody has made this generation yet; rows of it could only be left over from what somebody removed by hand.
    for rollup in ["rollup_counts", "rollup_users"] {
        let clear = format!("DELETE FROM {rollup} WHERE project = $1 AND generation >= $2");
        lease.execute(&clear, &[&number, &int(generation)]).await?;
    }
    // What was dropped from the log is in generation 0.
    let sealed = "INSERT INTO rollup_counts (project, generation, hour_ms, count, name)
         SELECT project, $2, hour_ms, count, name FROM rollup_counts WHERE project = $1 AND generation = 0";
    lease.execute(sealed, &[&number, &int(generation)]).await?;
    let sealed = "INSERT INTO rollup_users (project, generation, hours, start_ms, name, sketch)
         SELECT project, $2, hours, start_ms, name, sketch FROM rollup_users WHERE project = $1 AND generation = 0";
    lease.execute(sealed, &[&number, &int(generation)]).await?;
    let state = "INSERT INTO view_state (view, project, generation, applied_to, has_users)
         SELECT $1::text, $2::int4, $3::int8, coalesce(max(applied_to), 0), coalesce(bool_and(has_users), true)
         FROM view_state WHERE view = $1 AND project = $2 AND generation = 0";
    lease.execute(state, &[&COUNTS, &number, &int(generation)]).await?;
    Ok(generation)
}

/// Makes the highest generation there is the live one, or else an empty first one, so that a rebuild has one to replace.
async fn mend(lease: &mut Lease, project: ProjectId) -> Result<ViewState, Error> {
    let number = project_number(project);
    let select = "SELECT max(generation) FROM view_state WHERE view = $1 AND project = $2 AND generation > 0";
    let row = lease.query_one(select, &[&COUNTS, &number]).await?;
    let highest: Option<i64> = row.try_get(0)?;
    if highest.is_none() {
        for rollup in ["rollup_counts", "rollup_users"] {
            let clear = format!("DELETE FROM {rollup} WHERE project = $1 AND generation > 0");
            lease.execute(&clear, &[&number]).await?;
        }
        let state = "INSERT INTO view_state (view, project, generation, applied_to, has_users) VALUES ($1, $2, 1, 0, true)";
        lease.execute(state, &[&COUNTS, &number]).await?;
    }
    let live = "INSERT INTO view_live (view, project, generation) VALUES ($1, $2, $3)
         ON CONFLICT (view, project) DO UPDATE SET generation = excluded.generation";
    lease.execute(live, &[&COUNTS, &number, &highest.unwrap_or(1)]).await?;
    live_state(lease, project).await
}

/// One step of a rebuild. The step that reaches the head, and has then come as far as the live generation, makes the new
/// one live. Two rebuilds at a time share the generation and finish together.
async fn rebuild_step(lease: &mut Lease, project: ProjectId, generation: u64) -> Result<Rebuilt, Error> {
    let live = lock_live(lease, project).await?;
    let (number, generation_number) = (project_number(project), int(generation));
    let head = position(lease, project).await?;
    if live.generation >= generation {
        return Ok(Rebuilt { applied_to: live.applied_to, head, live: true });
    }
    let select = "SELECT applied_to FROM view_state WHERE view = $1 AND project = $2 AND generation = $3";
    let row = lease.query_one(select, &[&COUNTS, &number, &generation_number]).await?;
    let state = ViewState { generation, applied_to: uint(row.try_get(0)?) };
    let applied_to = step(lease, project, state, head).await?.through;
    let reached = applied_to >= head && applied_to >= live.applied_to;
    if reached {
        let switch = "UPDATE view_live SET generation = $3 WHERE view = $1 AND project = $2";
        lease.execute(switch, &[&COUNTS, &number, &generation_number]).await?;
    }
    Ok(Rebuilt { applied_to, head, live: reached })
}

/// Removes some of the rows of generations older than the live one; says whether there may be more.
async fn sweep(lease: &mut Lease, project: ProjectId) -> Result<bool, Error> {
    let live = live_state(lease, project).await?;
    let (number, generation) = (project_number(project), int(live.generation));
    let sweep = "DELETE FROM rollup_counts
         WHERE (project, generation, name, hour_ms) IN (
             SELECT project, generation, name, hour_ms FROM rollup_counts
             WHERE project = $1 AND generation > 0 AND generation < $2 LIMIT $3)";
    let sweep = lease.prepared(sweep).await?;
    let rows = lease.execute(&sweep, &[&number, &generation, &SWEEP_ROWS]).await?;
    let sweep = "DELETE FROM rollup_users
         WHERE (project, generation, hours, start_ms, name) IN (
             SELECT project, generation, hours, start_ms, name FROM rollup_users
             WHERE project = $1 AND generation > 0 AND generation < $2 LIMIT $3)";
    let sweep = lease.prepared(sweep).await?;
    if rows + lease.execute(&sweep, &[&number, &generation, &SWEEP_SKETCHES]).await? > 0 {
        return Ok(true);
    }
    let forget =
        "DELETE FROM view_state WHERE view = $1 AND project = $2 AND generation > 0 AND generation < $3";
    lease.execute(forget, &[&COUNTS, &number, &generation]).await?;
    Ok(false)
}
