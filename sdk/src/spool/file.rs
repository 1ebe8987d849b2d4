use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{FREE_PAGES_MAX, SpoolError};

/// `EvBu`, by which `file(1)` and this module know a spool.
pub(super) const APPLICATION_ID: i64 = 0x4576_4275;

/// The version of the schema below.
pub(super) const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE batches (
  key INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  turn INTEGER NOT NULL,
  part INTEGER NOT NULL,
  events INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  first_captured_ms INTEGER NOT NULL,
  UNIQUE (turn, part)
) STRICT;
CREATE TABLE events (
  place INTEGER PRIMARY KEY,
  id BLOB NOT NULL,
  captured_ms INTEGER NOT NULL,
  body BLOB NOT NULL
) STRICT;
CREATE TABLE dead_letters (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  captured_ms INTEGER NOT NULL,
  reason TEXT NOT NULL,
  body BLOB NOT NULL
) STRICT;
";

/// The highest number of a batch: 2⁴⁰, a batch a millisecond for 34 years, so that no place overflows, also after merging.
const BATCH_KEY_MAX: i64 = 1 << 40;

/// The exclusive mode keeps the index of the log in the heap instead of a mapped file, which works on network file systems
/// and can't raise SIGBUS when the disk is full; it fits because the lock file admits one owner anyhow. The log is moved
/// into the file every 1,000 pages (SQLite's default) and then cut back to 4 MiB; 1 MiB of page cache.
const SETTINGS: &str = "
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA trusted_schema = OFF;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -1024;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA journal_size_limit = 4194304;
";

/// A connection that only the process that opened it may use and close: what SQLite knows about its locks isn't true in a
/// forked child, and closing there would drop the parent's.
pub(super) struct OwnConnection {
    connection: Option<Connection>,
    process: u32,
}

impl OwnConnection {
    fn new(connection: Connection) -> Self {
        Self { connection: Some(connection), process: std::process::id() }
    }

    /// Closes the connection and says whether this call did. In a forked child it is leaked instead.
    pub(super) fn close(&mut self) -> bool {
        let Some(connection) = self.connection.take() else { return false };
        if self.process == std::process::id() {
            drop(connection);
            return true;
        }
        #[expect(clippy::mem_forget, reason = "closing would drop the locks of the parent process")]
        std::mem::forget(connection);
        false
    }

    /// Says whether it can be used here.
    pub(super) fn is_own(&self) -> bool {
        self.connection.is_some() && self.process == std::process::id()
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Deref for OwnConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is closed only by an owner that uses it no more")
    }
}

impl DerefMut for OwnConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("it is closed only by an owner that uses it no more")
    }
}

/// Makes a new file.
pub(super) fn create(path: &Path) -> Result<OwnConnection, SpoolError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    initialize(&connection)?;
    Ok(OwnConnection::new(connection))
}

/// Opens an abandoned file after checking that it is ours and whole.
pub(super) fn adopt(path: &Path) -> Result<OwnConnection, SpoolError> {
    refuse_lone_log(path)?;
    let connection = connect(path, OpenFlags::empty())?;
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, version) {
        // Its process died before the schema was committed, so it holds nothing.
        (0, 0) if tables == 0 => initialize(&connection)?,
        (APPLICATION_ID, SCHEMA_VERSION) => {
            use_log(&connection)?;
            check_whole(&connection)?;
        }
        (APPLICATION_ID, found) => return Err(SpoolError::NewerSchema { found, known: SCHEMA_VERSION }),
        _ => return Err(SpoolError::NotOurs),
    }
    Ok(OwnConnection::new(connection))
}

/// Gives idle pages back to the file system when there are more than the next batches need.
pub(super) fn give_back_pages(connection: &Connection) -> Result<(), SpoolError> {
    let idle: i64 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    if idle > FREE_PAGES_MAX {
        // Each row of the answer frees one page, so it must be read to its end.
        let mut vacuum =
            connection.prepare(&format!("PRAGMA incremental_vacuum({})", idle - FREE_PAGES_MAX / 2))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// Moves the whole log into the file and cuts it to nothing; says whether that worked.
pub(super) fn empty_log(connection: &Connection) -> bool {
    connection
        .query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        .is_ok_and(|blocked| blocked == 0)
}

/// Names the log beside a file.
pub(super) fn log_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

fn connect(path: &Path, further: OpenFlags) -> Result<Connection, SpoolError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | further;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch(SETTINGS)?;
    Ok(connection)
}

fn initialize(connection: &Connection) -> Result<(), SpoolError> {
    connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
    use_log(connection)?;
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    ))?;
    Ok(())
}

fn use_log(connection: &Connection) -> Result<(), SpoolError> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode == "wal" {
        Ok(())
    } else {
        Err(SpoolError::Io(std::io::Error::other("the file system can't hold a write-ahead log")))
    }
}

/// SQLite takes a log beside an empty file for a leftover and deletes it; here it is what a cut file left.
fn refuse_lone_log(path: &Path) -> Result<(), SpoolError> {
    let log_bytes = fs::metadata(log_of(path)).map_or(0, |log| log.len());
    if log_bytes > 0 && fs::metadata(path)?.len() == 0 {
        return Err(SpoolError::Corrupt("the file is empty but its log isn't".to_owned()));
    }
    Ok(())
}

fn check_whole(connection: &Connection) -> Result<(), SpoolError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(SpoolError::Corrupt(found));
    }
    let (lowest, highest): (i64, i64) = connection.query_row(
        "SELECT coalesce(min(key), 1), coalesce(max(key), 1) FROM batches",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if lowest < 1 || highest > BATCH_KEY_MAX {
        return Err(SpoolError::Corrupt(format!("its batches are numbered {lowest} to {highest}")));
    }
    let (promised, present): (i64, i64) = connection.query_row(
        "SELECT (SELECT coalesce(sum(events), 0) FROM batches), (SELECT count(*) FROM events)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if promised == present {
        Ok(())
    } else {
        Err(SpoolError::Corrupt(format!("batches promise {promised} events, {present} are there")))
    }
}
