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
    let mut doubts = Doubts::default();
    loop {
        // All three are cancel-safe: a tick, a receive from a broadcast, a token.
        let outcome = tokio::select! {
            () = cancel.cancelled() => return,
            hint = ranges.recv() => match hint {
                Some(hint) => follow(&collect(hint, &mut ranges), &store, &cache).await,
                None => return,
            },
            _ = look.tick() => look_at_heads(&store, &cache, &mut doubts).await,
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
    // Such a look may follow the one before at once: what it doubts is for the next that comes in time.
    let look = async || look_at_heads(store, cache, &mut Doubts::default()).await;
    if waiting.missed { outcome.and(look().await) } else { outcome }
}

/// Live counters that were found at another position than the store at the last look, and where.
#[derive(Default)]
pub(super) struct Doubts(BTreeMap<ProjectId, CountersState>);

impl Doubts {
    /// Judges counters against what the store held a moment before. Whoever applies a range moves the store first and the
    /// counters after it, so at one look they may well be apart; at two in a row, without having moved, nobody is at it.
    fn must_reset(
        &mut self,
        project: ProjectId,
        stored: CountersState,
        counted: Option<CountersState>,
    ) -> bool {
        let before = self.0.remove(&project);
        match counted {
            Some(counted) if counted == stored => false,
            Some(counted) if (counted.epoch, counted.generation) == (stored.epoch, stored.generation) => {
                let stands_still = before == Some(counted);
                if !stands_still {
                    self.0.insert(project, counted);
                }
                stands_still
            }
            // Lost, or of another log or generation: no range leads from there to here.
            _ => true,
        }
    }
}

pub(super) async fn look_at_heads(
    store: &impl Log,
    cache: &impl Live,
    doubts: &mut Doubts,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    for progress in store.view_progress().await? {
        outcome = outcome.and(catch_up(&progress, store, cache, doubts).await);
    }
    outcome
}

async fn catch_up(
    progress: &ViewProgress,
    store: &impl Log,
    cache: &impl Live,
    doubts: &mut Doubts,
) -> Result<(), Error> {
    let ViewProgress { project, state, head } = *progress;
    let ViewState { generation, applied_to } = state;
    let stored = CountersState { epoch: store.epoch(), generation, applied_to };
    if doubts.must_reset(project, stored, cache.counters_state(project).await) {
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

#[cfg(test)]
mod tests {
    use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
    use uuid::Uuid;

    use super::*;
    use crate::bus::message::ValidBatch;
    use crate::store::SqliteOptions;

    #[test]
    fn counters_are_replaced_when_two_looks_in_a_row_find_them_where_they_should_not_be() {
        let state = |generation, applied_to| CountersState { epoch: Uuid::nil(), generation, applied_to };
        let (shop, blog, stored) = (ProjectId(1), ProjectId(2), state(1, 100));
        let mut doubts = Doubts::default();
        let mut looks = |project, counted| doubts.must_reset(project, stored, counted);
        assert!(!looks(shop, Some(stored)));
        assert!(!looks(shop, Some(state(1, 50))), "somebody may be about to move it");
        assert!(!looks(blog, Some(state(1, 50))), "each project by itself");
        assert!(!looks(shop, Some(state(1, 80))), "it moved");
        assert!(!looks(shop, Some(stored)), "and arrived");
        assert!(!looks(shop, Some(state(1, 80))), "not two in a row");
        assert!(looks(shop, Some(state(1, 80))));
        assert!(!looks(shop, Some(state(1, 80))), "a reset that was refused is tried every second look");
        assert!(looks(shop, None), "lost");
        assert!(looks(shop, Some(state(2, 100))), "another generation");
        let other = CountersState { epoch: Uuid::max(), ..stored };
        assert!(looks(shop, Some(other)), "another log");
    }

    fn batch(project: ProjectId, id: &str) -> ValidBatch {
        let time = Timestamp::from_ms(0).expect("it is 1970");
        let event = Event {
            id: EventId::from_text(id),
            name: "a".to_owned(),
            description: None,
            user: None,
            time,
            stream: None,
            correlation: None,
            properties: Properties::default(),
        };
        ValidBatch {
            project,
            batch: BatchId::from_text(id),
            received: time,
            skew_ms: None,
            events: vec![event],
            undated: Vec::new(),
            refused: Vec::new(),
            part: 0,
            parts: 1,
        }
    }

    #[tokio::test]
    async fn a_counter_a_moment_behind_is_left_to_whoever_moves_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::sqlite(SqliteOptions::new(folder.path().join("store.db"))).unwrap();
        let account = store.create_account("ada@example.com", "team").await.unwrap();
        let shop = store.create_project(account, "shop").await.unwrap().project.id;
        let (cache, mut doubts) = (Cache::memory(), Doubts::default());
        let counted = async || cache.counters(shop).await.map(|live| (live.applied_to, live.per_name));
        let name = |count| BTreeMap::from([("a".to_owned(), count)]);
        look_at_heads(&store, &cache, &mut doubts).await.unwrap();
        assert_eq!(counted().await, Some((0, BTreeMap::new())), "none yet");

        store.append(vec![batch(shop, "x")]).await.unwrap();
        let applied = store.apply_counts(shop, 1).await.unwrap();
        look_at_heads(&store, &cache, &mut doubts).await.unwrap();
        assert!(
            cache.count_up(shop, store.epoch(), &applied).await,
            "what another worker applied follows on"
        );
        look_at_heads(&store, &cache, &mut doubts).await.unwrap();
        assert_eq!(counted().await, Some((1, name(1))));

        // This time the other worker dies in between.
        store.append(vec![batch(shop, "y")]).await.unwrap();
        store.apply_counts(shop, 2).await.unwrap();
        look_at_heads(&store, &cache, &mut doubts).await.unwrap();
        assert_eq!(counted().await, Some((1, name(1))));
        look_at_heads(&store, &cache, &mut doubts).await.unwrap();
        assert_eq!(counted().await, Some((2, name(2))));
        // Lost counters are there again with the next look.
        let cache = Cache::memory();
        look_at_heads(&store, &cache, &mut doubts).await.unwrap();
        assert_eq!(cache.counters(shop).await.map(|live| live.applied_to), Some(2));
    }
}
