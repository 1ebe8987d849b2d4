use std::path::{Path, PathBuf};

use super::{Error, Store, sqlite};

/// A copy of a database in a file that is whole and was checked.
#[derive(Clone, Debug)]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its schema.
    pub schema: u32,
    /// What it holds of each project.
    pub projects: Vec<BackupProject>,
}

/// What a copy holds of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupProject {
    /// Its name.
    pub name: String,
    /// The last position of its log.
    pub position: u64,
    /// The events stored up to there.
    pub events: u64,
}

/// A database that a copy was put in the place of.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The database now.
    pub database: Backup,
    /// Where the one that was there before is now.
    pub replaced: Option<PathBuf>,
}

/// How far something has come: done, total.
pub type OnCopied<'a> = &'a dyn Fn(u64, u64);

/// Copies of a store on SQLite. They block, as long as the disk takes for it.
impl Store {
    /// Copies the database in a data folder into a new file, beside a collector that goes on writing to it: what was committed
    /// before the call is in the copy, and nothing that was committed in half. The copy is on disk and was checked when this
    /// returns; otherwise there is no file. `progress` is told bytes.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoRoom`], [`Error::Unsound`]; [`Error::Missing`] and [`Error::NewerSchema`] of the database.
    pub fn back_up(database: &Path, to: &Path, progress: OnCopied<'_>) -> Result<Backup, Error> {
        sqlite::copy::back_up(database, to, progress)
    }

    /// Puts a copy of a database into a data folder that nobody serves, under a new epoch: cursors and views that saw a later
    /// state of the log notice. Any kill leaves what was there or the copy, whole. With `replace` a database that is there is
    /// kept beside it under another name.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::InUse`], [`Error::Occupied`], [`Error::NoRoom`]; [`Error::NotOurs`], [`Error::NewerSchema`]
    /// and [`Error::Unsound`] of the copy.
    pub fn restore(
        from: &Path,
        folder: &Path,
        replace: bool,
        progress: OnCopied<'_>,
    ) -> Result<Restored, Error> {
        sqlite::restore::restore(from, folder, replace, progress)
    }
}
