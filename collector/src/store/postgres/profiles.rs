use std::collections::HashSet;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::counts::find_live;
use super::events::{COLUMNS, POSITION_MAX, read_event};
use super::pool::Lease;
use super::segments::spans;
use super::{Postgres, int, project_number, uint};
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
const LIVE: &str = "project = $1 AND generation = (
                        SELECT generation FROM view_live WHERE view = 'identifications' AND project = $1)";

/// Everything that one answer takes comes from one snapshot.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl Postgres {
    pub(in crate::store) async fn identification_state(
        &self,
        project: ProjectId,
    ) -> Result<ViewState, Error> {
        self.ensure(&[project]).await?;
        let live = find_live(&mut self.0.reads.lease().await?, View::Identifications, project).await?;
        Ok(live.unwrap_or(ViewState { generation: 0, applied_to: 0 }))
    }

    pub(in crate::store) async fn identifications(
        &self,
        project: ProjectId,
        before: Option<SeenBefore>,
        limit: usize,
    ) -> Result<Vec<UserRow>, Error> {
        let (ms, at) = before.map_or((i64::MAX, i64::MAX), |seen| (seen.last_ms, int(seen.last_position)));
        let sql = format!(
            "SELECT {USER} FROM identification WHERE {LIVE} AND linked_to IS NULL AND (last_ms, last_position) < ($2, $3)
             ORDER BY last_ms DESC, last_position DESC LIMIT $4"
        );
        let mut lease = self.0.reads.lease().await?;
        rows(&mut lease, &sql, &[&project_number(project), &ms, &at, &as_limit(limit)]).await
    }

    pub(in crate::store) async fn find_identifications(
        &self,
        project: ProjectId,
        lookup: &UserLookup,
        limit: usize,
    ) -> Result<Vec<UserRow>, Error> {
        let mut lease = self.0.reads.lease().await?;
        lease.begin_as(BEGIN).await?;
        let found = match lookup {
            UserLookup::Id(id) => user_of(&mut lease, project, id).await?.into_iter().collect(),
            UserLookup::Email(email) => {
                let sql = format!(
                    "SELECT {USER} FROM identification WHERE {LIVE} AND email = $2 AND email IS NOT NULL LIMIT $3"
                );
                rows(&mut lease, &sql, &[&project_number(project), email, &as_limit(limit)]).await?
            }
            UserLookup::Beginning(text) => beginning(&mut lease, project, text, limit).await?,
        };
        lease.commit().await?;
        Ok(found)
    }

    pub(in crate::store) async fn identification(
        &self,
        project: ProjectId,
        id: &str,
    ) -> Result<Option<UserProfile>, Error> {
        let mut lease = self.0.reads.lease().await?;
        lease.begin_as(BEGIN).await?;
        let found = profile(&mut lease, project, id).await?;
        lease.commit().await?;
        Ok(found)
    }

    pub(in crate::store) async fn timeline(
        &self,
        project: ProjectId,
        id: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Option<EventPage>, Error> {
        let mut lease = self.0.reads.lease().await?;
        lease.begin_as(BEGIN).await?;
        let found = timeline(&mut lease, project, id, before, limit.max(1)).await?;
        lease.commit().await?;
        Ok(found)
    }
}

/// Users whose id, or one that is linked to them, begins with a text; then those whose email does.
async fn beginning(
    lease: &mut Lease,
    project: ProjectId,
    text: &str,
    limit: usize,
) -> Result<Vec<UserRow>, Error> {
    let (number, end, limit_sql) = (project_number(project), end_of_beginning(text), as_limit(limit));
    // What has no end is at the end of everything.
    let between = |column: &str| match end {
        Some(_) => format!("{column} >= $2 AND {column} < $3"),
        None => format!("{column} >= $2 AND $3::text IS NULL"),
    };
    let sql = format!(
        "SELECT coalesce(linked_to, user_id) FROM identification WHERE {LIVE} AND {} ORDER BY user_id LIMIT $4",
        between("user_id")
    );
    let select = lease.prepared(&sql).await?;
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for row in lease.query(&select, &[&number, &text, &end, &limit_sql]).await? {
        let id: String = row.try_get(0)?;
        if known.insert(id.clone()) {
            found.extend(user_of(lease, project, &id).await?);
        }
    }
    let sql = format!(
        "SELECT {USER} FROM identification WHERE {LIVE} AND email IS NOT NULL AND {} ORDER BY email LIMIT $4",
        between("email")
    );
    let by_email = rows(lease, &sql, &[&number, &text, &end, &limit_sql]).await?;
    found.extend(by_email.into_iter().filter(|user| known.insert(user.id.clone())));
    found.truncate(limit);
    Ok(found)
}

fn as_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

async fn rows(lease: &mut Lease, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<UserRow>, Error> {
    let select = lease.prepared(sql).await?;
    lease.query(&select, values).await?.iter().map(read_row).collect()
}

fn read_row(row: &Row) -> Result<UserRow, Error> {
    let id: String = row.try_get(0)?;
    Ok(UserRow {
        identified: row.try_get(1)?,
        email: row.try_get(2)?,
        events: uint(row.try_get(3)?),
        first_seen: read_time(row.try_get(4)?, &id)?,
        last_seen: read_time(row.try_get(5)?, &id)?,
        last_position: row.try_get::<_, Option<i64>>(6)?.map_or(0, uint),
        links: uint(row.try_get(7)?),
        id,
    })
}

/// The user that an id is, or is linked to.
async fn user_of(lease: &mut Lease, project: ProjectId, id: &str) -> Result<Option<UserRow>, Error> {
    let number = project_number(project);
    let linked = format!("SELECT linked_to FROM identification WHERE {LIVE} AND user_id = $2");
    let linked = lease.prepared(&linked).await?;
    let Some(row) = lease.query_opt(&linked, &[&number, &id]).await? else { return Ok(None) };
    let user = row.try_get::<_, Option<&str>>(0)?.unwrap_or(id);
    let sql = format!("SELECT {USER} FROM identification WHERE {LIVE} AND user_id = $2");
    Ok(rows(lease, &sql, &[&number, &user]).await?.pop())
}

/// The ids that are linked to a user, in the order in which they were.
async fn ids_of(lease: &mut Lease, project: ProjectId, user: &str) -> Result<Vec<(String, u64)>, Error> {
    let sql = format!(
        "SELECT user_id, linked_at FROM identification WHERE {LIVE} AND linked_to = $2 AND linked_to IS NOT NULL LIMIT $3"
    );
    let select = lease.prepared(&sql).await?;
    let rows = lease.query(&select, &[&project_number(project), &user, &int(LINKS_MAX)]).await?;
    let read = |row: &Row| -> Result<_, Error> { Ok((row.try_get(0)?, uint(row.try_get(1)?))) };
    let mut ids: Vec<(String, u64)> = rows.iter().map(read).collect::<Result<_, _>>()?;
    ids.sort_unstable_by_key(|(_, position)| *position);
    Ok(ids)
}

async fn profile(lease: &mut Lease, project: ProjectId, id: &str) -> Result<Option<UserProfile>, Error> {
    let Some(row) = user_of(lease, project, id).await? else { return Ok(None) };
    let ids = ids_of(lease, project, &row.id).await?;
    let sql = format!("SELECT traits, refused FROM identification WHERE {LIVE} AND user_id = $2");
    let select = lease.prepared(&sql).await?;
    let found = lease.query_one(&select, &[&project_number(project), &row.id]).await?;
    let traits = read_traits(found.try_get(0)?, &row.id)?;
    let refused = read_refused(found.try_get(1)?, &row.id)?;
    Ok(Some(UserProfile { row, ids, traits, refused }))
}

async fn timeline(
    lease: &mut Lease,
    project: ProjectId,
    id: &str,
    before: Option<u64>,
    limit: usize,
) -> Result<Option<EventPage>, Error> {
    let Some(user) = user_of(lease, project, id).await? else { return Ok(None) };
    let linked = ids_of(lease, project, &user.id).await?;
    let ids: Vec<&str> = linked.iter().map(|(id, _)| id.as_str()).chain([user.id.as_str()]).collect();
    let (number, high) = (project_number(project), before.unwrap_or(POSITION_MAX).min(POSITION_MAX));
    let mut page = EventPage { events: Vec::new(), next: None, looked_to: None };
    let mut bytes = 0;
    for span in spans(lease, project).await?.into_iter().rev().filter(|span| span.first < high) {
        let select = lease.prepared(&of_segment(span.segment)).await?;
        // One more than fits tells whether there is a next page.
        let wanted = as_limit(limit + 1 - page.events.len());
        for row in lease.query(&select, &[&number, &ids, &int(high), &wanted]).await? {
            if page.events.len() >= limit || bytes >= PAGE_BYTES_MAX {
                page.next = page.events.last().map(|last| last.position);
                return Ok(Some(page));
            }
            let event = read_event(&row, project)?;
            bytes += event.event.size_bytes();
            page.looked_to = Some(event.received);
            page.events.push(event);
        }
    }
    Ok(Some(page))
}

/// The newest events of some ids in a segment: each id is looked up in the index by itself.
fn of_segment(segment: i32) -> String {
    let columns: Vec<String> = COLUMNS.split(", ").map(|column| format!("event.{}", column.trim())).collect();
    format!(
        "SELECT {} FROM (
             SELECT newest.position FROM unnest($2::text[]) AS one (id) CROSS JOIN LATERAL (
                 SELECT position FROM event_{segment}
                 WHERE project = $1 AND user_id = one.id AND position < $3 ORDER BY position DESC LIMIT $4
             ) AS newest ORDER BY newest.position DESC LIMIT $4
         ) AS found JOIN event_{segment} AS event ON event.project = $1 AND event.position = found.position
         ORDER BY event.position DESC",
        columns.join(", ")
    )
}
