use eventbucket_protocol::Timestamp;

use super::{Backend, Error, EventPage, Store, ViewState};
use crate::insight::identification::{Refusal, Traits};
use crate::project::ProjectId;

/// A user as lists show it. Linked ids are no users of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// The id.
    pub id: String,
    /// Whether an `$identify` or an `$alias` was about it; otherwise it is an id that events carry, and no more.
    pub identified: bool,
    /// The trait `email`.
    pub email: Option<String>,
    /// How many events there are, those of linked ids included.
    pub events: u64,
    /// The earliest (corrected) time.
    pub first_seen: Timestamp,
    /// The latest (corrected) time.
    pub last_seen: Timestamp,
    /// The last position of an event of that time.
    pub last_position: u64,
    /// How many ids are linked to it.
    pub links: u64,
}

/// Everything that is known of a user.
#[derive(Clone, Debug, PartialEq)]
pub struct UserProfile {
    /// As lists show it.
    pub row: UserRow,
    /// The ids that are linked to it, with the positions of the `$alias` events that said so, in their order.
    pub ids: Vec<(String, u64)>,
    /// What it is said to be.
    pub traits: Traits,
    /// What was said of it and not taken, the newest last.
    pub refused: Vec<Refusal>,
}

/// What users are looked up by. An id that is linked stands for its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserLookup {
    /// An id.
    Id(String),
    /// An email, exactly.
    Email(String),
    /// The beginning of an id or of an email.
    Beginning(String),
}

/// Where a page of users ended: when its last user was seen, and by which event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenBefore {
    /// The (corrected) time.
    pub last_ms: i64,
    /// The position.
    pub last_position: u64,
}

/// The view "identifications": who the users are.
impl Store {
    /// Reads how far the identifications of a project have come.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn identification_state(&self, project: ProjectId) -> Result<ViewState, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.identification_state(project).await,
            Backend::Postgres(postgres) => postgres.identification_state(project).await,
        }
    }

    /// Lists users, the last seen first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn identifications(
        &self,
        project: ProjectId,
        before: Option<SeenBefore>,
        limit: usize,
    ) -> Result<Vec<UserRow>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.identifications(project, before, limit).await,
            Backend::Postgres(postgres) => postgres.identifications(project, before, limit).await,
        }
    }

    /// Looks users up: those whose id it is first, then those whose email it is, in the order of these.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn find_identifications(
        &self,
        project: ProjectId,
        lookup: UserLookup,
        limit: usize,
    ) -> Result<Vec<UserRow>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.find_identifications(project, lookup, limit).await,
            Backend::Postgres(postgres) => postgres.find_identifications(project, &lookup, limit).await,
        }
    }

    /// Reads one user, by its id or by one that is linked to it.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn identification(&self, project: ProjectId, id: &str) -> Result<Option<UserProfile>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.identification(project, id.to_owned()).await,
            Backend::Postgres(postgres) => postgres.identification(project, id).await,
        }
    }

    /// Reads a page of the events of a user and its linked ids, the newest first, below a position. `None` when there is no
    /// such user.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn timeline(
        &self,
        project: ProjectId,
        id: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Option<EventPage>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.timeline(project, id.to_owned(), before, limit).await,
            Backend::Postgres(postgres) => postgres.timeline(project, id, before, limit).await,
        }
    }
}

/// Reads traits as they are kept.
pub(super) fn read_traits(text: &str, id: &str) -> Result<Traits, Error> {
    Traits::from_text(text).map_err(|error| unreadable(id, &error))
}

/// Reads refusals as [`refused_text`] wrote them.
pub(super) fn read_refused(text: &str, id: &str) -> Result<Vec<Refusal>, Error> {
    serde_json::from_str(text).map_err(|error| unreadable(id, &error))
}

pub(super) fn refused_text(refused: &[Refusal]) -> String {
    serde_json::to_string(refused).expect("text and numbers are always JSON")
}

/// Reads a time as it is kept.
pub(super) fn read_time(ms: Option<i64>, id: &str) -> Result<Timestamp, Error> {
    let time = ms.and_then(Timestamp::from_ms);
    time.ok_or_else(|| unreadable(id, &format!("{ms:?} is no time")))
}

fn unreadable(id: &str, what: &impl std::fmt::Display) -> Error {
    Error::unreadable(format!("the user {id:?}: {what}; `eventbucket rebuild` makes it anew"))
}

/// What every text that begins with this one is below, byte by byte; `None` when there is no such text.
pub(super) fn end_of_beginning(beginning: &str) -> Option<String> {
    let mut end = beginning.to_owned();
    while let Some(last) = end.pop() {
        // Characters order as their bytes in UTF-8 do.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_ends_behind_everything_that_begins_with_it() {
        for (beginning, end) in [("a", "b"), ("az", "a{"), ("ü", "ý"), ("\u{d7ff}", "\u{e000}")] {
            assert_eq!(end_of_beginning(beginning).as_deref(), Some(end));
            assert!(*beginning < *end && format!("{beginning}\u{10ffff}").as_str() < end);
        }
        assert_eq!(end_of_beginning("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(end_of_beginning("\u{10ffff}"), None);
    }
}
