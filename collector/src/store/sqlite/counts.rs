use std::collections::BTreeMap;

use eventbucket_protocol::Timestamp;
use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::append::Head;
use super::events::CORRECTED_MS;
use super::job::{Job, Turn};
use super::projects::require_project;
use super::{Sqlite, int, key, uint, users};
use uuid::Uuid;

use crate::insight::Tally;
use crate::project::ProjectId;
use crate::store::{Applied, CountRow, CountTotals, CountsBy, CountsQuery, Error, ViewProgress, ViewState};

/// The view's name in `view_state` and `view_live`.
pub(super) const COUNTS: &str = "counts";

/// Positions applied in one transaction: 50,000 rows are read in about 50 ms, which an append then waits for at most.
const STEP_POSITIONS: u64 = 50_000;

/// Rows of an old generation removed in one transaction: about 50 ms.
const SWEEP_ROWS: u32 = 10_000;

/// Sketches of an old generation removed in one transaction, at most 3 KiB each.
const SWEEP_SKETCHES: u32 = 2_000;

/// Rows in one answer: 100,000 of 100 B are 10 MB.
const COUNT_ROWS_MAX: usize = 100_000;

/// The beginning of the hour of an event's corrected time, also before 1970.
pub(super) fn hour_sql() -> String {
    format!("{CORRECTED_MS} - ({CORRECTED_MS} % 3600000 + 3600000) % 3600000")
}

impl Sqlite {
    pub(in crate::store) async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        self.read(view_progress).await
    }

    pub(in crate::store) async fn view_state(&self, project: ProjectId) -> Result<ViewState, Error> {
        self.read(move |connection| live_state(connection, project)).await
    }

    pub(in crate::store) async fn went_back(
        &self,
        project: ProjectId,
        epoch: Uuid,
        seen: ViewState,
    ) -> Result<bool, Error> {
        let is_behind = self.read(move |connection| is_behind(connection, project, &seen)).await?;
        let went_back = is_behind && self.epoch() == epoch;
        if went_back {
            self.renew_epoch(epoch).await?;
        }
        Ok(went_back)
    }

    pub(in crate::store) async fn apply_counts(
        &self,
        project: ProjectId,
        through: u64,
    ) -> Result<Applied, Error> {
        let apply = move |turn: &mut Turn<'_>| {
            let state = live_state(turn.connection, project)?;
            step(turn.connection, project, state, through)
        };
        self.write(Job::Other, apply).await
    }

    pub(in crate::store) async fn counts(
        &self,
        project: ProjectId,
        query: CountsQuery,
    ) -> Result<Vec<CountRow>, Error> {
        self.read(move |connection| counts(connection, project, &query)).await
    }

    pub(in crate::store) async fn count_totals(
        &self,
        project: ProjectId,
        names_max: usize,
    ) -> Result<CountTotals, Error> {
        self.read(move |connection| count_totals(connection, project, names_max)).await
    }

    pub(in crate::store) async fn rebuild_counts(
        &self,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        let begin = move |turn: &mut Turn<'_>| begin_rebuild(turn.connection, project);
        let generation = self.write(Job::Other, begin).await?;
        loop {
            let rebuild = move |turn: &mut Turn<'_>| rebuild_step(turn.connection, project, generation);
            let done = self.write(Job::Other, rebuild).await?;
            progress(done.applied_to, done.head);
            if done.live {
                break;
            }
        }
        let sweep_some = move |turn: &mut Turn<'_>| sweep(turn.connection, project);
        while self.write(Job::Other, sweep_some).await? {}
        self.read(move |connection| live_state(connection, project)).await
    }
}

pub(super) fn view_progress(connection: &Connection) -> Result<Vec<ViewProgress>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT project, generation, applied_to, position
         FROM view_live JOIN view_state USING (view, project, generation) JOIN head USING (project)
         WHERE view = ?1 ORDER BY project",
    )?;
    let rows = select.query_map([COUNTS], |row| {
        let state = ViewState { generation: row.get(1).map(uint)?, applied_to: row.get(2).map(uint)? };
        Ok(ViewProgress { project: ProjectId(row.get(0)?), state, head: row.get(3).map(uint)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn is_behind(
    connection: &Connection,
    project: ProjectId,
    seen: &ViewState,
) -> Result<bool, Error> {
    let head = Head::read(connection, project)?.position;
    Ok(live_state(connection, project)?.is_behind(head, seen))
}

pub(super) fn live_state(connection: &Connection, project: ProjectId) -> Result<ViewState, Error> {
    let mut select = connection.prepare_cached(
        "SELECT generation, applied_to FROM view_live JOIN view_state USING (view, project, generation)
         WHERE view = ?1 AND project = ?2",
    )?;
    let state = select.query_row(params![COUNTS, project.0], |row| {
        Ok(ViewState { generation: row.get(0).map(uint)?, applied_to: row.get(1).map(uint)? })
    });
    if let Some(state) = state.optional()? {
        return Ok(state);
    }
    // A project comes with a generation; without one its rows were tampered with.
    require_project(connection, project)?;
    Err(Error::CountsMissing(project))
}

/// Adds what lies behind a generation's `applied_to` to it, and moves `applied_to`.
pub(super) fn step(
    connection: &Connection,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<Applied, Error> {
    let ViewState { generation, applied_to: from } = state;
    let head = Head::read(connection, project)?.position;
    let through = through.min(head).min(from.saturating_add(STEP_POSITIONS));
    if through <= from {
        return Ok(Applied { generation, from, through: from, per_name: Vec::new() });
    }
    let tally = tally(connection, key(project, from), key(project, through))?;
    let mut upsert = connection.prepare_cached(
        "INSERT INTO rollup_counts (project, generation, name, hour_ms, count) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
    )?;
    for (name, hour_ms, count) in tally.counts() {
        upsert.execute(params![project.0, int(generation), name, hour_ms, int(count)])?;
    }
    let per_name = tally.per_name();
    users::add(connection, "rollup_users", project, generation, tally)?;
    let mut update = connection.prepare_cached(
        "UPDATE view_state SET applied_to = ?4 WHERE view = ?1 AND project = ?2 AND generation = ?3",
    )?;
    update.execute(params![COUNTS, project.0, int(generation), int(through)])?;
    Ok(Applied { generation, from, through, per_name })
}

/// Counts the rows behind a key, up to another, from the table itself.
pub(super) fn tally(connection: &Connection, after: i64, last: i64) -> Result<Tally, Error> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT name, {}, user FROM event NOT INDEXED WHERE key > ?1 AND key <= ?2",
        hour_sql()
    ))?;
    let mut tally = Tally::default();
    let mut rows = select.query([after, last])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let user = row.get_ref(2)?.as_bytes_or_null().map_err(rusqlite::Error::from)?;
        tally.add(name, row.get(1)?, 1, user);
    }
    Ok(tally)
}

fn counts(connection: &Connection, project: ProjectId, query: &CountsQuery) -> Result<Vec<CountRow>, Error> {
    let (hour, group) = match query.by {
        CountsBy::Total => ("NULL", "name"),
        CountsBy::Day => ("hour_ms - (hour_ms % 86400000 + 86400000) % 86400000", "name, 2"),
        CountsBy::Hour => ("hour_ms", "name, 2"),
    };
    // A row value in the condition would hide the primary key from the planner.
    let only = if query.name.is_some() { "name = :name" } else { ":name IS NULL" };
    let mut select = connection.prepare_cached(&format!(
        "SELECT name, {hour}, sum(count) FROM rollup_counts
         WHERE project = :project
           AND generation = (SELECT generation FROM view_live WHERE view = :view AND project = :project)
           AND {only} AND hour_ms >= :from AND hour_ms < :to
         GROUP BY {group} ORDER BY {group}"
    ))?;
    let mut rows = select.query(named_params! {
        ":project": project.0,
        ":view": COUNTS,
        ":name": query.name,
        ":from": query.from_hour.map_or(i64::MIN, Timestamp::ms),
        ":to": query.to_hour.map_or(i64::MAX, Timestamp::ms),
    })?;
    let mut counts = Vec::new();
    while let Some(row) = rows.next()? {
        if counts.len() == COUNT_ROWS_MAX {
            return Err(Error::TooManyRows { limit: COUNT_ROWS_MAX });
        }
        let start = row.get::<_, Option<i64>>(1)?.and_then(Timestamp::from_ms);
        counts.push(CountRow { name: row.get(0)?, start, count: row.get(2).map(uint)? });
    }
    Ok(counts)
}

pub(super) fn count_totals(
    connection: &Connection,
    project: ProjectId,
    names_max: usize,
) -> Result<CountTotals, Error> {
    // The state and the counts have to come from one snapshot.
    let snapshot = connection.unchecked_transaction()?;
    let state = live_state(&snapshot, project)?;
    let mut select = snapshot.prepare_cached(
        "SELECT name, sum(count) FROM rollup_counts WHERE project = ?1 AND generation = ?2 GROUP BY name",
    )?;
    let mut rows = select.query(params![project.0, int(state.generation)])?;
    let mut per_name = BTreeMap::new();
    while let Some(row) = rows.next()? {
        if per_name.len() == names_max {
            return Ok(CountTotals { state, per_name: BTreeMap::new(), complete: false });
        }
        per_name.insert(row.get(0)?, row.get(1).map(uint)?);
    }
    Ok(CountTotals { state, per_name, complete: true })
}

/// How far a rebuild has come.
pub(super) struct Rebuilt {
    pub(super) applied_to: u64,
    pub(super) head: u64,
    pub(super) live: bool,
}

/// Makes the next generation, or goes on with one that was left unfinished: its `applied_to` says what it contains.
pub(super) fn begin_rebuild(connection: &Connection, project: ProjectId) -> Result<u64, Error> {
    let live = match live_state(connection, project) {
        Err(Error::CountsMissing(_)) => mend(connection, project)?,
        found => found?,
    };
    let unfinished: Option<i64> = connection.query_row(
        "SELECT max(generation) FROM view_state WHERE view = ?1 AND project = ?2 AND generation > ?3",
        params![COUNTS, project.0, int(live.generation)],
        |row| row.get(0),
    )?;
    if let Some(generation) = unfinished {
        return Ok(uint(generation));
    }
    let generation = live.generation + 1;
    // Nobody has made this generation yet; rows of it could only be left over from what somebody removed by hand.
    for rollup in ["rollup_counts", "rollup_users"] {
        connection.execute(
            &format!("DELETE FROM {rollup} WHERE project = ?1 AND generation >= ?2"),
            params![project.0, int(generation)],
        )?;
    }
    connection.execute(
        "INSERT INTO view_state (view, project, generation, applied_to, has_users) VALUES (?1, ?2, ?3, 0, 1)",
        params![COUNTS, project.0, int(generation)],
    )?;
    Ok(generation)
}

/// Makes the highest generation there is the live one, or else an empty first one, so that a rebuild has one to replace.
fn mend(connection: &Connection, project: ProjectId) -> Result<ViewState, Error> {
    let highest: Option<i64> = connection.query_row(
        "SELECT max(generation) FROM view_state WHERE view = ?1 AND project = ?2 AND generation > 0",
        params![COUNTS, project.0],
        |row| row.get(0),
    )?;
    if highest.is_none() {
        connection
            .execute("INSERT INTO view_state VALUES (?1, ?2, 1, 0, 1)", params![COUNTS, project.0])
            .and_then(|_| connection.execute("DELETE FROM rollup_counts WHERE project = ?1", [project.0]))
            .and_then(|_| connection.execute("DELETE FROM rollup_users WHERE project = ?1", [project.0]))?;
    }
    connection.execute(
        "INSERT OR REPLACE INTO view_live VALUES (?1, ?2, ?3)",
        params![COUNTS, project.0, highest.unwrap_or(1)],
    )?;
    live_state(connection, project)
}

/// One step of a rebuild. The step that reaches the head makes the generation the live one: in the writer's transaction
/// nothing can be appended in between. Two rebuilds at a time share the generation and finish together.
pub(super) fn rebuild_step(
    connection: &Connection,
    project: ProjectId,
    generation: u64,
) -> Result<Rebuilt, Error> {
    let live = live_state(connection, project)?;
    let head = Head::read(connection, project)?.position;
    if live.generation >= generation {
        return Ok(Rebuilt { applied_to: live.applied_to, head, live: true });
    }
    let applied_to: i64 = connection.query_row(
        "SELECT applied_to FROM view_state WHERE view = ?1 AND project = ?2 AND generation = ?3",
        params![COUNTS, project.0, int(generation)],
        |row| row.get(0),
    )?;
    let state = ViewState { generation, applied_to: uint(applied_to) };
    let applied_to = step(connection, project, state, head)?.through;
    let live = applied_to == head;
    if live {
        connection.execute(
            "UPDATE view_live SET generation = ?3 WHERE view = ?1 AND project = ?2",
            params![COUNTS, project.0, int(generation)],
        )?;
    }
    Ok(Rebuilt { applied_to, head, live })
}

/// Removes some of the rows of generations older than the live one; says whether there may be more.
pub(super) fn sweep(connection: &Connection, project: ProjectId) -> Result<bool, Error> {
    let live = int(live_state(connection, project)?.generation);
    let removed = connection.execute(
        "DELETE FROM rollup_counts WHERE (project, generation, name, hour_ms) IN (
             SELECT project, generation, name, hour_ms FROM rollup_counts
             WHERE project = ?1 AND generation < ?2 LIMIT ?3)",
        params![project.0, live, SWEEP_ROWS],
    )?;
    let sketches = connection.execute(
        "DELETE FROM rollup_users WHERE rowid IN (
             SELECT rowid FROM rollup_users WHERE project = ?1 AND generation < ?2 LIMIT ?3)",
        params![project.0, live, SWEEP_SKETCHES],
    )?;
    if removed + sketches > 0 {
        return Ok(true);
    }
    connection.execute(
        "DELETE FROM view_state WHERE view = ?1 AND project = ?2 AND generation < ?3",
        params![COUNTS, project.0, live],
    )?;
    Ok(false)
}
