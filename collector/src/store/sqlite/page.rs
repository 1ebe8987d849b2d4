use rusqlite::{Connection, ToSql};

use super::append::BLOCK_BITS;
use super::events::{COLUMNS, column, read_event};
use super::{POSITION_BITS, int, key, position, uint};
use crate::project::ProjectId;
use crate::store::page::{OpenPage, Progress, Row, runs};
use crate::store::{Error, EventFilter, EventOrder, EventPage};

/// The last position there can be.
const POSITION_MAX: u64 = (1 << POSITION_BITS) - 1;

/// Blocks asked for at once: they hold a million positions.
const BLOCKS_AT_ONCE: usize = 256;

/// Reads a page of events.
pub(super) fn page(
    connection: &Connection,
    project: ProjectId,
    filter: &EventFilter,
    order: EventOrder,
    limit: usize,
) -> Result<EventPage, Error> {
    let mut page = OpenPage::new(project, filter, limit);
    let reading = Reading { connection, project, filter, newest_first: order.is_newest_first() };
    match filter.span(order, POSITION_MAX) {
        Some(span) if filter.is_timed() => reading.blocks(&mut page, span)?,
        Some(span) => reading.rows(&mut page, span)?,
        None => Progress::Open,
    };
    Ok(page.finish())
}

struct Reading<'f> {
    connection: &'f Connection,
    project: ProjectId,
    filter: &'f EventFilter,
    newest_first: bool,
}

impl Reading<'_> {
    /// Visits the blocks that overlap the time, in order; neighbours as one.
    fn blocks(&self, page: &mut OpenPage<'_>, (mut first, mut last): (u64, u64)) -> Result<Progress, Error> {
        let sql = format!(
            "SELECT block FROM event_block
             WHERE project = ?1 AND block BETWEEN ?2 AND ?3 AND to_ms >= ?4 AND from_ms < ?5
             ORDER BY block {} LIMIT {BLOCKS_AT_ONCE}",
            self.direction()
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let (from, to) = self.filter.times();
        loop {
            let (low, high) = (int(first >> BLOCK_BITS), int(last >> BLOCK_BITS));
            let found =
                select.query_map((self.project.0, low, high, from, to), |row| row.get(0).map(uint))?;
            let blocks: Vec<u64> = found.collect::<Result<_, _>>()?;
            for run in runs(&blocks, BLOCK_BITS, (first, last)) {
                let progress = self.rows(page, run)?;
                let end = if self.newest_first { run.0 } else { run.1 };
                if progress == Progress::Full || page.passed(end) == Progress::Full {
                    return Ok(Progress::Full);
                }
                if self.newest_first { last = end.saturating_sub(1) } else { first = end + 1 }
            }
            if blocks.len() < BLOCKS_AT_ONCE || first > last {
                return Ok(Progress::Open);
            }
        }
    }

    /// Reads the rows of a span until the page is full.
    fn rows(&self, page: &mut OpenPage<'_>, (first, last): (u64, u64)) -> Result<Progress, Error> {
        let (low, high) = (key(self.project, first), key(self.project, last));
        let mut parameters: Vec<&dyn ToSql> = vec![&low, &high];
        match &self.filter.user {
            Some(user) => parameters.push(user),
            None => parameters.extend(self.filter.names.iter().map(|name| name as &dyn ToSql)),
        }
        let mut select = self.connection.prepare_cached(&sql(self.filter, self.direction()))?;
        let mut rows = select.query(&*parameters)?;
        while let Some(row) = rows.next()? {
            let looked = self.looked(row)?;
            if page.look(&looked, || read_event(row))? == Progress::Full {
                return Ok(Progress::Full);
            }
        }
        Ok(Progress::Open)
    }

    fn looked<'r>(&self, row: &'r rusqlite::Row<'_>) -> Result<Row<'r>, Error> {
        let position = position(row.get(0)?);
        let read = || {
            Ok(Row {
                position,
                name: text(row, 3, "name")?,
                time_ms: column(row, 4, "time_ms")?,
                skew_ms: column(row, 5, "skew_ms")?,
                received_ms: column(row, 6, "received_ms")?,
                properties: text(row, 11, "properties")?,
            })
        };
        read().map_err(|what: String| {
            Error::unreadable(format!("the event at position {position} of project {}: {what}", self.project))
        })
    }

    fn direction(&self) -> &'static str {
        if self.newest_first { "DESC" } else { "ASC" }
    }
}

/// Each way to filter has one way to read, chosen here and not by the planner, so that a page never costs more than its index
/// promises. All give rows in the order of the keys without sorting: those of several names are merged.
fn sql(filter: &EventFilter, direction: &str) -> String {
    let span = "event.key BETWEEN ?1 AND ?2";
    let walk = match (&filter.user, filter.names.len()) {
        (Some(_), _) => {
            format!("SELECT {COLUMNS} FROM event INDEXED BY event_user WHERE {span} AND event.user = ?3")
        }
        (None, 0) => format!("SELECT {COLUMNS} FROM event NOT INDEXED WHERE {span}"),
        (None, names) => {
            let walk = |parameter| {
                format!(
                    "SELECT {COLUMNS} FROM event INDEXED BY event_name WHERE {span} AND event.name = ?{parameter}"
                )
            };
            (3..3 + names).map(walk).collect::<Vec<_>>().join(" UNION ALL ")
        }
    };
    format!("{walk} ORDER BY 1 {direction}")
}

/// Borrows a text where it lies.
fn text<'r>(row: &'r rusqlite::Row<'_>, index: usize, name: &str) -> Result<&'r str, String> {
    let value = row.get_ref(index).map_err(|error| error.to_string())?;
    value.as_str().map_err(|error| format!("its {name} can't be used: {error}"))
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::Timestamp;

    use super::*;

    #[test]
    fn every_filter_reads_by_its_index_and_never_sorts() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../migrations/sqlite/0001_first.sql")).unwrap();
        for (names, user) in [(0, false), (1, false), (2, false), (8, false), (0, true), (3, true)] {
            let filter = EventFilter {
                names: (0..names).map(|name| name.to_string()).collect(),
                user: user.then(String::new),
                from: Timestamp::from_ms(0),
                ..EventFilter::default()
            };
            for direction in ["ASC", "DESC"] {
                let sql = format!("EXPLAIN QUERY PLAN {}", sql(&filter, direction));
                let mut explain = connection.prepare(&sql).unwrap();
                let plan: Vec<String> =
                    explain.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect();
                let (searches, joins): (Vec<_>, Vec<_>) =
                    plan.iter().partition(|step| step.starts_with("SEARCH"));
                assert_eq!(searches.len(), if user { 1 } else { names.max(1) }, "{plan:?}");
                // The row key behind the indexed column bounds the page, so a later page doesn't walk over earlier ones.
                assert!(searches.iter().all(|step| step.contains("rowid")), "{plan:?}");
                let merges = ["MERGE (UNION ALL)", "LEFT", "RIGHT"];
                assert!(joins.iter().all(|step| merges.contains(&step.as_str())), "{plan:?}");
            }
        }
    }
}
