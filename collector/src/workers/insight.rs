use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Hint, RangeReceiver};
use crate::cache::{COUNTER_NAMES_MAX, Cache, CountersState};
use crate::project::ProjectId;
use crate::store::{Error, Store, ViewProgress, ViewState};
use crate::telemetry::complaint::Complaint;

use super::ask::{Live, Log};

/// How often the heads are looked at when nothing is announced: how late a lost announcement shows at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Follows the log with the counts and the live counters until `cancel`. What was missed, by a lost announcement or
/// while nobody was running, is found by comparing `applied_to` with the head, at the start and once a second.
pub async fn run(bus: Bus, store: Store, cache: Cache, cancel: CancellationToken) {
    let mut ranges = bus.ranges();
    // The bus is held by its publishers: holding it here would keep the receiver open for ever.
    drop(bus);
    let complaint = Complaint::new();
    let mut look = tokio::time::interval_at(Instant::now(), LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // All three are cancel-safe: a tick, a receive from a broadcast, a token.
        let outcome = tokio::select! {
            () = cancel.cancelled() => return,
            hint = ranges.recv() => match hint {
                Some(hint) => follow(&collect(hint, &mut ranges), &store, &cache).await,
                None => return,
            },
            _ = look.tick() => look_at_heads(&store, &cache).await,
        };
        match outcome {
            Ok(()) if complaint.end() => tracing::info!("the counts follow the log again"),
            Err(error) if complaint.is_due() => {
                tracing::warn!(%error, "the counts could not follow the log; they try again");
            }
            _ => {}
        }
    }
}

/// What waits to be applied: the highest announced position of each project, and whether some may have been missed.
#[derive(Default)]
pub(super) struct Waiting {
    through: BTreeMap<ProjectId, u64>,
    missed: bool,
}

impl Waiting {
    pub(super) fn add(&mut self, hint: Hint) {
        match hint {
            Hint::Range(range) => {
                let through = self.through.entry(range.project).or_default();
                *through = range.last.max(*through);
            }
            Hint::Missed => self.missed = true,
        }
    }
}

/// Adds up everything that is announced already, so that a burst of small ranges costs one transaction.
fn collect(first: Hint, ranges: &mut RangeReceiver) -> Waiting {
    let mut waiting = Waiting::default();
    waiting.add(first);
    while let Some(hint) = ranges.try_recv() {
        waiting.add(hint);
    }
    waiting
}

pub(super) async fn follow(waiting: &Waiting, store: &impl Log, cache: &impl Live) -> Result<(), Error> {
    let mut outcome = Ok(());
    for (project, through) in &waiting.through {
        // One project that fails holds up no other.
        outcome = outcome.and(apply(*project, *through, store, cache).await);
    }
    if waiting.missed { outcome.and(look_at_heads(store, cache).await) } else { outcome }
}

pub(super) async fn look_at_heads(store: &impl Log, cache: &impl Live) -> Result<(), Error> {
    let mut outcome = Ok(());
    for progress in store.view_progress().await? {
        outcome = outcome.and(catch_up(&progress, store, cache).await);
    }
    outcome
}

async fn catch_up(progress: &ViewProgress, store: &impl Log, cache: &impl Live) -> Result<(), Error> {
    let ViewProgress { project, state, head } = *progress;
    let ViewState { generation, applied_to } = state;
    let stored = CountersState { epoch: store.epoch(), generation, applied_to };
    if cache.counters_state(project).await != Some(stored) {
        reset(project, store, cache).await?;
    }
    apply(project, head, store, cache).await
}

/// Applies the log up to a position, step by step, and moves the live counters by exactly what each step added.
async fn apply(project: ProjectId, through: u64, store: &impl Log, cache: &impl Live) -> Result<(), Error> {
    // What the counters contain is in the store already, so a doubled or late range ends here.
    let contains = |counted: CountersState| counted.epoch == store.epoch() && counted.applied_to >= through;
    if cache.counters_state(project).await.is_some_and(contains) {
        return Ok(());
    }
    loop {
        // Before the step: a log restored after it has another epoch, whose counters may stand where this step began.
        let epoch = store.epoch();
        let applied = store.apply_counts(project, through).await?;
        if applied.through > applied.from && !cache.count_up(project, epoch, &applied).await {
            reset(project, store, cache).await?;
        }
        if applied.through == applied.from || applied.through >= through {
            return Ok(());
        }
    }
}

async fn reset(project: ProjectId, store: &impl Log, cache: &impl Live) -> Result<(), Error> {
    // Before the totals: those of a log that was restored in between are found wrong by the next look.
    let epoch = store.epoch();
    let totals = store.count_totals(project, COUNTER_NAMES_MAX).await?;
    cache.reset(project, epoch, totals).await;
    Ok(())
}
