use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};

use super::open;
use crate::store::Error;

/// Asks the database to check its pages, and its indexes against its tables; returns what it complains of first.
pub(super) fn damage(snapshot: &Connection) -> Result<Option<String>, Error> {
    let found: String = snapshot.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    Ok((found != "ok").then_some(found))
}

/// Finds a row that names another that isn't there.
pub(super) fn reference(snapshot: &Connection) -> Result<Option<String>, Error> {
    let found = snapshot.query_row("PRAGMA foreign_key_check", [], |row| {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        Ok(format!("a row of {table} names a row of {parent} that isn't there"))
    });
    if let Some(found) = found.optional()? {
        return Ok(Some(found));
    }
    for table in OF_A_PROJECT {
        let sql =
            format!("SELECT project FROM {table} WHERE project NOT IN (SELECT id FROM project) LIMIT 1");
        let stray = snapshot.query_row(&sql, [], |row| row.get::<_, i64>(0)).optional()?;
        if let Some(project) = stray {
            return Ok(Some(format!("a row of {table} names project {project}, which isn't there")));
        }
    }
    Ok(None)
}

/// Tables whose rows belong to a project, without a foreign key to say so.
const OF_A_PROJECT: [&str; 7] =
    ["event_block", "ranges", "usage", "view_state", "view_live", "rollup_counts", "identification"];

/// Holds the schema against a new one. What people added to look faster, an index or a table of theirs, is left alone; a
/// trigger changes what is written.
pub(super) fn schema(snapshot: &Connection) -> Result<Option<String>, Error> {
    let (found, expected) = (entries(snapshot)?, entries(&open::example()?)?);
    for (entry, made) in &expected {
        match found.get(entry) {
            None => return Ok(Some(format!("{} is missing", words(entry)))),
            Some(sql) if sql != made => return Ok(Some(format!("{} was changed", words(entry)))),
            Some(_) => {}
        }
    }
    let added = found.keys().find(|entry| entry.0 == "trigger" && !expected.contains_key(*entry));
    Ok(added.map(|entry| format!("{} is not ours", words(entry))))
}

/// Type and name.
type Entry = (String, String);

fn words((kind, name): &Entry) -> String {
    format!("the {kind} {name}")
}

fn entries(connection: &Connection) -> Result<BTreeMap<Entry, String>, Error> {
    let mut select = connection.prepare("SELECT type, name, coalesce(sql, '') FROM sqlite_schema")?;
    let rows = select.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
