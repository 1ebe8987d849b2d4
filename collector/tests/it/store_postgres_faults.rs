//! A server of its own that is killed, and one whose data goes back.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use eventbucket_collector::bus::{Bus, Limits};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{PostgresOptions, Store};
use eventbucket_collector::workers;
use eventbucket_protocol::{Event, Verdict};
use eventbucket_servers::{Postgres, Redis};

use crate::cache_fixture::{Asked as _, counters_state};
use crate::store_announcements::{Insight, counters_follow_a_log_that_went_back};
use crate::store_fixture::{batch, count_all, count_all_projects, events, eventually, project};

async fn open(server: &Postgres) -> Store {
    Store::postgres(PostgresOptions::parse(&server.url(), None).unwrap()).await.unwrap()
}

/// Appends until it is told to stop, and sends again what was not answered; counts the events that were answered.
async fn write(store: Store, shop: ProjectId, writer: u64, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) {
    let mut round = 0;
    while !stop.load(Ordering::Acquire) {
        let sent: Vec<Event> = events(&format!("w{writer}r{round}-"), 20);
        while let Err(error) = store.append(vec![batch(shop, sent.clone())]).await {
            assert!(error.retry().is_some(), "it mends itself: {error:?}");
            tokio::task::yield_now().await;
        }
        answered.fetch_add(20, Ordering::AcqRel);
        round += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_costs_no_event_and_stores_none_twice() {
    let mut server = Postgres::start().unwrap();
    let store = open(&server).await;
    let shop = project(&store, "shop").await.project.id;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start =
        |writer| tokio::spawn(write(store.clone(), shop, writer, Arc::clone(&stop), Arc::clone(&answered)));
    let writers: Vec<_> = (0..3).map(start).collect();
    for _ in 0..4 {
        let before = answered.load(Ordering::Acquire);
        let answered = &answered;
        let moved = || async move { answered.load(Ordering::Acquire) > before + 200 };
        eventually("events are stored", moved).await;
        server.kill().unwrap();
        server.restart().unwrap();
    }
    stop.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.head(shop).await.unwrap(), answered.load(Ordering::Acquire));
    count_all_projects(&store).await;
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
}

fn run(program: &str, option: Option<&str>, from: &Path, to: &Path) {
    assert!(Command::new(program).args(option).args([from, to]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_and_live_counters_are_exact_after_an_older_snapshot_was_put_back() {
    let mut server = Postgres::start().unwrap();
    let store = open(&server).await;
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 50))]).await.unwrap();
    count_all(&store, shop).await;
    // More that the snapshot has and the counts of the snapshot have not.
    store.append(vec![batch(shop, events("y", 7))]).await.unwrap();
    server.kill().unwrap();
    let (data, kept) = (server.data(), server.data().with_extension("kept"));
    run("cp", Some("-a"), &data, &kept);
    server.restart().unwrap();
    counters_follow_a_log_that_went_back(&store, shop, || {
        server.kill().unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        run("mv", None, &kept, &data);
        server.restart().unwrap();
    })
    .await;
}

/// Nothing of the server's shows that an older copy was put back between two lives of the collector, and no process is left
/// that has seen more: only the live counters in Redis have. At the start of a process that appends, and at a look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_put_back_while_nobody_ran_is_noticed_by_the_live_counters() {
    let redis = Redis::start().unwrap();
    for at_start in [true, false] {
        let mut server = Postgres::start().unwrap();
        let store = open(&server).await;
        let shop = project(&store, "shop").await.project.id;
        store.append(vec![batch(shop, events("x", 60))]).await.unwrap();
        count_all(&store, shop).await;
        server.kill().unwrap();
        let (data, kept) = (server.data(), server.data().with_extension("kept"));
        run("cp", Some("-a"), &data, &kept);
        server.restart().unwrap();
        let store = open(&server).await;
        store.append(vec![batch(shop, events("y", 40))]).await.unwrap();
        let first = store.epoch();
        let insight = Insight::start(Bus::in_process(Limits::default()), &store, redis.cache().await);
        insight.counted(&store, shop, 100).await;
        insight.stop().await;
        drop(store);
        server.kill().unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        run("mv", None, &kept, &data);
        server.restart().unwrap();

        let (store, cache) = (open(&server).await, redis.cache().await);
        assert_eq!((store.epoch(), store.head(shop).await.unwrap()), (first, 60), "nothing shows it");
        if at_start {
            workers::insight::notice_restore(&store, &cache).await.unwrap();
            assert_ne!(store.epoch(), first);
            store.append(vec![batch(shop, events("z", 70))]).await.unwrap();
        }
        let insight = Insight::start(Bus::in_process(Limits::default()), &store, cache);
        let head = store.head(shop).await.unwrap();
        eventually("the counters begin anew", async || {
            let counted = counters_state(&insight.cache, shop).await;
            counted.is_some_and(|counted| counted.epoch != first && counted.applied_to == head)
        })
        .await;
        insight.counted(&store, shop, head).await;
        store.append(vec![batch(shop, events("w", 5))]).await.unwrap();
        insight.counted(&store, shop, head + 5).await;
        assert_eq!(open(&server).await.epoch(), store.epoch(), "once");
        insight.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_put_back_begins_another_epoch() {
    let mut server = Postgres::start().unwrap();
    let store = open(&server).await;
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 5))]).await.unwrap();
    count_all(&store, shop).await;
    let first = store.epoch();
    server.kill().unwrap();
    let (data, kept) = (server.data(), server.data().with_extension("kept"));
    run("cp", Some("-a"), &data, &kept);
    server.restart().unwrap();
    store.append(vec![batch(shop, events("x", 12))]).await.unwrap();
    let known = (store.head(shop).await.unwrap(), store.epoch());
    assert_eq!(known, (12, first), "a restart alone changes nothing");
    server.kill().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    run("mv", None, &kept, &data);
    server.restart().unwrap();
    let again = store.append(vec![batch(shop, events("x", 12))]).await.unwrap();
    let stored = again[0].verdicts.iter().filter(|verdict| **verdict == Verdict::Stored).count();
    assert_eq!((stored, again[0].range.first), (7, 6), "what went with the data is stored again");
    assert_ne!(store.epoch(), first);
    count_all(&store, shop).await;
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
}
