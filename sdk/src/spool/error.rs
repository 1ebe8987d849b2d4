use std::io;

use rusqlite::ErrorCode;

/// Which end was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FullBy {
    /// The spool holds as much as it may: [`super::SpoolLimits::bytes_max`].
    Bound,
    /// The file system has no room.
    Disk,
}

/// Why the spool didn't do what it was asked. After anything but `Full` and `NoSuchBatch` the spool should be dropped and
/// opened again later: what a failed write or sync left behind is known only after reading it again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// There is no room; nothing was written. The spool stays usable.
    #[error("the spool is full ({})", match by {
        FullBy::Bound => "its bound is reached; raise spool_bytes_max or see why nothing is delivered",
        FullBy::Disk => "the disk is full; free some space",
    })]
    Full {
        /// Which end was reached.
        by: FullBy,
    },
    /// The folder or the file can't be written.
    #[error("the spool folder can't be written; give this process the right to, or choose another")]
    ReadOnly,
    /// The file isn't whole.
    #[error("the spool file isn't whole: {0}; it is set aside")]
    Corrupt(String),
    /// A newer version wrote the file.
    #[error("the spool file has version {found}, this program knows {known}; upgrade the program")]
    NewerSchema {
        /// The version of the file.
        found: i64,
        /// The version this program writes.
        known: i64,
    },
    /// The file is a database of something else.
    #[error("the file in the spool folder isn't a spool; choose another folder")]
    NotOurs,
    /// The caller named a batch that isn't there, or parts that don't fit it.
    #[error("no such batch in the spool")]
    NoSuchBatch,
    /// The file system failed.
    #[error("can't use the spool folder: {0}")]
    Io(#[source] io::Error),
    /// The database failed in another way.
    #[error("can't use the spool file: {0}")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { by: FullBy::Disk },
            _ => Self::Io(error),
        }
    }
}

impl From<rusqlite::Error> for SpoolError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => return Self::Corrupt(error.to_string()),
            _ => {}
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { by: FullBy::Disk },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(error.to_string()),
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => Self::Io(io::Error::other(error)),
            _ => Self::Sqlite(error),
        }
    }
}
