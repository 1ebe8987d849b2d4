use crate::project::{AccountId, KeyHash, KeyKind, NewKey, Project, ProjectId, Standing};

use super::{Backend, Error, Store};

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
        }
    }

    /// Makes a project with a write key and a secret key.
    ///
    /// # Errors
    /// [`Error::Taken`] when the account has a project of that name.
    pub async fn create_project(&self, account: AccountId, name: &str) -> Result<NewProject, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.create_project(account, name).await,
        }
    }

    /// Lists projects, of one account or of all, in the order they were made.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn projects(&self, account: Option<AccountId>) -> Result<Vec<Project>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.projects(account).await,
        }
    }

    /// Finds the first project of a name.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn project_named(&self, name: &str) -> Result<Option<Project>, Error> {
        Ok(self.projects(None).await?.into_iter().find(|project| project.name == name))
    }

    /// Makes a new key of a kind and revokes those of that kind there were. `browser` says whether web pages may use it.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn rotate_key(
        &self,
        project: ProjectId,
        kind: KeyKind,
        browser: bool,
    ) -> Result<NewKey, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.rotate_key(project, kind, browser).await,
        }
    }

    /// Says whether web pages may use the project's write keys.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn set_browser(&self, project: ProjectId, browser: bool) -> Result<(), Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.set_browser(project, browser).await,
        }
    }

    /// Finds what a key is worth.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn find_key(&self, hash: &KeyHash) -> Result<Standing, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.find_key(*hash).await,
        }
    }
}
