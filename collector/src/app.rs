//! The composition root: the only place that names backends. Starts everything in the order in which it depends on each
//! other, and stops it the other way round.

/// Why it couldn't start.
mod error;

/// The servers that a configuration names.
mod servers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eventbucket_protocol::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use error::Error;
use servers::{broker, redis_options};
pub use servers::{look_at_broker, look_at_redis, look_at_server};

use crate::bus::{self, Bus, DeadLetters, RabbitOptions, SpoolOptions};
use crate::cache::{self, Cache, Node};
use crate::config::{Config, EdgeConfig, LimitsConfig, Role, ServerUrl};
use crate::edge::{self, Health, Tls};
use crate::ingest::Ingest;
use crate::project::AccountId;
use crate::query::Reader;
use crate::shutdown::{Ended, Stage};
use crate::store::{
    self, Access, DATABASE_FILE, NewProject, PostgresOptions, SqliteOptions, Store, StoreLock,
};
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

/// How long clients are told to go elsewhere before the listener closes, where there is an elsewhere: SDKs send about once a
/// second (their batches' age), balancers ask for readiness every second or two.
const DRAIN_NOTICE: Duration = Duration::from_secs(2);

/// How long storage may take for what the bus has accepted at shutdown: 64 MiB at a poor disk's 10 MB/s, four times over.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The same behind a broker, which gives what isn't stored to the next process: a store that answers takes a second for the
/// 64 MiB at most that a process holds, and one that doesn't isn't waited for.
const STORAGE_TIMEOUT_DURABLE: Duration = Duration::from_secs(10);

/// A collector at work.
pub struct Running {
    address: SocketAddr,
    first_start: Option<NewProject>,
    edge_stop: CancellationToken,
    edge: Stage,
    storage: Stage,
    insight: Stage,
    registry: Stage,
    foundation: Foundation,
    node_id: String,
    drain_timeout: Duration,
    catch_up_timeout: Duration,
}

/// What everything else stands on.
struct Foundation {
    store: Store,
    bus: Bus,
    cache: Cache,
    /// Held while a data folder is served.
    _lock: Option<Arc<StoreLock>>,
}

impl Foundation {
    async fn lay(config: &Config, spool: Option<SpoolOptions>) -> Result<Self, Error> {
        let (store, lock) = match &config.store.url {
            Some(url) => {
                let accounts = config.store.accounts_url.as_ref().map(ServerUrl::secret);
                let options = PostgresOptions::parse(url.secret(), accounts)?;
                (Store::postgres(options.with_writers(config.bus.writers)).await?, None)
            }
            None => {
                let lock = Arc::new(Store::lock(&config.data)?);
                (Store::sqlite(SqliteOptions::new(config.data.join(DATABASE_FILE)))?, Some(lock))
            }
        };
        // Project 1 of one store is another project than project 1 of the next: what carries them belongs to one store.
        let identity = Some(store.identity());
        let bus = match broker(config) {
            Some(options) => {
                Bus::rabbitmq(RabbitOptions { spool, store: identity.clone(), ..options }).await?
            }
            None => Bus::in_process(bus::Limits::default()),
        };
        let cache = match &config.cache_url {
            Some(url) => {
                let prefix = Some(&*config.cache_prefix);
                redis(url.secret(), prefix, config.cache_ca_file.as_deref(), identity).await?
            }
            None => Cache::memory(),
        };
        Ok(Self { store, bus, cache, _lock: lock })
    }
}

async fn redis(
    url: &str,
    prefix: Option<&str>,
    ca_file: Option<&Path>,
    identity: Option<String>,
) -> Result<Cache, cache::Error> {
    Cache::redis(redis_options(url, prefix, ca_file, identity)?).await
}

/// Only what takes batches in has any to keep.
fn spool(config: &Config) -> Option<SpoolOptions> {
    let spool = config.edge.spool.as_ref().filter(|_| config.roles.has(Role::Edge))?;
    Some(SpoolOptions { folder: spool.folder.clone(), bytes_max: spool.bytes_max })
}

/// Takes hold of the messages that nobody could process; `None` for a configuration without a broker.
///
/// # Errors
/// When the broker can't be used.
pub async fn dead_letters(config: &Config) -> Result<Option<DeadLetters>, bus::Error> {
    match broker(config) {
        Some(options) => Bus::rabbitmq(options).await?.dead_letters().await,
        None => Ok(None),
    }
}

/// Starts a collector: what it stands on, listener, first project, workers, edge. The listener is bound before the first
/// project is made: its keys are shown once, so nothing may fail between making and showing them.
///
/// # Errors
/// When the folder, a server or the address can't be used.
pub async fn start(config: &Config) -> Result<Running, Error> {
    let foundation = Foundation::lay(config, spool(config)).await?;
    let Foundation { store, bus, cache, .. } = &foundation;
    let tls = config.tls.as_ref().map(Tls::load).transpose()?;
    let health = health(config)?;
    let listener = bind(config.listen).await?;
    let address = listener.local_addr().map_err(|source| Error::Bind { address: config.listen, source })?;
    // Who only works behind the bus has nobody to show keys to.
    let shows_keys = config.roles.has(Role::Edge) || config.roles.has(Role::Query);
    let first_start = if shows_keys { first_start(store).await? } else { None };
    let metrics = Metrics::new();
    metrics.install();

    if config.roles.has(Role::Storage) {
        workers::insight::notice_restore(store, cache).await?;
    }

    let root = CancellationToken::new();
    let [storage, insight, registry] = ["storage", "insight", "registry"].map(|name| Stage::new(name, &root));
    if config.roles.has(Role::Insight) {
        insight.spawn(workers::insight::run(bus.clone(), store.clone(), cache.clone(), insight.token()));
    }
    if config.roles.has(Role::Storage) {
        storage.spawn(workers::storage::run(bus.clone(), store.clone(), cache.clone(), storage.token()));
        let age = config.store.retention;
        registry.spawn(workers::retention::run(store.clone(), cache.clone(), age, registry.token()));
    }
    let node = node(config, address);
    let node_id = node.id.clone();
    if config.roles.has(Role::Storage) || config.roles.has(Role::Insight) {
        let share = workers::share::run(bus.clone(), cache.clone(), node_id.clone(), registry.token());
        registry.spawn(share);
    }
    let (heart, token) = (cache.clone(), registry.token());
    registry.spawn(async move { heart.heartbeats(node, token).await });

    let ingest = Ingest::new(bus.clone(), store.clone(), cache.clone()).with_limits(limits(config));
    if config.roles.has(Role::Edge) {
        registry.spawn(ingest.clone().recount_quotas(registry.token()));
    }
    let query = Reader::new(store.clone(), cache.clone()).with_bus(bus.clone());
    let edge_config = EdgeConfig { drain_notice: Some(drain_notice(config)), ..config.edge.clone() };
    let state = edge::State::new(ingest, query, health, edge_config, metrics).for_roles(config.roles);
    let (edge, edge_stop) = (Stage::new("edge", &root), root.child_token());
    edge.spawn(listen(listener, state, tls, edge_stop.clone(), edge.token()));

    Ok(Running {
        address,
        first_start,
        edge_stop,
        edge,
        storage,
        insight,
        registry,
        foundation,
        node_id,
        drain_timeout: drain_notice(config) + config.edge.drain_timeout,
        catch_up_timeout: config.catch_up_timeout,
    })
}

/// Whoever keeps the log in a file of its own has no stand-in, so notice would only make it stop later; and workers have
/// no clients.
fn drain_notice(config: &Config) -> Duration {
    let has_clients = config.roles.has(Role::Edge) || config.roles.has(Role::Query);
    let usual = if has_clients && config.bus.url.is_some() { DRAIN_NOTICE } else { Duration::ZERO };
    config.edge.drain_notice.unwrap_or(usual)
}

/// Only what keeps something on a disk of its own has to watch one.
fn health(config: &Config) -> Result<Health, Error> {
    if config.store.url.is_some() {
        return Ok(Health::without_disk());
    }
    Health::new(&config.data, config.edge.free_disk_min).map_err(Error::Disk)
}

fn limits(config: &Config) -> cache::Limits {
    let LimitsConfig { events_per_s, burst, events_per_day, events_per_month } = config.edge.limits;
    let rate = events_per_s.map(|events_per_s| {
        let usual = cache::RateLimit::new(events_per_s);
        cache::RateLimit { burst: burst.unwrap_or(usual.burst), ..usual }
    });
    cache::Limits { rate, quota: cache::Quota { per_day: events_per_day, per_month: events_per_month } }
}

/// What others are told of this process.
fn node(config: &Config, address: SocketAddr) -> Node {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let listening = (!address.ip().is_unspecified()).then(|| format!("{scheme}://{address}"));
    let advertised = config.edge.advertise.as_ref().map(|url| url.secret().trim_end_matches('/').to_owned());
    Node {
        id: Uuid::now_v7().to_string(),
        roles: config.roles.iter().map(|role| role.name().to_owned()).collect(),
        address: advertised.or(listening),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ms: Timestamp::from_system(SystemTime::now()).ms(),
        last_seen_ms: 0,
    }
}

/// Connects to the servers that collectors stand on, without being one of them.
///
/// # Errors
/// When a server can't be used.
pub async fn servers(config: &Config) -> Result<(Store, Bus, Cache), Error> {
    let Foundation { store, bus, cache, .. } = Foundation::lay(config, None).await?;
    Ok((store, bus, cache))
}

/// Opens what is in a data folder, beside a collector that may be serving it: the store, and a reader in front of it.
/// `manage` asks for writing.
///
/// # Errors
/// When there is no database, or it can't be used.
pub fn beside(folder: &Path, manage: bool) -> Result<(Store, Reader), store::Error> {
    let access = if manage { Access::ReadWrite } else { Access::ReadOnly };
    let store = Store::sqlite_beside(&folder.join(DATABASE_FILE), access)?;
    let reader = Reader::new(store.clone(), Cache::memory());
    Ok((store, reader))
}

/// The servers that collectors share, as far as a command needs them.
#[derive(Clone, Debug)]
pub struct Servers {
    /// The PostgreSQL of the log.
    pub store_url: String,
    /// The PostgreSQL of the accounts, when that is another.
    pub accounts_url: Option<String>,
    /// The Redis, when there is one: what is changed is told to all through it.
    pub cache_url: Option<String>,
    /// What the names there begin with, when that isn't the usual.
    pub cache_prefix: Option<String>,
    /// The certificate authorities of a `rediss://` server; the system's without it.
    pub cache_ca_file: Option<PathBuf>,
}

/// Opens the store that collectors share on a PostgreSQL, and a reader in front of it.
///
/// # Errors
/// When a server can't be reached or used.
pub async fn beside_servers(servers: &Servers) -> Result<(Store, Reader), Error> {
    let options = PostgresOptions::parse(&servers.store_url, servers.accounts_url.as_deref())?;
    let store = Store::postgres(options).await?;
    let cache = match &servers.cache_url {
        Some(url) => {
            let (prefix, ca_file) = (servers.cache_prefix.as_deref(), servers.cache_ca_file.as_deref());
            redis(url, prefix, ca_file, Some(store.identity())).await?
        }
        None => Cache::memory(),
    };
    let reader = Reader::new(store.clone(), cache);
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
    match store.create_project(account, FIRST_PROJECT).await {
        // Another process that starts at the same time was first, and shows the keys.
        Err(store::Error::Taken { .. }) => Ok(None),
        made => Ok(Some(made?)),
    }
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

    /// Waits until a task ends that shouldn't, and names its stage. Cancel-safe: it only looks.
    pub async fn broken(&self) -> &'static str {
        tokio::select! {
            () = self.edge.any_ended() => "edge",
            () = self.storage.any_ended() => "storage",
            () = self.insight.any_ended() => "insight",
            () = self.registry.any_ended() => "registry",
            () = self.foundation.bus.broken() => "bus",
        }
    }

    /// Stops in the order in which events flow, so that whatever was taken in goes all the way: registry, intake, bus,
    /// storage, insight, store. Nothing that was acknowledged is lost wherever this is cut short: it is on disk already.
    ///
    /// # Errors
    /// When the store couldn't be closed; what was confirmed is safe all the same.
    pub async fn stop(self) -> Result<(), Error> {
        let Foundation { store, bus, cache, _lock } = self.foundation;
        self.registry.cancel().await;
        cache.leave(&self.node_id).await;
        self.edge_stop.cancel();
        self.edge.finish(self.drain_timeout + EDGE_GRACE).await;
        // What the edge took last is charged before the rest is given back.
        cache.close().await;
        bus.close();
        let within = if bus.is_durable() { STORAGE_TIMEOUT_DURABLE } else { STORAGE_TIMEOUT };
        self.storage.finish(within).await;
        bus.finish().await;
        // Insight ends when nobody can announce anything any more.
        drop(bus);
        if self.insight.finish(self.catch_up_timeout).await == Ended::Cancelled {
            tracing::info!("the counts are behind the log and catch up at the next start");
        }
        store.close().await.map_err(Error::Store)
    }
}
