use rusqlite::{Connection, OptionalExtension, params};

use super::append::Head;
use super::job::{Job, Turn};
use super::projects::require_project;
use super::{Sqlite, follow, int, uint};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Error, ViewState};

impl Sqlite {
    pub(in crate::store) async fn rebuild(
        &self,
        view: View,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        let begin_one = move |turn: &mut Turn<'_>| begin(turn.connection, view, project);
        let generation = self.write(Job::Other, begin_one).await?;
        loop {
            let step_on = move |turn: &mut Turn<'_>| step(turn.connection, view, project, generation);
            let done = self.write(Job::Other, step_on).await?;
            progress(done.applied_to, done.head);
            if done.live {
                break;
            }
        }
        let sweep_some = move |turn: &mut Turn<'_>| sweep(turn.connection, view, project);
        while self.write(Job::Other, sweep_some).await? {}
        let live = self.read(move |connection| live_state(connection, view, project)).await?;
        live.ok_or(Error::CountsMissing(project))
    }
}

/// How far the live generation of a view has come; `None` when there is none.
pub(super) fn live_state(
    connection: &Connection,
    view: View,
    project: ProjectId,
) -> Result<Option<ViewState>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT generation, applied_to FROM view_live JOIN view_state USING (view, project, generation)
         WHERE view = ?1 AND project = ?2",
    )?;
    let state = select.query_row(params![view.name(), project.0], |row| {
        Ok(ViewState { generation: row.get(0).map(uint)?, applied_to: row.get(1).map(uint)? })
    });
    Ok(state.optional()?)
}

/// How far a rebuild has come.
pub(super) struct Rebuilt {
    pub(super) applied_to: u64,
    pub(super) head: u64,
    pub(super) live: bool,
}

/// Makes the next generation, or goes on with one that was left unfinished: its `applied_to` says what it contains.
pub(super) fn begin(connection: &Connection, view: View, project: ProjectId) -> Result<u64, Error> {
    let live = match live_state(connection, view, project)? {
        Some(live) => live,
        None => mend(connection, view, project)?,
    };
    let unfinished: Option<i64> = connection.query_row(
        "SELECT max(generation) FROM view_state WHERE view = ?1 AND project = ?2 AND generation > ?3",
        params![view.name(), project.0, int(live.generation)],
        |row| row.get(0),
    )?;
    if let Some(generation) = unfinished {
        return Ok(uint(generation));
    }
    let generation = live.generation + 1;
    // Nobody has made this generation yet; rows of it could only be left over from what somebody removed by hand.
    for table in view.tables() {
        let sql = format!("DELETE FROM {} WHERE project = ?1 AND generation >= ?2", table.name);
        connection.execute(&sql, params![project.0, int(generation)])?;
    }
    connection.execute(
        "INSERT INTO view_state (view, project, generation, applied_to, has_users) VALUES (?1, ?2, ?3, 0, 1)",
        params![view.name(), project.0, int(generation)],
    )?;
    Ok(generation)
}

/// Makes the highest generation there is the live one, or else an empty first one, so that there is one to go on with or to
/// replace.
pub(super) fn mend(connection: &Connection, view: View, project: ProjectId) -> Result<ViewState, Error> {
    require_project(connection, project)?;
    let highest: Option<i64> = connection.query_row(
        "SELECT max(generation) FROM view_state WHERE view = ?1 AND project = ?2 AND generation > 0",
        params![view.name(), project.0],
        |row| row.get(0),
    )?;
    if highest.is_none() {
        connection
            .execute("INSERT INTO view_state VALUES (?1, ?2, 1, 0, 1)", params![view.name(), project.0])?;
        for table in view.tables() {
            connection.execute(&format!("DELETE FROM {} WHERE project = ?1", table.name), [project.0])?;
        }
    }
    connection.execute(
        "INSERT OR REPLACE INTO view_live VALUES (?1, ?2, ?3)",
        params![view.name(), project.0, highest.unwrap_or(1)],
    )?;
    live_state(connection, view, project)?.ok_or(Error::CountsMissing(project))
}

/// One step of a rebuild. The step that reaches the head makes the generation the live one: in the writer's transaction
/// nothing can be appended in between. Two rebuilds at a time share the generation and finish together.
pub(super) fn step(
    connection: &Connection,
    view: View,
    project: ProjectId,
    generation: u64,
) -> Result<Rebuilt, Error> {
    let live = live_state(connection, view, project)?.ok_or(Error::CountsMissing(project))?;
    let head = Head::read(connection, project)?.position;
    if live.generation >= generation {
        return Ok(Rebuilt { applied_to: live.applied_to, head, live: true });
    }
    let applied_to: i64 = connection.query_row(
        "SELECT applied_to FROM view_state WHERE view = ?1 AND project = ?2 AND generation = ?3",
        params![view.name(), project.0, int(generation)],
        |row| row.get(0),
    )?;
    let state = ViewState { generation, applied_to: uint(applied_to) };
    let applied_to = follow::step(connection, view, project, state, head)?;
    let live = applied_to == head;
    if live {
        connection.execute(
            "UPDATE view_live SET generation = ?3 WHERE view = ?1 AND project = ?2",
            params![view.name(), project.0, int(generation)],
        )?;
    }
    Ok(Rebuilt { applied_to, head, live })
}

/// Removes some of the rows of generations older than the live one; says whether there may be more.
pub(super) fn sweep(connection: &Connection, view: View, project: ProjectId) -> Result<bool, Error> {
    let live = live_state(connection, view, project)?.ok_or(Error::CountsMissing(project))?;
    let live = int(live.generation);
    let mut removed = 0;
    for table in view.tables() {
        let (name, key) = (table.name, table.key);
        let sql = format!(
            "DELETE FROM {name} WHERE (project, generation, {key}) IN (
                 SELECT project, generation, {key} FROM {name} WHERE project = ?1 AND generation < ?2 LIMIT ?3)"
        );
        removed += connection.execute(&sql, params![project.0, live, table.step_rows])?;
    }
    if removed > 0 {
        return Ok(true);
    }
    connection.execute(
        "DELETE FROM view_state WHERE view = ?1 AND project = ?2 AND generation < ?3",
        params![view.name(), project.0, live],
    )?;
    Ok(false)
}
