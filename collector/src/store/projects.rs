use std::num::NonZeroU64;
use std::time::SystemTime;

use eventbucket_protocol::Timestamp;

use crate::project::{
    AccountId, KeyHash, KeyKind, LimitsChange, NewKey, OwnLimit, OwnLimits, Project, ProjectId, Standing,
};

use super::{Backend, Error, Store};

/// The name of a project or a team, in characters: what fits on a line of a page.
const NAME_CHARS_MAX: usize = 100;

/// A project at the moment it is made, with its keys in clear for the only time.
#[derive(Clone, Debug)]
pub struct NewProject {
    /// The project.
    pub project: Project,
    /// May send events.
    pub write_key: NewKey,
    /// May read and manage.
    pub secret_key: NewKey,
}

/// Accounts, projects and keys.
impl Store {
    /// Says whether there is no project yet.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.projects(None).await?.is_empty())
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`Error::Taken`] when the email is in use.
    pub async fn create_account(&self, email: &str, team: &str) -> Result<AccountId, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.create_account(email, team).await,
            Backend::Postgres(postgres) => postgres.create_account(email, team).await,
        }
    }

    /// Makes a project with a write key and a secret key.
    ///
    /// # Errors
    /// [`Error::Taken`] when the account has a project of that name.
    pub async fn create_project(&self, account: AccountId, name: &str) -> Result<NewProject, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.create_project(account, name).await,
            Backend::Postgres(postgres) => postgres.create_project(account, name).await,
        }
    }

    /// Lists projects, of one account or of all, in the order they were made.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn projects(&self, account: Option<AccountId>) -> Result<Vec<Project>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.projects(account).await,
            Backend::Postgres(postgres) => postgres.projects(account).await,
        }
    }

    /// Finds the first project of a name.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn project_named(&self, name: &str) -> Result<Option<Project>, Error> {
        Ok(self.projects(None).await?.into_iter().find(|project| project.name == name))
    }

    /// Makes a new key of a kind and revokes those of that kind there were. `browser` says whether web pages may use it;
    /// without it, the new key is what those it replaces were.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn rotate_key(
        &self,
        project: ProjectId,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<NewKey, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.rotate_key(project, kind, browser).await,
            Backend::Postgres(postgres) => postgres.rotate_key(project, kind, browser).await,
        }
    }

    /// Says whether web pages may use the project's write keys.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn set_browser(&self, project: ProjectId, browser: bool) -> Result<(), Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.set_browser(project, browser).await,
            Backend::Postgres(postgres) => postgres.set_browser(project, browser).await,
        }
    }

    /// Changes what a project may send, and returns what it may from now on.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn set_limits(&self, project: ProjectId, change: LimitsChange) -> Result<OwnLimits, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.set_limits(project, change).await,
            Backend::Postgres(postgres) => postgres.set_limits(project, change).await,
        }
    }

    /// Finds what a key is worth.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn find_key(&self, hash: &KeyHash) -> Result<Standing, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.find_key(*hash).await,
            Backend::Postgres(postgres) => postgres.find_key(*hash).await,
        }
    }
}

/// The time at which something is made.
pub(super) fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// Refuses a name that can't be shown.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::InvalidName("the name is empty; give one"));
    }
    if name.chars().count() > NAME_CHARS_MAX {
        return Err(Error::InvalidName("the name is longer than 100 characters; shorten it"));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::InvalidName("the name contains a control character; remove it"));
    }
    Ok(())
}

/// Makes a key from the system's random bytes.
pub(super) fn new_key(kind: KeyKind) -> Result<NewKey, Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|error| Error::unavailable(format!("the system gives no random bytes: {error}")))?;
    Ok(NewKey::from_random(kind, &random))
}

/// A limit as the database keeps it: NULL for the configuration's, 0 for none.
pub(super) fn limit_number(limit: OwnLimit) -> Option<i64> {
    match limit {
        OwnLimit::Default => None,
        OwnLimit::None => Some(0),
        OwnLimit::Events(events) => Some(i64::try_from(events.get()).unwrap_or(i64::MAX)),
    }
}

/// Reads it back. A number that was never written stands for the configuration's.
pub(super) fn limit_of(number: Option<i64>) -> OwnLimit {
    let Some(number) = number.and_then(|number| u64::try_from(number).ok()) else { return OwnLimit::Default };
    NonZeroU64::new(number).map_or(OwnLimit::None, OwnLimit::Events)
}

/// The word for a kind in the database.
pub(super) fn kind_text(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Write => "write",
        KeyKind::Secret => "secret",
    }
}
