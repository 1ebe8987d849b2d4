use eventbucket_protocol::BatchId;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::transaction::commit;
use super::{BATCH_ORDINALS, BATCH_OVERHEAD_BYTES, BatchKey, EVENT_OVERHEAD_BYTES, Spool, SpoolError};

impl Spool {
    /// Splits a batch in one transaction: each part becomes a batch with its own new id in the place of the old one, and
    /// events in no part are gone, for they were answered. The indexes count as in [`Spool::read`].
    ///
    /// # Errors
    /// [`SpoolError::NoSuchBatch`] when the batch isn't there, or an index is beyond it, named twice, or a part empty;
    /// otherwise what the file says. Nothing has changed then.
    pub(crate) fn replace(
        &mut self,
        key: BatchKey,
        parts: &[(BatchId, Vec<usize>)],
    ) -> Result<Vec<BatchKey>, SpoolError> {
        let first_key = self.next_key;
        let keys: Vec<_> = (first_key..).take(parts.len()).map(BatchKey).collect();
        commit(&mut self.connection, false, |transaction| {
            let (turn, places) = stretch(transaction, key)?;
            transaction.execute("DELETE FROM batches WHERE key = ?1", [key.0])?;
            for (part_key, (id, indexes)) in keys.iter().zip(parts) {
                move_part(transaction, turn, &places, *part_key, *id, indexes)?;
            }
            transaction.execute(
                "DELETE FROM events WHERE place >= ?1 AND place < ?2",
                params![key.place(0), key.place(BATCH_ORDINALS)],
            )?;
            Ok(())
        })?;
        self.open = self.open.filter(|open| open.key != key);
        self.count()?;
        Ok(keys)
    }
}

/// Reads where a batch stands in the order of sending, and the place of each of its events.
fn stretch(transaction: &Transaction<'_>, key: BatchKey) -> Result<(i64, Vec<i64>), SpoolError> {
    let turn = transaction
        .query_row("SELECT turn FROM batches WHERE key = ?1", [key.0], |row| row.get(0))
        .optional()?
        .ok_or(SpoolError::NoSuchBatch)?;
    let mut select =
        transaction.prepare("SELECT place FROM events WHERE place >= ?1 AND place < ?2 ORDER BY place")?;
    let places = select.query_map(params![key.place(0), key.place(BATCH_ORDINALS)], |row| row.get(0))?;
    Ok((turn, places.collect::<Result<_, _>>()?))
}

/// Makes a batch of some events of another. They keep their ordinals, by which parts of parts stay in order.
fn move_part(
    transaction: &Transaction<'_>,
    turn: i64,
    places: &[i64],
    key: BatchKey,
    id: BatchId,
    indexes: &[usize],
) -> Result<(), SpoolError> {
    let mut update = transaction.prepare("UPDATE events SET place = ?2 WHERE place = ?1")?;
    for index in indexes {
        let place = *places.get(*index).ok_or(SpoolError::NoSuchBatch)?;
        if update.execute([place, key.place(place % BATCH_ORDINALS)])? != 1 {
            return Err(SpoolError::NoSuchBatch);
        }
    }
    let made = transaction.execute(
        "INSERT INTO batches (key, id, turn, part, events, bytes, first_captured_ms)
         SELECT ?1, ?2, ?3, min(place) % ?4, count(*), sum(length(body)) + count(*) * ?5 + ?6, min(captured_ms)
         FROM events WHERE place >= ?7 AND place < ?8 HAVING count(*) > 0",
        params![
            key.0,
            id.uuid().as_bytes(),
            turn,
            BATCH_ORDINALS,
            EVENT_OVERHEAD_BYTES.cast_signed(),
            BATCH_OVERHEAD_BYTES.cast_signed(),
            key.place(0),
            key.place(BATCH_ORDINALS),
        ],
    )?;
    if made == 1 { Ok(()) } else { Err(SpoolError::NoSuchBatch) }
}
