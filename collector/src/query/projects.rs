use super::audit::{Audit, audit};
use super::{Error, Reader};
use crate::project::{AccountId, KeyKind, LimitsChange, NewKey, OwnLimits, Project, ProjectId};
use crate::store::{NewProject, ViewState};

/// A key that was made in the place of others.
#[derive(Debug)]
pub struct RotatedKey {
    /// The new key.
    pub key: NewKey,
    /// Whether all processes know that the old ones are revoked. `false` when Redis couldn't be told: then others may
    /// believe them for up to a minute.
    pub told: bool,
}

/// What a project may send from now on.
#[derive(Debug)]
pub struct ChangedLimits {
    /// Its limits.
    pub limits: OwnLimits,
    /// Whether all processes know; `false` as in [`RotatedKey`].
    pub told: bool,
}

/// The views of a project that were computed again.
#[derive(Clone, Copy, Debug)]
pub struct Rebuilt {
    /// How many events and users there are.
    pub counts: ViewState,
    /// Who the users are.
    pub identifications: ViewState,
}

impl Reader {
    /// Lists the projects of an account.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn projects(&self, account: AccountId) -> Result<Vec<Project>, Error> {
        Ok(self.store.projects(Some(account)).await?)
    }

    /// Makes a project in an account.
    ///
    /// # Errors
    /// When the name is taken or can't be used, or the store can't be written.
    pub async fn create_project(&self, account: AccountId, name: &str) -> Result<NewProject, Error> {
        let made = self.store.create_project(account, name).await?;
        self.cache.forget_keys().await;
        Ok(made)
    }

    /// Replaces the keys of a kind by a new one. The old ones stop working at once in this process, within a second in
    /// others.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn rotate_key(
        &self,
        project: ProjectId,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<RotatedKey, Error> {
        let key = self.store.rotate_key(project, kind, browser).await?;
        let told = self.cache.forget_keys().await;
        Ok(RotatedKey { key, told })
    }

    /// Changes what a project may send: at once in this process, within a second in others. What a process knows of limits it
    /// knows from its keys.
    ///
    /// # Errors
    /// When there is no such project, or the store can't be written.
    pub async fn set_limits(&self, project: ProjectId, change: LimitsChange) -> Result<ChangedLimits, Error> {
        let limits = self.store.set_limits(project, change).await?;
        let told = self.cache.forget_keys().await;
        Ok(ChangedLimits { limits, told })
    }

    /// Computes the views of a project again from its log, beside the live ones, and switches over: the counts, then the
    /// identifications.
    ///
    /// # Errors
    /// When the store can't be written; the live views stay then.
    pub async fn rebuild(&self, project: ProjectId) -> Result<Rebuilt, Error> {
        let counts = self.store.rebuild_counts(project, |_, _| {}).await?;
        let identifications = self.store.rebuild_identifications(project, |_, _| {}).await?;
        Ok(Rebuilt { counts, identifications })
    }

    /// Audits everything, and returns what concerns one project and the store as a whole.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn audit(&self, project: ProjectId) -> Result<Audit, Error> {
        let mut audit = audit(&self.store, Some(&self.cache), |_, _| {}).await?;
        audit.projects.retain(|audited| audited.project_id == project);
        Ok(audit)
    }
}
