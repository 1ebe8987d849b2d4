/// How workers are moved, and who hears of what they announce.
mod work;

/// Runs that were written down instead of drawn.
mod script;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::LazyLock;

use uuid::Uuid;

use super::judge;
use super::random::Random;
use super::sending::{Broker, CLIENTS, Clients, PROJECTS, pick, projects};
use super::world::{Ask, At, Fate, Heard, Shared, Stops, Ticket, Waiting, Way, World};
use crate::bus::message::ValidBatch;
use crate::cache::{Cache, CountersState, KeptCounters};
use crate::project::ProjectId;
use crate::store::{Kept, Scratch};
use crate::workers::insight::Follower;
use crate::workers::insight::follower::notice_restore;

/// Moves of one seed: a few hundred make a handful of batches meet every kind of fault.
const MOVES: (u64, u64) = (60, 360);

/// How long a server stays away at most: longer than the longest pause of a writer that holds batches.
const AWAY_MS: u64 = 12_000;

/// How long it mostly is, so that the other faults find somebody at work.
const BRIEFLY_MS: u64 = 300;

/// How long a worker is paused at most: others look at the log meanwhile, more than once.
const PAUSE_MS: u64 = 4_000;

/// What insight does by itself, once a second.
const LOOK_MS: u64 = 1_000;

/// Moves after the last fault until all must be at rest: each batch takes about ten, and some are held for 5 s.
const SETTLING_MAX: u32 = 20_000;

/// Looks after that: the first finds what is behind, the second what the first doubted, the third what that had to begin
/// anew, and after it the same once more: by the sixth there is nothing. A reset that was never taken may be due 16 later.
const LAST_LOOKS: u32 = 22;

/// Kinds of faults beside calls that fail.
const FAULTS: u64 = 13;
const KEEP_OR_RESTORE_LOG: u64 = 9;
const PAUSE: u64 = 11;

/// How many kinds of things happen in a few hundred seeds.
pub(super) const KINDS: usize = 34;

/// A log with projects and nothing else. Making its tables takes longer than a seed does.
static EMPTY: LazyLock<Kept> = LazyLock::new(|| Scratch::blank(PROJECTS));

/// What came of a seed.
pub(super) struct Ended {
    pub(super) outcome: Result<(), String>,
    pub(super) trace: Vec<String>,
    pub(super) happened: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Writes one project's batches, or all on a bus within the process.
    Storage(Option<ProjectId>),
    Insight,
    Rebuild,
}

/// A worker: one life after the other.
struct Worker {
    role: Role,
    way: Way,
    task: Option<Pin<Box<dyn Future<Output = ()>>>>,
    heard: Heard,
    look_at: u64,
    /// What it is to do next.
    follower: Rc<RefCell<Follower>>,
    /// Stopped until then, whatever it is at.
    paused_until: u64,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Step(usize),
    Begin(usize),
    Send(usize),
    Resend(usize),
    SendOld(usize),
    Pass(u64),
    Crash(usize),
    Pause(usize),
    Cut(usize),
    HandOver(ProjectId),
    DeliverAgain,
    StoreAway,
    CacheAway,
    LettersAway,
    WipeCache,
    KeepCache,
    RestoreCache,
    KeepLog,
    RestoreLog,
    RestoreLogAtRest,
    LearnEpoch(usize),
    Rebuild(ProjectId),
}

/// A backup of the log.
struct KeptLog {
    log: Kept,
    epoch: Uuid,
    /// What was in quarantine.
    aside: BTreeSet<(ProjectId, Uuid)>,
}

/// One run.
pub(super) struct Simulation {
    random: Random,
    world: Shared,
    workers: Vec<Worker>,
    /// With a broker, as servers are; otherwise all in one process.
    durable: bool,
    /// Which worker a project's batches are given to.
    active: BTreeMap<ProjectId, usize>,
    /// Batches on the bus within the process.
    inbox: VecDeque<(ValidBatch, Ticket)>,
    /// Of 100 calls so many fail.
    trouble: u64,
    /// The kinds of faults of this seed: a few at a time meet in more ways than all at once.
    swarm: Vec<u64>,
    store_away: u64,
    cache_away: u64,
    letters_away: u64,
    kept_log: Option<KeptLog>,
    kept_cache: KeptCounters,
    /// The counters' state of each project after the last move.
    seen: BTreeMap<ProjectId, (u64, Option<CountersState>)>,
    trace: Vec<String>,
    happened: BTreeMap<&'static str, u64>,
}

impl Simulation {
    pub(super) fn run(seed: u64) -> Ended {
        let mut simulation = Self::new(seed);
        let outcome = simulation.play();
        Ended { outcome, trace: simulation.trace, happened: simulation.happened }
    }

    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // What meets rarest gets runs of its own: a step before a restore, told after it.
        let restoring = random.percent(10);
        let durable = restoring || random.percent(75);
        let epoch = Uuid::from_u128(u128::from(random.next()));
        let poisonous = durable && random.percent(40);
        let world = World {
            log: Scratch::from(&EMPTY, epoch),
            cache: Cache::memory(),
            broker: Broker::default(),
            clients: Clients::new(poisonous),
            announced: VecDeque::new(),
            dead: BTreeSet::new(),
            aside: BTreeSet::new(),
            quarantines: random.percent(50),
            now_ms: 0,
            restored: 0,
            taken_back: 0,
            asked: BTreeMap::new(),
            wrong: None,
        };
        let trouble = if restoring { 20 } else { [0, 4, 12, 30][pick(4, &mut random).unwrap_or(0)] };
        let swarm: Vec<u64> = match restoring {
            true => vec![KEEP_OR_RESTORE_LOG, KEEP_OR_RESTORE_LOG, PAUSE],
            false => (0..FAULTS).filter(|_| random.percent(40)).collect(),
        };
        let mut simulation = Self {
            random,
            swarm,
            world: Rc::new(RefCell::new(world)),
            workers: Vec::new(),
            durable,
            active: BTreeMap::new(),
            inbox: VecDeque::new(),
            trouble,
            store_away: 0,
            cache_away: 0,
            letters_away: 0,
            kept_log: None,
            kept_cache: KeptCounters::default(),
            seen: BTreeMap::new(),
            trace: Vec::new(),
            happened: BTreeMap::new(),
        };
        simulation.employ();
        simulation
    }

    /// Two processes of each role, or one of each in the one process.
    fn employ(&mut self) {
        let storage: Vec<Role> = match self.durable {
            true => (0..2).flat_map(|_| projects().map(|project| Role::Storage(Some(project)))).collect(),
            false => vec![Role::Storage(None)],
        };
        let insight = vec![Role::Insight; if self.durable { 2 } else { 1 }];
        for role in storage.into_iter().chain(insight).chain([Role::Rebuild]) {
            let epoch = self.world.borrow().log.epoch();
            let way = Way {
                world: Rc::clone(&self.world),
                stops: Rc::default(),
                epoch: Rc::new(Cell::new(epoch)),
                durable: self.durable,
            };
            self.workers.push(Worker {
                role,
                way,
                task: None,
                heard: Heard::new(),
                look_at: 0,
                follower: Rc::default(),
                paused_until: 0,
            });
        }
        for project in projects() {
            self.hand_over(project);
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let moves = MOVES.0 + self.random.below(MOVES.1 - MOVES.0);
        for _ in 0..moves {
            let next = self.draw();
            self.make(next);
            self.look()?;
        }
        self.settle()?;
        judge::everything(&self.world.borrow())?;
        self.last_blow();
        self.settle()?;
        judge::everything(&self.world.borrow())
    }

    /// Something that happens when nobody sends and nothing is announced any more: only the log knows.
    fn last_blow(&mut self) {
        let blow = match self.random.below(5) {
            0 => Move::RestoreCache,
            2 => Move::RestoreLogAtRest,
            1 => Move::WipeCache,
            _ => Move::RestoreLog,
        };
        self.make(blow);
    }

    /// What must hold at any moment.
    fn look(&mut self) -> Result<(), String> {
        if let Some(wrong) = &self.world.borrow().wrong {
            return Err(wrong.clone());
        }
        self.never_back()?;
        if self.random.percent(6) { judge::counters(&self.world.borrow()) } else { Ok(()) }
    }

    /// While nobody takes the log or the counters back, the counters don't go back either.
    fn never_back(&mut self) -> Result<(), String> {
        let world = self.world.borrow();
        for project in projects() {
            let state = world.counters_state(project);
            let before = self.seen.insert(project, (world.taken_back, state));
            if let (Some(now), Some((taken_back, Some(before)))) = (state, before)
                && taken_back == world.taken_back
                && now.epoch == before.epoch
                && (now.generation, now.applied_to) < (before.generation, before.applied_to)
            {
                return Err(format!("project {project}: the counters went from {before:?} back to {now:?}"));
            }
        }
        Ok(())
    }

    fn note(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    fn now(&self) -> u64 {
        self.world.borrow().now_ms
    }

    fn draw(&mut self) -> Move {
        let now = self.now();
        let ready = self.filter(|worker| match worker.way.stops.at() {
            _ if worker.paused_until > now => false,
            Some(At::Asleep(until)) => worker.task.is_some() && until <= now,
            Some(_) => worker.task.is_some(),
            None => false,
        });
        let idle = self.filter(|worker| worker.task.is_none() && worker.paused_until <= now);
        let random = &mut self.random;
        let client = pick(CLIENTS, random).unwrap_or(0);
        let project = ProjectId(1 + u32::try_from(random.below(u64::from(PROJECTS))).unwrap_or(0));
        let anyone = pick(self.workers.len(), random).unwrap_or(0);
        let at_work = pick(ready.len(), random).map_or(anyone, |place| ready[place]);
        // So many faults of 1,000 moves, beside the calls that fail.
        let faults = 8 * self.trouble;
        if random.below(1_000) < faults {
            let place = pick(self.swarm.len(), random).unwrap_or(0);
            return match self.swarm.get(place).copied().unwrap_or_default() {
                0 => Move::Crash(at_work),
                1 => Move::Cut(at_work),
                2 => Move::HandOver(project),
                3 => Move::DeliverAgain,
                4 => Move::StoreAway,
                5 => Move::CacheAway,
                6 => Move::LettersAway,
                7 => Move::WipeCache,
                8 if random.percent(50) => Move::KeepCache,
                8 => Move::RestoreCache,
                KEEP_OR_RESTORE_LOG if random.percent(50) => Move::KeepLog,
                KEEP_OR_RESTORE_LOG if random.percent(70) => Move::RestoreLog,
                KEEP_OR_RESTORE_LOG => Move::RestoreLogAtRest,
                10 => Move::LearnEpoch(at_work),
                PAUSE => Move::Pause(at_work),
                _ => Move::Rebuild(project),
            };
        }
        match random.below(100) {
            0..48 => pick(ready.len(), random).map_or(Move::Pass(100), |place| Move::Step(ready[place])),
            48..72 => pick(idle.len(), random).map_or(Move::Pass(10), |place| Move::Begin(idle[place])),
            72..83 => Move::Send(client),
            83..88 => Move::Resend(client),
            88..92 => Move::SendOld(client),
            92 => Move::Rebuild(project),
            _ => Move::Pass(1 + random.below(600)),
        }
    }

    fn filter(&self, of: impl Fn(&Worker) -> bool) -> Vec<usize> {
        (0..self.workers.len()).filter(|place| of(&self.workers[*place])).collect()
    }

    fn make(&mut self, next: Move) {
        match next {
            Move::Step(worker) => self.step(worker),
            Move::Begin(worker) => self.begin(worker),
            Move::Pass(ms) => self.world.borrow_mut().now_ms += ms,
            other => {
                self.trace.push(format!("{:>6} {other:?}", self.now()));
                self.strike(other);
            }
        }
    }

    fn strike(&mut self, next: Move) {
        match next {
            Move::Step(_) | Move::Begin(_) | Move::Pass(_) => {}
            Move::Send(client) => {
                let batch = self.world.borrow_mut().clients.new_batch(client, &mut self.random);
                self.publish(client, batch);
            }
            Move::Resend(client) => {
                let batch = self.world.borrow().clients.resend(client, &mut self.random);
                self.publish_again(client, batch, "resend");
            }
            Move::SendOld(client) => {
                let batch = self.world.borrow_mut().clients.once_more(client, &mut self.random);
                self.publish_again(client, batch, "resend of an old batch");
            }
            Move::Crash(worker) => self.crash(worker),
            Move::Cut(worker) if self.durable => {
                self.note("connection cut");
                self.world.borrow_mut().broker.give_back(worker);
            }
            Move::Pause(worker) => {
                self.note("pause");
                self.workers[worker].paused_until = self.now() + self.random.below(PAUSE_MS);
            }
            Move::HandOver(project) => self.hand_over(project),
            Move::DeliverAgain => {
                if self.world.borrow_mut().broker.deliver_again(&mut self.random) {
                    self.note("delivered again");
                }
            }
            Move::StoreAway => self.store_away = self.away("store away"),
            Move::CacheAway => self.cache_away = self.away("cache away"),
            Move::LettersAway => self.letters_away = self.away("dead letters away"),
            Move::WipeCache => {
                self.note("cache wiped");
                self.world.borrow_mut().restore_cache(&KeptCounters::default());
            }
            Move::KeepCache => self.kept_cache = self.world.borrow().cache.kept_counters(),
            Move::RestoreCache => {
                self.note("cache restored");
                self.world.borrow_mut().restore_cache(&self.kept_cache);
            }
            Move::KeepLog => self.keep_log(),
            Move::RestoreLog => self.restore_log(),
            Move::RestoreLogAtRest => self.restore_log_at_rest(),
            Move::LearnEpoch(worker) => self.workers[worker].way.learn_epoch(),
            Move::Rebuild(project) => self.rebuild(project),
            Move::Cut(_) => {}
        }
    }

    fn away(&mut self, what: &'static str) -> u64 {
        self.note(what);
        let most = if self.random.percent(20) { AWAY_MS } else { BRIEFLY_MS };
        self.now() + self.random.below(most)
    }

    fn publish_again(&mut self, client: usize, batch: Option<ValidBatch>, what: &'static str) {
        if let Some(batch) = batch {
            self.note(what);
            self.publish(client, batch);
        }
    }

    /// What an edge does with a batch: it reaches the bus, or the client hears nothing, or both.
    fn publish(&mut self, client: usize, batch: ValidBatch) {
        let trouble = self.trouble;
        if self.random.percent(trouble) {
            return self.note("publish lost");
        }
        if !self.durable {
            let (world, restored) = (Rc::clone(&self.world), self.world.borrow().restored);
            let ticket = Ticket { world, batch: batch.clone(), to: Waiting::Client(client), restored };
            return self.inbox.push_back((batch, ticket));
        }
        let coalesce = self.random.percent(30);
        self.world.borrow_mut().broker.publish(batch.clone(), coalesce);
        if self.random.percent(trouble) {
            return self.note("confirm lost");
        }
        self.world.borrow_mut().clients.answered(client, &batch, true);
    }

    fn hand_over(&mut self, project: ProjectId) {
        let others = self.filter(|worker| worker.role == Role::Storage(Some(project)));
        if let Some(place) = pick(others.len(), &mut self.random)
            && self.active.insert(project, others[place]).is_some_and(|before| before != others[place])
        {
            self.note("handed over");
        }
    }

    fn keep_log(&mut self) {
        let world = self.world.borrow();
        self.kept_log =
            Some(KeptLog { log: world.log.keep(), epoch: world.log.epoch(), aside: world.aside.clone() });
    }

    /// The log becomes what it was. What was confirmed since is gone, unless the broker still has it: whoever restores a backup
    /// knows.
    fn restore_log(&mut self) {
        if self.kept_log.is_none() {
            return;
        }
        if !self.durable {
            self.crash_all();
        }
        self.note("log restored");
        let epoch = Uuid::from_u128(u128::from(self.random.next()));
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        if let Some(kept) = &self.kept_log {
            world.log.restore(&kept.log, epoch);
            world.aside.clone_from(&kept.aside);
        }
        world.restored += 1;
        world.taken_back += 1;
        world.forgive();
        // A process whose other connections were broken too knows at once.
        if !self.durable || self.random.percent(50) {
            self.workers.iter().for_each(|worker| worker.way.epoch.set(epoch));
        }
    }

    /// The log becomes what it was while no process runs, and nothing of the server's shows it: the epoch is the one it had
    /// then. Only the live counters know better.
    fn restore_log_at_rest(&mut self) {
        let Some(kept) = &self.kept_log else { return };
        if !self.durable {
            return;
        }
        {
            let mut world = self.world.borrow_mut();
            let world = &mut *world;
            (0..self.workers.len()).for_each(|place| world.broker.give_back(place));
            world.log.restore(&kept.log, kept.epoch);
            world.aside.clone_from(&kept.aside);
            world.restored += 1;
            world.taken_back += 1;
            world.forgive();
        }
        (0..self.workers.len()).for_each(|place| self.end_life(place));
        // Whoever puts back older counters as well takes away the only witness.
        self.kept_cache = KeptCounters::default();
        self.note("log restored at rest");
        let way = self.workers[0].way.clone();
        let before = self.world.borrow().log.epoch();
        // A process that can't ask doesn't start.
        let notice = async move { notice_restore(&way, &way).await.expect("everything is there") };
        self.start(0, notice);
        while self.workers[0].task.is_some() {
            self.workers[0].way.stops.pass(Fate::Answered);
            self.poll(0);
        }
        self.workers.iter().for_each(|worker| worker.way.learn_epoch());
        if self.world.borrow().log.epoch() != before {
            self.note("noticed at the start");
        }
    }

    fn rebuild(&mut self, project: ProjectId) {
        let place = self.workers.len() - 1;
        if self.workers[place].task.is_none() {
            let way = self.workers[place].way.clone();
            // One that fails is begun again by whoever asked for it.
            self.start(place, async move { drop(way.rebuild(project).await) });
            self.note("rebuild");
        }
    }

    fn crash(&mut self, place: usize) {
        if !self.durable {
            return self.crash_all();
        }
        if let Some(At::After(ask)) = self.workers[place].way.stops.at() {
            self.note(match ask {
                Ask::Append => "crash after append",
                Ask::ApplyCounts => "crash after counting",
                _ => "crash elsewhere",
            });
        }
        self.end_life(place);
        self.world.borrow_mut().broker.give_back(place);
        if self.random.percent(50) {
            self.workers[place].heard.clear();
        }
    }

    /// The one process ends: what it held in memory is gone.
    fn crash_all(&mut self) {
        self.note("crash of all");
        (0..self.workers.len()).for_each(|place| self.end_life(place));
        self.workers.iter_mut().for_each(|worker| worker.heard.clear());
        self.inbox.clear();
        self.world.borrow_mut().announced.clear();
        self.world.borrow_mut().restore_cache(&KeptCounters::default());
    }

    fn end_life(&mut self, place: usize) {
        let now = self.now();
        let worker = &mut self.workers[place];
        worker.task = None;
        worker.follower = Rc::default();
        worker.way.stops = Rc::new(Stops::default());
        worker.way.learn_epoch();
        (worker.look_at, worker.paused_until) = (now, 0);
    }
}

/// The end of a run.
impl Simulation {
    /// The faults are over: clients send until they are answered, workers work until nothing is left.
    fn settle(&mut self) -> Result<(), String> {
        self.trace.push("the faults are over".to_owned());
        (self.trouble, self.store_away, self.cache_away, self.letters_away) = (0, 0, 0, 0);
        let mut moves = 0;
        while !self.at_rest() {
            moves += 1;
            if moves > SETTLING_MAX {
                return Err(format!("it doesn't come to rest: {} tasks", self.busy()));
            }
            for client in 0..CLIENTS {
                if self.broker_is_empty() && self.inbox.is_empty() {
                    self.strike(Move::Resend(client));
                }
            }
            self.work_on();
            self.look()?;
        }
        for _ in 0..LAST_LOOKS {
            self.world.borrow_mut().now_ms += LOOK_MS;
            while self.filter(|worker| worker.role == Role::Insight && worker.look_at <= self.now()).len()
                + self.busy()
                + self.filter(|worker| !worker.follower.borrow().is_idle()).len()
                > 0
            {
                self.work_on();
            }
        }
        Ok(())
    }

    fn work_on(&mut self) {
        let now = self.now();
        for place in 0..self.workers.len() {
            match self.workers[place].way.stops.at() {
                Some(At::Asleep(until)) if until > now => {}
                Some(_) => self.step(place),
                None => self.begin(place),
            }
        }
        self.world.borrow_mut().now_ms += 20;
    }

    fn busy(&self) -> usize {
        self.filter(|worker| worker.task.is_some()).len()
    }

    fn broker_is_empty(&self) -> bool {
        self.world.borrow().broker.is_empty()
    }

    fn at_rest(&self) -> bool {
        let deaf = self.workers.iter().all(|worker| worker.heard.is_empty());
        let idle = self.workers.iter().all(|worker| worker.follower.borrow().is_idle());
        let answered = self.world.borrow().clients.all_answered();
        answered && deaf && idle && self.broker_is_empty() && self.inbox.is_empty() && self.busy() == 0
    }
}
