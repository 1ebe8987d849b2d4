//! The log and everything else that is kept. The only module that speaks SQL.

/// Appending to the log and reading from it.
mod events;

/// Conditions on properties.
mod condition;

/// Pages of events while they are filled.
mod page;

/// The ledger that is written with every append.
mod ranges;

/// What became of a batch, kept with its range.
mod batches;

/// Accounts, projects and keys.
mod projects;

/// What is computed from the log and kept beside it.
mod views;

/// Which tables a generation of a view is in.
mod generations;

/// Who the users are.
mod identifications;

/// The figures an audit is made of.
mod audit;

/// Copies, and putting them back.
mod backup;

/// What a store looks like from outside.
mod look;

/// Why the store couldn't.
mod error;

/// The data folder: made for its owner alone.
mod folder;

/// One collector a folder.
mod lock;

/// The SQLite backend.
mod sqlite;

/// The Postgres backend.
mod postgres;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::bus::message::ValidBatch;
use crate::project::ProjectId;

pub use audit::{AuditFigures, CountersToCheck, ProjectFigures, RangeFigures, RowFigures};
pub use backup::{Backup, BackupProject, OnCopied, Restored};
pub use batches::BatchRecord;
pub use condition::{BadCondition, CONDITIONS_MAX, Condition};
pub use error::Error;
pub use events::{
    Appended, Dropped, EventFilter, EventOrder, EventPage, NAMES_MAX, PAGE_BYTES_MAX, StoredEvent,
    TRANSACTION_BATCHES_MAX, TRANSACTION_EVENTS_MAX,
};
pub(crate) use folder::{free_bytes, warn_if_open_to_others};
pub use identifications::{SeenBefore, UserLookup, UserProfile, UserRow};
pub use lock::StoreLock;
pub use look::{ProjectFacts, SchemaFacts, StoreFacts};
pub use page::LOOKED_AT_MAX;
pub use postgres::PostgresOptions;
pub use projects::NewProject;
pub use ranges::Ledger;
#[cfg(test)]
pub(crate) use sqlite::scratch::{Kept, Scratch};
pub use sqlite::{Access, SqliteOptions, Synchronous};
pub use views::{
    Applied, CountRow, CountTotals, CountsBy, CountsQuery, Moved, UserCounts, ViewProgress, ViewState,
};

/// The name of the database file in the data folder.
pub const DATABASE_FILE: &str = "eventbucket.db";

/// A store, whatever stands behind it. Clones share it.
#[derive(Clone)]
pub struct Store(Backend);

#[derive(Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

impl Store {
    /// Opens or creates a SQLite store and starts its writer thread.
    ///
    /// # Errors
    /// When the folder can't be made, or the file can't be written, isn't ours or is too new.
    pub fn sqlite(options: SqliteOptions) -> Result<Self, Error> {
        sqlite::Sqlite::open(options).map(|sqlite| Self(Backend::Sqlite(sqlite)))
    }

    /// Opens an existing SQLite store that a collector may be serving at the same time.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none, otherwise as [`Store::sqlite`].
    pub fn sqlite_beside(file: &Path, access: Access) -> Result<Self, Error> {
        sqlite::Sqlite::open_beside(file, access).map(|sqlite| Self(Backend::Sqlite(sqlite)))
    }

    /// Connects to a Postgres store, and makes or upgrades its tables. Several collectors may share one.
    ///
    /// # Errors
    /// When the server can't be reached, or holds tables of a newer version.
    pub async fn postgres(options: PostgresOptions) -> Result<Self, Error> {
        postgres::Postgres::connect(options).await.map(|postgres| Self(Backend::Postgres(postgres)))
    }

    /// Makes sure that this process alone serves a data folder, until the lock is dropped. Makes the folder if need be.
    ///
    /// # Errors
    /// [`Error::Locked`] with the process that holds it.
    pub fn lock(folder: &Path) -> Result<StoreLock, Error> {
        StoreLock::take(folder)
    }

    /// Says whether appends are being served right now, without asking the disk: what readiness is made of.
    ///
    /// # Errors
    /// What stopped the writer, while it is being reopened.
    pub fn serving(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.serving(),
            Backend::Postgres(postgres) => postgres.serving(),
        }
    }

    /// The log's epoch: another one means that positions may have gone back.
    #[must_use]
    pub fn epoch(&self) -> Uuid {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.epoch(),
            Backend::Postgres(postgres) => postgres.epoch(),
        }
    }

    /// What tells this store from every other, whatever was restored into it: a broker and a Redis carry it as a mark of
    /// whose they are. A copy has the same one.
    #[must_use]
    pub fn identity(&self) -> String {
        match &self.0 {
            Backend::Sqlite(sqlite) => format!("sqlite-{}", sqlite.begun_ms()),
            Backend::Postgres(postgres) => format!("postgres-{}", postgres.identity()),
        }
    }

    /// Appends batches in one transaction and returns when it is on disk. What is in the log already keeps its place and
    /// gets a `duplicate` verdict.
    ///
    /// # Errors
    /// Then nothing is known of any of the batches: send them again.
    pub async fn append(&self, batches: Vec<ValidBatch>) -> Result<Vec<Appended>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.append(batches).await,
            Backend::Postgres(postgres) => postgres.append(&batches).await,
        }
    }

    /// As [`Store::append`], but what the database refuses for its own sake costs the other batches nothing: after such a
    /// failure each batch is appended alone. One outcome a batch, in order.
    pub async fn append_each(&self, batches: Arc<[ValidBatch]>) -> Vec<Result<Appended, Error>> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.append_each(batches).await,
            Backend::Postgres(postgres) => postgres.append_each(&batches).await,
        }
    }

    /// Notes that a batch is put aside whole because the database refuses it, in its words `what`: each event counts as
    /// quarantined, once, and the batch's verdicts are final.
    ///
    /// # Errors
    /// Then nothing is noted.
    pub async fn quarantine(&self, batch: &ValidBatch, what: &str) -> Result<Appended, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.quarantine(batch.clone(), what.to_owned()).await,
            Backend::Postgres(postgres) => postgres.quarantine(batch, what).await,
        }
    }

    /// Reads the last position of a project's log.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn head(&self, project: ProjectId) -> Result<u64, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.head(project).await,
            Backend::Postgres(postgres) => postgres.head(project).await,
        }
    }

    /// Reads a page of events. It ends early when [`LOOKED_AT_MAX`] events were looked at, however few of them it holds, so
    /// that no question keeps the store busy for long.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn events(
        &self,
        project: ProjectId,
        filter: &EventFilter,
        order: EventOrder,
        limit: usize,
    ) -> Result<EventPage, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.events(project, filter.clone(), order, limit).await,
            Backend::Postgres(postgres) => postgres.events(project, filter, order, limit).await,
        }
    }

    /// Finds an event by its identity.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn event(&self, project: ProjectId, id: Uuid) -> Result<Option<StoredEvent>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.event(project, id).await,
            Backend::Postgres(postgres) => postgres.event(project, id).await,
        }
    }

    /// Reads the ledger of one project or of all.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn ledger(&self, project: Option<ProjectId>) -> Result<Ledger, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.ledger(project).await,
            Backend::Postgres(postgres) => postgres.ledger(project).await,
        }
    }

    /// Begins the next segment of the log now, whatever the age and the size of the open one: what is stored from here on is
    /// dropped apart from what was stored before. Waits up to two seconds for the appends under way.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on SQLite; otherwise when an append takes longer or the store can't be written.
    pub async fn begin_segment(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Sqlite(_) => Err(Error::Unsupported("a store on SQLite has no segments")),
            Backend::Postgres(postgres) => postgres.begin_segment().await,
        }
    }

    /// Removes events that were stored longer ago than `age`, a segment at a time, after every view is sealed with what they
    /// count; those of a project that can't be sealed stay. Their identities stay seven days longer at least, so that a late resend is
    /// known. Takes over from whoever is at it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on SQLite; [`Error::TakenOver`] when another call began after this one; otherwise when the
    /// store can't be written, and the next call goes on.
    pub async fn drop_before(&self, age: Duration) -> Result<Dropped, Error> {
        match &self.0 {
            Backend::Sqlite(_) => Err(Error::Unsupported("a store on SQLite keeps all events")),
            Backend::Postgres(postgres) => postgres.drop_before(age).await,
        }
    }

    /// Ends the writer after what it has been given, and folds the write-ahead log into the file. Later writes fail.
    ///
    /// # Errors
    /// When that fails; what was confirmed is safe all the same.
    pub async fn close(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.close().await,
            Backend::Postgres(postgres) => {
                postgres.close();
                Ok(())
            }
        }
    }
}
