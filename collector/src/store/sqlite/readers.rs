use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::place::Opened;
use super::{SqliteOptions, open};
use crate::store::Error;

/// A few read connections, opened when they are first needed. Reads run on the runtime's blocking threads.
#[derive(Clone)]
pub(super) struct Readers(Arc<Pool>);

struct Pool {
    options: SqliteOptions,
    /// Another file in the database's place is another database.
    database: Opened,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(options: SqliteOptions, database: Opened) -> Self {
        let permits = Arc::new(Semaphore::new(options.readers.max(1)));
        Self(Arc::new(Pool { options, database, idle: Mutex::default(), permits }))
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await;
        let permit = permit.map_err(|_| Error::unavailable("the store is closed"))?;
        let pool = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            // Whoever asked may be gone by now; the connection counts as busy until the read has ended.
            let _permit = permit;
            let connection = match pool.take() {
                Some(connection) => connection,
                None => {
                    pool.database.check()?;
                    open::reader(&pool.options)?
                }
            };
            let outcome = read(&connection);
            // After a failure of the file a fresh connection sees a fresh state.
            if !matches!(outcome, Err(Error::Sqlite(_) | Error::Corrupt { .. })) {
                pool.give_back(connection);
            }
            outcome
        });
        task.await.unwrap_or_else(|_| Err(Error::unavailable("a read was cut off")))
    }

    pub(super) fn close(&self) {
        self.0.permits.close();
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, connection: Connection) {
        if !self.permits.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}
