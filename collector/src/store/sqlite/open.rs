use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use eventbucket_protocol::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};
use uuid::Uuid;

use super::place::log_of;
use super::{Access, SqliteOptions, Synchronous, copy};
use crate::store::{Error, folder};

/// "EvBu": marks the file as ours.
const APPLICATION_ID: i64 = 0x4576_4275;

/// What upgrades a file from version N to N + 1 stands at index N. A migration that changes how a view is computed also
/// removes its unfinished generations, which a rebuild would go on with.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/sqlite/0001_first.sql"),
    include_str!("../../../migrations/sqlite/0002_users.sql"),
    include_str!("../../../migrations/sqlite/0003_usage.sql"),
    include_str!("../../../migrations/sqlite/0004_limits.sql"),
    include_str!("../../../migrations/sqlite/0005_identifications.sql"),
];

/// The schema this program writes.
pub(super) const SCHEMA: u32 = MIGRATIONS.len() as u32;

/// How long a write waits for a short one of the command line.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long folding waits for readers before the writer answers those who wait and tries again later.
const FOLD_TIMEOUT: Duration = Duration::from_millis(250);

/// Pages the write connection keeps: 16 MiB, the upper levels of the id index of 50 million events.
const WRITER_CACHE_KIB: i64 = 16 * 1024;

/// Pages each read connection keeps: 4 MiB.
const READER_CACHE_KIB: i64 = 4 * 1024;

/// Pages in the write-ahead log before it is folded into the file: 4,000 of 4 KiB, 16 MiB, three commits of 10,000
/// events. Folding writes each page once however often it changed, so a longer log is less work and a longer recovery.
const CHECKPOINT_PAGES: i64 = 4_000;

/// What the write-ahead log is cut to when it was longer, after a long read: 64 MiB.
const WAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// Statements each connection keeps prepared; there are about 30.
const STATEMENTS_KEPT: usize = 64;

/// Opens the file for writing, makes and upgrades it if need be.
pub(super) fn create(options: &SqliteOptions) -> Result<Connection, Error> {
    let folder = folder::of(&options.file);
    folder::make(folder)?;
    refuse_read_only(&options.file)?;
    refuse_linked(&options.file)?;
    refuse_log_alone(&options.file)?;
    // SQLite would make it readable for everybody. What stops this stops SQLite too, which says it better.
    let _ = folder::owners_file().create_new(true).open(&options.file);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = connect(options, flags)?;
    let found = identify(&connection, &options.file)?;
    prepare_writer(&connection, options)?;
    // A process that died after a failed sync leaves a log like the one `again` meets. A reader in the way is no reason
    // not to start: then nothing failed but a process, and the page cache holds what the log says.
    match fold(&connection) {
        Ok(()) | Err(Error::Busy) => {}
        Err(error) => return Err(error),
    }
    if found < SCHEMA {
        if found > 0 {
            copy::keep_earlier(&connection, &options.file, SCHEMA)?;
        }
        migrate(&mut connection)?;
    }
    // The file's own entry in its folder has to outlive a power cut as well.
    folder::sync(folder)?;
    Ok(connection)
}

/// Opens a file that has to be there and up to date.
pub(super) fn existing(options: &SqliteOptions, access: Access) -> Result<Connection, Error> {
    if access == Access::ReadOnly {
        return reader(options);
    }
    refuse_missing(&options.file)?;
    refuse_read_only(&options.file)?;
    refuse_linked(&options.file)?;
    let connection = connect(options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    require_schema(&connection, &options.file)?;
    prepare_writer(&connection, options)?;
    Ok(connection)
}

/// Opens the file again after a failure. What the failed writer left in the write-ahead log was perhaps never synced,
/// although the page cache still shows it; folding it into the file writes and syncs all of it once more, so that nothing
/// new is built on pages a power cut would take.
///
/// Folding has to wait for readers. After a full disk, where no sync failed (`synced`), it may be left out.
pub(super) fn again(options: &SqliteOptions, synced: bool) -> Result<Connection, Error> {
    let connection = existing(options, Access::ReadWrite)?;
    connection.busy_timeout(FOLD_TIMEOUT)?;
    match fold(&connection) {
        Ok(()) => {}
        Err(Error::Busy) if synced => {}
        Err(Error::Busy) => {
            return Err(Error::unavailable(
                "a long read, such as an audit, is in the way; it goes on after it",
            ));
        }
        Err(error) => return Err(error),
    }
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Folds the write-ahead log into the file and empties it.
pub(super) fn fold(connection: &Connection) -> Result<(), Error> {
    let blocked: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if blocked { Err(Error::Busy) } else { Ok(()) }
}

/// Opens one more connection to look.
pub(super) fn reader(options: &SqliteOptions) -> Result<Connection, Error> {
    refuse_missing(&options.file)?;
    let connection = connect(options, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    require_schema(&connection, &options.file)?;
    leave_log(&connection, true)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    Ok(connection)
}

/// Opens a database of this schema or an earlier one to copy it, and tells which.
pub(super) fn to_copy(file: &Path) -> Result<(Connection, u32), Error> {
    refuse_missing(file)?;
    let connection = connect(&SqliteOptions::new(file), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    match identify(&connection, file)? {
        0 => Err(Error::NotOurs { path: file.to_owned() }),
        found => {
            leave_log(&connection, true)?;
            Ok((connection, found))
        }
    }
}

/// Whether closing leaves the log as it is. Otherwise the last to close folds it into the file, by the index it has.
pub(super) fn leave_log(connection: &Connection, leave: bool) -> Result<(), Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leave)?;
    Ok(())
}

/// Reads the log's epoch.
pub(super) fn epoch(connection: &Connection) -> Result<Uuid, Error> {
    let id: Option<[u8; 16]> =
        connection.query_row("SELECT id FROM epoch", [], |row| row.get(0)).optional()?;
    let id = id.ok_or_else(|| Error::corrupt("the row that names its epoch is gone; restore a backup"))?;
    Ok(Uuid::from_bytes(id))
}

/// Reads when the log was begun, to the millisecond: unlike its epoch that stays through restores.
pub(super) fn begun_ms(connection: &Connection) -> Result<i64, Error> {
    Ok(connection.query_row("SELECT created_ms FROM epoch", [], |row| row.get(0))?)
}

fn connect(options: &SqliteOptions, flags: OpenFlags) -> Result<Connection, Error> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = match &options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(&options.file, flags, vfs.as_str()),
        None => Connection::open_with_flags(&options.file, flags),
    };
    let connection = opened.map_err(|error| cannot_open(error, options))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    let wants_write = flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE);
    if wants_write && connection.is_readonly(rusqlite::MAIN_DB)? {
        return Err(Error::ReadOnly { path: options.file.clone() });
    }
    Ok(connection)
}

fn cannot_open(error: rusqlite::Error, options: &SqliteOptions) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::ReadOnly) => {
            Error::ReadOnly { path: options.file.clone() }
        }
        _ => error.into(),
    }
}

fn prepare_writer(connection: &Connection, options: &SqliteOptions) -> Result<(), Error> {
    // Before the first write-ahead log is made: it inherits its settings.
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Error::unavailable(format!("the file system can't do write-ahead logging (got {mode})")));
    }
    let synchronous = match options.synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

/// Returns the schema version of a file that is ours, 0 for an empty one.
pub(super) fn identify(connection: &Connection, file: &Path) -> Result<u32, Error> {
    let not_ours = || Error::NotOurs { path: file.to_owned() };
    let pragma = |name: &str| -> Result<i64, rusqlite::Error> {
        connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
    };
    let application_id = match pragma("application_id") {
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            return Err(not_ours());
        }
        read => read?,
    };
    let found = u32::try_from(pragma("user_version")?).map_err(|_| not_ours())?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match application_id {
        APPLICATION_ID if found > SCHEMA => Err(Error::NewerSchema { found, known: SCHEMA }),
        APPLICATION_ID => Ok(found),
        0 if tables == 0 && found == 0 => Ok(0),
        _ => Err(not_ours()),
    }
}

fn require_schema(connection: &Connection, file: &Path) -> Result<(), Error> {
    match identify(connection, file)? {
        SCHEMA => Ok(()),
        found => Err(Error::OlderSchema { found, known: SCHEMA }),
    }
}

/// Makes an empty database of this schema in memory, to hold another against.
pub(super) fn example() -> Result<Connection, Error> {
    let connection = Connection::open_in_memory()?;
    for migration in MIGRATIONS {
        connection.execute_batch(migration)?;
    }
    Ok(connection)
}

/// Upgrades in one transaction, marks included: a kill leaves the old file or the new one.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have upgraded it while this one waited for the lock.
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for migration in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(migration)?;
    }
    if found == 0 {
        let now_ms = Timestamp::from_system(SystemTime::now()).ms();
        transaction.execute("INSERT INTO epoch VALUES (1, randomblob(16), ?1)", [now_ms])?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    Ok(())
}

/// SQLite would take a write-ahead log without its database for a leftover and delete it.
/// The log is found by the name of the database: under another name there is another log.
fn refuse_linked(file: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(file) {
        Ok(found) if found.is_symlink() || found.nlink() > 1 => Err(Error::Linked { path: file.to_owned() }),
        _ => Ok(()),
    }
}

/// SQLite drops the log of a database that is empty.
fn refuse_log_alone(file: &Path) -> Result<(), Error> {
    let log = log_of(file);
    let holds_something = fs::metadata(&log).is_ok_and(|found| found.len() > 0);
    let holds_nothing = fs::metadata(file).map_or(true, |found| found.len() == 0);
    if holds_something && holds_nothing {
        return Err(Error::LogAlone { database: file.to_owned(), log });
    }
    Ok(())
}

fn refuse_missing(file: &Path) -> Result<(), Error> {
    if !file.exists() {
        return Err(Error::Missing { path: file.to_owned() });
    }
    refuse_log_alone(file)
}

/// Who may override permissions (root) would write to a file that was made read-only on purpose.
fn refuse_read_only(file: &Path) -> Result<(), Error> {
    match fs::metadata(file) {
        Ok(found) if found.is_dir() => Err(Error::NotOurs { path: file.to_owned() }),
        Ok(found) if found.permissions().readonly() => Err(Error::ReadOnly { path: file.to_owned() }),
        _ => Ok(()),
    }
}
