use std::collections::BTreeMap;

use eventbucket_protocol::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::cursor::UsersCursor;
use super::events::{CHUNK_EVENTS, LIMIT_DEFAULT, LIMIT_MAX};
use super::{Cursor, Error, EventsPage, Reader};
use crate::insight::identification::{Refusal, Trait};
use crate::project::ProjectId;
use crate::store::{PAGE_BYTES_MAX, SeenBefore, UserLookup, UserProfile, UserRow};

/// Which page of users.
#[derive(Clone, Debug)]
pub struct UsersQuery {
    /// Only those that are found so; then there is one page.
    pub lookup: Option<UserLookup>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// How many, 1 to [`LIMIT_MAX`].
    pub limit: usize,
}

impl Default for UsersQuery {
    fn default() -> Self {
        Self { lookup: None, cursor: None, limit: LIMIT_DEFAULT }
    }
}

/// A page of users.
#[derive(Clone, Debug, Serialize)]
pub struct UsersPage {
    /// The users, the last seen first; in the order of ids and emails where these were looked up.
    pub users: Vec<UserShape>,
    /// Where the next page begins; null when there is nothing more.
    pub next: Option<String>,
    /// The position through which at least the log is in it.
    pub applied_to: u64,
    /// The last position of the log.
    pub position: u64,
}

/// A user as it is written in JSON, over HTTP and by the command line alike.
#[derive(Clone, Debug, Serialize)]
pub struct UserShape {
    id: String,
    /// Whether an `$identify` or an `$alias` was about it.
    identified: bool,
    email: Option<String>,
    /// How many events there are, those of linked ids included.
    events: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// How many ids are linked to it.
    links: u64,
}

impl From<UserRow> for UserShape {
    fn from(row: UserRow) -> Self {
        let UserRow { id, identified, email, events, first_seen, last_seen, links, .. } = row;
        Self { id, identified, email, events, first_seen, last_seen, links }
    }
}

/// Everything that is known of a user, as it is written in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct UserProfileShape {
    #[serde(flatten)]
    user: UserShape,
    traits: BTreeMap<String, TraitShape>,
    /// The ids that are linked to it.
    ids: Vec<LinkedShape>,
    /// What was said of it and not taken, the newest last.
    refused: Vec<Refusal>,
}

#[derive(Clone, Debug, Serialize)]
struct TraitShape {
    value: Box<RawValue>,
    /// When it was set, by the corrected time.
    time: Option<Timestamp>,
    /// The event that set it.
    position: u64,
}

#[derive(Clone, Debug, Serialize)]
struct LinkedShape {
    id: String,
    /// The `$alias` that said so.
    position: u64,
}

impl From<UserProfile> for UserProfileShape {
    fn from(profile: UserProfile) -> Self {
        let shape = |one: &Trait| TraitShape {
            value: one.value().to_owned(),
            time: Timestamp::from_ms(one.time_ms()),
            position: one.position(),
        };
        let ids = profile.ids.into_iter().map(|(id, position)| LinkedShape { id, position });
        Self {
            traits: profile.traits.iter().map(|(name, one)| (name.to_owned(), shape(one))).collect(),
            ids: ids.collect(),
            refused: profile.refused,
            user: profile.row.into(),
        }
    }
}

impl Reader {
    /// Lists users, or looks some up.
    ///
    /// # Errors
    /// A limit out of bounds, a cursor from elsewhere, a store that can't be read.
    pub async fn users(&self, project: ProjectId, query: UsersQuery) -> Result<UsersPage, Error> {
        check_limit(query.limit)?;
        let epoch = self.store.epoch();
        // Before the users: nobody is missing who was seen up to there.
        let applied_to = self.store.identification_state(project).await?.applied_to;
        let (rows, next) = match query.lookup {
            Some(_) if query.cursor.is_some() => {
                let message = "users that are looked up come on one page; leave it out".to_owned();
                return Err(Error::Parameter { name: "cursor", message });
            }
            Some(lookup) => (self.store.find_identifications(project, lookup, query.limit).await?, None),
            None => {
                let before = query.cursor.map(|text| UsersCursor::parse(&text, epoch)).transpose()?;
                let before = before.map(|cursor| cursor.before);
                let mut rows = self.store.identifications(project, before, query.limit + 1).await?;
                let more = rows.len() > query.limit;
                rows.truncate(query.limit);
                let last = rows.last().filter(|_| more).map(|last| SeenBefore {
                    last_ms: last.last_seen.ms(),
                    last_position: last.last_position,
                });
                (rows, last.map(|before| UsersCursor::new(before, epoch).to_string()))
            }
        };
        let users = rows.into_iter().map(UserShape::from).collect();
        Ok(UsersPage { users, next, applied_to, position: self.store.head(project).await? })
    }

    /// Finds one user, by its id or by one that is linked to it.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for another project's user.
    pub async fn user(&self, project: ProjectId, id: &str) -> Result<UserProfileShape, Error> {
        let found = self.store.identification(project, id).await?;
        found.map(UserProfileShape::from).ok_or_else(|| unknown(id))
    }

    /// Lists the events of a user and of the ids that are linked to it, the newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`]; a limit out of bounds, a cursor from elsewhere, a store that can't be read.
    pub async fn timeline(
        &self,
        project: ProjectId,
        id: &str,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<EventsPage, Error> {
        check_limit(limit)?;
        let epoch = self.store.epoch();
        let cursor = cursor.map(|text| Cursor::parse(&text, epoch)).transpose()?;
        let mut before = cursor.map(|cursor| cursor.position);
        let (mut events, mut bytes) = (Vec::new(), 0);
        loop {
            let chunk = CHUNK_EVENTS.min(limit - events.len());
            let page = self.store.timeline(project, id, before, chunk).await?.ok_or_else(|| unknown(id))?;
            bytes += page.events.iter().map(|stored| stored.event.size_bytes()).sum::<usize>();
            events.extend(page.events);
            let looked_to = page.looked_to;
            before = page.next;
            if before.is_none() || events.len() >= limit || bytes >= PAGE_BYTES_MAX {
                let next = before.map(|position| Cursor::new(position, epoch));
                return Ok(EventsPage { events, next, through: before.unwrap_or(1), looked_to });
            }
        }
    }
}

fn check_limit(limit: usize) -> Result<(), Error> {
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(());
    }
    Err(Error::Parameter { name: "limit", message: format!("{limit} is not between 1 and {LIMIT_MAX}") })
}

fn unknown(id: &str) -> Error {
    Error::NotFound(format!("there is no user {id:?} in this project"))
}
