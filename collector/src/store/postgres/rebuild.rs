use super::counts::{self, find_live, lock_live, position};
use super::pool::Lease;
use super::{Postgres, identifications, int, project_number, uint};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Error, ViewState};

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
        self.rebuild(View::Counts, project, progress).await
    }

    pub(in crate::store) async fn rebuild_identifications(
        &self,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        self.rebuild(View::Identifications, project, progress).await
    }

    async fn rebuild(
        &self,
        view: View,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.log.lease().await?;
        lease.begin().await?;
        let generation = begin(&mut lease, view, project).await?;
        lease.commit().await?;
        loop {
            lease.begin().await?;
            let done = rebuild_step(&mut lease, view, project, generation).await?;
            lease.commit().await?;
            progress(done.applied_to, done.head);
            if done.live {
                break;
            }
        }
        while sweep(&mut lease, view, project).await? {}
        find_live(&mut lease, view, project).await?.ok_or(Error::CountsMissing(project))
    }
}

/// One step of one generation of a view; returns how far it has come.
pub(super) async fn step(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<u64, Error> {
    match view {
        View::Counts => Ok(counts::step(lease, project, state, through).await?.through),
        View::Identifications => Ok(identifications::step(lease, project, state, through).await?.through),
    }
}

/// Makes the next generation, or goes on with one that was left unfinished: its `applied_to` says what it contains.
async fn begin(lease: &mut Lease, view: View, project: ProjectId) -> Result<u64, Error> {
    let live = match lock_live(lease, view, project).await? {
        Some(live) => live,
        None => mend(lease, view, project).await?,
    };
    let number = project_number(project);
    let select =
        "SELECT max(generation) FROM view_state WHERE view = $1 AND project = $2 AND generation > $3";
    let row = lease.query_one(select, &[&view.name(), &number, &int(live.generation)]).await?;
    if let Some(unfinished) = row.try_get::<_, Option<i64>>(0)? {
        return Ok(uint(unfinished));
    }
    let generation = live.generation + 1;
    for table in view.tables() {
        // Nobody has made this generation yet; rows of it could only be left over from what somebody removed by hand.
        let clear = format!("DELETE FROM {} WHERE project = $1 AND generation >= $2", table.name);
        lease.execute(&clear, &[&number, &int(generation)]).await?;
        // What was dropped from the log is in generation 0.
        let (name, columns) = (table.name, format!("{}, {}", table.key, table.values));
        let sealed = format!(
            "INSERT INTO {name} (project, generation, {columns})
             SELECT project, $2, {columns} FROM {name} WHERE project = $1 AND generation = 0"
        );
        lease.execute(&sealed, &[&number, &int(generation)]).await?;
    }
    let state = "INSERT INTO view_state (view, project, generation, applied_to, has_users)
         SELECT $1::text, $2::int4, $3::int8, coalesce(max(applied_to), 0), coalesce(bool_and(has_users), true)
         FROM view_state WHERE view = $1 AND project = $2 AND generation = 0";
    lease.execute(state, &[&view.name(), &number, &int(generation)]).await?;
    Ok(generation)
}

/// Makes the highest generation there is the live one, or else an empty first one, so that there is one to go on with or to
/// replace.
pub(super) async fn mend(lease: &mut Lease, view: View, project: ProjectId) -> Result<ViewState, Error> {
    let number = project_number(project);
    let select = "SELECT max(generation) FROM view_state WHERE view = $1 AND project = $2 AND generation > 0";
    let row = lease.query_one(select, &[&view.name(), &number]).await?;
    let highest: Option<i64> = row.try_get(0)?;
    if highest.is_none() {
        for table in view.tables() {
            let clear = format!("DELETE FROM {} WHERE project = $1 AND generation > 0", table.name);
            lease.execute(&clear, &[&number]).await?;
        }
        let state = "INSERT INTO view_state (view, project, generation, applied_to, has_users)
             VALUES ($1, $2, 1, 0, true) ON CONFLICT DO NOTHING";
        lease.execute(state, &[&view.name(), &number]).await?;
    }
    let live = "INSERT INTO view_live (view, project, generation) VALUES ($1, $2, $3)
         ON CONFLICT (view, project) DO UPDATE SET generation = excluded.generation";
    lease.execute(live, &[&view.name(), &number, &highest.unwrap_or(1)]).await?;
    find_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))
}

/// One step of a rebuild. The step that reaches the head, and has then come as far as the live generation, makes the new
/// one live. Two rebuilds at a time share the generation and finish together.
async fn rebuild_step(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    generation: u64,
) -> Result<Rebuilt, Error> {
    let live = lock_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))?;
    let (number, generation_number) = (project_number(project), int(generation));
    let head = position(lease, project).await?;
    if live.generation >= generation {
        return Ok(Rebuilt { applied_to: live.applied_to, head, live: true });
    }
    let select = "SELECT applied_to FROM view_state WHERE view = $1 AND project = $2 AND generation = $3";
    let row = lease.query_one(select, &[&view.name(), &number, &generation_number]).await?;
    let state = ViewState { generation, applied_to: uint(row.try_get(0)?) };
    let applied_to = step(lease, view, project, state, head).await?;
    let reached = applied_to >= head && applied_to >= live.applied_to;
    if reached {
        let switch = "UPDATE view_live SET generation = $3 WHERE view = $1 AND project = $2";
        lease.execute(switch, &[&view.name(), &number, &generation_number]).await?;
    }
    Ok(Rebuilt { applied_to, head, live: reached })
}

/// Removes some of the rows of generations older than the live one; says whether there may be more.
async fn sweep(lease: &mut Lease, view: View, project: ProjectId) -> Result<bool, Error> {
    let live = find_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))?;
    let (number, generation) = (project_number(project), int(live.generation));
    let mut removed = 0;
    for table in view.tables() {
        let (name, key) = (table.name, table.key);
        let sweep = format!(
            "DELETE FROM {name}
             WHERE (project, generation, {key}) IN (
                 SELECT project, generation, {key} FROM {name}
                 WHERE project = $1 AND generation > 0 AND generation < $2 LIMIT $3)"
        );
        let sweep = lease.prepared(&sweep).await?;
        removed += lease.execute(&sweep, &[&number, &generation, &table.sweep_rows]).await?;
    }
    if removed > 0 {
        return Ok(true);
    }
    let forget =
        "DELETE FROM view_state WHERE view = $1 AND project = $2 AND generation > 0 AND generation < $3";
    lease.execute(forget, &[&view.name(), &number, &generation]).await?;
    Ok(false)
}
