use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::redis::RedisLock;

/// A job that at most one process does at a time, until it is dropped or `ttl` has passed since it was taken or renewed.
///
/// A lock with an expiry can't keep a process that was paused from going on after another has taken over. It only says who
/// begins; that no two write at once has to be the store's doing, as it is of [`crate::store::Store::drop_before`].
pub struct LockGuard {
    pub(super) holder: Holder,
    pub(super) token: u64,
    pub(super) ttl: Duration,
    pub(super) until: Instant,
}

/// Why a lock couldn't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLocked {
    /// Somebody holds it.
    #[error("another process is at it")]
    Held,
    /// Redis is away or refuses, so nobody knows whether somebody does.
    #[error("redis doesn't answer")]
    Unknown,
}

pub(super) enum Holder {
    Memory { locks: MemoryLocks, name: String },
    Redis(RedisLock),
}

impl LockGuard {
    /// The fencing token: higher with each holder of the name. It follows the clock of what stands behind the cache, in
    /// microseconds, so that it keeps rising when that has lost everything.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Says whether it is still held, as far as can be known without asking. After a pause longer than the expiry it says
    /// `false`.
    #[must_use]
    pub fn held(&self) -> bool {
        Instant::now() < self.until
    }

    /// Holds it for another `ttl`; call it every third of that. `false` when it is lost: stop the job.
    pub async fn renew(&mut self) -> bool {
        // Counted from before asking, so that this end never believes longer than the other.
        let asked = Instant::now();
        if asked >= self.until {
            return false;
        }
        let renewed = match &self.holder {
            Holder::Memory { locks, name } => locks.renew(name, self.token, asked + self.ttl),
            Holder::Redis(lock) => lock.renew(self.ttl).await,
        };
        if renewed {
            self.until = asked + self.ttl;
        }
        renewed
    }

    /// Lets another process have it at once. Dropping does so too, a moment later.
    pub async fn release(mut self) {
        if let Holder::Redis(lock) = &mut self.holder {
            lock.release().await;
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        match &mut self.holder {
            Holder::Memory { locks, name } => locks.release(name, self.token),
            Holder::Redis(lock) => lock.release_later(),
        }
    }
}

/// Locks within this process.
#[derive(Clone, Default)]
pub(super) struct MemoryLocks(Arc<Mutex<HashMap<String, Held>>>);

/// The last holder of a name; it stays when released, for its token.
struct Held {
    token: u64,
    until: Instant,
}

impl MemoryLocks {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, name: &str, ttl: Duration, now_us: u64) -> Option<LockGuard> {
        let now = Instant::now();
        let until = now + ttl;
        let mut all = self.all();
        let last = all.get(name);
        if last.is_some_and(|held| held.until > now) {
            return None;
        }
        let token = last.map_or(0, |held| held.token + 1).max(now_us);
        all.insert(name.to_owned(), Held { token, until });
        let holder = Holder::Memory { locks: self.clone(), name: name.to_owned() };
        Some(LockGuard { holder, token, ttl, until })
    }

    fn renew(&self, name: &str, token: u64, until: Instant) -> bool {
        match self.all().get_mut(name).filter(|held| held.token == token && held.until > Instant::now()) {
            Some(held) => {
                held.until = until;
                true
            }
            None => false,
        }
    }

    fn release(&self, name: &str, token: u64) {
        if let Some(held) = self.all().get_mut(name).filter(|held| held.token == token) {
            held.until = Instant::now();
        }
    }
}
