//! Events on disk until they are answered for.
//!
//! A spool folder holds one file per live process, `spool-<uuid>.db`, and beside it `spool-<uuid>.lock`, which its owner
//! keeps locked. A file nobody has locked is abandoned: the next process takes it over with all its batches. Files of
//! several dead processes are merged into one. `spool.lock` is held for the moment in which files are claimed or made.
//!
//! # File format
//!
//! SQLite with write-ahead log, `application_id` `EvBu`, `user_version` 1. A file with a higher version, or of another
//! application, is left alone.
//!
//! | Table | Column | |
//! |---|---|---|
//! | `batches` | `key` | number of the batch within the file; the highest one plus one comes next |
//! | | `id` | the batch id, 16 bytes; unique, which makes merging idempotent |
//! | | `turn`, `part` | what batches are sent by: the key of the batch this one came from, then its first ordinal in that |
//! | | `events`, `bytes` | sums over its events; `bytes` with overhead, see `EVENT_OVERHEAD_BYTES` |
//! | | `first_captured_ms` | the earliest capture, Unix milliseconds |
//! | `events` | `place` | `key · 2²⁰ + ordinal`: a batch is one stretch of the table, so no index is needed to find it |
//! | | `id`, `captured_ms`, `body` | identity (16 bytes), capture time, and the encoded event, byte for byte as it is sent |
//! | `dead_letters` | `seq`, `id`, `captured_ms`, `reason`, `body` | events no collector takes, for people to look at; see `dead_letters::DEAD_LETTERS_MAX` |
//!
//! # What survives
//!
//! - SIGKILL, panic, abort: everything for which `Spool::append` returned. A commit hands its pages to the kernel, which
//!   keeps them when the process dies.
//! - Power cut, kernel crash: everything appended with `durable`, and everything committed before that in the same file,
//!   for such a commit waits until the log is on the disk. Of later commits the end may be missing, but never the middle:
//!   the log is replayed up to the first frame that isn't whole.
//! - A removal that a power cut undoes makes a batch be sent again with the same ids, and the collector answers `duplicate`.
//!
//! - Full disk: what is in the file can still be read and sent. Removals are done in memory and made up for later.
//!
//! A file that isn't whole is renamed `spool-<uuid>.db.corrupt-<ms>`, never deleted.
//!
//! # Size
//!
//! `SpoolLimits::bytes_max` bounds the sum of events and overhead. Pages of removed batches are used again, and given
//! back to the file system when more than `FREE_PAGES_MAX` lie idle. Events over 2 KiB fill pages badly; at worst the
//! file takes twice the bound, and the log 8 MiB beside it.

/// Files of dead processes, taken over.
mod adopt;

/// Events no collector takes.
mod dead_letters;

/// What can go wrong on disk.
mod error;

/// One file: opened, checked, and its schema.
mod file;

/// The files of a folder: claimed, made, set aside.
mod folder;

/// The batches of an abandoned file brought into the own one.
mod merge;

/// The same files for messages of the collector's.
mod messages;

/// Removals a full disk has put off.
mod owed;

/// Whether an open file is where it was.
mod place;

/// A batch cut into parts.
mod split;

/// One commit, durable or not.
mod transaction;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod damage_tests;

#[cfg(test)]
mod fault_tests;

#[cfg(test)]
mod power_cut_tests;

use std::path::Path;
use std::sync::Arc;

use eventbucket_protocol::BatchId;
use rusqlite::params;
use uuid::Uuid;

pub(crate) use self::adopt::Adopted;
pub(crate) use self::error::{FullBy, SpoolError};
use self::file::OwnConnection;
use self::folder::{Claim, Folder};
pub use self::messages::{Abandoned, Group, Message, MessageSpool, Trouble};
use self::transaction::commit;
use crate::encoded::EncodedEvent;

/// What a spool takes unless told otherwise: 64 MiB, about 160,000 events of 0.4 KiB, or 4.5 hours at 10 events/s.
pub(crate) const SPOOL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What an event takes beside its body: place 8 + length 3 + cell pointer 2 + record header 6 + id 16 + time 6 = 41, and
/// a share of the page header; rounded up.
pub(crate) const EVENT_OVERHEAD_BYTES: u64 = 48;

/// What a batch takes beside its events: row 6 + 2 + 8 + 16 + 5 · 6, two index entries of 30 and 20, rounded up.
pub(crate) const BATCH_OVERHEAD_BYTES: u64 = 128;

/// Ordinals within a batch: 2²⁰, a hundred times what the protocol lets a batch hold.
const BATCH_ORDINALS: i64 = 1 << 20;

/// Idle pages kept for the next batches: 1,024 × 4 KiB = 4 MiB, four batches of the default size.
pub(crate) const FREE_PAGES_MAX: i64 = 1_024;

/// How much a spool may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpoolLimits {
    /// Bytes of events with overhead; what is adopted may exceed it, what is appended may not.
    pub(crate) bytes_max: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { bytes_max: SPOOL_BYTES_MAX }
    }
}

/// The number of a batch within an open spool. Never used twice while the spool is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BatchKey(i64);

/// A batch that waits on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpooledBatch {
    /// Its number.
    pub(crate) key: BatchKey,
    /// Its id, frozen with its first event.
    pub(crate) id: BatchId,
    /// How many events it holds.
    pub(crate) events: usize,
    /// Their bytes with overhead.
    pub(crate) bytes: u64,
    /// When the first of them was captured, in Unix milliseconds.
    pub(crate) first_captured_ms: i64,
}

/// The batch that still grows.
#[derive(Clone, Copy, Debug)]
struct OpenBatch {
    key: BatchKey,
    id: BatchId,
    /// The ordinal of its next event; 0 says that there is no row yet.
    next_ordinal: i64,
}

/// One claimed file of a spool folder. Used from the worker thread alone.
///
/// After a fork the child must not touch it. Dropping it there does nothing: neither the connection is closed nor a file
/// removed, for both belong to the parent.
pub(crate) struct Spool {
    connection: OwnConnection,
    claim: Claim,
    folder: Folder,
    limits: SpoolLimits,
    open: Option<OpenBatch>,
    /// Answered for, but still in the file, because the disk was too full to remove them.
    owed: Vec<BatchKey>,
    next_key: i64,
    bytes: u64,
    events: u64,
}

impl Spool {
    fn over(
        connection: OwnConnection,
        claim: Claim,
        folder: Folder,
        limits: SpoolLimits,
    ) -> Result<Self, SpoolError> {
        let mut spool = Self {
            connection,
            claim,
            folder,
            limits,
            open: None,
            owed: Vec::new(),
            next_key: 1,
            bytes: 0,
            events: 0,
        };
        spool.count()?;
        Ok(spool)
    }

    /// Reads sums and the next key from the file.
    fn count(&mut self) -> Result<(), SpoolError> {
        let (events, bytes, last_key): (i64, i64, i64) = self.connection.query_row(
            "SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0), coalesce(max(key), 0) FROM batches",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let (owed_events, owed_bytes) = self.owed_sums()?;
        self.events = events.cast_unsigned().saturating_sub(owed_events);
        self.bytes = bytes.cast_unsigned().saturating_sub(owed_bytes);
        self.next_key = self.next_key.max(last_key + 1);
        Ok(())
    }

    /// Opens the next batch and closes the one before it. Nothing is written until its first events come.
    pub(crate) fn begin(&mut self, id: BatchId) -> BatchKey {
        let key = BatchKey(self.next_key);
        self.next_key += 1;
        self.open = Some(OpenBatch { key, id, next_ordinal: 0 });
        key
    }

    /// Closes the open batch; from now on it is among [`Spool::oldest_batches`], unless nothing was ever appended to it.
    pub(crate) fn close_batch(&mut self) {
        self.open = None;
    }

    /// Appends events to the open batch in one transaction: all of them or, on an error, none.
    ///
    /// With `durable` the events, and everything committed before, are on the disk when it returns.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when the bound or the disk is reached, [`SpoolError::NoSuchBatch`] when `key` isn't the open
    /// batch, otherwise what the file says.
    pub(crate) fn append(
        &mut self,
        key: BatchKey,
        events: &[EncodedEvent],
        durable: bool,
    ) -> Result<(), SpoolError> {
        let mut open = self.open.filter(|open| open.key == key).ok_or(SpoolError::NoSuchBatch)?;
        let Some(first) = events.first() else { return Ok(()) };
        let event_bytes: u64 = events.iter().map(event_bytes).sum();
        let batch_bytes =
            if open.next_ordinal == 0 { event_bytes + BATCH_OVERHEAD_BYTES } else { event_bytes };
        if self.bytes + batch_bytes > self.limits.bytes_max {
            return Err(SpoolError::Full { by: FullBy::Bound });
        }
        let count = i64::try_from(events.len()).map_err(|_| SpoolError::NoSuchBatch)?;
        if open.next_ordinal + count > BATCH_ORDINALS {
            return Err(SpoolError::NoSuchBatch);
        }
        self.pay();
        commit(&mut self.connection, durable, |transaction| {
            let first_captured_ms = events.iter().map(|e| e.captured_ms).min().unwrap_or(first.captured_ms);
            transaction.execute(
                "INSERT INTO batches (key, id, turn, part, events, bytes, first_captured_ms)
                 VALUES (?1, ?2, ?1, 0, ?3, ?4, ?5)
                 ON CONFLICT (key) DO UPDATE SET events = events + excluded.events, bytes = bytes + excluded.bytes,
                   first_captured_ms = min(first_captured_ms, excluded.first_captured_ms)",
                params![key.0, open.id.uuid().as_bytes(), count, batch_bytes.cast_signed(), first_captured_ms],
            )?;
            let mut insert = transaction
                .prepare("INSERT INTO events (place, id, captured_ms, body) VALUES (?1, ?2, ?3, ?4)")?;
            for (place, event) in (key.place(open.next_ordinal)..).zip(events) {
                insert.execute(params![place, event.id.as_bytes(), event.captured_ms, &*event.bytes])?;
            }
            Ok(())
        })?;
        open.next_ordinal += count;
        self.open = Some(open);
        self.bytes += batch_bytes;
        self.events += count.cast_unsigned();
        Ok(())
    }

    /// Lists closed batches in the order they are to be sent.
    ///
    /// # Errors
    /// What the file says.
    pub(crate) fn oldest_batches(&self, limit: usize) -> Result<Vec<SpooledBatch>, SpoolError> {
        let mut select = self.connection.prepare(
            "SELECT key, id, events, bytes, first_captured_ms FROM batches
             WHERE key <> ?1 ORDER BY turn, part",
        )?;
        let open = self.open.map_or(0, |open| open.key.0);
        let rows = select.query_map([open], |row| {
            Ok(SpooledBatch {
                key: BatchKey(row.get(0)?),
                id: BatchId::from_uuid(Uuid::from_bytes(row.get(1)?)),
                events: usize::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
                bytes: row.get::<_, i64>(3)?.cast_unsigned(),
                first_captured_ms: row.get(4)?,
            })
        })?;
        let is_owed =
            |row: &Result<SpooledBatch, _>| row.as_ref().is_ok_and(|batch| self.owed.contains(&batch.key));
        Ok(rows.filter(|row| !is_owed(row)).take(limit).collect::<Result<_, _>>()?)
    }

    /// Reads the events of a batch in their order, byte for byte as they were appended.
    ///
    /// # Errors
    /// [`SpoolError::NoSuchBatch`] when there are none, otherwise what the file says.
    pub(crate) fn read(&self, key: BatchKey) -> Result<Vec<EncodedEvent>, SpoolError> {
        let mut select = self.connection.prepare(
            "SELECT id, captured_ms, body FROM events WHERE place >= ?1 AND place < ?2 ORDER BY place",
        )?;
        let rows = select.query_map(params![key.place(0), key.place(BATCH_ORDINALS)], |row| {
            let body: Arc<[u8]> = Arc::from(row.get_ref(2)?.as_blob()?);
            Ok(EncodedEvent::new(Uuid::from_bytes(row.get(0)?), row.get(1)?, body))
        })?;
        let events = rows.collect::<Result<Vec<_>, _>>()?;
        if events.is_empty() { Err(SpoolError::NoSuchBatch) } else { Ok(events) }
    }

    /// Reads the ids of a batch's events.
    ///
    /// # Errors
    /// What the file says.
    pub(crate) fn ids(&self, key: BatchKey) -> Result<Vec<Uuid>, SpoolError> {
        let mut select = self.connection.prepare("SELECT id FROM events WHERE place >= ?1 AND place < ?2")?;
        let rows = select.query_map(params![key.place(0), key.place(BATCH_ORDINALS)], |row| {
            row.get(0).map(Uuid::from_bytes)
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Keeps an event no collector takes, with the reason, for people to look at. The oldest make room.
    ///
    /// # Errors
    /// What the file says.
    pub(crate) fn dead_letter(&mut self, event: &EncodedEvent, reason: &str) -> Result<(), SpoolError> {
        commit(&mut self.connection, false, |transaction| dead_letters::keep(transaction, event, reason))
    }

    /// Renames the file after it turned out not to be whole, so that the next [`Spool::open`] starts afresh.
    ///
    /// # Errors
    /// When the file can't be renamed.
    pub(crate) fn set_aside(mut self) -> Result<(), SpoolError> {
        self.connection.close();
        self.claim.set_aside_file()
    }

    /// Returns where the file is.
    fn path(&self) -> &Path {
        self.claim.file()
    }

    /// Returns the bytes of all events with overhead, those of the open batch included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of events, those of the open batch included.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }
}

impl BatchKey {
    /// The place of an ordinal of this batch in the table of events.
    const fn place(self, ordinal: i64) -> i64 {
        self.0 * BATCH_ORDINALS + ordinal
    }
}

/// Closes the file, which moves the log into it, and removes it when it holds nothing any more. In a forked child it does
/// nothing.
impl Drop for Spool {
    fn drop(&mut self) {
        let empty = self.connection.is_own()
            && self.events == 0
            && dead_letters::count(&self.connection).is_ok_and(|count| count == 0);
        if self.connection.close() && empty {
            self.claim.remove_files();
        }
    }
}

fn event_bytes(event: &EncodedEvent) -> u64 {
    event.bytes.len() as u64 + EVENT_OVERHEAD_BYTES
}
