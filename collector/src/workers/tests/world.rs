use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use eventbucket_protocol::{Code, Event, Reason, Verdict};
use futures_util::FutureExt as _;
use uuid::Uuid;

use super::sending::{Broker, Clients, Tag};
use crate::bus::message::{Published, StoredRange, ValidBatch};
use crate::bus::{self, Hint};
use crate::cache::{Away, Cache, CountersState, KeptCounters};
use crate::project::ProjectId;
use crate::store::{Appended, Applied, CountTotals, Error, Scratch, ViewProgress, ViewState};
use crate::workers::ask::{Answer, Live, Log, Source};

/// Everything outside of the workers.
pub(super) struct World {
    pub(super) log: Scratch,
    pub(super) cache: Cache,
    pub(super) broker: Broker,
    pub(super) clients: Clients,
    /// Ranges as they were announced; the run decides who hears of which.
    pub(super) announced: VecDeque<StoredRange>,
    /// Events in the dead letters, by project and id.
    pub(super) dead: BTreeSet<(ProjectId, Uuid)>,
    /// Events that are noted as refused, in the log's database.
    pub(super) aside: BTreeSet<(ProjectId, Uuid)>,
    /// As PostgreSQL: only the culprit is put aside. Otherwise its whole batch is refused, as on SQLite.
    pub(super) quarantines: bool,
    pub(super) now_ms: u64,
    /// How often the log was restored.
    pub(super) restored: u64,
    /// How often the log or the counters were taken back.
    pub(super) taken_back: u64,
    /// How often each thing was asked.
    pub(super) asked: BTreeMap<Ask, u64>,
    /// The first thing that was seen to be wrong while it ran.
    pub(super) wrong: Option<String>,
}

pub(super) type Shared = Rc<RefCell<World>>;

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// It has asked; nothing has happened yet.
    Before(Ask),
    /// It has happened; the answer isn't there yet.
    After(Ask),
    /// It waits until then.
    Asleep(u64),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    Append,
    Quarantine,
    ViewProgress,
    WentBack,
    ApplyCounts,
    CountTotals,
    Rebuild,
    CountersStates,
    CountUp,
    Reset,
    Bury,
}

impl Ask {
    pub(super) fn is_of_cache(self) -> bool {
        matches!(self, Self::CountersStates | Self::CountUp | Self::Reset)
    }
}

/// What becomes of what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// It never takes effect.
    Refused,
    /// It takes effect and the answer is lost: whoever asked is told that it failed.
    AnswerLost,
}

/// The stops of one worker.
#[derive(Default)]
pub(super) struct Stops {
    at: Cell<Option<At>>,
    fate: Cell<Option<Fate>>,
    /// The cache didn't answer when it was asked last.
    cache_is_silent: Cell<bool>,
}

impl Stops {
    pub(super) fn at(&self) -> Option<At> {
        self.at.get()
    }

    /// Lets the worker go on when it is polled next.
    pub(super) fn pass(&self, fate: Fate) {
        self.fate.set(Some(fate));
    }

    async fn stop(&self, at: At) -> Fate {
        self.at.set(Some(at));
        poll_fn(|_| match self.fate.take() {
            Some(fate) => {
                self.at.set(None);
                Poll::Ready(fate)
            }
            None => Poll::Pending,
        })
        .await
    }
}

/// A worker's way to the world. Each life of a worker has its own.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) world: Shared,
    pub(super) stops: Rc<Stops>,
    /// The epoch as its process knows it: learned with every answer of the log.
    pub(super) epoch: Rc<Cell<Uuid>>,
    pub(super) durable: bool,
}

impl Way {
    async fn ask<T>(&self, ask: Ask, effect: impl FnOnce(&mut World) -> T, failed: impl FnOnce() -> T) -> T {
        let fate = self.stops.stop(At::Before(ask)).await;
        self.notes(ask, fate);
        if fate == Fate::Refused {
            return failed();
        }
        let answer = effect(&mut self.world.borrow_mut());
        if !ask.is_of_cache() {
            self.learn_epoch();
        }
        self.stops.stop(At::After(ask)).await;
        if fate == Fate::AnswerLost { failed() } else { answer }
    }

    /// Reading all totals is the dearest thing that insight asks of the store, and only a cache can make use of them: whoever
    /// takes one that is away for one that lost its counters asks for them over and over.
    fn notes(&self, ask: Ask, fate: Fate) {
        let mut world = self.world.borrow_mut();
        *world.asked.entry(ask).or_default() += 1;
        if ask == Ask::CountTotals && self.stops.cache_is_silent.get() {
            world.complain("totals were read for a cache that can't be asked".to_owned());
        }
        if ask.is_of_cache() {
            self.stops.cache_is_silent.set(fate != Fate::Answered);
        }
    }

    pub(super) fn learn_epoch(&self) {
        self.epoch.set(self.world.borrow().log.epoch());
    }

    /// Computes a new generation, as `eventbucket rebuild` does.
    pub(super) async fn rebuild(&self, project: ProjectId) -> Result<(), Error> {
        let generation =
            self.ask(Ask::Rebuild, |world| world.log.begin_rebuild(project), || Err(away())).await?;
        while !self
            .ask(Ask::Rebuild, |world| world.log.rebuild_step(project, generation), || Err(away()))
            .await?
        {}
        while self.ask(Ask::Rebuild, |world| world.log.sweep(project), || Err(away())).await? {}
        Ok(())
    }
}

fn away() -> Error {
    Error::unavailable("simulated")
}

impl Log for Way {
    fn epoch(&self) -> Uuid {
        self.epoch.get()
    }

    async fn append_each(&self, batches: Arc<[ValidBatch]>) -> Vec<Result<Appended, Error>> {
        let failed = || batches.iter().map(|_| Err(away())).collect();
        self.ask(Ask::Append, |world| world.append_each(&batches), failed).await
    }

    async fn quarantine(&self, batch: &ValidBatch, what: &str) -> Result<Appended, Error> {
        self.ask(Ask::Quarantine, |world| world.quarantine(batch, what), || Err(away())).await
    }

    async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        self.ask(Ask::ViewProgress, |world| world.log.view_progress(), || Err(away())).await
    }

    async fn went_back(&self, project: ProjectId, epoch: Uuid, seen: ViewState) -> Result<bool, Error> {
        let effect = |world: &mut World| world.log.went_back(project, epoch, seen);
        self.ask(Ask::WentBack, effect, || Err(away())).await
    }

    async fn apply_counts(&self, project: ProjectId, through: u64) -> Result<Applied, Error> {
        self.ask(Ask::ApplyCounts, |world| world.log.apply_counts(project, through), || Err(away())).await
    }

    async fn count_totals(&self, project: ProjectId, names_max: usize) -> Result<CountTotals, Error> {
        self.ask(Ask::CountTotals, |world| world.log.count_totals(project, names_max), || Err(away())).await
    }
}

/// The cache in memory never waits.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the cache in memory answers at once")
}

impl Live for Way {
    async fn counters_states(&self, projects: &[ProjectId]) -> Result<Vec<Option<CountersState>>, Away> {
        let effect = |world: &mut World| at_once(world.cache.counters_states(projects));
        self.ask(Ask::CountersStates, effect, || Err(Away)).await
    }

    async fn count_up(&self, project: ProjectId, epoch: Uuid, applied: &Applied) -> Result<bool, Away> {
        let effect = |world: &mut World| at_once(world.cache.count_up(project, epoch, applied));
        self.ask(Ask::CountUp, effect, || Err(Away)).await
    }

    async fn reset(&self, project: ProjectId, epoch: Uuid, totals: CountTotals) -> Result<bool, Away> {
        let effect = |world: &mut World| at_once(world.cache.reset(project, epoch, totals));
        self.ask(Ask::Reset, effect, || Err(Away)).await
    }

    fn publish_tail(&self, _: ProjectId, _: &[u8]) -> bool {
        // The tail is a hint for people's eyes; nothing is decided by it.
        true
    }
}

impl Source for Way {
    type Ticket = Ticket;

    fn is_durable(&self) -> bool {
        self.durable
    }

    async fn bury(&self, batch: &ValidBatch, _: &str) -> Result<(), bus::Error> {
        let failed = || {
            Err(bus::Error::Unavailable { reason: "simulated".into(), retry_after: Duration::from_secs(1) })
        };
        self.ask(
            Ask::Bury,
            |world| {
                world.bury(batch);
                Ok(())
            },
            failed,
        )
        .await
    }

    fn announce(&self, ranges: &[StoredRange]) {
        self.world.borrow_mut().announced.extend(ranges.iter().filter(|range| range.first <= range.last));
    }

    async fn hold(&self, pause: Duration) -> bool {
        let until = self.world.borrow().now_ms + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.stops.stop(At::Asleep(until)).await;
        true
    }
}

impl World {
    /// On a store that quarantines, what can't be stored is left out and told; SQLite's statements refuse the batch.
    fn append_each(&mut self, batches: &[ValidBatch]) -> Vec<Result<Appended, Error>> {
        if !self.quarantines {
            return self.log.append_each(batches);
        }
        let sound = |batch: &ValidBatch| {
            let events = batch.events.iter().filter(|event| !is_poison(event)).cloned().collect();
            ValidBatch { events, ..batch.clone() }
        };
        let sound: Vec<ValidBatch> = batches.iter().map(sound).collect();
        let outcomes = self.log.append_each(&sound);
        let with_culprits = |(outcome, batch): (Result<Appended, Error>, &ValidBatch)| {
            let Appended { verdicts: sound, range, mut aside } = outcome?;
            let (mut sound, mut verdicts) = (sound.into_iter(), Vec::new());
            for (place, event) in batch.events.iter().enumerate() {
                let poison = Reason::new(Code::Unknown, "poison");
                if !is_poison(event) {
                    verdicts.extend(sound.next());
                } else if self.aside.insert((batch.project, event.id.uuid())) {
                    verdicts.push(Verdict::Quarantined(poison));
                } else {
                    verdicts.push(Verdict::Duplicate { differs: false });
                    aside.push((place, poison));
                }
            }
            Ok(Appended { verdicts, range, aside })
        };
        outcomes.into_iter().zip(batches).map(with_culprits).collect()
    }

    fn quarantine(&mut self, batch: &ValidBatch, what: &str) -> Result<Appended, Error> {
        let quarantined = self.log.quarantine(batch, what)?;
        self.aside.extend(batch.events.iter().map(|event| (batch.project, event.id.uuid())));
        Ok(quarantined)
    }

    fn bury(&mut self, batch: &ValidBatch) {
        self.dead.extend(batch.events.iter().map(|event| (batch.project, event.id.uuid())));
        if !batch.events.iter().any(is_poison) {
            self.complain(format!("a sound batch was put to the dead letters: {batch:?}"));
        }
    }

    pub(super) fn restore_cache(&mut self, kept: &KeptCounters) {
        self.cache.restore_counters(kept);
        self.taken_back += 1;
    }

    /// A restored backup took what it doesn't hold: nobody is owed that but by the broker.
    pub(super) fn forgive(&mut self) {
        let waiting = self.broker.kept();
        let (log, dead) = (&self.log, &self.dead);
        let kept =
            |key: &(ProjectId, Uuid)| dead.contains(key) || waiting.contains(key) || log.holds(key.0, key.1);
        self.clients.owed.retain(kept);
    }

    pub(super) fn counters_state(&self, project: ProjectId) -> Option<CountersState> {
        at_once(self.cache.counters_states(&[project])).ok()?.into_iter().next()?
    }

    pub(super) fn complain(&mut self, complaint: String) {
        self.wrong.get_or_insert(complaint);
    }

    /// What is neither in the log nor put aside: whoever notes that first sees to its letter.
    pub(super) fn unkept(&self, batch: &ValidBatch) -> Option<Uuid> {
        let kept =
            |id: &Uuid| self.aside.contains(&(batch.project, *id)) || self.log.holds(batch.project, *id);
        batch.events.iter().map(|event| event.id.uuid()).find(|id| !kept(id))
    }
}

pub(super) fn is_poison(event: &Event) -> bool {
    event.name == "poison"
}

/// Who waits for a batch: a message of the broker, or a client.
pub(super) struct Ticket {
    pub(super) world: Shared,
    pub(super) batch: ValidBatch,
    pub(super) to: Waiting,
    /// How often the log had been restored when the batch was taken.
    pub(super) restored: u64,
}

pub(super) enum Waiting {
    Broker(Tag),
    Client(usize),
}

impl Answer for Ticket {
    fn comes_again(&self) -> bool {
        match &self.to {
            Waiting::Broker(tag) => tag.again,
            Waiting::Client(_) => false,
        }
    }

    fn answer(self, outcome: Result<Published, bus::Error>) {
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        // What a restored backup took away between commit and answer is gone with it.
        if outcome.is_ok()
            && self.restored == world.restored
            && let Some(id) = world.unkept(&self.batch)
        {
            world
                .complain(format!("event {id} of {:?} was answered for and is not stored", self.batch.batch));
        }
        match self.to {
            Waiting::Broker(tag) => {
                world.broker.answered(tag, outcome.is_ok());
                if self.restored != world.restored {
                    world.forgive();
                }
            }
            Waiting::Client(client) => {
                let told = outcome.map(|published| published.verdicts.len());
                let all = self.batch.events.len();
                if let Ok(verdicts) = told
                    && verdicts != all
                {
                    world.complain(format!("{verdicts} verdicts for {all} events"));
                }
                let confirmed = told.is_ok() && self.restored == world.restored;
                world.clients.answered(client, &self.batch, confirmed);
            }
        }
    }
}

/// A range that waits to be heard of.
pub(super) type Heard = VecDeque<Hint>;
