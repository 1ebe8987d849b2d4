use rusqlite::Connection;

use super::append::Head;
use super::events::CORRECTED_MS;
use super::{counts, identifications, int, key, position};
use crate::insight::identification::Gathering;
use crate::insight::{Grain, Tally};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::{Applied, Error, Moved, ViewState};

/// Positions applied in one transaction: 50,000 rows are read in about 50 ms, which an append then waits for at most.
const STEP_POSITIONS: u64 = 50_000;

/// Adds what lies behind each live view's `applied_to` to it, and moves `applied_to`.
pub(super) fn apply(connection: &Connection, project: ProjectId, through: u64) -> Result<Applied, Error> {
    let counts = counts::live_state(connection, project)?;
    let identified = identifications::live_state(connection, project)?;
    let head = Head::read(connection, project)?.position;
    let counted = reach(counts, through, head);
    let (mut tally, mut gathered) = (Tally::default(), None);
    if counts.applied_to == identified.applied_to {
        // As always, but behind an upgrade or a long backlog: one read is enough for both.
        let mut gathering = Gathering::default();
        let mut last = counted;
        scan(connection, key(project, counts.applied_to), key(project, counted), |row| {
            row.tally(&mut tally);
            if !gathering.is_full() {
                last = row.gather(&mut gathering, counted);
            }
            true
        })?;
        gathered = Some((gathering, last));
    } else {
        tally = tallied(connection, key(project, counts.applied_to), key(project, counted))?;
    }
    let per_name = tally.per_name();
    if counted > counts.applied_to {
        counts::add(connection, project, counts.generation, tally)?;
        move_to(connection, View::Counts, project, counts.generation, counted)?;
    }
    let moved = match gathered {
        Some((gathering, last)) => {
            identifications::advance(connection, project, identified, gathering, last)?
        }
        None => identify(connection, project, identified, through)?,
    };
    let ViewState { generation, applied_to: from } = counts;
    Ok(Applied { generation, from, through: counted.max(from), per_name, identified: moved })
}

/// One step of one generation of a view; returns how far it has come.
pub(super) fn step(
    connection: &Connection,
    view: View,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<u64, Error> {
    if view == View::Identifications {
        return Ok(identify(connection, project, state, through)?.through);
    }
    let reach = reach(state, through, Head::read(connection, project)?.position);
    if reach > state.applied_to {
        let tally = tallied(connection, key(project, state.applied_to), key(project, reach))?;
        counts::add(connection, project, state.generation, tally)?;
        move_to(connection, view, project, state.generation, reach)?;
    }
    Ok(reach)
}

fn identify(
    connection: &Connection,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<Moved, Error> {
    let reach = reach(state, through, Head::read(connection, project)?.position);
    let (gathering, last) = gather(connection, key(project, state.applied_to), key(project, reach))?;
    identifications::advance(connection, project, state, gathering, last)
}

/// How far a step goes; a state that is further stays.
fn reach(state: ViewState, through: u64, head: u64) -> u64 {
    through.min(head).min(state.applied_to.saturating_add(STEP_POSITIONS)).max(state.applied_to)
}

pub(super) fn move_to(
    connection: &Connection,
    view: View,
    project: ProjectId,
    generation: u64,
    applied_to: u64,
) -> Result<(), Error> {
    let mut update = connection.prepare_cached(
        "UPDATE view_state SET applied_to = ?4 WHERE view = ?1 AND project = ?2 AND generation = ?3",
    )?;
    update.execute((view.name(), project.0, int(generation), int(applied_to)))?;
    Ok(())
}

/// Counts the rows behind a key, up to another, from the table itself.
pub(super) fn tallied(connection: &Connection, after: i64, last: i64) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    scan(connection, after, last, |row| {
        row.tally(&mut tally);
        true
    })?;
    Ok(tally)
}

/// Gathers what the rows behind a key say about users, up to another or until it is full; says up to which position.
pub(super) fn gather(connection: &Connection, after: i64, last: i64) -> Result<(Gathering, u64), Error> {
    let mut gathering = Gathering::default();
    let mut reached = position(last);
    scan(connection, after, last, |row| {
        reached = row.gather(&mut gathering, position(last));
        !gathering.is_full()
    })?;
    Ok((gathering, reached))
}

/// What the views take of an event.
struct Row<'r> {
    position: u64,
    time_ms: i64,
    name: &'r str,
    user: Option<&'r [u8]>,
    /// The properties of an event that changes who users are.
    said: Option<&'r str>,
}

impl Row<'_> {
    fn tally(&self, tally: &mut Tally) {
        tally.add(self.name, Grain::Hour.start_of(self.time_ms), 1, self.user);
    }

    /// Returns the position up to which everything is gathered: this one when there is no more room, else `last`.
    fn gather(&self, gathering: &mut Gathering, last: u64) -> u64 {
        // Text that isn't UTF-8 was written by somebody else, and is nobody's id.
        if let Some(user) = self.user.and_then(|user| std::str::from_utf8(user).ok()) {
            gathering.add(self.position, self.time_ms, user, self.said.map(|said| (self.name, said)));
        }
        if gathering.is_full() { self.position } else { last }
    }
}

/// Visits the rows behind a key, up to another, in their order, until the visitor has enough.
fn scan(
    connection: &Connection,
    after: i64,
    last: i64,
    mut visit: impl FnMut(&Row<'_>) -> bool,
) -> Result<(), Error> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT key, {CORRECTED_MS}, name, user,
                CASE WHEN user IS NOT NULL AND name IN ('$identify', '$alias') THEN properties END
         FROM event NOT INDEXED WHERE key > ?1 AND key <= ?2 ORDER BY key"
    ))?;
    let mut rows = select.query([after, last])?;
    while let Some(row) = rows.next()? {
        let row = Row {
            position: position(row.get(0)?),
            time_ms: row.get(1)?,
            name: row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?,
            user: row.get_ref(3)?.as_bytes_or_null().map_err(rusqlite::Error::from)?,
            said: row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)?,
        };
        if !visit(&row) {
            break;
        }
    }
    Ok(())
}
