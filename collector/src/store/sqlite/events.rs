use eventbucket_protocol::{Event, EventId, Properties, Timestamp};
use rusqlite::types::FromSql;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::append::Head;
use super::{POSITION_BITS, position, uint};
use crate::project::ProjectId;
use crate::store::{Error, Ledger, StoredEvent};

/// The order in which [`read_event`] takes them.
pub(super) const COLUMNS: &str = "event.key, event.id, event.id_text, event.name, event.time_ms, event.skew_ms, event.received_ms, \
                       event.user, event.stream, event.correlation, event.description, event.properties";

/// An event's time by our clock, kept within the years that can be written.
pub(super) const CORRECTED_MS: &str =
    "min(max(event.time_ms + coalesce(event.skew_ms, 0), -62135596800000), 253402207200000)";

/// Reads the last position of a project's log.
pub(super) fn head(connection: &Connection, project: ProjectId) -> Result<u64, Error> {
    Head::read(connection, project).map(|head| head.position)
}

/// Reads the ledger of one project or of all, from the running totals.
pub(super) fn ledger(connection: &Connection, project: Option<ProjectId>) -> Result<Ledger, Error> {
    if let Some(project) = project {
        return Head::read(connection, project).map(|head| head.ledger);
    }
    let mut select = connection.prepare_cached(
        "SELECT sum(received), sum(stored), sum(duplicate), sum(quarantined), sum(rejected) FROM head",
    )?;
    let all = select.query_row([], |row| {
        // The sum over no projects is null.
        let sum = |column| row.get::<_, Option<i64>>(column).map(|sum| uint(sum.unwrap_or(0)));
        Ok(Ledger {
            received: sum(0)?,
            stored: sum(1)?,
            duplicate: sum(2)?,
            quarantined: sum(3)?,
            rejected: sum(4)?,
        })
    })?;
    Ok(all)
}

/// Finds an event by its identity.
pub(super) fn find(
    connection: &Connection,
    project: ProjectId,
    id: Uuid,
) -> Result<Option<StoredEvent>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM event WHERE project = ?1 AND id = ?2");
    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query((project.0, id.as_bytes()))?;
    rows.next()?.map(read_event).transpose()
}

/// Reads a row of [`COLUMNS`]. What the collector wrote can always be read; a row that somebody else changed is named by its
/// position, and never passed on half understood.
pub(super) fn read_event(row: &Row<'_>) -> Result<StoredEvent, Error> {
    let key: i64 = row.get(0)?;
    parts(row, key).map_err(|what| {
        let (position, project) = (position(key), key >> POSITION_BITS);
        Error::unreadable(format!("the event at position {position} of project {project}: {what}"))
    })
}

fn parts(row: &Row<'_>, key: i64) -> Result<StoredEvent, String> {
    let id: Vec<u8> = column(row, 1, "id")?;
    let id = Uuid::from_slice(&id).map_err(|_| format!("its id has {} bytes, not 16", id.len()))?;
    let properties: String = column(row, 11, "properties")?;
    Ok(StoredEvent {
        position: position(key),
        received: time(row, 6, "received_ms")?,
        skew_ms: column(row, 5, "skew_ms")?,
        event: Event {
            id: EventId::from_parts(id, column(row, 2, "id_text")?),
            name: column(row, 3, "name")?,
            description: column(row, 10, "description")?,
            user: column(row, 7, "user")?,
            time: time(row, 4, "time_ms")?,
            stream: column(row, 8, "stream")?,
            correlation: column(row, 9, "correlation")?,
            properties: Properties::parse(&properties)
                .map_err(|reason| format!("its properties can't be used: {}", reason.message))?,
        },
    })
}

pub(super) fn column<T: FromSql>(row: &Row<'_>, index: usize, name: &str) -> Result<T, String> {
    row.get(index).map_err(|error| format!("its {name} can't be used: {error}"))
}

fn time(row: &Row<'_>, index: usize, name: &str) -> Result<Timestamp, String> {
    let ms = column(row, index, name)?;
    Timestamp::from_ms(ms).ok_or_else(|| format!("its {name} is {ms}, which is no time"))
}
