use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::backup::StepResult;
use rusqlite::{Connection, OpenFlags, ffi};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::place::beside;
use super::{open, uint};
use crate::store::{Backup, BackupProject, Error, OnCopied, folder};

/// Pages copied in one step: 256 of 4 KiB are 1 MiB, about a millisecond from the page cache.
const STEP_PAGES: i32 = 256;

/// Bytes that go to the disk at once: 16 MiB take a poor disk's 100 MB/s a sixth of a second, which is what a commit of the
/// collector waits behind them at most.
const SYNC_BYTES: u64 = 16 * 1024 * 1024;

/// The longest rest after a step beside a collector: as long as the step took, so that half of the disk is left to it.
const REST_MAX: Duration = Duration::from_millis(250);

/// Room that a copy leaves free beyond its own size: what a collector writes within a second.
const ROOM_LEFT: u64 = 16 * 1024 * 1024;

/// The ending of a copy that isn't whole yet.
const PARTIAL: &str = ".partial";

/// Copies that are kept of earlier schemas.
const EARLIER_KEPT: usize = 2;

/// See [`crate::store::Store::back_up`].
pub(in crate::store) fn back_up(database: &Path, to: &Path, progress: OnCopied<'_>) -> Result<Backup, Error> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(Error::Exists { path: to.to_owned() });
    }
    let (source, _) = open::to_copy(database)?;
    let partial = Partial::begin(to)?;
    partial.copy(&source, database, REST_MAX, progress)?;
    let made = partial.finish(false)?;
    partial.put(to)?;
    Ok(Backup { file: to.to_owned(), ..made })
}

/// Copies the database before it is upgraded to a schema, beside it. Of the same schema's copies the last stays, of all the
/// newest two.
pub(super) fn keep_earlier(source: &Connection, database: &Path, schema: u32) -> Result<(), Error> {
    let to = beside(database, &format!(".before-{schema}"));
    let partial = Partial::begin(&to)?;
    partial.copy(source, database, Duration::ZERO, &|_, _| {})?;
    let made = partial.finish(false)?;
    partial.replace(&to)?;
    tracing::info!(
        file = %to.display(), bytes = made.bytes, from = made.schema, to = schema,
        "the database is about to be upgraded; a copy of it as it was is kept"
    );
    let mut earlier = earlier(database);
    earlier.sort_unstable_by(|one, other| other.cmp(one));
    for (_, file) in earlier.into_iter().skip(EARLIER_KEPT) {
        match fs::remove_file(&file) {
            Ok(()) => tracing::info!(file = %file.display(), "an older copy is removed"),
            Err(error) => tracing::warn!(file = %file.display(), %error, "an older copy can't be removed"),
        }
    }
    Ok(())
}

/// The copies that lie beside a database, by the schema each was made before.
fn earlier(database: &Path) -> Vec<(u32, PathBuf)> {
    let begin = beside(Path::new(database.file_name().unwrap_or_default()), ".before-");
    let begin = begin.to_string_lossy();
    let entries = fs::read_dir(folder::of(database)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let schema = entry.file_name().to_str()?.strip_prefix(&*begin)?.parse().ok()?;
            Some((schema, entry.path()))
        })
        .collect()
}

/// A copy that isn't whole yet: removed when it is dropped before it was put in its place. One that a killed process left is
/// taken over by the next.
pub(super) struct Partial {
    path: PathBuf,
    /// Locked against a second one; also what is synced.
    file: File,
    placed: Cell<bool>,
}

impl Partial {
    /// Begins a copy that is going to be at `to`.
    pub(super) fn begin(to: &Path) -> Result<Self, Error> {
        let path = beside(to, PARTIAL);
        let failed = |source| folder::error(folder::of(to), source);
        let file = folder::owners_file().create(true).truncate(false).open(&path).map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::InUse { path });
        }
        folder::give_to_owner(folder::of(to), &file).map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        for ending in ["-wal", "-shm", "-journal"] {
            remove_if_there(&beside(&path, ending)).map_err(failed)?;
        }
        Ok(Self { path, file, placed: Cell::default() })
    }

    /// Copies all pages, as they are in one moment; rests up to `rest_max` after each step.
    pub(super) fn copy(
        &self,
        source: &Connection,
        database: &Path,
        rest_max: Duration,
        progress: OnCopied<'_>,
    ) -> Result<(), Error> {
        let bytes = room_for(source, &self.path)?;
        // Within a transaction that reads, commits of others don't change what is copied; without it each would begin the copy
        // anew. The write-ahead log isn't folded further than this meanwhile.
        source.execute_batch("BEGIN")?;
        let copied = source
            .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
            .map_err(Error::from)
            .and_then(|()| self.copy_pages(source, bytes, rest_max, progress));
        source.execute_batch("ROLLBACK")?;
        copied.map_err(|error| match error {
            Error::DiskFull => no_room(&self.path, bytes),
            Error::Corrupt { what } => Error::Unsound { path: database.to_owned(), what },
            // Nothing is written but the copy.
            Error::Sqlite(error) if error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_WRITE) => {
                folder::error(folder::of(&self.path), io::Error::other("a write failed"))
            }
            error => error,
        })
    }

    fn copy_pages(
        &self,
        source: &Connection,
        bytes: u64,
        rest_max: Duration,
        progress: OnCopied<'_>,
    ) -> Result<(), Error> {
        let mut target = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Nothing of it is to be undone, and it is synced below.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        let backup = rusqlite::backup::Backup::new(source, &mut target)?;
        let mut synced = 0;
        loop {
            let began = Instant::now();
            let outcome = backup.step(STEP_PAGES)?;
            let pages = backup.progress();
            let done = u64::try_from(pages.pagecount - pages.remaining).unwrap_or(0);
            let done = done.saturating_mul(bytes) / u64::try_from(pages.pagecount).unwrap_or(1).max(1);
            progress(done, bytes);
            match outcome {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                _ => return Err(Error::Busy),
            }
            if done - synced >= SYNC_BYTES {
                self.sync()?;
                synced = done;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "it leaves the disk to others, on a thread of its own"
            )]
            std::thread::sleep(began.elapsed().min(rest_max));
        }
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|source| folder::error(folder::of(&self.path), source))
    }

    /// Makes it a file without a write-ahead log, puts it on the disk and checks it. `renewed` gives the log another epoch.
    pub(super) fn finish(&self, renewed: bool) -> Result<Backup, Error> {
        let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let unsound = |what: String| Error::Unsound { path: self.path.clone(), what: what.into() };
        let mode: String = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))?;
        if mode != "delete" {
            return Err(unsound(format!("its journal can't be changed from {mode}")));
        }
        if renewed && connection.execute("UPDATE epoch SET id = randomblob(16)", [])? != 1 {
            return Err(unsound("the row that names its epoch is gone".to_owned()));
        }
        let schema = open::identify(&connection, &self.path)?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Err(unsound(found));
        }
        let projects = projects(&connection)?;
        drop(connection);
        self.sync()?;
        let bytes = fs::metadata(&self.path).map_or(0, |found| found.len());
        Ok(Backup { file: self.path.clone(), bytes, schema, projects })
    }

    /// Gives it its name, unless something has it.
    pub(super) fn put(&self, to: &Path) -> Result<(), Error> {
        match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => self.is_placed(to),
            Err(Errno::EXIST) => Err(Error::Exists { path: to.to_owned() }),
            // Network file systems can't tell; then nothing was there a moment ago.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if fs::symlink_metadata(to).is_err() => {
                self.replace(to)
            }
            Err(error) => Err(folder::error(folder::of(to), error.into())),
        }
    }

    /// Gives it its name, in the place of whatever has it.
    fn replace(&self, to: &Path) -> Result<(), Error> {
        fs::rename(&self.path, to).map_err(|source| folder::error(folder::of(to), source))?;
        self.is_placed(to)
    }

    /// Changes names with a file: at no moment is there none under its name. The other one is at `aside` then.
    pub(super) fn exchange(mut self, with: &Path, aside: &Path) -> Result<(), Error> {
        let failed = |source: io::Error| folder::error(folder::of(with), source);
        fs::rename(&self.path, aside).map_err(failed)?;
        aside.clone_into(&mut self.path);
        match renameat_with(CWD, aside, CWD, with, RenameFlags::EXCHANGE) {
            Ok(()) => self.is_placed(with),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Err(failed(io::Error::other(
                "its file system can't exchange two files; move the database away and restore without --replace",
            ))),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Its name has to outlive a power cut as well.
    fn is_placed(&self, to: &Path) -> Result<(), Error> {
        self.placed.set(true);
        folder::sync(folder::of(to))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.placed.get() {
            for ending in ["", "-wal", "-shm", "-journal"] {
                // What stays is taken over by the next one.
                let _ = remove_if_there(&beside(&self.path, ending));
            }
        }
    }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes sure that a copy fits before it is begun, and returns its size.
fn room_for(source: &Connection, to: &Path) -> Result<u64, Error> {
    let pragma = |name: &str| source.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0).map(uint));
    let bytes = pragma("page_count")?.saturating_mul(pragma("page_size")?);
    if folder::free_bytes(folder::of(to)).is_some_and(|free| free < bytes.saturating_add(ROOM_LEFT)) {
        return Err(no_room(to, bytes));
    }
    Ok(bytes)
}

fn no_room(to: &Path, bytes: u64) -> Error {
    let folder = folder::of(to);
    let free_bytes = folder::free_bytes(folder).unwrap_or(0);
    Error::NoRoom { path: folder.to_owned(), bytes: bytes.saturating_add(ROOM_LEFT), free_bytes }
}

fn projects(connection: &Connection) -> Result<Vec<BackupProject>, Error> {
    let mut select = connection.prepare(
        "SELECT name, coalesce(position, 0), coalesce(stored, 0)
         FROM project LEFT JOIN head ON head.project = project.id ORDER BY project.id",
    )?;
    let rows = select.query_map([], |row| {
        let (position, events) = (row.get(1).map(uint)?, row.get(2).map(uint)?);
        Ok(BackupProject { name: row.get(0)?, position, events })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
