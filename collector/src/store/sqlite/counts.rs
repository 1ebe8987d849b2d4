use std::collections::BTreeMap;

use eventbucket_protocol::Timestamp;
use rusqlite::{Connection, named_params, params};

use super::append::Head;
use super::events::CORRECTED_MS;
use super::job::{Job, Turn};
use super::projects::require_project;
use super::{Sqlite, follow, int, rebuild, uint, users};
use uuid::Uuid;

use crate::insight::Tally;
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Applied, CountRow, CountTotals, CountsBy, CountsQuery, Error, ViewProgress, ViewState};

/// The view's name in `view_state` and `view_live`.
pub(super) const COUNTS: &str = "counts";

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
        let apply = move |turn: &mut Turn<'_>| follow::apply(turn.connection, project, through);
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
}

pub(super) fn view_progress(connection: &Connection) -> Result<Vec<ViewProgress>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT project, generation, applied_to, position,
                coalesce((SELECT other.applied_to FROM view_live JOIN view_state AS other USING (view, project, generation)
                          WHERE view = ?2 AND project = head.project), 0)
         FROM view_live JOIN view_state USING (view, project, generation) JOIN head USING (project)
         WHERE view = ?1 ORDER BY project",
    )?;
    let rows = select.query_map([COUNTS, View::Identifications.name()], |row| {
        let state = ViewState { generation: row.get(1).map(uint)?, applied_to: row.get(2).map(uint)? };
        let (head, identified_to) = (row.get(3).map(uint)?, row.get(4).map(uint)?);
        Ok(ViewProgress { project: ProjectId(row.get(0)?), state, identified_to, head })
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
    if let Some(state) = rebuild::live_state(connection, View::Counts, project)? {
        return Ok(state);
    }
    // A project comes with a generation; without one its rows were tampered with.
    require_project(connection, project)?;
    Err(Error::CountsMissing(project))
}

/// Adds what was tallied to a generation.
pub(super) fn add(
    connection: &Connection,
    project: ProjectId,
    generation: u64,
    tally: Tally,
) -> Result<(), Error> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO rollup_counts (project, generation, name, hour_ms, count) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
    )?;
    for (name, hour_ms, count) in tally.counts() {
        upsert.execute(params![project.0, int(generation), name, hour_ms, int(count)])?;
    }
    users::add(connection, "rollup_users", project, generation, tally)
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
