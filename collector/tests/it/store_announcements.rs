//! What is announced is a hint: lost, doubled, overlapping and reversed announcements, and a log that goes back, leave every
//! number exact, on every store and over every bus.

use std::sync::atomic::{AtomicUsize, Ordering};

use eventbucket_collector::bus::message::StoredRange;
use eventbucket_collector::bus::{Bus, Limits};
use eventbucket_collector::cache::{Cache, CountersState};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{CountsQuery, Store};
use eventbucket_collector::workers::{insight, storage};
use eventbucket_protocol::Event;
use eventbucket_servers::Redis;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bus_fixture::{Direct, bus, options, shared, until};
use crate::cache_fixture::{Asked as _, counters_state};
use crate::store_fixture::{Place, batch, event, eventually, project, totals};

/// Insight in a process of its own, as far as anybody can tell.
pub(crate) struct Insight {
    /// The worker hears as long as somebody holds it.
    _bus: Bus,
    pub(crate) cache: Cache,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Insight {
    pub(crate) fn start(bus: Bus, store: &Store, cache: Cache) -> Self {
        let cancel = CancellationToken::new();
        let task =
            tokio::spawn(insight::run(bus.clone(), store.clone(), cache.clone(), cancel.child_token()));
        Self { _bus: bus, cache, cancel, task }
    }

    /// Waits until everything is counted, and holds each number against a recount.
    pub(crate) async fn counted(&self, store: &Store, project: ProjectId, position: u64) {
        eventually("counting", async || {
            let live = self.cache.counters(project).await;
            live.is_some_and(|live| (live.applied_to, live.per_name.values().sum()) == (position, position))
        })
        .await;
        let stored: u64 = totals(store, project).await.iter().map(|(_, count)| count).sum();
        assert_eq!(stored, position);
        let found = audit(store, Some(&self.cache), |_, _| {}).await.unwrap();
        assert!(found.holds(), "{found:#?}");
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// So many events that nobody has sent before, each by one of ten users.
fn fresh(count: usize) -> Vec<Event> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let one = |_| {
        let i = NEXT.fetch_add(1, Ordering::Relaxed);
        Event {
            user: Some(format!("user-{}", i % 10)),
            ..event(&format!("fresh-{i}"), ["a", "b", "c"][i % 3])
        }
    };
    (0..count).map(one).collect()
}

async fn append(store: &Store, project: ProjectId, count: usize) -> StoredRange {
    store.append(vec![batch(project, fresh(count))]).await.unwrap()[0].range
}

/// Announces what is stored in every way but the right one.
async fn announce_wrongly(announcer: &Bus, store: &Store, shop: ProjectId, insight: &Insight) {
    insight.counted(store, shop, 0).await;
    let mut ranges = Vec::new();
    for _ in 0..20 {
        ranges.push(append(store, shop, 5).await);
    }
    let overlapping = StoredRange { project: shop, first: 3, last: 42 };
    let ahead = StoredRange { project: shop, first: 90, last: 1_000_000 };
    let nobodys = StoredRange { project: ProjectId(77), first: 1, last: 5 };
    for range in ranges.iter().rev() {
        announcer.announce(&[*range, *range, overlapping, ahead, nobodys]);
        tokio::task::yield_now().await;
    }
    announcer.announce(&ranges);
    insight.counted(store, shop, 100).await;
    // The same once more, when all of it is counted, and then something new, announced as two that overlap.
    announcer.announce(&ranges);
    let last = append(store, shop, 9).await;
    let (front, back) = (StoredRange { last: 106, ..last }, StoredRange { first: 104, ..last });
    announcer.announce(&[back, front, back]);
    insight.counted(store, shop, 109).await;
    let users = store.users(shop, CountsQuery::default()).await.unwrap().unwrap();
    assert_eq!(users.total, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubled_overlapping_and_reversed_announcements_change_nothing_on_any_store() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let bus = Bus::in_process(Limits::default());
        let insight = Insight::start(bus.clone(), &store, Cache::memory());
        announce_wrongly(&bus, &store, shop, &insight).await;
        insight.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_over_rabbitmq() {
    let redis = Redis::start().unwrap();
    for (place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let options = options(shared());
        let announcer = bus(&options).await;
        let cache = match place {
            Place::Sqlite(_) => Cache::memory(),
            Place::Postgres(_) => redis.cache().await,
        };
        let insight = Insight::start(bus(&options).await, &store, cache);
        announce_wrongly(&announcer, &store, shop, &insight).await;
        insight.stop().await;
    }
}

/// Takes away whatever waits in the queues of announcements, and says how much that was.
async fn purge(direct: &Direct) -> u32 {
    let (channel, mut purged) = (direct.channel().await, 0);
    for shard in 0..2 {
        let queue = direct.named(&format!("stored.insight.{shard}"));
        purged += channel.queue_purge(queue, QueuePurgeOptions::default()).await.unwrap();
    }
    purged
}

/// Listens to the queues of announcements and forgets what it hears.
async fn thief(direct: &Direct) -> JoinHandle<()> {
    let channel = direct.channel().await;
    let mut consumers = Vec::new();
    for shard in 0..2 {
        let (queue, options) =
            (direct.named(&format!("stored.insight.{shard}")), BasicConsumeOptions::default());
        let options = BasicConsumeOptions { no_ack: true, ..options };
        let tag = format!("thief-{shard}").into();
        consumers.push(channel.basic_consume(queue, tag, options, FieldTable::default()).await.unwrap());
    }
    tokio::spawn(async move {
        let _channel = channel;
        futures_util::stream::select_all(consumers).for_each(async |_| {}).await;
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announcements_that_are_purged_or_stolen_are_made_up_for_within_a_look() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let options = options(shared());
        let direct = Direct::to(shared(), &options).await;
        let (front, cancel) = (bus(&options).await, CancellationToken::new());
        let storing = storage::run(front.clone(), store.clone(), Cache::memory(), cancel.child_token());
        let storing = tokio::spawn(storing);
        let head = async |position| store.head(shop).await.unwrap() == position;
        for _ in 0..6 {
            front.publish(batch(shop, fresh(20))).await.unwrap();
        }
        until("all are stored", || head(120)).await;
        // Nobody has listened yet, and now there is nothing left to hear.
        until("the announcements are there to be purged", || async { purge(&direct).await > 0 }).await;
        let insight = Insight::start(bus(&options).await, &store, Cache::memory());
        insight.counted(&store, shop, 120).await;
        // While it listens, every second announcement goes elsewhere.
        let thief = thief(&direct).await;
        for round in 1..=5 {
            front.publish(batch(shop, fresh(20))).await.unwrap();
            until("it is stored", || head(120 + 20 * round)).await;
            purge(&direct).await;
        }
        insight.counted(&store, shop, 220).await;
        thief.abort();
        insight.stop().await;
        cancel.cancel();
        front.finish().await;
        storing.await.unwrap();
    }
}

/// Counters that follow a log which is put back to an older state are those of that log, under a new epoch, although they
/// were ahead of it; what is stored instead of what was lost is counted.
pub(crate) async fn counters_follow_a_log_that_went_back(
    store: &Store,
    shop: ProjectId,
    put_back: impl FnOnce(),
) {
    let bus = Bus::in_process(Limits::default());
    let insight = Insight::start(bus.clone(), store, Cache::memory());
    append(store, shop, 30).await;
    let before = store.head(shop).await.unwrap();
    insight.counted(store, shop, before).await;
    let first = store.epoch();
    put_back();
    let went_back = async || {
        let counted = counters_state(&insight.cache, shop).await;
        let head = store.head(shop).await.unwrap_or(before);
        let of_log = |counted: CountersState| counted.epoch != first && counted.applied_to == head;
        head < before && counted.is_some_and(of_log)
    };
    eventually("the counters go back with the log", went_back).await;
    let older = store.head(shop).await.unwrap();
    insight.counted(store, shop, older).await;
    append(store, shop, 100).await;
    insight.counted(store, shop, older + 100).await;
    let state = store.view_state(shop).await.unwrap();
    let rebuilt = store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!((rebuilt.generation, rebuilt.applied_to), (state.generation + 1, older + 100));
    eventually("the counters follow the rebuild", async || {
        let counted = counters_state(&insight.cache, shop).await;
        counted.is_some_and(|counted| counted.generation == rebuilt.generation)
    })
    .await;
    insight.counted(store, shop, older + 100).await;
    insight.stop().await;
}
