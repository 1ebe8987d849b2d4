//! What leaves a store on Postgres because of its age, and what must hold while that is cut short, fails, or is done by
//! two at once.

use std::time::Duration;

use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{Error, Store};
use eventbucket_collector::workers::retention;
use eventbucket_protocol::Event;
use eventbucket_servers::Redis;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cache_fixture::Asked as _;
use crate::store_fixture::{batch, events, eventually, project};
use crate::store_postgres::{Database, holds};

/// A log of 30 events in a segment that is old, some of them not counted yet, and 12 in the segment behind it.
async fn with_two_segments() -> (Database, Store, ProjectId) {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let older: Vec<Event> = events("old", 30)
        .into_iter()
        .enumerate()
        .map(|(i, event)| Event { user: Some(format!("user-{}", i % 7)), ..event })
        .collect();
    store.append(vec![batch(shop, older)]).await.unwrap();
    store.apply_counts(shop, 10).await.unwrap();
    database.age_segment().await;
    // A new process looks at once whether it is time for the next segment.
    let store = database.open().await;
    store.append(vec![batch(shop, events("new", 12))]).await.unwrap();
    (database, store, shop)
}

#[tokio::test]
async fn a_drop_that_fails_behind_its_seal_leaves_counts_that_an_audit_finds_right() {
    let (database, store, shop) = with_two_segments().await;
    let reader = database.sql().await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM event_1").await.unwrap();
    let failed = store.drop_before(Duration::ZERO).await.unwrap_err();
    assert!(failed.to_string().contains("lock"), "{failed}");
    holds(&store).await;
    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    holds(&store).await;
    reader.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 30);
    holds(&store).await;
}

/// As if what was dropped so far had been dropped longer ago.
async fn age_drops(database: &Database, days: u32) {
    let age = format!("UPDATE dropped SET at = at - make_interval(days => {days})");
    database.sql().await.batch_execute(&age).await.unwrap();
}

async fn number(database: &Database, select: &str) -> i64 {
    database.sql().await.query_one(select, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn identities_are_looked_through_once_for_what_was_dropped_within_a_day() {
    let (database, store, _) = with_two_segments().await;
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 30);
    age_drops(&database, 7).await;
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().identities, 0, "the day isn't over");
    age_drops(&database, 1).await;
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().identities, 30);
    assert_eq!(number(&database, "SELECT count(*) FROM dropped").await, 0, "nothing is due any more");
    // Whoever looked at them now would wait for this in vain.
    let in_the_way = database.sql().await;
    in_the_way.batch_execute("BEGIN; LOCK TABLE event_id").await.unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().identities, 0);
    in_the_way.batch_execute("ROLLBACK").await.unwrap();
    holds(&store).await;
}

#[tokio::test]
async fn forgetting_goes_on_where_it_was_cut_short() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("old", 9_000))]).await.unwrap();
    database.age_segment().await;
    let store = database.open().await;
    store.append(vec![batch(shop, events("new", 12))]).await.unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 9_000);
    age_drops(&database, 8).await;
    let cut_short = "UPDATE retention SET sweep_before = now() - '7 days'::interval, sweep_page = 40";
    database.sql().await.batch_execute(cut_short).await.unwrap();
    let forgotten = store.drop_before(Duration::ZERO).await.unwrap().identities;
    assert!((1..9_000).contains(&forgotten), "{forgotten}");
    let left = "SELECT count(*) FROM event_id WHERE ctid < '(40,0)'";
    assert_eq!(number(&database, left).await, i64::try_from(9_000 - forgotten).unwrap());
    assert_eq!(number(&database, "SELECT count(*) FROM dropped").await, 0);
    assert_eq!(number(&database, "SELECT sweep_page FROM retention").await, 0);
}

#[tokio::test]
async fn the_ranges_of_what_was_dropped_become_one_however_many_there_are() {
    let database = Database::new().await;
    let mut store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let mut before = None;
    for round in 0..2 {
        for part in 0..6 {
            let of = |i: usize| batch(shop, events(&format!("{round}-{part}-{i}-"), 2));
            let mut batches: Vec<_> = (0..1_000).map(of).collect();
            // What is sent again gets a range in which nothing is stored.
            batches.splice(500..500, (0..200).map(of));
            store.append(batches).await.unwrap();
        }
        database.age_segment().await;
        store = database.open().await;
        store.append(vec![batch(shop, events(&format!("new-{round}-"), 3))]).await.unwrap();
        before = Some(store.ledger(Some(shop)).await.unwrap());
        store.drop_before(Duration::ZERO).await.unwrap();
        age_drops(&database, 8).await;
        store.drop_before(Duration::ZERO).await.unwrap();
        holds(&store).await;
        assert_eq!(number(&database, "SELECT count(*) FROM ranges").await, 2, "{round}");
    }
    assert_eq!(Some(store.ledger(Some(shop)).await.unwrap()), before);
}

#[tokio::test]
async fn a_process_that_was_paused_drops_nothing_once_another_has_taken_over() {
    let (database, store, _) = with_two_segments().await;
    let lower = store.drop_before_as(Duration::from_secs(30 * 86_400), 10).await.unwrap();
    assert_eq!(lower.segments, 0);
    // Both are held up before the transaction that drops.
    let in_the_way = database.sql().await;
    in_the_way.batch_execute("BEGIN; SELECT FROM view_live FOR UPDATE").await.unwrap();
    let begin = |token: u64| {
        let store = store.clone();
        tokio::spawn(async move { store.drop_before_as(Duration::ZERO, token).await })
    };
    let paused = begin(11);
    let token = "SELECT token FROM retention";
    eventually("the first has begun", async || number(&database, token).await == 11).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("it is held up", async || number(&database, waits).await == 1).await;
    let other = begin(12);
    eventually("the other has taken over", async || number(&database, token).await == 12).await;
    in_the_way.batch_execute("ROLLBACK").await.unwrap();
    assert!(matches!(paused.await.unwrap(), Err(Error::TakenOver)));
    assert_eq!(other.await.unwrap().unwrap().events, 30);
    assert!(matches!(store.drop_before_as(Duration::ZERO, 11).await, Err(Error::TakenOver)));
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().segments, 0, "the next in turn may");
    assert_eq!(number(&database, token).await, 13);
    holds(&store).await;
}

/// The worker, until the test ends.
pub(crate) fn worker(store: &Store, cache: &Cache, age: Option<Duration>) -> DropGuard {
    let cancel = CancellationToken::new();
    tokio::spawn(retention::run(store.clone(), cache.clone(), age, cancel.clone()));
    cancel.drop_guard()
}

#[tokio::test]
async fn old_events_go_while_redis_is_away() {
    let (database, store, _) = with_two_segments().await;
    let mut redis = Redis::start().unwrap();
    let cache = redis.cache().await;
    redis.kill().unwrap();
    let _worker = worker(&store, &cache, Some(Duration::ZERO));
    eventually("they go", async || number(&database, "SELECT count(*) FROM segment").await == 1).await;
    eventually("it is done", async || number(&database, "SELECT count(*) FROM dropped").await == 1).await;
    holds(&store).await;
}

#[tokio::test]
async fn the_holder_of_the_lock_leaves_its_token_with_the_store() {
    let (database, store, _) = with_two_segments().await;
    let redis = Redis::start().unwrap();
    let cache = redis.cache().await;
    let before = cache.lock("retention", Duration::from_secs(30)).await.unwrap();
    let before_token = before.token();
    before.release().await;
    let _worker = worker(&store, &cache, Some(Duration::ZERO));
    eventually("they go", async || number(&database, "SELECT count(*) FROM segment").await == 1).await;
    let token = number(&database, "SELECT token FROM retention").await;
    assert!(u64::try_from(token).unwrap() > before_token, "{token} after {before_token}");
}
