use std::collections::BTreeMap;

use eventbucket_protocol::Timestamp;
use serde::Serialize;

use crate::project::ProjectId;

use super::{Backend, Error, Store};

/// How far the live generation of a view has come in one project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewState {
    /// The live generation; a rebuild makes the next one.
    pub generation: u64,
    /// The last position whose effect the view contains.
    pub applied_to: u64,
}

/// A view's state beside the head of the log it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewProgress {
    /// The project.
    pub project: ProjectId,
    /// The live generation's state.
    pub state: ViewState,
    /// The last position of the log.
    pub head: u64,
}

/// What one step added to the counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The generation it went to.
    pub generation: u64,
    /// `applied_to` before the step.
    pub from: u64,
    /// `applied_to` after it; equal to `from` when there was nothing to do.
    pub through: u64,
    /// How many events of each name lay in between.
    pub per_name: Vec<(String, u64)>,
}

/// Which counts to read.
#[derive(Clone, Debug, Default)]
pub struct CountsQuery {
    /// Only this name.
    pub name: Option<String>,
    /// Only hours that begin at or after this.
    pub from_hour: Option<Timestamp>,
    /// Only hours that begin before this.
    pub to_hour: Option<Timestamp>,
    /// How fine.
    pub by: CountsBy,
}

/// How fine counts are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountsBy {
    /// One row a name.
    #[default]
    Total,
    /// One row a name and hour.
    Hour,
}

/// A count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CountRow {
    /// The events' name.
    pub name: String,
    /// The beginning of the hour, where hours were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<Timestamp>,
    /// How many there are.
    pub count: u64,
}

/// The counts of all names with the state they belong to, read in one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountTotals {
    /// The state.
    pub state: ViewState,
    /// How many events of each name; empty and `complete` false when there are more names than were asked for.
    pub per_name: BTreeMap<String, u64>,
    /// Whether all names are there.
    pub complete: bool,
}

/// The view "counts": events per name and hour.
impl Store {
    /// Reads how far the counts of a project have come.
    ///
    /// # Errors
    /// [`Error::UnknownProject`]; [`Error::CountsMissing`] when somebody removed them.
    pub async fn view_state(&self, project: ProjectId) -> Result<ViewState, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.view_state(project).await,
            Backend::Postgres(postgres) => postgres.view_state(project).await,
        }
    }

    /// Reads how far the counts of every project have come, and how far its log.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.view_progress().await,
            Backend::Postgres(postgres) => postgres.view_progress().await,
        }
    }

    /// Adds what lies behind `applied_to`, up to `through`, the head, or 50,000 positions, whichever comes first. The new
    /// `applied_to` is part of the same transaction, so nothing is ever added twice.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn apply_counts(&self, project: ProjectId, through: u64) -> Result<Applied, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.apply_counts(project, through).await,
            Backend::Postgres(postgres) => postgres.apply_counts(project, through).await,
        }
    }

    /// Reads counts, by name and hour.
    ///
    /// # Errors
    /// [`Error::TooManyRows`] over 100,000 of them.
    pub async fn counts(&self, project: ProjectId, query: CountsQuery) -> Result<Vec<CountRow>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.counts(project, query).await,
            Backend::Postgres(postgres) => postgres.counts(project, &query).await,
        }
    }

    /// Reads the total of every name, up to `names_max` of them: what live counters start from.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn count_totals(&self, project: ProjectId, names_max: usize) -> Result<CountTotals, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.count_totals(project, names_max).await,
            Backend::Postgres(postgres) => postgres.count_totals(project, names_max).await,
        }
    }

    /// Computes a new generation of the counts beside the live one, then makes it the live one and removes the old.
    /// After a kill at any moment the next call goes on where this one was. `progress` is told positions: done, total.
    ///
    /// # Errors
    /// When the store can't be written; the live generation is untouched then.
    pub async fn rebuild_counts(
        &self,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.rebuild_counts(project, progress).await,
            Backend::Postgres(postgres) => postgres.rebuild_counts(project, progress).await,
        }
    }
}
