use rusqlite::{Connection, OptionalExtension, params};

use super::counts::COUNTS;
use super::{Sqlite, int};
use crate::insight::Tally;
use crate::project::ProjectId;
use crate::store::views::{PIECES_MAX, SKETCHES_MAX, UserMerge, piece_bounds, read_sketch};
use crate::store::{CountsQuery, Error, UserCounts};

/// In one piece of the index for each grain.
const CELLS_OF_ALL_NAMES: &str = "
    SELECT name, start_ms, sketch FROM piece CROSS JOIN rollup_users
    WHERE project = ?1 AND generation = ?2 AND rollup_users.hours = piece.hours
      AND start_ms >= low AND start_ms < high AND ?3 IS NULL";

/// The key has the time before the name, so a span of it holds all names. The counts have it the other way round, and say which
/// cells there are of one.
const CELLS_OF_ONE_NAME: &str = "
    SELECT name, cell.start_ms, sketch FROM (
        SELECT hours, 0 AS start_ms FROM piece WHERE hours = 0 AND low < high
        UNION
        SELECT hours, hour_ms - (hour_ms % (hours * 3600000) + hours * 3600000) % (hours * 3600000)
        FROM piece CROSS JOIN rollup_counts
        WHERE project = ?1 AND generation = ?2 AND name = ?3 AND hour_ms >= low AND hour_ms < high AND hours > 0
    ) AS counted CROSS JOIN rollup_users AS cell
    WHERE project = ?1 AND generation = ?2 AND cell.hours = counted.hours AND cell.start_ms = counted.start_ms
      AND name = ?3";

impl Sqlite {
    pub(in crate::store) async fn users(
        &self,
        project: ProjectId,
        query: CountsQuery,
    ) -> Result<Option<UserCounts>, Error> {
        self.read(move |connection| users(connection, project, &query)).await
    }
}

/// Merges the users of a tally into the sketches of a table: one read for each cell, and one write for each that changes.
pub(super) fn add(
    connection: &Connection,
    table: &'static str,
    project: ProjectId,
    generation: u64,
    tally: Tally,
) -> Result<(), Error> {
    let key = "project = ?1 AND generation = ?2 AND hours = ?3 AND start_ms = ?4 AND name = ?5";
    let mut select = connection.prepare_cached(&format!("SELECT sketch FROM {table} WHERE {key}"))?;
    let mut upsert = connection.prepare_cached(&format!(
        "INSERT INTO {table} (project, generation, hours, start_ms, name, sketch) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET sketch = excluded.sketch"
    ))?;
    for (cell, mut users) in tally.users() {
        let of = (project.0, int(generation), cell.grain.hours(), cell.start_ms, &cell.name);
        let known: Option<Vec<u8>> = select.query_row(of, |row| row.get(0)).optional()?;
        if let Some(bytes) = known {
            let mut known = read_sketch(&bytes, &cell.name)?;
            if !known.merge(&users) {
                continue;
            }
            users = known;
        }
        upsert.execute(params![of.0, of.1, of.2, of.3, of.4, users.to_bytes()])?;
    }
    Ok(())
}

fn users(
    connection: &Connection,
    project: ProjectId,
    query: &CountsQuery,
) -> Result<Option<UserCounts>, Error> {
    // The generation and its sketches have to come from one snapshot.
    let snapshot = connection.unchecked_transaction()?;
    let mut live = snapshot.prepare_cached(
        "SELECT generation FROM view_live JOIN view_state USING (view, project, generation)
         WHERE view = ?1 AND project = ?2 AND has_users",
    )?;
    let live: Option<i64> = live.query_row(params![COUNTS, project.0], |row| row.get(0)).optional()?;
    let Some(generation) = live else { return Ok(None) };
    let cells = if query.name.is_some() { CELLS_OF_ONE_NAME } else { CELLS_OF_ALL_NAMES };
    let mut select = snapshot.prepare_cached(&format!(
        "WITH piece (hours, low, high) AS (VALUES (?4, ?5, ?6), (?7, ?8, ?9), (?10, ?11, ?12))
         SELECT name, start_ms, sketch FROM ({cells} LIMIT {}) ORDER BY name, start_ms",
        SKETCHES_MAX + 1
    ))?;
    select.raw_bind_parameter(1, project.0)?;
    select.raw_bind_parameter(2, generation)?;
    select.raw_bind_parameter(3, &query.name)?;
    let (hours, low, high) = piece_bounds(query);
    for piece in 0..PIECES_MAX {
        select.raw_bind_parameter(4 + 3 * piece, hours[piece])?;
        select.raw_bind_parameter(5 + 3 * piece, low[piece])?;
        select.raw_bind_parameter(6 + 3 * piece, high[piece])?;
    }
    let mut merge = UserMerge::new(query.by);
    let mut rows = select.raw_query();
    while let Some(row) = rows.next()? {
        let (name, sketch) = (row.get_ref(0)?.as_str(), row.get_ref(2)?.as_blob());
        let (name, sketch) = (name.map_err(rusqlite::Error::from)?, sketch.map_err(rusqlite::Error::from)?);
        merge.add(name, row.get(1)?, sketch)?;
    }
    Ok(Some(merge.finish()))
}
