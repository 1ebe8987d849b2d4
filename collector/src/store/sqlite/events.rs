use eventbucket_protocol::{Event, EventId, Properties, Timestamp};
use rusqlite::types::FromSql;
use rusqlite::{Connection, Row, ToSql};
use uuid::Uuid;

use super::append::{BLOCK_BITS, Head};
use super::{POSITION_BITS, key, position, uint};
use crate::project::ProjectId;
use crate::store::{Error, EventFilter, EventOrder, EventPage, Ledger, PAGE_BYTES_MAX, StoredEvent};

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

/// Reads a page of events.
pub(super) fn page(
    connection: &Connection,
    project: ProjectId,
    filter: &EventFilter,
    order: EventOrder,
    limit: usize,
) -> Result<EventPage, Error> {
    let (low, high) = match order {
        EventOrder::ByPosition { after } => {
            (key(project, after.min(POSITION_MAX)), key(project, POSITION_MAX))
        }
        EventOrder::NewestFirst { before } => {
            (key(project, 0), key(project, before.unwrap_or(POSITION_MAX).min(POSITION_MAX)))
        }
    };
    let (sql, by_time) = sql(filter, order);
    let (from, to) = (filter.from.map_or(i64::MIN, Timestamp::ms), filter.to.map_or(i64::MAX, Timestamp::ms));
    let mut parameters: Vec<(&str, &dyn ToSql)> = vec![(":low", &low), (":high", &high)];
    if let Some(name) = &filter.name {
        parameters.push((":name", name));
    }
    if let Some(user) = &filter.user {
        parameters.push((":user", user));
    }
    if filter.from.is_some() || filter.to.is_some() {
        parameters.extend([(":from", &from as &dyn ToSql), (":to", &to)]);
    }
    if by_time {
        parameters.push((":project", &project.0));
    }
    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(&*parameters)?;
    let mut page = EventPage { events: Vec::new(), next: None };
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if page.events.len() >= limit.max(1) || bytes >= PAGE_BYTES_MAX {
            page.next = page.events.last().map(|last: &StoredEvent| last.position);
            break;
        }
        let event = read_event(row)?;
        bytes += event.event.size_bytes();
        page.events.push(event);
    }
    Ok(page)
}

/// The exclusive upper bound of all positions.
const POSITION_MAX: u64 = (1 << POSITION_BITS) - 1;

/// Each way to filter has one way to read, chosen here and not by the planner, so that a page never costs more than its
/// index promises. All give rows in the order of the keys without sorting. Says whether it reads by blocks of time.
fn sql(filter: &EventFilter, order: EventOrder) -> (String, bool) {
    let direction = match order {
        EventOrder::NewestFirst { .. } => "DESC",
        EventOrder::ByPosition { .. } => "ASC",
    };
    let timed = filter.from.is_some() || filter.to.is_some();
    let mut conditions = String::from("event.key > :low AND event.key < :high");
    if filter.name.is_some() {
        conditions.push_str(" AND event.name = :name");
    }
    if filter.user.is_some() {
        conditions.push_str(" AND event.user = :user");
    }
    if timed {
        conditions.push_str(" AND ");
        conditions.push_str(CORRECTED_MS);
        conditions.push_str(" BETWEEN :from AND :to - 1");
    }
    let source = match (&filter.user, &filter.name) {
        (Some(_), _) => "event INDEXED BY event_user",
        (None, Some(_)) => "event INDEXED BY event_name",
        (None, None) if timed => return (by_time(&conditions, direction), true),
        (None, None) => "event NOT INDEXED",
    };
    (format!("SELECT {COLUMNS} FROM {source} WHERE {conditions} ORDER BY event.key {direction}"), false)
}

/// Visits the blocks that overlap the time, in order, and the rows of each.
fn by_time(conditions: &str, direction: &str) -> String {
    // In SQL all bit operators bind alike, from left to right.
    let block = format!("((:project << {POSITION_BITS}) | (event_block.block << {BLOCK_BITS}))");
    let (last, mask) = ((1 << BLOCK_BITS) - 1, POSITION_MAX);
    format!(
        "SELECT {COLUMNS} FROM event_block CROSS JOIN event
         WHERE event_block.project = :project AND event_block.to_ms >= :from AND event_block.from_ms < :to
           AND event_block.block BETWEEN (:low & {mask}) >> {BLOCK_BITS} AND (:high & {mask}) >> {BLOCK_BITS}
           AND event.key BETWEEN {block} AND ({block} | {last}) AND {conditions}
         ORDER BY event_block.block {direction}, event.key {direction}"
    )
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

fn column<T: FromSql>(row: &Row<'_>, index: usize, name: &str) -> Result<T, String> {
    row.get(index).map_err(|error| format!("its {name} can't be used: {error}"))
}

fn time(row: &Row<'_>, index: usize, name: &str) -> Result<Timestamp, String> {
    let ms = column(row, index, name)?;
    Timestamp::from_ms(ms).ok_or_else(|| format!("its {name} is {ms}, which is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_reads_by_its_index_and_never_sorts() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../migrations/sqlite/0001_first.sql")).unwrap();
        for mask in 0..8 {
            let filter = EventFilter {
                name: (mask & 1 != 0).then(String::new),
                user: (mask & 2 != 0).then(String::new),
                from: Timestamp::from_ms(0).filter(|_| mask & 4 != 0),
                to: None,
            };
            for order in [EventOrder::NewestFirst { before: None }, EventOrder::ByPosition { after: 0 }] {
                let (sql, _) = sql(&filter, order);
                let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
                let plan: Vec<String> =
                    explain.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect();
                assert!(plan.iter().all(|step| step.starts_with("SEARCH")), "{filter:?}: {plan:?}");
                // The row key behind the indexed column bounds the page, so a later page doesn't walk over earlier ones.
                assert!(plan.iter().all(|step| step.contains("rowid") || step.contains("block")), "{plan:?}");
            }
        }
    }
}
