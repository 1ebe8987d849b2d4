use rusqlite::{Transaction, TransactionBehavior};

use super::file::{self, OwnConnection};
use super::{FullBy, SpoolError};

/// Does the work in one transaction. With `durable` it returns after the log is on the disk.
///
/// When the disk is full, moving the log into the file may make room, so that is tried once.
pub(super) fn commit<T>(
    connection: &mut OwnConnection,
    durable: bool,
    work: impl Fn(&Transaction<'_>) -> Result<T, SpoolError>,
) -> Result<T, SpoolError> {
    if durable {
        connection.execute_batch("PRAGMA synchronous = FULL")?;
    }
    let mut committed = attempt(connection, &work);
    if matches!(committed, Err(SpoolError::Full { by: FullBy::Disk })) && file::empty_log(connection) {
        committed = attempt(connection, &work);
    }
    if durable {
        connection.execute_batch("PRAGMA synchronous = NORMAL")?;
    }
    committed
}

fn attempt<T>(
    connection: &mut OwnConnection,
    work: &impl Fn(&Transaction<'_>) -> Result<T, SpoolError>,
) -> Result<T, SpoolError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}
