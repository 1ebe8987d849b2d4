/// What is to be done, a project at a time.
pub(super) mod follower;

/// Whether live counters are where they should be.
mod doubts;

/// Resets that the cache doesn't take.
mod resets;

use std::future::ready;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Hint};
use crate::cache::Cache;
use crate::store::{Error, Store};
use crate::telemetry::complaint::Complaint;

#[cfg(test)]
pub(super) use follower::reset;
pub(super) use follower::{Follower, Look};

/// How often the heads are looked at when nothing is announced: how late a lost announcement shows at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Finds out, before this process appends anything, that the log was restored to an earlier state while nobody ran: live
/// counters of its epoch are further than it is. Later the log may have grown past them, and nothing would show it.
///
/// # Errors
/// When the store can't be read or written.
pub async fn notice_restore(store: &Store, cache: &Cache) -> Result<(), Error> {
    follower::notice_restore(store, cache).await
}

/// What comes next.
enum Next {
    Look,
    Heard(Option<Hint>),
    Turn,
    Reset(follower::Reset),
}

/// Follows the log with the counts and the live counters until `cancel`, or until nobody announces any more and everything
/// that was announced is counted. What was missed, by a lost announcement or while nobody was running, is found by comparing
/// `applied_to` with the head, at the start and once a second.
pub async fn run(bus: Bus, store: Store, cache: Cache, cancel: CancellationToken) {
    // A server that hangs keeps nobody from ending: a step that is cut leaves nothing behind, or is in the log and found
    // missing from the counters by the next look.
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = follow(bus, store, cache) => {}
    }
}

async fn follow(bus: Bus, store: Store, cache: Cache) {
    let mut ranges = bus.ranges();
    // The bus is held by its publishers: holding it here would keep the receiver open for ever.
    drop(bus);
    let (mut follower, mut progress, mut open) = (Follower::default(), Progress::default(), true);
    let mut look = tokio::time::interval_at(Instant::now(), LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A sum over all counts of one project: beside it the others are counted.
    let mut reset = None;
    while open || !follower.is_idle() || reset.is_some() {
        // All are cancel-safe: a tick, work that is only looked at, a receive from a broadcast, nothing at all. Whatever
        // is heard is followed by a turn, so that neither keeps the other waiting.
        let next = tokio::select! {
            biased;
            _ = look.tick() => Next::Look,
            Some(ended) = OptionFuture::from(reset.as_mut()) => Next::Reset(ended),
            hint = ranges.recv(), if open => Next::Heard(hint),
            () = ready(()), if !follower.is_idle() => Next::Turn,
        };
        match next {
            Next::Look => progress.looked(follower.look(Look::InTime, &store, &cache).await),
            Next::Turn => progress.tried(follower.turn(&store, &cache).await),
            Next::Reset(ended) => {
                reset = None;
                progress.tried(follower.end_reset(ended));
            }
            Next::Heard(None) => open = false,
            Next::Heard(Some(hint)) => {
                let mut missed = follower.hear(hint);
                while let Some(hint) = ranges.try_recv() {
                    missed |= follower.hear(hint);
                }
                if missed {
                    progress.tried(follower.look(Look::OutOfTime, &store, &cache).await);
                }
                progress.tried(follower.turn(&store, &cache).await);
            }
        }
        if reset.is_none() {
            let begin = |project| Box::pin(follower::reset(project, &store, &cache));
            reset = follower.begin_reset().map(begin);
        }
    }
}

/// What is said of it in the log.
#[derive(Default)]
struct Progress {
    complaint: Complaint,
    failed: bool,
}

impl Progress {
    fn tried(&mut self, outcome: Result<(), Error>) {
        let Err(error) = outcome else { return };
        self.failed = true;
        if self.complaint.is_due() {
            tracing::warn!(%error, "the counts could not follow the log; they try again");
        }
    }

    /// What failed is tried again after each look, so one without a failure since the look before is the end of it.
    fn looked(&mut self, outcome: Result<(), Error>) {
        self.tried(outcome);
        if !std::mem::take(&mut self.failed) && self.complaint.end() {
            tracing::info!("the counts follow the log again");
        }
    }
}
