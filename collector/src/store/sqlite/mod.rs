//! The store on SQLite: one writer thread that owns the write connection, a few read connections, one file.

/// Appends batches to the log.
mod append;

/// The walks of an audit.
mod audit;

/// What an audit holds the views against.
mod compare;

/// The view "counts".
mod counts;

/// Reads the log.
mod events;

/// One read of the log for all views.
mod follow;

/// The jobs that share a transaction.
mod group;

/// The view "identifications": who the users are.
mod identifications;

/// What is done within a transaction of the writer.
mod job;

/// Opens, identifies and upgrades the file.
mod open;

/// Copies of the file.
pub(super) mod copy;

/// Looks at the file from outside.
pub(super) mod look;

/// Accounts, projects and keys.
mod projects;

/// Reads pages of the log.
mod page;

/// Where the files were when they were opened.
mod place;

/// Reads the view "identifications".
mod profiles;

/// A few read connections.
mod readers;

/// New generations of the views.
mod rebuild;

/// A log whose every call is one step, for simulations.
#[cfg(test)]
pub(super) mod scratch;

/// Puts a copy in the place of the file.
pub(super) mod restore;

/// What an audit asks of the file itself.
mod soundness;

/// How many different users the view "counts" has seen.
mod users;

/// The thread that owns the write connection.
mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use eventbucket_protocol::BatchId;
use rusqlite::Connection;
use uuid::Uuid;

use crate::bus::message::ValidBatch;
use crate::project::ProjectId;

use super::batches::BatchPart;
use super::projects::now;
use super::ranges::USAGE_DAYS_MAX;
use super::{Appended, Error, EventFilter, EventOrder, EventPage, Ledger, StoredEvent};
use job::{Job, Turn};
use place::Opened;
use readers::Readers;
use writer::Writer;

/// How a SQLite store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// The database file; its folder is made when it isn't there.
    pub file: PathBuf,
    /// How much a commit waits for. Anything but [`Synchronous::Full`] breaks the promise that a confirmed event is safe, and
    /// exists so that a test can show that it would notice.
    #[doc(hidden)]
    pub synchronous: Synchronous,
    /// Which of SQLite's file layers to use; for tests that cut the power.
    #[doc(hidden)]
    pub vfs: Option<String>,
    /// Read connections: 4, each with 4 MiB of pages; two cores are kept busy by two.
    pub readers: usize,
}

impl SqliteOptions {
    /// The options for a file, with everything else as it should be.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), synchronous: Synchronous::Full, vfs: None, readers: 4 }
    }
}

/// How much a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// The disk has it.
    #[default]
    Full,
    /// The system has it; a power cut may take it.
    Normal,
}

/// What a process beside the collector wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look.
    ReadOnly,
    /// Manage projects, rebuild views.
    ReadWrite,
}

#[derive(Clone)]
pub(super) struct Sqlite(Arc<Shared>);

struct Shared {
    options: SqliteOptions,
    /// Nobody writes through a store opened to look.
    writer: Option<Writer>,
    readers: Readers,
    epoch: Mutex<Uuid>,
    begun_ms: i64,
    /// An audit reads everything and fills temporary tables: one at a time.
    auditing: Arc<tokio::sync::Mutex<()>>,
}

impl Sqlite {
    pub(super) fn open(options: SqliteOptions) -> Result<Self, Error> {
        let connection = open::create(&options)?;
        Self::start(options, Some(connection))
    }

    pub(super) fn open_beside(file: &Path, access: Access) -> Result<Self, Error> {
        let options = SqliteOptions::new(file);
        let connection = open::existing(&options, access)?;
        Self::start(options, (access == Access::ReadWrite).then_some(connection))
    }

    fn start(options: SqliteOptions, connection: Option<Connection>) -> Result<Self, Error> {
        let reader = open::reader(&options)?;
        let (epoch, begun_ms) = (Mutex::new(open::epoch(&reader)?), open::begun_ms(&reader)?);
        drop(reader);
        let database = Opened::at(&options.file)?;
        let writer = connection.map(|connection| Writer::start(connection, options.clone())).transpose()?;
        let readers = Readers::new(options.clone(), database);
        Ok(Self(Arc::new(Shared { options, writer, readers, epoch, begun_ms, auditing: Arc::default() })))
    }

    /// Runs a job in the next transaction and returns when it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        kind: Job,
        work: impl FnMut(&mut Turn<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        match &self.0.writer {
            Some(writer) => writer.run(kind, work).await,
            None => Err(Error::ReadOnly { path: self.0.options.file.clone() }),
        }
    }

    /// Reads on one of the read connections.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.0.readers.run(read).await
    }

    pub(super) fn serving(&self) -> Result<(), Error> {
        self.0.writer.as_ref().map_or(Ok(()), Writer::serving)
    }

    pub(super) fn epoch(&self) -> Uuid {
        *self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the log a new epoch, if it still has that one.
    async fn renew_epoch(&self, epoch: Uuid) -> Result<(), Error> {
        let renew = move |turn: &mut Turn<'_>| {
            // Random to the first byte: cursors carry the first four, and the time in a v7 id would be the same in them for a minute.
            let renew = "UPDATE epoch SET id = randomblob(16) WHERE id = ?1";
            turn.connection.execute(renew, [epoch.as_bytes()])?;
            open::epoch(turn.connection)
        };
        let now = self.write(Job::Other, renew).await?;
        *self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner) = now;
        tracing::warn!(epoch = %now, "the log has a new epoch: an older copy of the database was put back");
        Ok(())
    }

    pub(super) fn begun_ms(&self) -> i64 {
        self.0.begun_ms
    }

    pub(super) async fn append(&self, batches: Vec<ValidBatch>) -> Result<Vec<Appended>, Error> {
        let all = 0..batches.len();
        self.append_part(&batches.into(), all).await
    }

    pub(super) async fn append_each(&self, batches: Arc<[ValidBatch]>) -> Vec<Result<Appended, Error>> {
        let count = batches.len();
        match self.append_part(&batches, 0..count).await {
            Ok(appended) => appended.into_iter().map(Ok).collect(),
            Err(error) if count > 1 && error.concerns_one_batch() => {
                let mut apart = Vec::with_capacity(count);
                for place in 0..count {
                    let alone = self.append_part(&batches, place..place + 1).await;
                    apart.push(alone.map(|mut one| one.pop().expect("a batch has one answer")));
                }
                apart
            }
            Err(error) => vec![Err(error); count],
        }
    }

    pub(super) async fn quarantine(&self, batch: ValidBatch, what: String) -> Result<Appended, Error> {
        self.write(Job::Other, move |turn| append::quarantine(turn, &batch, &what)).await
    }

    async fn append_part(
        &self,
        batches: &Arc<[ValidBatch]>,
        part: Range<usize>,
    ) -> Result<Vec<Appended>, Error> {
        let events = batches[part.clone()].iter().map(|batch| batch.events.len()).sum();
        let batches = Arc::clone(batches);
        let append = move |turn: &mut Turn<'_>| append::append(turn, &batches[part.clone()]);
        self.write(Job::Append { events }, append).await
    }

    pub(super) async fn batch(&self, project: ProjectId, batch: BatchId) -> Result<Vec<BatchPart>, Error> {
        self.read(move |connection| append::batch(connection, project, batch)).await
    }

    pub(super) async fn received_since(&self, project: ProjectId, day: i64) -> Result<u64, Error> {
        self.read(move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT coalesce(sum(received), 0) FROM usage WHERE project = ?1 AND day >= ?2",
            )?;
            Ok(select.query_row(rusqlite::params![project.0, day], |row| row.get(0).map(uint))?)
        })
        .await
    }

    /// A project at a time, so that only what goes is looked at.
    pub(super) async fn forget_usage(&self) -> Result<u64, Error> {
        let today = now().ms().div_euclid(append::DAY_MS);
        let forget = move |turn: &mut Turn<'_>| {
            let mut delete = turn.connection.prepare_cached(
                "DELETE FROM usage WHERE project IN (SELECT project FROM head) AND day < ?1",
            )?;
            Ok(delete.execute([today - USAGE_DAYS_MAX])? as u64)
        };
        self.write(Job::Other, forget).await
    }

    pub(super) async fn head(&self, project: ProjectId) -> Result<u64, Error> {
        self.read(move |connection| events::head(connection, project)).await
    }

    pub(super) async fn events(
        &self,
        project: ProjectId,
        filter: EventFilter,
        order: EventOrder,
        limit: usize,
    ) -> Result<EventPage, Error> {
        self.read(move |connection| page::page(connection, project, &filter, order, limit)).await
    }

    pub(super) async fn event(&self, project: ProjectId, id: Uuid) -> Result<Option<StoredEvent>, Error> {
        self.read(move |connection| events::find(connection, project, id)).await
    }

    pub(super) async fn ledger(&self, project: Option<ProjectId>) -> Result<Ledger, Error> {
        self.read(move |connection| events::ledger(connection, project)).await
    }

    pub(super) async fn close(&self) -> Result<(), Error> {
        self.0.readers.close();
        match &self.0.writer {
            Some(writer) => writer.close().await,
            None => Ok(()),
        }
    }
}

/// Bits of an event's key that hold its position: 2^40 events a project.
const POSITION_BITS: u32 = 40;

/// The highest project number: 2^23 of them leave the key's sign bit alone.
const PROJECT_MAX: u32 = (1 << 23) - 1;

/// The row key of a position in a project's log.
fn key(project: ProjectId, position: u64) -> i64 {
    i64::from(project.0) << POSITION_BITS | int(position)
}

/// The position in a row key.
fn position(key: i64) -> u64 {
    uint(key & ((1 << POSITION_BITS) - 1))
}

/// SQLite's integers are signed; nothing that is counted here reaches 2^63.
fn int(value: u64) -> i64 {
    i64::try_from(value).expect("counts and positions stay below 2^63")
}

/// What is counted is never negative; a damaged row that says so reads as nothing and fails its checks.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::{Error as Sqlite, ErrorCode, ffi};
        match &error {
            Sqlite::FromSqlConversionFailure(..)
            | Sqlite::IntegralValueOutOfRange(..)
            | Sqlite::InvalidColumnType(..)
            | Sqlite::Utf8Error(..) => return Self::unreadable(error.to_string()),
            // The index of the write-ahead log is a file too, and says it in its own way when there is no room for it.
            Sqlite::SqliteFailure(failure, _) if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
                return Self::DiskFull;
            }
            // A row that stands where the next position belongs is the file's fault, not the value's.
            Sqlite::SqliteFailure(failure, _)
                if failure.code == ErrorCode::ConstraintViolation
                    && failure.extended_code != ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                    && failure.extended_code != ffi::SQLITE_CONSTRAINT_ROWID =>
            {
                return Self::Refused { what: error.to_string().into() };
            }
            _ => {}
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Refused { what: error.to_string().into() }
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::corrupt(error.to_string()),
            _ => Self::Sqlite(Arc::new(error)),
        }
    }
}
