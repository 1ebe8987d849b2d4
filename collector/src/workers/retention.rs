use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::store::Store;

/// How often old events are looked for: they go a segment of days at a time, so an hour more or less is nothing.
const LOOK_PERIOD: Duration = Duration::from_secs(60 * 60);

/// How long one process may be at it before another may begin: a segment is dropped in seconds, its identities in minutes.
const LOCK_TTL: Duration = Duration::from_secs(10 * 60);

/// Removes events that were stored longer ago than `age`, until `cancel`. One process of a collector at a time is enough; two
/// would do no harm.
pub async fn run(store: Store, cache: Cache, age: Duration, cancel: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both are cancel-safe: a token, a tick.
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = look.tick() => {}
        }
        let Some(_lock) = cache.lock("retention", LOCK_TTL).await else { continue };
        // What is cut short here goes on at the next look.
        let dropped = tokio::select! {
            dropped = store.drop_before(age) => dropped,
            () = cancel.cancelled() => return,
        };
        match dropped {
            Ok(dropped) if dropped.segments > 0 => {
                let (events, segments) = (dropped.events, dropped.segments);
                tracing::info!(
                    events,
                    segments,
                    "events older than the retention were dropped; their counts stay"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "old events could not be dropped; they are tried again in an hour");
            }
        }
    }
}
