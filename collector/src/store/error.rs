use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::project::ProjectId;

/// Why the store couldn't do what it was asked. Clones, because one failed commit fails every job that shared it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process kept the write lock longer than the store waits.
    #[error("another process is writing to the database; try again in a moment")]
    Busy,
    /// No room for the write.
    #[error("the disk is full; free some space and the collector goes on by itself")]
    DiskFull,
    /// An open file of the database is no longer where it was opened.
    #[error(
        "{} was moved, replaced or deleted under the running collector; put it back, or restart the collector on the \
         right folder", .path.display()
    )]
    Moved {
        /// The file.
        path: PathBuf,
    },
    /// The database has a second name, so a second collector could write to it and see nothing of the first.
    #[error(
        "{} is a link: a database has one name; give --data the folder that it really lies in, or remove its other names",
        .path.display()
    )]
    Linked {
        /// The file.
        path: PathBuf,
    },
    /// The database is gone and its write-ahead log isn't.
    #[error(
        "{} is gone or empty but {} is there, which may hold events; put the database back beside it, or move the log away to \
         begin anew", .database.display(), .log.display()
    )]
    LogAlone {
        /// The database file.
        database: PathBuf,
        /// Its write-ahead log.
        log: PathBuf,
    },
    /// The database takes the file's state but not this value; the same value will be refused again.
    #[error("the database refuses what was sent: {what}")]
    Refused {
        /// What the database said.
        what: Arc<str>,
    },
    /// The counts of a project have no live generation.
    #[error("the counts of project {0} are missing; `eventbucket rebuild` computes them anew from the log")]
    CountsMissing(ProjectId),
    /// A row that was not written like this.
    #[error("a row can't be read: {what}; run `eventbucket audit` and restore a backup")]
    Unreadable {
        /// Which row, and what is wrong with it.
        what: Arc<str>,
    },
    /// The file can't be written.
    #[error("{} can't be written; check the owner and the permissions of the file and its folder", .path.display())]
    ReadOnly {
        /// The database file.
        path: PathBuf,
    },
    /// The writer failed and is being reopened, or it has been closed.
    #[error("the store is unavailable: {reason}; it is reopened automatically, send again")]
    Unavailable {
        /// What happened to it.
        reason: Arc<str>,
    },
    /// More is read at once than the store has connections for reads.
    #[error("too many reads run at the same time; ask again in a moment")]
    Crowded,
    /// Another process has begun the same job since, with a higher token.
    #[error("another process has taken this over and goes on with it")]
    TakenOver,
    /// A newer version wrote the file.
    #[error("the database has schema {found} but this version knows {known}; start a newer eventbucket")]
    NewerSchema {
        /// The version in the file.
        found: u32,
        /// The version this program knows.
        known: u32,
    },
    /// The file waits to be upgraded, which only the collector itself does.
    #[error(
        "the database has schema {found}, older than {known}; start `eventbucket serve` once to upgrade it"
    )]
    OlderSchema {
        /// The version in the file.
        found: u32,
        /// The version this program knows.
        known: u32,
    },
    /// The file belongs to something else.
    #[error("{} is not an Event Bucket database; choose another folder with --data", .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// There is no file where one was expected.
    #[error("there is no database at {}; start `eventbucket serve` with this folder first, or check --data", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// What is stored contradicts itself.
    #[error("the database is damaged: {what}; run `eventbucket audit` and restore a backup")]
    Corrupt {
        /// What was found.
        what: Arc<str>,
    },
    /// A copy never replaces a file.
    #[error("{} is there already and is left alone; choose another name, or move it away", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A copy needs more room than there is.
    #[error(
        "a copy takes {bytes} bytes and the disk of {} has {free_bytes} free; free some space or choose another disk",
        .path.display()
    )]
    NoRoom {
        /// The folder it was to be in.
        path: PathBuf,
        /// What it takes.
        bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// A copy that can't be relied on.
    #[error("{} isn't whole ({what}) and is not used; take another copy", .path.display())]
    Unsound {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: Arc<str>,
    },
    /// A copy was to be put where a database is.
    #[error("{} is there already; --replace puts it aside, under another name in the same folder", .path.display())]
    Occupied {
        /// The database.
        path: PathBuf,
    },
    /// Somebody else works with a file that has to be ours alone.
    #[error(
        "another program has {} open, as an audit, another backup or sqlite3; try again when it has ended",
        .path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Another collector serves this folder.
    #[error("another collector{} serves this folder already; stop it or choose another folder with --data", pid_words(.pid))]
    Locked {
        /// Its process id, where the lock file tells.
        pid: Option<u32>,
    },
    /// The folder can't be made or used.
    #[error("can't use the folder {}: {source}; check its path and permissions", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// There is no such project.
    #[error("there is no project {0}; `eventbucket project list` shows those there are")]
    UnknownProject(ProjectId),
    /// The name is in use.
    #[error("there is a {what} {name:?} already; choose another name")]
    Taken {
        /// `project` or `account`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that can't be used.
    #[error("{0}")]
    InvalidName(&'static str),
    /// All numbers for projects are given out.
    #[error("the store holds as many projects as it can; use another data folder")]
    TooManyProjects,
    /// The answer would be larger than one answer may be.
    #[error("the answer has more than {limit} rows; ask for a name, a shorter time or totals")]
    TooManyRows {
        /// The limit.
        limit: usize,
    },
    /// Anything else SQLite said.
    #[error("the database failed: {0}")]
    Sqlite(Arc<rusqlite::Error>),
    /// Something that this kind of store can't do.
    #[error("{0}; use a store on Postgres for that")]
    Unsupported(&'static str),
    /// Anything else Postgres said.
    #[error("the database failed: {what} ({code})")]
    Postgres {
        /// What it said.
        what: Arc<str>,
        /// Its five-letter code for that.
        code: Arc<str>,
    },
    /// The address of a server, or what it leads to, can't be used.
    #[error("the database's address can't be used: {what}; see `store.url` in the configuration")]
    Address {
        /// What is wrong with it, without its password.
        what: Arc<str>,
    },
}

fn pid_words(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// How long a client waits before it tries again after a failure that mends itself: two rounds of the writer's first
/// attempts to reopen.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// The HTTP status that says it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownProject(_) | Self::Missing { .. } => 404,
            Self::Taken { .. } => 409,
            Self::Unsupported(_) => 501,
            Self::InvalidName(_) | Self::TooManyRows { .. } => 400,
            Self::NewerSchema { .. }
            | Self::OlderSchema { .. }
            | Self::NotOurs { .. }
            | Self::Corrupt { .. }
            | Self::Locked { .. }
            | Self::Folder { .. }
            | Self::LogAlone { .. }
            | Self::Linked { .. }
            | Self::Address { .. }
            | Self::Refused { .. }
            | Self::CountsMissing(_)
            | Self::Unreadable { .. }
            | Self::Exists { .. }
            | Self::NoRoom { .. }
            | Self::Unsound { .. }
            | Self::Occupied { .. }
            | Self::InUse { .. }
            | Self::TooManyProjects => 500,
            Self::Busy
            | Self::Moved { .. }
            | Self::DiskFull
            | Self::ReadOnly { .. }
            | Self::Unavailable { .. }
            | Self::Crowded
            | Self::TakenOver
            | Self::Sqlite(_)
            | Self::Postgres { .. } => 503,
        }
    }

    /// After how long the same request may succeed; `None` when trying again is of no use.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        (self.status() == 503).then_some(RETRY_AFTER)
    }

    /// Says it to anybody who asks: without the names of servers, databases and users.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Unavailable { .. } => "the store is away; send again".to_owned(),
            Self::Postgres { .. } => "the store can't do it now; send again".to_owned(),
            _ => self.to_string(),
        }
    }

    /// Says whether it is about one batch rather than about the store: without that batch the others can be stored.
    pub(crate) fn concerns_one_batch(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::UnknownProject(_))
    }

    /// Says whether it may be about what is stored of one project: without that the others' events can be stored.
    pub(crate) fn may_concern_one_project(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Unreadable { .. } | Self::Postgres { .. })
    }

    /// Says that a row was not written like this.
    pub(crate) fn unreadable(what: impl Into<Arc<str>>) -> Self {
        Self::Unreadable { what: what.into() }
    }

    /// Says that the store is not there for the moment.
    pub(crate) fn unavailable(reason: impl Into<Arc<str>>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    /// Says that what is stored contradicts itself.
    pub(crate) fn corrupt(what: impl Into<Arc<str>>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}
