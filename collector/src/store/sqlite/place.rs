use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::store::Error;

/// Which file it is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// A file that was opened at a path.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    path: PathBuf,
    identity: Identity,
}

impl Opened {
    /// Remembers which file is at a path; to be asked right after it was opened.
    pub(super) fn at(path: &Path) -> Result<Self, Error> {
        match identity(path) {
            Some(identity) => Ok(Self { path: path.to_owned(), identity }),
            None => Err(Error::Moved { path: path.to_owned() }),
        }
    }

    /// Makes sure that the path still leads to the same file: an open file can be written to after it was moved or
    /// deleted, and nobody would find it there.
    pub(super) fn check(&self) -> Result<(), Error> {
        if identity(&self.path) == Some(self.identity) {
            Ok(())
        } else {
            Err(Error::Moved { path: self.path.clone() })
        }
    }
}

/// Where the files of a database were when it was opened.
pub(super) struct Place {
    pub(super) database: Opened,
    log: Opened,
    /// What the processes at one database share of its log: with another, two of them would write over each other.
    shared: Opened,
}

impl Place {
    /// Remembers the files of a database that has just been opened for writing.
    pub(super) fn of(file: &Path) -> Result<Self, Error> {
        let shared = Opened::at(&beside(file, "-shm"))?;
        Ok(Self { database: Opened::at(file)?, log: Opened::at(&log_of(file))?, shared })
    }

    /// Makes sure that all files are where they were. Three questions to the system, about 3 us.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.database.check()?;
        self.log.check()?;
        self.shared.check()
    }

    /// Says whether only the write-ahead log is missing: then what is in it can be saved into the database.
    pub(super) fn lacks_log_alone(&self) -> bool {
        self.database.check().is_ok() && self.shared.check().is_ok() && identity(&self.log.path).is_none()
    }
}

/// The path of a database's write-ahead log.
pub(super) fn log_of(file: &Path) -> PathBuf {
    beside(file, "-wal")
}

/// A path with something added to its name.
pub(super) fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(ending);
    PathBuf::from(name)
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some(Identity { device: found.dev(), inode: found.ino() })
}
