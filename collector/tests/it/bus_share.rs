//! Storage processes, and insight processes, share the shards evenly by the registry, whoever came first; a shard that moves loses nothing, keeps its
//! order, and has nothing stored twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use eventbucket_collector::bus::message::StoredRange;
use eventbucket_collector::bus::{Bus, Hint, RabbitOptions, Share, Work};
use eventbucket_collector::cache::{Cache, Node, RedisOptions};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::workers;
use eventbucket_servers::shared as servers;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bus_fixture::{bus, number, numbered, options, shared, soon, stored, until};

const SHARDS: u32 = 8;

/// Enough that every shard has some.
const PROJECTS: u32 = 64;

/// Batches of one project under way at once.
const BEHIND_MAX: usize = 4;

/// What each project's batches went through: number and process, in the order in which they were stored.
type Log = Arc<Mutex<BTreeMap<u32, Vec<(usize, usize)>>>>;

/// A storage process: it takes from the bus, knows its share from the registry, and stores by writing down.
struct Process {
    id: String,
    bus: Bus,
    cache: Cache,
    registry: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Process {
    async fn start(name: usize, options: &RabbitOptions, prefix: &str, log: &Log) -> Self {
        let mut redis = RedisOptions::new(&servers::redis()).unwrap();
        prefix.clone_into(&mut redis.prefix);
        let (bus, cache) = (bus(options).await, Cache::redis(redis).await.unwrap());
        let id = format!("process-{name}");
        let node = Node {
            id: id.clone(),
            roles: vec!["storage".to_owned()],
            address: None,
            version: "test".to_owned(),
            started_ms: 0,
            last_seen_ms: 0,
        };
        let registry = CancellationToken::new();
        let mut tasks: Vec<JoinHandle<()>> = bus
            .accepted()
            .into_iter()
            .map(|mut end| {
                let log = Arc::clone(log);
                tokio::spawn(async move {
                    while let Some(deliveries) = end.next(100, 10).await {
                        for delivery in &deliveries {
                            let entry = (number(delivery), name);
                            let mut log = log.lock().unwrap();
                            log.entry(delivery.batch.project.0).or_default().push(entry);
                        }
                        stored(deliveries);
                    }
                })
            })
            .collect();
        let (heart, token) = (cache.clone(), registry.clone());
        tasks.push(tokio::spawn(async move { heart.heartbeats(node, token).await }));
        let share = workers::share::run(bus.clone(), cache.clone(), id.clone(), registry.clone());
        tasks.push(tokio::spawn(share));
        Self { id, bus, cache, registry, tasks }
    }

    /// Ends in order.
    async fn stop(self) {
        self.registry.cancel();
        self.cache.leave(&self.id).await;
        self.bus.finish().await;
        soon("it ends", join_all(self.tasks)).await.into_iter().for_each(Result::unwrap);
    }

    /// Ends as a kill does: nothing is said to anybody.
    fn die(self) {
        self.registry.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Sends numbered batches to every project, never many ahead of what is stored.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<Vec<AtomicUsize>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(bus: &Bus, log: &Log) -> Self {
        let (stop, sent) =
            (Arc::<AtomicBool>::default(), (0..=PROJECTS).map(|_| AtomicUsize::new(0)).collect());
        let sent: Arc<Vec<AtomicUsize>> = Arc::new(sent);
        let tasks = (1..=PROJECTS).map(|project| {
            let (bus, log, stop, sent) = (bus.clone(), Arc::clone(log), Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                let sent = &sent[project as usize];
                let mut look = tokio::time::interval(std::time::Duration::from_millis(20));
                while !stop.load(Ordering::Relaxed) {
                    look.tick().await;
                    let next = sent.load(Ordering::Relaxed);
                    let stored = log.lock().unwrap().get(&project).map_or(0, Vec::len);
                    if next < stored + BEHIND_MAX {
                        bus.publish(numbered(project, next)).await.unwrap();
                        sent.store(next + 1, Ordering::Relaxed);
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, sent, tasks }
    }

    async fn end(self) -> BTreeMap<u32, usize> {
        self.stop.store(true, Ordering::Relaxed);
        soon("every publish ends", join_all(self.tasks)).await.into_iter().for_each(Result::unwrap);
        (1..=PROJECTS).map(|project| (project, self.sent[project as usize].load(Ordering::Relaxed))).collect()
    }
}

/// The rule of the bus for which shard a project is in.
fn shard(project: u32) -> u32 {
    (project.wrapping_mul(0x9E37_79B9) >> 16) % SHARDS
}

/// How many shards each process has, by who stored the latest batch of each; nothing while a shard's projects don't agree.
fn shares(log: &Log) -> Option<BTreeMap<usize, usize>> {
    let mut owners: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
    for (project, stored) in &*log.lock().unwrap() {
        owners.entry(shard(*project)).or_default().insert(stored.last()?.1);
    }
    let mut shares = BTreeMap::new();
    for owner in owners.values() {
        *shares.entry(*owner.first().filter(|_| owner.len() == 1)?).or_default() += 1;
    }
    (owners.len() == SHARDS as usize).then_some(shares)
}

async fn until_shared(log: &Log, expected: &[(usize, usize)]) {
    let expected: BTreeMap<usize, usize> = expected.iter().copied().collect();
    until(&format!("shares of {expected:?}"), || async { shares(log).as_ref() == Some(&expected) }).await;
}

/// Each project's batches are there from the first to the last, in order, each once.
async fn all_once(log: &Log, sent: &BTreeMap<u32, usize>) {
    until("everything is stored", || async {
        let log = log.lock().unwrap();
        sent.iter().all(|(project, sent)| log.get(project).is_some_and(|stored| stored.len() >= *sent))
    })
    .await;
    for (project, stored) in &*log.lock().unwrap() {
        let numbers: Vec<usize> = stored.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..sent[project]).collect::<Vec<_>>(), "project {project}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_come_and_go_share_the_shards_evenly_and_lose_no_order() {
    let options = RabbitOptions { shards: 8, ..options(shared()) };
    let (prefix, log) = (servers::name(), Log::default());
    let publisher = bus(&options).await;
    let first = Process::start(0, &options, &prefix, &log).await;
    let load = Load::start(&publisher, &log);
    until_shared(&log, &[(0, 8)]).await;
    let second = Process::start(1, &options, &prefix, &log).await;
    until_shared(&log, &[(0, 4), (1, 4)]).await;
    let third = Process::start(2, &options, &prefix, &log).await;
    until_shared(&log, &[(0, 3), (1, 3), (2, 2)]).await;
    second.stop().await;
    until_shared(&log, &[(0, 4), (2, 4)]).await;
    let sent = load.end().await;
    all_once(&log, &sent).await;
    assert!(sent.values().all(|sent| *sent > BEHIND_MAX), "{sent:?}");
    first.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_of_a_process_that_died_go_to_the_rest() {
    let options = RabbitOptions { shards: 8, ..options(shared()) };
    let (prefix, log) = (servers::name(), Log::default());
    let publisher = bus(&options).await;
    let (first, second) =
        (Process::start(0, &options, &prefix, &log).await, Process::start(1, &options, &prefix, &log).await);
    let load = Load::start(&publisher, &log);
    until_shared(&log, &[(0, 4), (1, 4)]).await;
    first.die();
    until_shared(&log, &[(1, 8)]).await;
    let sent = load.end().await;
    // What it had stored and not acknowledged comes again; the log would know it.
    until("everything is stored", || async {
        let log = log.lock().unwrap();
        sent.iter().all(|(project, sent)| {
            let numbers: BTreeSet<usize> = log[project].iter().map(|(number, _)| *number).collect();
            numbers.len() == *sent
        })
    })
    .await;
    second.stop().await;
}

/// An insight process: it writes down which projects it hears of.
struct Listener {
    bus: Bus,
    task: JoinHandle<()>,
}

impl Listener {
    async fn start(name: usize, options: &RabbitOptions, heard: &Arc<Mutex<BTreeMap<u32, usize>>>) -> Self {
        let (bus, heard) = (bus(options).await, Arc::clone(heard));
        let mut ranges = bus.ranges();
        let task = tokio::spawn(async move {
            while let Some(hint) = ranges.recv().await {
                if let Hint::Range(range) = hint {
                    heard.lock().unwrap().insert(shard(range.project.0), name);
                }
            }
        });
        Self { bus, task }
    }
}

/// Announces something of every project until each process hears of as many shards as it should.
async fn until_heard(announcer: &Bus, heard: &Mutex<BTreeMap<u32, usize>>, expected: &[(usize, usize)]) {
    let ranges: Vec<StoredRange> = (1..=PROJECTS)
        .map(|project| StoredRange { project: ProjectId(project), first: 1, last: 1 })
        .collect();
    until(&format!("announcements shared as {expected:?}"), || async {
        announcer.announce(&ranges);
        let heard = heard.lock().unwrap();
        let shares =
            expected.iter().all(|(name, due)| heard.values().filter(|by| *by == name).count() == *due);
        shares && heard.len() == SHARDS as usize
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn insight_processes_share_what_is_announced() {
    let options = RabbitOptions { shards: 8, ..options(shared()) };
    let (announcer, heard) = (bus(&options).await, Arc::default());
    let first = Listener::start(0, &options, &heard).await;
    until_heard(&announcer, &heard, &[(0, 8)]).await;
    let second = Listener::start(1, &options, &heard).await;
    let third = Listener::start(2, &options, &heard).await;
    for (place, process) in [&first, &second, &third].into_iter().enumerate() {
        process.bus.set_share(Work::Ranges, Share { place, of: 3 });
        // Of batches it has none, and the one isn't taken for the other.
        process.bus.set_share(Work::Batches, Share { place: 0, of: 1 });
    }
    until_heard(&announcer, &heard, &[(0, 3), (1, 3), (2, 2)]).await;
    // Nobody told the others yet that one is gone: its shards go to whoever waits for them.
    second.task.abort();
    drop(second);
    until_heard(&announcer, &heard, &[(1, 0)]).await;
    first.bus.set_share(Work::Ranges, Share { place: 0, of: 2 });
    third.bus.set_share(Work::Ranges, Share { place: 1, of: 2 });
    until_heard(&announcer, &heard, &[(0, 4), (2, 4)]).await;
}
