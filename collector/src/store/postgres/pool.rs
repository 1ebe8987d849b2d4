use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::error::SqlState;
use tokio_util::task::AbortOnDropHandle;

use super::connection::Connection;
use super::epoch::Epoch;
use super::failure::in_full;
use super::options::Server;
use super::tls::Tls;
use crate::store::Error;

/// How long a caller waits for a connection that others use: as long as a client of the edge waits for an answer.
const LEASE_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long connecting may take in all, with every address of the host and the TLS handshake.
const CONNECTING_MAX: Duration = Duration::from_secs(10);

/// What every session is set to.
/// - A server that commits without waiting for its disk is told to wait: an answer means that the events are safe.
/// - A process that is paused in the middle of an append gives up the heads it holds after 10 s.
/// - Each statement sees what was committed before it, whatever the server's default is.
/// - Every statement has one plan, by index, whatever the statistics of a new table say.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET lock_timeout = '20s';
    SET idle_in_transaction_session_timeout = '10s';
    SET default_transaction_isolation = 'read committed';
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET jit = off;
    SET client_min_messages = warning;
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// A few connections to one database, made when they are needed.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

/// What connections are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Storing, counting, keys: as many as work at a time.
    Work,
    /// What people ask for: how many do, nobody knows.
    Reads,
}

struct Shared {
    server: Server,
    tls: Tls,
    slots: Arc<Semaphore>,
    purpose: Use,
    idle: Mutex<Vec<Connection>>,
    /// The log's, so that every new connection looks at it; nothing before the tables are made.
    epoch: Option<Arc<Epoch>>,
    /// Whether the last attempt to connect succeeded, of all pools of this server.
    reachable: Arc<AtomicBool>,
    /// Whether it is being tried in the background.
    tried: AtomicBool,
}

impl Pool {
    pub(super) fn new(server: Server, size: usize, epoch: Option<Arc<Epoch>>) -> Result<Self, Error> {
        let tls = Tls::new(&server.encryption)?;
        let (slots, reachable) = (Arc::new(Semaphore::new(size.max(1))), Arc::new(AtomicBool::new(true)));
        let (purpose, idle, tried) = (Use::Work, Mutex::default(), AtomicBool::new(false));
        Ok(Self(Arc::new(Shared { server, tls, slots, purpose, idle, epoch, reachable, tried })))
    }

    /// Makes another one for the same server, for what people read.
    pub(super) fn for_reads(&self, size: usize) -> Self {
        let Shared { server, tls, epoch, reachable, .. } = &*self.0;
        let (server, tls, epoch) = (server.clone(), tls.clone(), epoch.clone());
        let (slots, reachable) = (Arc::new(Semaphore::new(size)), Arc::clone(reachable));
        let (purpose, idle, tried) = (Use::Reads, Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Shared { server, tls, slots, purpose, idle, epoch, reachable, tried }))
    }

    /// Borrows a connection, an idle one or a new one.
    pub(super) async fn lease(&self) -> Result<Lease, Error> {
        let waiting = tokio::time::timeout(LEASE_WAIT_MAX, Arc::clone(&self.0.slots).acquire_owned());
        let slot = match waiting.await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err(Error::unavailable("it has been closed")),
            Err(_) if self.0.purpose == Use::Reads => return Err(Error::Crowded),
            Err(_) => return Err(Error::unavailable("all connections to the database are busy")),
        };
        if let Some(connection) = self.idle() {
            return Ok(self.leased(connection, slot));
        }
        // Who waits for a second at most, on a server that takes longer to connect to, finds the connection the next time.
        let pool = self.clone();
        let connecting = tokio::spawn(async move { Ok(pool.leased(pool.connect().await?, slot)) });
        connecting.await.unwrap_or_else(|_| Err(Error::unavailable("connecting was cut short")))
    }

    fn leased(&self, connection: Connection, slot: OwnedSemaphorePermit) -> Lease {
        Lease { connection: Some(connection), pool: Arc::clone(&self.0), slot: Some(slot) }
    }

    fn idle(&self) -> Option<Connection> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let connecting = tokio::time::timeout(CONNECTING_MAX, self.dial()).await;
        let cut = || Err(Error::unavailable(format!("{} doesn't answer", self.0.server)));
        let connected = connecting.unwrap_or_else(|_| cut());
        self.0.reachable.store(connected.is_ok(), Ordering::Relaxed);
        connected
    }

    async fn dial(&self) -> Result<Connection, Error> {
        let server = &self.0.server;
        let failed = |error: tokio_postgres::Error| {
            Error::unavailable(format!(
                "can't connect to {server}: {}; {}",
                in_full(&error),
                remedy(error.code())
            ))
        };
        let (client, driver) = server.config.connect(self.0.tls.clone()).await.map_err(failed)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // What fails here fails whoever waits for an answer, where it is logged.
            if let Err(error) = driver.await {
                tracing::debug!(error = in_full(&error), "a connection to the database ended");
            }
        }));
        let connection = Connection::new(client, driver);
        connection.batch_execute(SESSION).await?;
        if let Some(epoch) = &self.0.epoch {
            epoch.look(&connection).await?;
        }
        Ok(connection)
    }

    /// Says whether the server can be reached, as far as is known. Where not it is tried, once at a time: a process that
    /// isn't ready is asked for nothing else, and would never find out that the server is back.
    pub(super) fn reachable(&self) -> Result<(), Error> {
        if self.0.slots.is_closed() {
            return Err(Error::unavailable("it has been closed"));
        }
        if self.0.reachable.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.0.tried.swap(true, Ordering::AcqRel) {
            let pool = self.clone();
            tokio::spawn(async move {
                let asked = tokio::time::timeout(CONNECTING_MAX, pool.ask()).await;
                if let Ok(Ok(())) = asked {
                    pool.0.reachable.store(true, Ordering::Relaxed);
                }
                pool.0.tried.store(false, Ordering::Release);
            });
        }
        Err(Error::unavailable(format!("{} can't be reached", self.0.server)))
    }

    /// Asks the server for as good as nothing. A connection on which no answer comes is not used again.
    async fn ask(&self) -> Result<(), Error> {
        let mut lease = self.lease().await?;
        lease.begin().await?;
        lease.rollback().await
    }

    /// Closes the idle connections; the others go when their lease ends.
    pub(super) fn close(&self) {
        self.0.slots.close();
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What to do about a connection that isn't made: a server that answers runs.
fn remedy(code: Option<&SqlState>) -> &'static str {
    let Some(code) = code else { return "check the address and that the server runs" };
    match code.code() {
        "28000" | "28P01" => "check the role and the password in the address, and the server's pg_hba.conf",
        "3D000" => "check the database in the address, or make it with CREATE DATABASE",
        "42501" => "GRANT the role CONNECT on the database",
        "53300" => "end other connections, or raise the role's or the server's limit",
        _ => "it is tried again while the collector runs",
    }
}

/// A borrowed connection. It is given back at rest alone: one that is dropped in the middle of a transaction, or before an
/// answer that doesn't come soon, keeps its place until what it runs is cancelled and it has ended.
pub(super) struct Lease {
    connection: Option<Connection>,
    pool: Arc<Shared>,
    slot: Option<OwnedSemaphorePermit>,
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a lease has its connection until it is dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a lease has its connection until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (Some(connection), slot) = (self.connection.take(), self.slot.take()) else { return };
        if connection.is_at_rest() {
            self.pool.take_back(connection);
            return;
        }
        // Without a runtime everything ends now.
        let Ok(runtime) = Handle::try_current() else { return };
        let pool = Arc::clone(&self.pool);
        runtime.spawn(async move {
            if connection.settles().await {
                pool.take_back(connection);
            } else {
                connection.end(pool.tls.clone()).await;
            }
            drop(slot);
        });
    }
}

impl Shared {
    fn take_back(&self, connection: Connection) {
        if !connection.is_closed() && !self.slots.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::PostgresOptions;

    async fn pool() -> Pool {
        let url = tokio::task::spawn_blocking(eventbucket_servers::shared::database).await.unwrap();
        Pool::new(PostgresOptions::parse(&url, None).unwrap().log, 1, None).unwrap()
    }

    #[tokio::test]
    async fn a_connection_keeps_only_so_many_statements_prepared() {
        let pool = pool().await;
        let mut lease = pool.lease().await.unwrap();
        for number in 0..1_000 {
            let statement = lease.prepared(&format!("SELECT {number}")).await.unwrap();
            assert_eq!(lease.query_one(&statement, &[]).await.unwrap().get::<_, i32>(0), number);
        }
        let kept = lease.query_one("SELECT count(*) FROM pg_prepared_statements", &[]).await.unwrap();
        assert!(kept.get::<_, i64>(0) < 300, "{kept:?}");
    }

    #[tokio::test]
    async fn a_session_is_the_same_whatever_the_database_is_set_to() {
        let pool = pool().await;
        let lease = pool.lease().await.unwrap();
        let set =
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable',
                                              current_database()); END $$";
        lease.batch_execute(set).await.unwrap();
        lease.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
        drop(lease);
        let lease = pool.lease().await.unwrap();
        let row = lease.query_one("SHOW transaction_isolation", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "read committed");
    }
}
