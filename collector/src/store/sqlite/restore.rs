use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eventbucket_protocol::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::copy::Partial;
use super::open;
use super::place::{beside, log_of};
use crate::store::projects::now;
use crate::store::{Backup, DATABASE_FILE, Error, OnCopied, Restored, StoreLock, folder};

/// See [`crate::store::Store::restore`].
pub(in crate::store) fn restore(
    from: &Path,
    folder: &Path,
    replace: bool,
    progress: OnCopied<'_>,
) -> Result<Restored, Error> {
    // A copy that can't be used leaves no trace in the folder.
    let (source, _) = open::to_copy(from).map_err(|error| of_source(error, from))?;
    let database = folder.join(DATABASE_FILE);
    let _lock = StoreLock::take(folder)?;
    let (is_there, log_is_there) = (database.exists(), holds_something(&log_of(&database)));
    if (is_there || log_is_there) && !replace {
        return Err(Error::Occupied { path: if is_there { database } else { log_of(&database) } });
    }
    let partial = Partial::begin(&database)?;
    partial.copy(&source, from, Duration::ZERO, progress)?;
    drop(source);
    let made = partial.finish(true).map_err(|error| of_source(error, from))?;
    let aside = (is_there || log_is_there).then(|| aside(&database, now()));
    match &aside {
        Some(aside) if is_there => {
            settle(&database, aside)?;
            partial.exchange(&database, aside)?;
        }
        Some(aside) => {
            put_log_aside(&database, aside)?;
            partial.put(&database)?;
        }
        None => partial.put(&database)?,
    }
    let replaced = aside.map(|aside| if is_there { aside } else { log_of(&aside) });
    Ok(Restored { database: Backup { file: database, ..made }, replaced })
}

/// What was found wrong with the copy of a copy is wrong with the first.
fn of_source(error: Error, from: &Path) -> Error {
    match error {
        Error::Unsound { what, .. } | Error::Corrupt { what } => {
            Error::Unsound { path: from.to_owned(), what }
        }
        error => error,
    }
}

/// What a database is called when another is put in its place.
fn aside(database: &Path, now: Timestamp) -> PathBuf {
    beside(database, &format!(".replaced-{}", now.ms()))
}

fn holds_something(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.len() > 0)
}

/// Makes a database one file without a log, so that one exchange is all it takes to replace it. This needs nobody else to
/// have it open: whoever does goes on using the log by its name, which is going to be another database's.
fn settle(database: &Path, aside: &Path) -> Result<(), Error> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Closing would take the log of a database that can't be read for an empty one, and delete it.
    open::leave_log(&connection, true)?;
    let settled = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get::<_, String>(0));
    drop(connection);
    match settled.map_err(Error::from) {
        Ok(mode) if mode == "delete" => Ok(()),
        Ok(_) | Err(Error::Busy) => Err(Error::InUse { path: database.to_owned() }),
        // What can't be read any more is kept as it is, file by file.
        Err(Error::Corrupt { .. }) => put_log_aside(database, aside),
        Err(error) => Err(error),
    }
}

/// SQLite would take a log for that of the database it lies beside.
fn put_log_aside(database: &Path, aside: &Path) -> Result<(), Error> {
    for ending in ["-wal", "-shm"] {
        let (file, aside) = (beside(database, ending), beside(aside, ending));
        match fs::rename(&file, &aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(folder::error(folder::of(database), error));
            }
            _ => {}
        }
    }
    folder::sync(folder::of(database))
}
