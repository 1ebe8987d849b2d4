//! The composition root: the only place that names backends. Starts everything in the order in which it depends on each
//! other, and stops it the other way round.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bus::{self, Bus};
use crate::cache::Cache;
use crate::config::Config;
use crate::edge::{self, Health, Tls, TlsError};
use crate::ingest::Ingest;
use crate::project::AccountId;
use crate::query::Reader;
use crate::shutdown::{Ended, Stage};
use crate::store::{self, Access, DATABASE_FILE, NewProject, SqliteOptions, Store, StoreLock};
use crate::telemetry::metrics::Metrics;
use crate::workers;

/// The account that the first start makes, and that owns what the command line makes in a data folder.
pub const FIRST_ACCOUNT: AccountId = AccountId(1);

/// How the first account is named until it is given a name.
const FIRST_ACCOUNT_EMAIL: &str = "owner@localhost";
const FIRST_ACCOUNT_TEAM: &str = "owner";

/// The project that the first start makes.
const FIRST_PROJECT: &str = "default";

/// What the edge may take beyond its own drain timeout, to cut what is left.
const EDGE_GRACE: Duration = Duration::from_secs(5);

/// How long storage may take for what the bus has accepted at shutdown: 64 MiB at a poor disk's 10 MB/s, four times over.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the collector couldn't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data folder or what is in it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The address.
    #[error("{}", bind_words(*.address, .source))]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The free space on the disk.
    #[error("the free space of the data folder's disk can't be read: {0}")]
    Disk(io::Error),
}

fn bind_words(address: SocketAddr, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use; stop what listens there or choose another address with --listen")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "{address} may not be used by this user; ports below 1024 need a privilege, choose another with --listen"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{address} is not an address of this machine; choose one that is, or 0.0.0.0, with --listen"
            )
        }
        _ => format!("can't listen on {address}: {source}; choose another address with --listen"),
    }
}

/// A collector at work.
pub struct Running {
    address: SocketAddr,
    first_start: Option<NewProject>,
    edge_stop: CancellationToken,
    edge: Stage,
    bus: Bus,
    storage: Stage,
    insight: Stage,
    store: Store,
    drain_timeout: Duration,
    catch_up_timeout: Duration,
    _lock: Arc<StoreLock>,
}

/// Starts a collector: lock, store, listener, first project, workers, edge. The listener is bound before the first project
/// is made: its keys are shown once, so nothing may fail between making and showing them.
///
/// # Errors
/// When the folder, the database or the address can't be used.
pub async fn start(config: &Config) -> Result<Running, Error> {
    let lock = Arc::new(Store::lock(&config.data)?);
    let store = Store::sqlite(SqliteOptions::new(config.data.join(DATABASE_FILE)))?;
    let tls = config.tls.as_ref().map(Tls::load).transpose()?;
    let health = Health::new(&config.data, config.edge.free_disk_min).map_err(Error::Disk)?;
    let listener = bind(config.listen).await?;
    let address = listener.local_addr().map_err(|source| Error::Bind { address: config.listen, source })?;
    let first_start = first_start(&store).await?;

    let bus = Bus::in_process(bus::Limits::default());
    let cache = Cache::memory();
    let metrics = Metrics::new();
    metrics.install();

    let root = CancellationToken::new();
    let (storage, insight) = (Stage::new("storage", &root), Stage::new("insight", &root));
    insight.spawn(workers::insight::run(bus.clone(), store.clone(), cache.clone(), insight.token()));
    storage.spawn(workers::storage::run(bus.clone(), store.clone(), storage.token()));

    let ingest = Ingest::new(bus.clone(), store.clone(), cache.clone());
    let query = Reader::new(store.clone(), cache, bus.clone());
    let state = edge::State::new(ingest, query, health, config.edge.clone(), metrics);
    let (edge, edge_stop) = (Stage::new("edge", &root), root.child_token());
    edge.spawn(listen(listener, state, tls, edge_stop.clone(), edge.token()));

    Ok(Running {
        address,
        first_start,
        edge_stop,
        edge,
        bus,
        storage,
        insight,
        store,
        drain_timeout: config.edge.drain_timeout,
        catch_up_timeout: config.catch_up_timeout,
        _lock: lock,
    })
}

/// Opens what is in a data folder, beside a collector that may be serving it: the store, and a reader in front of it.
/// `manage` asks for writing.
///
/// # Errors
/// When there is no database, or it can't be used.
pub fn beside(folder: &Path, manage: bool) -> Result<(Store, Reader), store::Error> {
    let access = if manage { Access::ReadWrite } else { Access::ReadOnly };
    let store = Store::sqlite_beside(&folder.join(DATABASE_FILE), access)?;
    let reader = Reader::new(store.clone(), Cache::memory(), Bus::in_process(bus::Limits::default()));
    Ok((store, reader))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Makes the first account and its project where there is none. A kill between the two leaves the account alone, which
/// the next start takes up.
async fn first_start(store: &Store) -> Result<Option<NewProject>, Error> {
    if !store.is_empty().await? {
        return Ok(None);
    }
    let account = match store.create_account(FIRST_ACCOUNT_EMAIL, FIRST_ACCOUNT_TEAM).await {
        Err(store::Error::Taken { .. }) => FIRST_ACCOUNT,
        made => made?,
    };
    Ok(Some(store.create_project(account, FIRST_PROJECT).await?))
}

async fn listen(
    listener: TcpListener,
    state: edge::State,
    tls: Option<Tls>,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    // A server that is cut has been given its drain timeout already; it needn't be cancel-safe.
    let served = tokio::select! {
        served = edge::serve(listener, state, tls, stop) => served,
        () = cut.cancelled() => return,
    };
    if let Err(error) = served {
        tracing::error!(%error, "the listener failed");
    }
}

impl Running {
    /// Returns the address it listens on, with the port the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hands out the first project and its keys, when this start made them.
    pub fn take_first_start(&mut self) -> Option<NewProject> {
        self.first_start.take()
    }

    /// Waits until a stage ends that shouldn't, and names it. Cancel-safe: it only looks.
    pub async fn broken(&self) -> &'static str {
        tokio::select! {
            () = self.edge.ended() => "edge",
            () = self.storage.ended() => "storage",
            () = self.insight.ended() => "insight",
        }
    }

    /// Stops in the order in which events flow, so that whatever was taken in goes all the way: intake, bus, storage,
    /// insight, store. Nothing that was acknowledged is lost wherever this is cut short: it is on disk already.
    ///
    /// # Errors
    /// When the store couldn't be closed; what was confirmed is safe all the same.
    pub async fn stop(self) -> Result<(), Error> {
        self.edge_stop.cancel();
        self.edge.finish(self.drain_timeout + EDGE_GRACE).await;
        self.bus.close();
        self.storage.finish(STORAGE_TIMEOUT).await;
        // Insight ends when nobody can announce anything any more.
        drop(self.bus);
        if self.insight.finish(self.catch_up_timeout).await == Ended::Cancelled {
            tracing::info!("the counts are behind the log and catch up at the next start");
        }
        Ok(self.store.close().await?)
    }
}
