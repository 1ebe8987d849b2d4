use std::fs;
use std::path::Path;

use eventbucket_protocol::Timestamp;
use rusqlite::Connection;

use super::place::log_of;
use super::{POSITION_BITS, open, soundness, uint};
use crate::store::Error;
use crate::store::look::{PROJECTS_MAX, ProjectFacts, SAMPLE_EVENTS, SchemaFacts, StoreFacts, share_out};

/// See [`crate::store::Store::look`].
pub(in crate::store) fn look(database: &Path) -> Result<StoreFacts, Error> {
    let (connection, found) = open::to_copy(database)?;
    let difference = if found == open::SCHEMA { soundness::schema(&connection)? } else { None };
    let size = |file: &Path| fs::metadata(file).map_or(0, |found| found.len());
    let bytes = size(database);
    let (mut projects, averages) = projects(&connection)?;
    share_out(bytes, &mut projects, &averages);
    Ok(StoreFacts {
        engine: format!("SQLite {}", rusqlite::version()),
        schemas: vec![SchemaFacts { part: "file", found, known: open::SCHEMA }],
        difference,
        bytes,
        log_bytes: Some(size(&log_of(database))),
        projects,
        settings: Vec::new(),
    })
}

/// Each project, and how long its newest events are on average.
fn projects(connection: &Connection) -> Result<(Vec<ProjectFacts>, Vec<f64>), Error> {
    let low = format!("number << {POSITION_BITS}");
    let events = format!("FROM event WHERE key BETWEEN {low} AND ({low}) + (1 << {POSITION_BITS}) - 1");
    let mut select = connection.prepare(&format!(
        "SELECT called, coalesce(position, 0),
                position - (SELECT applied_to FROM view_live JOIN view_state USING (view, project, generation)
                            WHERE view = 'counts' AND project = number),
                (SELECT received_ms {events} ORDER BY key LIMIT 1),
                (SELECT received_ms {events} ORDER BY key DESC LIMIT 1),
                (SELECT avg(bytes) FROM (SELECT length(properties) + length(name) AS bytes {events}
                                         ORDER BY key DESC LIMIT {SAMPLE_EVENTS}))
         FROM (SELECT id AS number, name AS called, position FROM project LEFT JOIN head ON head.project = project.id)
         ORDER BY number LIMIT {PROJECTS_MAX}"
    ))?;
    let rows = select.query_map([], |row| {
        let moment = |column| {
            Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.and_then(Timestamp::from_ms))
        };
        let position = row.get(1).map(uint)?;
        let facts = ProjectFacts {
            name: row.get(0)?,
            position,
            events: position,
            behind: row.get::<_, Option<i64>>(2)?.map(uint),
            bytes: 0,
            oldest: moment(3)?,
            newest: moment(4)?,
        };
        Ok((facts, row.get::<_, Option<f64>>(5)?.unwrap_or(0.0)))
    })?;
    let found: Vec<_> = rows.collect::<Result<_, _>>()?;
    Ok(found.into_iter().unzip())
}
