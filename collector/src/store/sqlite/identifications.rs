use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{follow, int, rebuild, uint};
use crate::insight::identification::{Gathering, Identification, Identities, Link, Seen};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::identifications::{read_refused, read_traits, refused_text};
use crate::store::{Error, Moved, ViewState};

/// The table of the view; an audit has one of its own.
pub(super) const TABLE: &str = "identification";

/// How far the live generation has come. One that somebody removed is filled again by whoever follows the log.
pub(super) fn live_state(connection: &Connection, project: ProjectId) -> Result<ViewState, Error> {
    match rebuild::live_state(connection, View::Identifications, project)? {
        Some(live) => Ok(live),
        None => rebuild::mend(connection, View::Identifications, project),
    }
}

/// Adds what was gathered behind `applied_to`, and moves it.
pub(super) fn advance(
    connection: &Connection,
    project: ProjectId,
    state: ViewState,
    gathering: Gathering,
    last: u64,
) -> Result<Moved, Error> {
    let ViewState { generation, applied_to: from } = state;
    if last <= from {
        return Ok(Moved { from, through: from });
    }
    add(connection, TABLE, project, generation, gathering)?;
    follow::move_to(connection, View::Identifications, project, generation, last)?;
    Ok(Moved { from, through: last })
}

/// Adds what was gathered to a table: a read and a write for each user.
pub(super) fn add(
    connection: &Connection,
    table: &'static str,
    project: ProjectId,
    generation: u64,
    gathering: Gathering,
) -> Result<(), Error> {
    let rows = Rows { connection, table, project, generation };
    let mut identities = Identities::default();
    for id in gathering.named() {
        if let Some(kept) = rows.kept(id)? {
            identities.insert(id.to_owned(), kept);
        }
    }
    for id in identities.missing() {
        let kept = rows.kept(&id)?.unwrap_or_default();
        identities.insert(id, kept);
    }
    identities.apply(&gathering);
    for (id, kept) in identities.changed() {
        rows.put(id, kept)?;
    }
    let mut links = HashMap::new();
    for id in gathering.carried() {
        if let Some(to) = rows.linked_to(id)? {
            links.insert(id.to_owned(), to);
        }
    }
    for (user, seen) in gathering.seen(&links) {
        rows.see(&user, &seen)?;
    }
    Ok(())
}

/// The rows of one generation.
struct Rows<'c> {
    connection: &'c Connection,
    table: &'static str,
    project: ProjectId,
    generation: u64,
}

impl Rows<'_> {
    fn kept(&self, id: &str) -> Result<Option<Identification>, Error> {
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT linked_to, linked_at, identified, links, events, first_ms, last_ms, last_position, traits, refused
             FROM {} WHERE project = ?1 AND generation = ?2 AND user_id = ?3",
            self.table
        ))?;
        let mut rows = select.query(params![self.project.0, int(self.generation), id])?;
        rows.next()?.map(|row| read(row, id)).transpose()
    }

    fn linked_to(&self, id: &str) -> Result<Option<String>, Error> {
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT linked_to FROM {} WHERE project = ?1 AND generation = ?2 AND user_id = ?3",
            self.table
        ))?;
        let found = select.query_row(params![self.project.0, int(self.generation), id], |row| row.get(0));
        Ok(found.optional()?.flatten())
    }

    fn put(&self, id: &str, kept: &Identification) -> Result<(), Error> {
        let mut upsert = self.connection.prepare_cached(&format!(
            "INSERT INTO {} (project, generation, user_id, linked_to, linked_at, identified, links, events, first_ms,
                             last_ms, last_position, email, traits, refused)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT DO UPDATE SET
                 linked_to = excluded.linked_to, linked_at = excluded.linked_at, identified = excluded.identified,
                 links = excluded.links, events = excluded.events, first_ms = excluded.first_ms,
                 last_ms = excluded.last_ms, last_position = excluded.last_position, email = excluded.email,
                 traits = excluded.traits, refused = excluded.refused",
            self.table
        ))?;
        let (link, seen) = (kept.link.as_ref(), kept.seen.as_ref());
        upsert.execute(params![
            self.project.0,
            int(self.generation),
            id,
            link.map(|link| &link.to),
            link.map(|link| int(link.position)),
            kept.identified,
            int(kept.links),
            seen.map_or(0, |seen| int(seen.events)),
            seen.map(|seen| seen.first_ms),
            seen.map(|seen| seen.last_ms),
            seen.map(|seen| int(seen.last_position)),
            kept.traits.email(),
            kept.traits.to_text(),
            refused_text(&kept.refused),
        ])?;
        Ok(())
    }

    fn see(&self, user: &str, seen: &Seen) -> Result<(), Error> {
        let mut upsert = self.connection.prepare_cached(&format!(
            "INSERT INTO {} (project, generation, user_id, identified, links, events, first_ms, last_ms, last_position,
                             traits, refused)
             VALUES (?1, ?2, ?3, 0, 0, ?4, ?5, ?6, ?7, '{{}}', '[]')
             ON CONFLICT DO UPDATE SET
                 events = events + excluded.events,
                 first_ms = min(coalesce(first_ms, excluded.first_ms), excluded.first_ms),
                 last_ms = max(coalesce(last_ms, excluded.last_ms), excluded.last_ms),
                 last_position = CASE
                     WHEN last_ms > excluded.last_ms
                          OR last_ms = excluded.last_ms AND last_position > excluded.last_position THEN last_position
                     ELSE excluded.last_position END",
            self.table
        ))?;
        upsert.execute(params![
            self.project.0,
            int(self.generation),
            user,
            int(seen.events),
            seen.first_ms,
            seen.last_ms,
            int(seen.last_position),
        ])?;
        Ok(())
    }
}

fn read(row: &Row<'_>, id: &str) -> Result<Identification, Error> {
    let link = match (row.get::<_, Option<String>>(0)?, row.get::<_, Option<i64>>(1)?) {
        (Some(to), position) => Some(Link { to, position: uint(position.unwrap_or(0)) }),
        (None, _) => None,
    };
    let events = row.get(4).map(uint)?;
    let seen = match (row.get(5)?, row.get(6)?, row.get::<_, Option<i64>>(7)?) {
        (Some(first_ms), Some(last_ms), Some(last)) => {
            Some(Seen { events, first_ms, last_ms, last_position: uint(last) })
        }
        _ => None,
    };
    let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
    Ok(Identification {
        link,
        identified: row.get(2)?,
        links: row.get(3).map(uint)?,
        seen,
        traits: read_traits(text(8)?, id)?,
        refused: read_refused(text(9)?, id)?,
    })
}
