use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Redis, Shared};
use crate::cache::lock::{Holder, LockGuard, NotLocked};

/// How long the last token of a name is kept. A later one is higher anyway, by the clock.
const TOKEN_TTL_MS: u64 = 7 * 24 * 3_600_000;

/// A lock in Redis.
pub(in crate::cache) struct RedisLock {
    shared: Arc<Shared>,
    name: String,
    /// Random, so that nobody lets go what another holds.
    holder: String,
    released: bool,
}

impl Redis {
    pub(in crate::cache) async fn lock(&self, name: &str, ttl: Duration) -> Result<LockGuard, NotLocked> {
        let lock = RedisLock {
            shared: Arc::clone(&self.0),
            name: format!("{}:{{lock:{name}}}:holder", self.0.prefix),
            holder: Uuid::now_v7().simple().to_string(),
            released: false,
        };
        let mut call = self.0.scripts.take_lock.prepare_invoke();
        call.key(&lock.name).key(format!("{}:{{lock:{name}}}:token", self.0.prefix));
        call.arg(&lock.holder).arg(milliseconds(ttl)).arg(TOKEN_TTL_MS);
        // Counted from before asking, so that this end never believes longer than the other.
        let until = Instant::now() + ttl;
        let answer = self.0.asks.ask(async |mut connection| call.invoke_async(&mut connection).await).await;
        match answer {
            // It may have been taken all the same; then it expires.
            None => Err(NotLocked::Unknown),
            Some(0) => Err(NotLocked::Held),
            Some(token) => Ok(LockGuard { holder: Holder::Redis(lock), token, ttl, until }),
        }
    }
}

impl RedisLock {
    pub(in crate::cache) async fn renew(&self, ttl: Duration) -> bool {
        let mut call = self.shared.scripts.renew_lock.prepare_invoke();
        call.key(&self.name).arg(&self.holder).arg(milliseconds(ttl));
        let renewed =
            self.shared.asks.ask(async |mut connection| call.invoke_async(&mut connection).await).await;
        renewed.unwrap_or(false)
    }

    pub(in crate::cache) async fn release(&mut self) {
        self.released = true;
        let mut call = self.shared.scripts.release_lock.prepare_invoke();
        call.key(&self.name).arg(&self.holder);
        let _: Option<u64> =
            self.shared.asks.ask(async |mut connection| call.invoke_async(&mut connection).await).await;
    }

    /// Lets go without waiting; outside a runtime it expires.
    pub(in crate::cache) fn release_later(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !std::mem::replace(&mut self.released, true) {
            let (shared, name, holder) =
                (Arc::clone(&self.shared), std::mem::take(&mut self.name), std::mem::take(&mut self.holder));
            runtime.spawn(async move { Self { shared, name, holder, released: true }.release().await });
        }
    }
}

/// Redis takes no expiry of zero.
fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}
