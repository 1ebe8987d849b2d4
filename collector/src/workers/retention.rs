use std::pin::pin;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, LockGuard, NotLocked};
use crate::store::{Dropped, Error, Store};

/// How often old events are looked for: they go a segment of days at a time, so an hour more or less is nothing.
const LOOK_PERIOD: Duration = Duration::from_secs(60 * 60);

/// How long a holder that dies holds up the others. It is renewed three times as often, so that two lost answers lose nothing.
const LOCK_TTL: Duration = Duration::from_secs(60);

/// Every hour forgets usage that is too old for anything, and, where there is an `age`, removes events that were stored longer
/// ago; until `cancel`.
pub async fn run(store: Store, cache: Cache, age: Option<Duration>, cancel: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both are cancel-safe: a token, a tick.
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = look.tick() => {}
        }
        // What is cut short here goes on at the next look.
        tokio::select! {
            () = forget_and_drop(&store, &cache, age) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn forget_and_drop(store: &Store, cache: &Cache, age: Option<Duration>) {
    match store.forget_usage().await {
        Ok(0) => {}
        Ok(rows) => tracing::debug!(rows, "old days of usage were forgotten"),
        Err(error) => tracing::warn!(%error, "old days of usage stay; they are tried again in an hour"),
    }
    let Some(age) = age else { return };
    // The lock keeps a process from taking the work out of another's hands; that no two do it at once is the store's doing, so
    // it is done without a lock too while nobody can have one.
    match cache.lock("retention", LOCK_TTL).await {
        Ok(lock) => tell(drop_old(store, age, Some(lock)).await),
        Err(NotLocked::Unknown) => tell(drop_old(store, age, None).await),
        Err(NotLocked::Held) => {}
    }
}

async fn drop_old(store: &Store, age: Duration, lock: Option<LockGuard>) -> Result<Dropped, Error> {
    let Some(mut lock) = lock else { return store.drop_before(age).await };
    let mut dropped = pin!(store.drop_before(age));
    loop {
        // Both are cancel-safe: the work is only looked at, a sleep is begun again.
        tokio::select! {
            dropped = &mut dropped => return dropped,
            () = tokio::time::sleep(LOCK_TTL / 3) => {}
        }
        // Where it is lost the work goes on: if another has begun since, the store ends it.
        lock.renew().await;
    }
}

fn tell(dropped: Result<Dropped, Error>) {
    match dropped {
        Ok(Dropped { events, segments, kept, .. }) => {
            if events > 0 || segments > 0 {
                tracing::info!(
                    events,
                    segments,
                    "events older than the retention were dropped; their counts stay"
                );
            }
            if let Some((project, error)) = kept.first_key_value() {
                let others = kept.len() - 1;
                tracing::warn!(%project, %error, others,
                               "old events of a project stay, because its counts can't be sealed; tried again in an hour");
            }
        }
        Err(Error::TakenOver) => tracing::info!("another process has taken over the dropping of old events"),
        Err(error) => {
            tracing::warn!(%error, "old events could not be dropped; they are tried again in an hour");
        }
    }
}
