use rusqlite::{Connection, Transaction, params};
use uuid::Uuid;

use super::SpoolError;
use crate::encoded::EncodedEvent;

/// Dead letters kept: enough to see a pattern.
pub(crate) const DEAD_LETTERS_MAX: i64 = 1_000;

/// Their bytes: 1 MiB, four events of the largest size or 2,600 of 0.4 KiB.
pub(crate) const DEAD_LETTERS_BYTES_MAX: i64 = 1024 * 1024;

/// Keeps an event; one that is there already gets the new reason.
pub(super) fn keep(
    transaction: &Transaction<'_>,
    event: &EncodedEvent,
    reason: &str,
) -> Result<(), SpoolError> {
    transaction.execute(
        "INSERT OR REPLACE INTO dead_letters (id, captured_ms, reason, body) VALUES (?1, ?2, ?3, ?4)",
        params![event.id.as_bytes(), event.captured_ms, reason, &*event.bytes],
    )?;
    make_room(transaction)
}

/// Deletes the oldest until both bounds hold; the newest stays, whatever its size.
pub(super) fn make_room(transaction: &Transaction<'_>) -> Result<(), SpoolError> {
    transaction.execute(
        "DELETE FROM dead_letters WHERE seq IN (
           SELECT seq FROM (
             SELECT seq, row_number() OVER newest AS rank, sum(length(body) + length(reason)) OVER newest AS bytes
             FROM dead_letters WINDOW newest AS (ORDER BY seq DESC)
           ) WHERE rank > 1 AND (rank > ?1 OR bytes > ?2)
         )",
        [DEAD_LETTERS_MAX, DEAD_LETTERS_BYTES_MAX],
    )?;
    Ok(())
}

/// Reads all, oldest first.
pub(super) fn read(connection: &Connection) -> Result<Vec<(EncodedEvent, String)>, SpoolError> {
    let mut select =
        connection.prepare("SELECT id, captured_ms, body, reason FROM dead_letters ORDER BY seq")?;
    let rows = select.query_map([], |row| {
        let body: Vec<u8> = row.get(2)?;
        Ok((EncodedEvent::new(Uuid::from_bytes(row.get(0)?), row.get(1)?, body), row.get(3)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn count(connection: &Connection) -> Result<i64, SpoolError> {
    Ok(connection.query_row("SELECT count(*) FROM dead_letters", [], |row| row.get(0))?)
}
