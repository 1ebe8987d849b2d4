//! From the bus through storage to the counts: what is published by many at once is stored and counted exactly once,
//! whatever happens to the announcements and whichever store is behind.

use std::time::Duration;

use eventbucket_collector::bus::message::{StoredRange, ValidBatch};
use eventbucket_collector::bus::{self, Bus, Limits};
use eventbucket_collector::cache::{Cache, CountersState};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::Store;
use eventbucket_collector::workers::{insight, storage};
use eventbucket_protocol::Verdict;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cache_fixture::counters_state;
use crate::store_fixture::{Place, batch, events, eventually, project, totals};

/// A running collector without its HTTP side.
struct Running {
    bus: Bus,
    cache: Cache,
    cancel: CancellationToken,
    storage: JoinHandle<()>,
    insight: JoinHandle<()>,
}

impl Running {
    fn start(store: &Store, limits: Limits) -> Self {
        let (bus, cache, cancel) = (Bus::in_process(limits), Cache::memory(), CancellationToken::new());
        let storage =
            tokio::spawn(storage::run(bus.clone(), store.clone(), cache.clone(), cancel.child_token()));
        let insight =
            tokio::spawn(insight::run(bus.clone(), store.clone(), cache.clone(), cancel.child_token()));
        Self { bus, cache, cancel, storage, insight }
    }

    async fn live(&self, project: ProjectId) -> Option<(u64, u64)> {
        let counters = self.cache.counters(project).await?;
        Some((counters.applied_to, counters.per_name.values().sum()))
    }

    async fn counted(&self, store: &Store, project: ProjectId, position: u64) {
        eventually("counting", async || self.live(project).await == Some((position, position))).await;
        let stored: u64 = totals(store, project).await.iter().map(|(_, count)| count).sum();
        assert_eq!(stored, position);
        let found = audit(store, Some(&self.cache), |_, _| {}).await.unwrap();
        assert!(found.holds(), "{found:#?}");
    }

    async fn stop(self) {
        self.bus.close();
        self.storage.await.unwrap();
        self.cancel.cancel();
        self.insight.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishers_at_once_get_dense_positions_and_exact_counts() {
    for (_place, store) in Place::both().await {
        let projects = [project(&store, "one").await.project.id, project(&store, "two").await.project.id];
        let running = Running::start(&store, Limits::default());
        // 16 publishers send 20 batches of 10; each id is sent by four of them.
        let publishers: Vec<_> = (0..16_usize)
            .map(|publisher| {
                let (bus, project) = (running.bus.clone(), projects[publisher % 2]);
                tokio::spawn(async move {
                    let mut stored = 0;
                    for round in 0..20 {
                        let prefix = format!("{}-{round}-", publisher / 8);
                        let verdicts =
                            bus.publish(batch(project, events(&prefix, 10))).await.unwrap().verdicts;
                        assert_eq!(verdicts.len(), 10);
                        stored += verdicts.iter().filter(|verdict| **verdict == Verdict::Stored).count();
                    }
                    stored
                })
            })
            .collect();
        let mut stored = 0;
        for publisher in publishers {
            stored += publisher.await.unwrap();
        }
        assert_eq!(stored, 2 * 2 * 20 * 10, "each id was new for exactly one of its senders");
        for project in projects {
            assert_eq!(store.head(project).await.unwrap(), 400);
            running.counted(&store, project, 400).await;
        }
        running.stop().await;
    }
}

#[tokio::test]
async fn what_was_stored_but_never_announced_is_counted_within_a_look() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        // Before insight starts, and again while it runs.
        store.append(vec![batch(shop, events("x", 7))]).await.unwrap();
        let running = Running::start(&store, Limits::default());
        running.counted(&store, shop, 7).await;
        store.append(vec![batch(shop, events("y", 5))]).await.unwrap();
        running.counted(&store, shop, 12).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn ranges_twice_reversed_and_overlapping_count_once() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let running = Running::start(&store, Limits::default());
        running.counted(&store, shop, 0).await;
        let mut ranges = Vec::new();
        for i in 0..20 {
            ranges.push(store.append(vec![batch(shop, events(&format!("{i}-"), 5))]).await.unwrap()[0].range);
        }
        let overlapping = StoredRange { project: shop, first: 3, last: 42 };
        let ahead = StoredRange { project: shop, first: 90, last: 1_000_000 };
        for range in ranges.iter().rev() {
            running.bus.announce(&[*range, *range, overlapping, ahead]);
            tokio::task::yield_now().await;
        }
        running.bus.announce(&ranges);
        running.counted(&store, shop, 100).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_flood_of_announcements_is_survived_by_looking_at_the_log() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let running = Running::start(&store, Limits::default());
        running.counted(&store, shop, 0).await;
        let range = store.append(vec![batch(shop, events("x", 50))]).await.unwrap()[0].range;
        // More than a receiver may lag behind, without letting it run.
        for _ in 0..5_000 {
            running.bus.announce(&[StoredRange { last: 1, ..range }]);
        }
        running.counted(&store, shop, 50).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn counters_follow_what_somebody_else_applied() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let running = Running::start(&store, Limits::default());
        running.counted(&store, shop, 0).await;
        store.append(vec![batch(shop, events("x", 7))]).await.unwrap();
        store.apply_counts(shop, u64::MAX).await.unwrap();
        running.counted(&store, shop, 7).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn counters_follow_a_rebuild_and_a_restart() {
    for (place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let running = Running::start(&store, Limits::default());
        running.bus.publish(batch(shop, events("x", 30))).await.unwrap();
        running.counted(&store, shop, 30).await;
        store.rebuild_counts(shop, |_, _| {}).await.unwrap();
        running.bus.publish(batch(shop, events("y", 3))).await.unwrap();
        running.counted(&store, shop, 33).await;
        assert_eq!(store.view_state(shop).await.unwrap().generation, 2);
        // A new generation is noticed without a new event, too.
        store.rebuild_counts(shop, |_, _| {}).await.unwrap();
        let rebuilt = CountersState { epoch: store.epoch(), generation: 3, applied_to: 33 };
        eventually("noticing", async || counters_state(&running.cache, shop).await == Some(rebuilt)).await;
        running.stop().await;
        store.close().await.unwrap();
        let store = place.open().await;
        let running = Running::start(&store, Limits::default());
        running.counted(&store, shop, 33).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_full_bus_says_when_to_come_back_and_loses_nothing() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let bus = Bus::in_process(Limits { events_max: 25, ..Limits::default() });
        let first: Vec<_> = (0..2)
            .map(|i| {
                let (bus, batch) = (bus.clone(), batch(shop, events(&format!("{i}-"), 10)));
                tokio::spawn(async move { bus.publish(batch).await })
            })
            .collect();
        eventually("queueing", async || bus.waiting() == 20).await;
        match bus.publish(batch(shop, events("late-", 10))).await {
            Err(error @ bus::Error::Full { retry_after }) => {
                assert!((1..=30).contains(&retry_after.as_secs()));
                assert_eq!((error.status(), error.retry()), (429, Some(retry_after)));
            }
            other => panic!("{other:?}"),
        }
        let cancel = CancellationToken::new();
        let storage = tokio::spawn(storage::run(bus.clone(), store.clone(), Cache::memory(), cancel));
        for publisher in first {
            assert_eq!(publisher.await.unwrap().unwrap().verdicts, vec![Verdict::Stored; 10]);
        }
        assert_eq!(bus.waiting(), 0);
        bus.publish(batch(shop, events("late-", 10))).await.unwrap();
        // A batch larger than the bounds passes when nothing else waits.
        bus.publish(batch(shop, events("large-", 40))).await.unwrap();
        bus.close();
        storage.await.unwrap();
        assert_eq!(store.head(shop).await.unwrap(), 70);
    }
}

#[tokio::test]
async fn closing_delivers_what_was_accepted_and_takes_no_more() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let bus = Bus::in_process(Limits::default());
        let publish = |i: usize| {
            let (bus, batch) = (bus.clone(), batch(shop, events(&format!("{i}-"), 3)));
            tokio::spawn(async move { bus.publish(batch).await })
        };
        let accepted: Vec<_> = (0..10).map(publish).collect();
        eventually("queueing", async || bus.waiting() == 30).await;
        bus.close();
        assert!(matches!(bus.publish(batch(shop, events("no", 1))).await, Err(bus::Error::Closed)));
        storage::run(bus.clone(), store.clone(), Cache::memory(), CancellationToken::new()).await;
        for publisher in accepted {
            publisher.await.unwrap().unwrap();
        }
        assert_eq!(store.head(shop).await.unwrap(), 30);
        assert!(bus.accepted().is_empty(), "there is one storage worker");
    }
}

#[tokio::test]
async fn a_publisher_that_left_has_its_batch_stored() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let bus = Bus::in_process(Limits::default());
        let patience = Duration::from_millis(1);
        let left = tokio::time::timeout(patience, bus.publish(batch(shop, events("x", 4)))).await;
        assert!(left.is_err());
        bus.close();
        storage::run(bus.clone(), store.clone(), Cache::memory(), CancellationToken::new()).await;
        assert_eq!((store.head(shop).await.unwrap(), bus.waiting()), (4, 0));
    }
}

#[tokio::test]
async fn a_store_that_fails_tells_every_publisher() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let running = Running::start(&store, Limits::default());
        store.close().await.unwrap();
        match running.bus.publish(batch(shop, events("x", 1))).await {
            Err(error @ bus::Error::Storage(_)) => assert_eq!(error.status(), 503),
            other => panic!("{other:?}"),
        }
        assert_eq!(running.bus.waiting(), 0);
        running.stop().await;
    }
}

/// 60,000 events are more than one transaction of the counts takes.
#[tokio::test]
async fn more_than_one_step_of_counts_is_followed_exactly() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        for i in 0..6 {
            let large: ValidBatch = batch(shop, events(&format!("{i}-"), 10_000));
            store.append(vec![large]).await.unwrap();
        }
        let running = Running::start(&store, Limits::default());
        running.counted(&store, shop, 60_000).await;
        running.stop().await;
    }
}
