//! What can be lost at any moment: grants of keys, live counters, limits, locks, who is there. Everything here is rebuilt
//! from the store, or ends by itself. A cache that is away fails no request: it answers `None` or `false` at once.

/// What keys may do.
mod keys;

/// Live counters.
mod counters;

/// The live tail.
mod tail;

/// Jobs that one process does at a time.
mod lock;

/// The processes of a collector.
mod node;

/// How fast and how much a project may send.
mod limits;

/// When what was used of a quota is read from the store.
mod recount;

/// The cache within one process.
mod memory;

/// The cache that several processes share.
mod redis;

/// Why a cache can't be used.
mod error;

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::project::{Grant, KeyHash, ProjectId, Standing};
use crate::store::{Applied, CountTotals};

#[cfg(test)]
pub(crate) use counters::KeptCounters;
pub use counters::{Away, COUNTER_NAMES_MAX, Counters, CountersState};
pub use error::Error;
pub use keys::{Asked, Recalled};
pub use limits::{Bound, Left, Limits, Quota, RateLimit, Taken, Used};
pub use lock::{LockGuard, NotLocked};
pub use node::{HEARTBEAT_PERIOD, NODE_TTL, Node};
pub use redis::RedisOptions;
pub use tail::{TAIL_BYTES_MAX, Tail, TailReceiver};

/// What a Redis looks like from outside; what the user may not ask is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheFacts {
    /// Its version.
    pub version: Option<String>,
    /// What it does when it is out of memory.
    pub policy: Option<String>,
    /// What it takes.
    pub memory_bytes: Option<u64>,
    /// The store whose keys are there.
    pub store: Option<String>,
}

/// The cache, whatever stands behind it. Clones share it.
#[derive(Clone)]
pub struct Cache(Backend);

#[derive(Clone)]
enum Backend {
    Memory(memory::Memory),
    Redis(redis::Redis),
}

impl Cache {
    /// Makes a cache within this process.
    #[must_use]
    pub fn memory() -> Self {
        Self(Backend::Memory(memory::Memory::new()))
    }

    /// Connects to Redis. Later it connects again by itself, and everything that can't be asked meanwhile is "not known".
    ///
    /// # Errors
    /// When the server can't be reached now, or refuses the user or password.
    pub async fn redis(options: RedisOptions) -> Result<Self, Error> {
        redis::Redis::start(options).await.map(|redis| Self(Backend::Redis(redis)))
    }

    /// Looks at a Redis without leaving a mark there.
    ///
    /// # Errors
    /// When the server can't be reached now, or refuses the user or password.
    pub async fn look(options: &RedisOptions) -> Result<CacheFacts, Error> {
        redis::look::look(options).await
    }

    /// Says whether the cache can be asked right now. A collector is ready without it, only slower.
    ///
    /// # Errors
    /// [`Error::Away`] with what was tried last.
    pub fn serving(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Memory(_) => Ok(()),
            Backend::Redis(redis) => redis.serving(),
        }
    }

    /// Forgets everything that is kept for all processes, as a loss of the server would: what is asked next is asked of the
    /// store. Returns how many keys that were; `None` when the cache is away, or is this process' memory.
    pub async fn wipe(&self) -> Option<u64> {
        match &self.0 {
            Backend::Memory(_) => None,
            Backend::Redis(redis) => redis.wipe().await,
        }
    }

    /// Takes a node off the list, before its process ends.
    pub async fn leave(&self, node_id: &str) {
        match &self.0 {
            Backend::Memory(memory) => memory.leave(),
            Backend::Redis(redis) => redis.leave(node_id).await,
        }
    }

    /// Gives back what was taken of limits and not used, when nothing is taken in any more.
    pub async fn close(&self) {
        match &self.0 {
            Backend::Memory(_) => {}
            Backend::Redis(redis) => redis.give_back_all().await,
        }
    }
}

/// What keys may do.
impl Cache {
    /// Recalls what the store said of a key, unknown ones included: a flood of one wrong key asks it no more than once a
    /// second. What is said here is at most a second old, so that a revoked key stops working within one.
    pub async fn standing(&self, hash: &KeyHash) -> Recalled {
        match &self.0 {
            Backend::Memory(memory) => memory.keys.recall(hash),
            Backend::Redis(redis) => redis.standing(hash).await,
        }
    }

    /// Remembers what the store said of a key, unless keys were made or revoked since it was asked.
    pub async fn remember(&self, hash: KeyHash, standing: Standing, asked: Asked) {
        self.keys().store_is_there();
        match &self.0 {
            Backend::Memory(memory) => memory.keys.remember(hash, standing, &asked),
            Backend::Redis(redis) => redis.remember(hash, standing, asked).await,
        }
    }

    /// What a key was worth when the store last said so, now that it can't be asked: for two hours. `None` where anything was
    /// heard since that may have changed it: that keys were made or revoked, or a cut before the store went away.
    #[must_use]
    pub fn believed(&self, hash: &KeyHash) -> Option<Grant> {
        self.keys().believed(hash)
    }

    fn keys(&self) -> &keys::RecentKeys {
        match &self.0 {
            Backend::Memory(memory) => &memory.keys,
            Backend::Redis(redis) => redis.keys(),
        }
    }

    /// Forgets every key at once, after one was made or revoked in the store: here now, in other processes within a second.
    /// `false` when Redis couldn't be told: then processes that still reach it may believe what they knew for up to a
    /// minute, or until this one reaches it again.
    pub async fn forget_keys(&self) -> bool {
        match &self.0 {
            Backend::Memory(memory) => {
                memory.keys.forget();
                true
            }
            Backend::Redis(redis) => redis.forget_keys().await,
        }
    }
}

/// Live counters.
impl Cache {
    /// Adds exactly what was added to the stored counts of a log with that epoch. `false` when it doesn't follow on what is
    /// here: then the counters are to be reset from the store.
    ///
    /// # Errors
    /// [`Away`]: it may have been added all the same.
    pub async fn count_up(&self, project: ProjectId, epoch: Uuid, applied: &Applied) -> Result<bool, Away> {
        match &self.0 {
            Backend::Memory(memory) => Ok(memory.counters.count_up(project, epoch, applied)),
            Backend::Redis(redis) => redis.count_up(project, epoch, applied).await.ok_or(Away),
        }
    }

    /// Recalls the live counters, all of them; `None` when there are none, or more names than are kept.
    pub async fn counters(&self, project: ProjectId) -> Option<Counters> {
        match &self.0 {
            Backend::Memory(memory) => memory.counters.all(project),
            Backend::Redis(redis) => redis.counters(project).await,
        }
    }

    /// Recalls alone what the live counters of projects follow, and how far, in their order; `None` where there are none.
    ///
    /// # Errors
    /// [`Away`]: there may well be some.
    pub async fn counters_states(&self, projects: &[ProjectId]) -> Result<Vec<Option<CountersState>>, Away> {
        match &self.0 {
            Backend::Memory(memory) => {
                Ok(projects.iter().map(|project| memory.counters.state(*project)).collect())
            }
            Backend::Redis(redis) => redis.counters_states(projects).await.ok_or(Away),
        }
    }

    /// Replaces the live counters by what the store holds; `false` when they are further already.
    ///
    /// # Errors
    /// [`Away`]: they may have been replaced all the same.
    pub async fn reset(&self, project: ProjectId, epoch: Uuid, totals: CountTotals) -> Result<bool, Away> {
        match &self.0 {
            Backend::Memory(memory) => Ok(memory.counters.reset(project, epoch, totals)),
            Backend::Redis(redis) => redis.reset(project, epoch, &totals).await.ok_or(Away),
        }
    }
}

/// What a simulation does to live counters.
#[cfg(test)]
impl Cache {
    /// A backup of the counters in this process' memory.
    pub(crate) fn kept_counters(&self) -> KeptCounters {
        match &self.0 {
            Backend::Memory(memory) => memory.counters.keep(),
            Backend::Redis(_) => unreachable!("a simulation keeps its counters in memory"),
        }
    }

    /// Puts a backup in their place; an empty one is a wipe.
    pub(crate) fn restore_counters(&self, kept: &KeptCounters) {
        match &self.0 {
            Backend::Memory(memory) => memory.counters.restore(kept),
            Backend::Redis(_) => unreachable!("a simulation keeps its counters in memory"),
        }
    }
}

/// The live tail.
impl Cache {
    /// Hands bytes to all followers of the tail, in every process. Never waits: `false` when there was no room or they are
    /// over [`TAIL_BYTES_MAX`]; followers are told that something is missing.
    pub fn publish_tail(&self, project: ProjectId, bytes: &[u8]) -> bool {
        match &self.0 {
            Backend::Memory(memory) => {
                let fits = bytes.len() <= TAIL_BYTES_MAX;
                let bytes = bytes::Bytes::copy_from_slice(bytes);
                memory.tail.send(if fits { Tail::Message { project, bytes } } else { Tail::Missed });
                fits
            }
            Backend::Redis(redis) => redis.publish_tail(project, bytes),
        }
    }

    /// Follows the tail of all projects, from now on. With Redis [`Tail::Missed`] is heard as soon as the subscription
    /// stands, and again whenever it had to be made anew.
    #[must_use]
    pub fn subscribe_tail(&self) -> TailReceiver {
        match &self.0 {
            Backend::Memory(memory) => memory.tail.subscribe(),
            Backend::Redis(redis) => redis.subscribe_tail(),
        }
    }
}

/// Who does what.
impl Cache {
    /// Takes a lock, if nobody holds it. `ttl` is how long a holder that dies holds up the others.
    ///
    /// # Errors
    /// Why it isn't held now.
    pub async fn lock(&self, name: &str, ttl: Duration) -> Result<LockGuard, NotLocked> {
        match &self.0 {
            Backend::Memory(memory) => memory.lock(name, ttl).ok_or(NotLocked::Held),
            Backend::Redis(redis) => redis.lock(name, ttl).await,
        }
    }

    /// Says that a node is there, for [`NODE_TTL`].
    pub async fn heartbeat(&self, node: &Node) -> bool {
        match &self.0 {
            Backend::Memory(memory) => {
                memory.heartbeat(node);
                true
            }
            Backend::Redis(redis) => redis.heartbeat(node).await,
        }
    }

    /// Says so until `cancel`.
    pub async fn heartbeats(&self, node: Node, cancel: CancellationToken) {
        let mut beat = tokio::time::interval(HEARTBEAT_PERIOD);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Both are cancel-safe: a token, a tick.
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = beat.tick() => self.heartbeat(&node).await,
            };
        }
    }

    /// Lists the nodes that are there: without Redis this one alone. `None` when they can't be listed now.
    pub async fn nodes(&self) -> Option<Vec<Node>> {
        match &self.0 {
            Backend::Memory(memory) => Some(memory.nodes()),
            Backend::Redis(redis) => redis.nodes().await,
        }
    }
}

/// How fast and how much a project may send.
impl Cache {
    /// Takes events out of a project's limits, all of them or none, and says what is left.
    pub async fn take(&self, project: ProjectId, events: u64, limits: &Limits) -> Taken {
        match &self.0 {
            Backend::Memory(memory) => memory.take(project, events, limits),
            Backend::Redis(redis) => redis.take(project, events, limits).await,
        }
    }

    /// Gives back events that were taken and then not sent on.
    pub async fn give_back(&self, project: ProjectId, events: u64, taken: &Taken) {
        match &self.0 {
            Backend::Memory(memory) => memory.give_back(project, events, taken),
            Backend::Redis(redis) => redis.give_back(project, events, taken).await,
        }
    }

    /// Tells the quotas what the store's ledger knows, after [`Taken::recount`]: what was used is raised to it, never
    /// lowered. `false` when that couldn't be told, or the day is over by the clock of what stands behind the cache.
    pub async fn recount_quota(&self, project: ProjectId, used: Used) -> bool {
        match &self.0 {
            Backend::Memory(memory) => memory.recount(project, used),
            Backend::Redis(redis) => redis.recount(project, used).await,
        }
    }
}
