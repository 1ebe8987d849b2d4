//! The cache that several processes share. Redis is never the truth: what is lost, or comes back older, is asked of the
//! store again, and while Redis is away every question is answered by "not known" at once.

/// Where the server is.
mod options;

/// A connection that is down at once and up again by itself.
mod link;

/// Lua.
mod script;

/// Whose all of it is.
mod claim;

/// What keys may do.
mod keys;

/// Live counters.
mod counters;

/// What is published to all processes: the live tail, and that keys are to be forgotten.
mod channel;

/// Locks.
mod lock;

/// The nodes of a collector.
mod nodes;

/// What the server looks like from outside.
pub(super) mod look;

/// Limits of projects, taken in slices.
mod limits;

/// Forgetting everything.
mod wipe;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::project::ProjectId;
use crate::telemetry::complaint::Complaint;

use super::Error;
use super::keys::RecentKeys;
use channel::{Channels, Outgoing};
use limits::Slices;
use link::Link;
use script::Scripts;

pub(super) use lock::RedisLock;
pub use options::RedisOptions;

/// Redis, shared by clones; the last one ends its tasks.
#[derive(Clone)]
pub(super) struct Redis(Arc<Shared>);

struct Shared {
    server: String,
    prefix: String,
    store: Option<String>,
    /// That another store's processes are here.
    foreign: Complaint,
    /// That the registry of nodes was something else.
    replaced: Complaint,
    scripts: Scripts,
    /// For what requests wait for.
    asks: Link,
    /// For whole sets of counters, which would hold up everything behind them.
    bulk: Link,
    recent: RecentKeys,
    channels: Channels,
    outgoing: Outgoing,
    slices: Slices,
    /// Edges that sent a heartbeat, this one included.
    edges: AtomicUsize,
    _tasks: DropGuard,
}

impl Redis {
    pub(super) async fn start(options: RedisOptions) -> Result<Self, Error> {
        let client = options.client()?;
        let (prefix, store) = (options.prefix.clone(), options.store.clone());
        let server = options.address.addr().to_string();
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        // A process that was cut off doesn't know what was revoked meanwhile, nor whether Redis came back older. So nothing
        // about keys that was written before a connection is believed over it.
        let greeting = keys::forget_all(&prefix);
        let asks =
            Link::start(client.clone(), options.answer_timeout, Some(greeting), cancel.clone()).await?;
        let bulk = Link::start(client.clone(), options.bulk_timeout, None, cancel.clone()).await?;
        let recent = RecentKeys::new();
        let channels = Channels::new(client, &prefix, recent.clone(), cancel.clone());
        let outgoing = Outgoing::start(asks.clone(), &prefix, cancel.clone());
        let redis = Self(Arc::new(Shared {
            server,
            prefix,
            store,
            foreign: Complaint::new(),
            replaced: Complaint::new(),
            scripts: Scripts::new(),
            asks,
            bulk,
            recent,
            channels,
            outgoing,
            slices: Slices::default(),
            edges: AtomicUsize::new(1),
            _tasks: guard,
        }));
        redis.claim().await?;
        tokio::spawn(limits::give_back_idle(Arc::downgrade(&redis.0), cancel));
        Ok(redis)
    }

    pub(super) fn serving(&self) -> Result<(), Error> {
        self.0.asks.serving()
    }

    pub(super) fn keys(&self) -> &RecentKeys {
        &self.0.recent
    }

    pub(super) fn publish_tail(&self, project: ProjectId, bytes: &[u8]) -> bool {
        self.0.outgoing.send(project, bytes)
    }

    pub(super) fn subscribe_tail(&self) -> super::TailReceiver {
        self.0.channels.follow_tail()
    }
}

impl Shared {
    /// The name of something a project has. The braces are Redis Cluster's hash tag: all of a project lies together.
    fn of_project(&self, project: ProjectId, what: &str) -> String {
        format!("{}:{{{project}}}:{what}", self.prefix)
    }
}
