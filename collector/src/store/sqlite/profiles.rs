use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::events::{COLUMNS, read_event};
use super::{POSITION_BITS, Sqlite, int, key, position, rebuild, uint};
use crate::insight::identification::LINKS_MAX;
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::identifications::{
    SeenBefore, UserLookup, UserProfile, UserRow, end_of_beginning, read_refused, read_time, read_traits,
};
use crate::store::{Error, EventPage, PAGE_BYTES_MAX, ViewState};

/// The order in which [`read_row`] takes them.
const USER: &str = "user_id, identified, email, events, first_ms, last_ms, last_position, links";

/// The rows of the live generation.
const LIVE: &str = "project = ?1 AND generation = (
                        SELECT generation FROM view_live WHERE view = 'identifications' AND project = ?1)";

impl Sqlite {
    pub(in crate::store) async fn identification_state(
        &self,
        project: ProjectId,
    ) -> Result<ViewState, Error> {
        self.read(move |connection| {
            let live = rebuild::live_state(connection, View::Identifications, project)?;
            Ok(live.unwrap_or(ViewState { generation: 0, applied_to: 0 }))
        })
        .await
    }

    pub(in crate::store) async fn identifications(
        &self,
        project: ProjectId,
        before: Option<SeenBefore>,
        limit: usize,
    ) -> Result<Vec<UserRow>, Error> {
        self.read(move |connection| list(connection, project, before, limit)).await
    }

    pub(in crate::store) async fn find_identifications(
        &self,
        project: ProjectId,
        lookup: UserLookup,
        limit: usize,
    ) -> Result<Vec<UserRow>, Error> {
        self.read(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            find(&snapshot, project, &lookup, limit)
        })
        .await
    }

    pub(in crate::store) async fn identification(
        &self,
        project: ProjectId,
        id: String,
    ) -> Result<Option<UserProfile>, Error> {
        self.read(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            profile(&snapshot, project, &id)
        })
        .await
    }

    pub(in crate::store) async fn timeline(
        &self,
        project: ProjectId,
        id: String,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Option<EventPage>, Error> {
        self.read(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            timeline(&snapshot, project, &id, before, limit)
        })
        .await
    }
}

fn list(
    connection: &Connection,
    project: ProjectId,
    before: Option<SeenBefore>,
    limit: usize,
) -> Result<Vec<UserRow>, Error> {
    let (ms, at) = before.map_or((i64::MAX, i64::MAX), |seen| (seen.last_ms, int(seen.last_position)));
    // A row value in the condition alone would hide the index's order from the planner.
    let sql = format!(
        "SELECT {USER} FROM identification INDEXED BY identification_seen
         WHERE {LIVE} AND linked_to IS NULL AND last_ms <= ?2 AND (last_ms < ?2 OR last_position < ?3)
         ORDER BY last_ms DESC, last_position DESC LIMIT ?4"
    );
    rows(connection, &sql, &[&project.0, &ms, &at, &as_limit(limit)])
}

fn find(
    connection: &Connection,
    project: ProjectId,
    lookup: &UserLookup,
    limit: usize,
) -> Result<Vec<UserRow>, Error> {
    match lookup {
        UserLookup::Id(id) => Ok(user_of(connection, project, id)?.into_iter().collect()),
        UserLookup::Email(email) => {
            let sql = format!(
                "SELECT {USER} FROM identification INDEXED BY identification_email WHERE {LIVE} AND email = ?2
                 ORDER BY email, rowid LIMIT ?3"
            );
            rows(connection, &sql, &[&project.0, email, &as_limit(limit)])
        }
        UserLookup::Beginning(text) => beginning(connection, project, text, limit),
    }
}

/// Users whose id, or one that is linked to them, begins with a text; then those whose email does.
fn beginning(
    connection: &Connection,
    project: ProjectId,
    text: &str,
    limit: usize,
) -> Result<Vec<UserRow>, Error> {
    let (end, limit_sql) = (end_of_beginning(text), as_limit(limit));
    // What has no end is at the end of everything.
    let between = |column: &str| match end {
        Some(_) => format!("{column} >= ?2 AND {column} < ?3"),
        None => format!("{column} >= ?2 AND ?3 IS NULL"),
    };
    let mut select = connection.prepare_cached(&format!(
        "SELECT coalesce(linked_to, user_id) FROM identification WHERE {LIVE} AND {} ORDER BY user_id LIMIT ?4",
        between("user_id")
    ))?;
    let ids = select.query_map(params![project.0, text, end, limit_sql], |row| row.get::<_, String>(0))?;
    let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    let mut known = HashSet::new();
    for id in ids {
        if known.insert(id.clone()) {
            found.extend(user_of(connection, project, &id)?);
        }
    }
    let sql = format!(
        "SELECT {USER} FROM identification INDEXED BY identification_email WHERE {LIVE} AND {}
         ORDER BY email, rowid LIMIT ?4",
        between("email")
    );
    let by_email = rows(connection, &sql, &[&project.0, &text, &end, &limit_sql])?;
    found.extend(by_email.into_iter().filter(|user| known.insert(user.id.clone())));
    found.truncate(limit);
    Ok(found)
}

fn as_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn rows(connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<Vec<UserRow>, Error> {
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query(values)?;
    let mut users = Vec::new();
    while let Some(row) = rows.next()? {
        users.push(read_row(row)?);
    }
    Ok(users)
}

fn read_row(row: &Row<'_>) -> Result<UserRow, Error> {
    let id: String = row.get(0)?;
    Ok(UserRow {
        identified: row.get(1)?,
        email: row.get(2)?,
        events: row.get(3).map(uint)?,
        first_seen: read_time(row.get(4)?, &id)?,
        last_seen: read_time(row.get(5)?, &id)?,
        last_position: uint(row.get::<_, Option<i64>>(6)?.unwrap_or(0)),
        links: row.get(7).map(uint)?,
        id,
    })
}

/// The user that an id is, or is linked to.
fn user_of(connection: &Connection, project: ProjectId, id: &str) -> Result<Option<UserRow>, Error> {
    let linked = format!("SELECT linked_to FROM identification WHERE {LIVE} AND user_id = ?2");
    let mut linked = connection.prepare_cached(&linked)?;
    let linked: Option<Option<String>> =
        linked.query_row(params![project.0, id], |row| row.get(0)).optional()?;
    let Some(linked) = linked else { return Ok(None) };
    let user = linked.as_deref().unwrap_or(id);
    let sql = format!("SELECT {USER} FROM identification WHERE {LIVE} AND user_id = ?2");
    Ok(rows(connection, &sql, &[&project.0, &user])?.pop())
}

/// The ids that are linked to a user, in the order in which they were.
fn ids_of(connection: &Connection, project: ProjectId, user: &str) -> Result<Vec<(String, u64)>, Error> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT user_id, linked_at FROM identification INDEXED BY identification_link
         WHERE {LIVE} AND linked_to = ?2 LIMIT ?3"
    ))?;
    let found = select.query_map(params![project.0, user, int(LINKS_MAX)], |row| {
        Ok((row.get(0)?, row.get(1).map(uint)?))
    })?;
    let mut ids: Vec<(String, u64)> = found.collect::<Result<_, _>>()?;
    ids.sort_unstable_by_key(|(_, position)| *position);
    Ok(ids)
}

fn profile(connection: &Connection, project: ProjectId, id: &str) -> Result<Option<UserProfile>, Error> {
    let Some(row) = user_of(connection, project, id)? else { return Ok(None) };
    let ids = ids_of(connection, project, &row.id)?;
    let sql = format!("SELECT traits, refused FROM identification WHERE {LIVE} AND user_id = ?2");
    let mut select = connection.prepare_cached(&sql)?;
    let (traits, refused): (String, String) =
        select.query_row(params![project.0, row.id], |found| Ok((found.get(0)?, found.get(1)?)))?;
    let traits = read_traits(&traits, &row.id)?;
    let refused = read_refused(&refused, &row.id)?;
    Ok(Some(UserProfile { row, ids, traits, refused }))
}

fn timeline(
    connection: &Connection,
    project: ProjectId,
    id: &str,
    before: Option<u64>,
    limit: usize,
) -> Result<Option<EventPage>, Error> {
    let Some(user) = user_of(connection, project, id)? else { return Ok(None) };
    let mut ids = ids_of(connection, project, &user.id)?;
    ids.push((user.id, 0));
    let last = (1 << POSITION_BITS) - 1;
    let high = key(project, before.unwrap_or(last).min(last));
    let keys = newest_keys(connection, &ids, key(project, 0), high, limit.max(1) + 1)?;
    let sql = format!("SELECT {COLUMNS} FROM event WHERE key = ?1");
    let mut select = connection.prepare_cached(&sql)?;
    let mut page = EventPage { events: Vec::new(), next: None, looked_to: None };
    let mut bytes = 0;
    for key in keys {
        if page.events.len() >= limit.max(1) || bytes >= PAGE_BYTES_MAX {
            page.next = page.events.last().map(|last| last.position);
            break;
        }
        let mut rows = select.query([key])?;
        let Some(row) = rows.next()? else {
            return Err(Error::corrupt(format!("the event at {} is in an index alone", position(key))));
        };
        let event = read_event(row)?;
        bytes += event.event.size_bytes();
        page.looked_to = Some(event.received);
        page.events.push(event);
    }
    Ok(Some(page))
}

/// The highest keys of events that some ids have between two, at most so many. Each id is looked up once, and only above what
/// the ids before it left no room for.
fn newest_keys(
    connection: &Connection,
    ids: &[(String, u64)],
    mut low: i64,
    high: i64,
    most: usize,
) -> Result<Vec<i64>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT key FROM event INDEXED BY event_user WHERE user = ?1 AND key > ?2 AND key < ?3
         ORDER BY key DESC LIMIT ?4",
    )?;
    let mut keys: Vec<i64> = Vec::new();
    for (id, _) in ids {
        let found = select.query_map(params![id, low, high, as_limit(most)], |row| row.get(0))?;
        for key in found {
            keys.push(key?);
        }
        keys.sort_unstable_by(|one, other| other.cmp(one));
        keys.truncate(most);
        if let (Some(lowest), true) = (keys.last(), keys.len() == most) {
            low = *lowest;
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_question_about_users_walks_over_all_of_them_or_sorts() {
        let connection = super::super::open::example().unwrap();
        let questions = [
            format!(
                "SELECT {USER} FROM identification INDEXED BY identification_seen
                 WHERE {LIVE} AND linked_to IS NULL AND last_ms <= ?2 AND (last_ms < ?2 OR last_position < ?3)
                 ORDER BY last_ms DESC, last_position DESC LIMIT ?4"
            ),
            format!(
                "SELECT {USER} FROM identification INDEXED BY identification_email WHERE {LIVE} AND email >= ?2 AND email < ?3
                 ORDER BY email, rowid LIMIT ?4"
            ),
            format!("SELECT {USER} FROM identification WHERE {LIVE} AND user_id = ?2"),
            format!(
                "SELECT user_id FROM identification INDEXED BY identification_link WHERE {LIVE} AND linked_to = ?2 LIMIT ?3"
            ),
        ];
        for sql in questions {
            let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let plan: Vec<String> =
                explain.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect();
            let searches = plan.iter().all(|step| step.starts_with("SEARCH") || step.starts_with("SCALAR"));
            assert!(searches, "{sql}: {plan:?}");
        }
    }
}
