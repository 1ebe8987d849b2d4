use std::path::Path;

use rusqlite::{Transaction, params};

use super::transaction::commit;
use super::{BATCH_ORDINALS, FullBy, OwnConnection, SpoolError, dead_letters, file};

/// What a merged file brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) events: u64,
    pub(super) batches: u64,
}

/// Copies the batches of another file behind the own ones, in one durable transaction; batches that are here already are
/// passed over, so that doing it again changes nothing. The caller removes the other file afterwards.
///
/// `shift` is added to the keys: the highest key in use. `room` is how many bytes may come.
pub(super) fn file_into(
    connection: &mut OwnConnection,
    other: &Path,
    shift: i64,
    room: u64,
) -> Result<Merged, Failed> {
    let bytes = check(other).map_err(Failed::Other)?;
    if bytes > room {
        return Err(Failed::Other(SpoolError::Full { by: FullBy::Bound }));
    }
    let name = other.to_str().ok_or_else(|| {
        Failed::Other(SpoolError::Io(std::io::Error::other("the path of the spool folder isn't valid UTF-8")))
    })?;
    connection.execute("ATTACH ?1 AS other", [name]).map_err(|error| Failed::Own(error.into()))?;
    let merged = commit(connection, true, |transaction| copy(transaction, shift));
    let detached = connection.execute_batch("DETACH other");
    let merged = merged.map_err(Failed::Own)?;
    detached.map_err(|error| Failed::Own(error.into()))?;
    Ok(merged)
}

/// Makes sure that the other file is whole, moves its log into it by closing it, and returns the bytes of its batches.
fn check(other: &Path) -> Result<u64, SpoolError> {
    let checked = file::adopt(other)?;
    let bytes: i64 =
        checked.query_row("SELECT coalesce(sum(bytes), 0) FROM batches", [], |row| row.get(0))?;
    Ok(bytes.cast_unsigned())
}

/// Whose failure it was: an innocent file must not be set aside.
#[derive(Debug)]
pub(super) enum Failed {
    /// The other file can't be taken over.
    Other(SpoolError),
    /// The own file failed; what was copied may be in it all the same.
    Own(SpoolError),
}

fn copy(transaction: &Transaction<'_>, shift: i64) -> Result<Merged, SpoolError> {
    let batches = transaction.execute(
        "INSERT INTO main.batches (key, id, turn, part, events, bytes, first_captured_ms)
         SELECT key + ?1, id, turn + ?1, part, events, bytes, first_captured_ms
         FROM other.batches WHERE id NOT IN (SELECT id FROM main.batches)",
        [shift],
    )?;
    let events = transaction.execute(
        "INSERT INTO main.events (place, id, captured_ms, body)
         SELECT e.place + ?1 * ?2, e.id, e.captured_ms, e.body
         FROM other.batches AS b
         CROSS JOIN other.events AS e ON e.place >= b.key * ?2 AND e.place < (b.key + 1) * ?2
         WHERE EXISTS (SELECT 1 FROM main.batches AS m WHERE m.key = b.key + ?1 AND m.id = b.id)",
        params![shift, BATCH_ORDINALS],
    )?;
    transaction.execute(
        "INSERT OR IGNORE INTO main.dead_letters (id, captured_ms, reason, body)
         SELECT id, captured_ms, reason, body FROM other.dead_letters ORDER BY seq",
        [],
    )?;
    dead_letters::make_room(transaction)?;
    Ok(Merged { events: events as u64, batches: batches as u64 })
}
