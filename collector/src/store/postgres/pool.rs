use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

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
/// - Every statement has one plan, by index, whatever the statistics of a new table say.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET lock_timeout = '20s';
    SET idle_in_transaction_session_timeout = '10s';
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

struct Shared {
    server: Server,
    tls: Tls,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    /// The log's, so that every new connection looks at it; nothing before the tables are made.
    epoch: Option<Arc<Epoch>>,
    /// Whether the last attempt to connect succeeded.
    reachable: AtomicBool,
    /// Whether it is being tried in the background.
    tried: AtomicBool,
}

/// A connection with the statements it has prepared.
struct Connection {
    client: Client,
    statements: HashMap<String, Statement>,
}

impl Pool {
    pub(super) fn new(server: Server, size: usize, epoch: Option<Arc<Epoch>>) -> Result<Self, Error> {
        let tls = Tls::new(&server.encryption)?;
        let slots = Arc::new(Semaphore::new(size.max(1)));
        let (reachable, tried) = (AtomicBool::new(true), AtomicBool::new(false));
        Ok(Self(Arc::new(Shared { server, tls, slots, idle: Mutex::default(), epoch, reachable, tried })))
    }

    /// Borrows a connection, an idle one or a new one.
    pub(super) async fn lease(&self) -> Result<Lease, Error> {
        let waiting = tokio::time::timeout(LEASE_WAIT_MAX, Arc::clone(&self.0.slots).acquire_owned());
        let slot = match waiting.await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err(Error::unavailable("it has been closed")),
            Err(_) => return Err(Error::unavailable("all connections to the database are busy")),
        };
        let connection = match self.idle() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let pool = Arc::clone(&self.0);
        Ok(Lease { connection: Some(connection), pool, _slot: slot, in_transaction: false })
    }

    fn idle(&self) -> Option<Connection> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.client.is_closed());
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
        tokio::spawn(async move {
            // What fails here fails whoever waits for an answer, where it is logged.
            if let Err(error) = driver.await {
                tracing::debug!(error = in_full(&error), "a connection to the database ended");
            }
        });
        client.batch_execute(SESSION).await?;
        if let Some(epoch) = &self.0.epoch {
            epoch.look(&client).await?;
        }
        Ok(Connection { client, statements: HashMap::new() })
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

/// A borrowed connection. One that is dropped in the middle of a transaction is closed, and the server rolls back.
pub(super) struct Lease {
    connection: Option<Connection>,
    pool: Arc<Shared>,
    _slot: OwnedSemaphorePermit,
    in_transaction: bool,
}

impl Lease {
    /// Prepares a statement once a connection.
    pub(super) async fn prepared(&mut self, sql: &str) -> Result<Statement, Error> {
        let connection = self.connection.as_mut().expect("a lease has its connection until it is dropped");
        match connection.statements.entry(sql.to_owned()) {
            Entry::Occupied(entry) => Ok(entry.get().clone()),
            Entry::Vacant(entry) => {
                let statement = connection.client.prepare(sql).await?;
                Ok(entry.insert(statement).clone())
            }
        }
    }

    /// Notes that a transaction is about to begin, so that this connection is not used by others before its end.
    pub(super) fn will_begin(&mut self) {
        self.in_transaction = true;
    }

    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        self.begin_as("BEGIN").await
    }

    pub(super) async fn begin_as(&mut self, sql: &str) -> Result<(), Error> {
        self.will_begin();
        Ok(self.batch_execute(sql).await?)
    }

    pub(super) async fn commit(&mut self) -> Result<(), Error> {
        self.batch_execute("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    pub(super) async fn rollback(&mut self) -> Result<(), Error> {
        self.batch_execute("ROLLBACK").await?;
        self.in_transaction = false;
        Ok(())
    }
}

impl Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.connection.as_ref().expect("a lease has its connection until it is dropped").client
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if self.in_transaction || connection.client.is_closed() || self.pool.slots.is_closed() {
            return;
        }
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}
