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
use crate::store_fixture::{batch, count_all, events, eventually, project};
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
    // Both are held up before the transaction that drops.
    let in_the_way = database.sql().await;
    in_the_way.batch_execute("BEGIN; SELECT FROM view_live FOR UPDATE").await.unwrap();
    let begin = || {
        let store = store.clone();
        tokio::spawn(async move { store.drop_before(Duration::ZERO).await })
    };
    let paused = begin();
    let token = "SELECT coalesce(max(token), 0) FROM retention";
    eventually("the first has begun", async || number(&database, token).await == 1).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("it is held up", async || number(&database, waits).await == 1).await;
    let other = begin();
    eventually("the other has taken over", async || number(&database, token).await == 2).await;
    in_the_way.batch_execute("ROLLBACK").await.unwrap();
    assert!(matches!(paused.await.unwrap(), Err(Error::TakenOver)));
    assert_eq!(other.await.unwrap().unwrap().events, 30);
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().segments, 0, "the next in turn may");
    assert_eq!(number(&database, token).await, 3);
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
async fn a_clock_of_redis_that_was_ahead_once_keeps_nothing_from_going() {
    let (database, store, _) = with_two_segments().await;
    let ahead = "INSERT INTO retention (token) VALUES (4102444800000000)";
    database.sql().await.batch_execute(ahead).await.unwrap();
    let redis = Redis::start().unwrap();
    let _worker = worker(&store, &redis.cache().await, Some(Duration::ZERO));
    eventually("they go", async || number(&database, "SELECT count(*) FROM segment").await == 1).await;
    eventually("it is done", async || number(&database, "SELECT count(*) FROM dropped").await == 1).await;
}

#[tokio::test]
async fn the_last_events_of_a_store_that_gets_no_more_go_too() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 30))]).await.unwrap();
    let idle = database.open().await;
    assert_eq!(idle.drop_before(Duration::ZERO).await.unwrap().events, 0, "its time has not come");
    database.age_segment().await;
    let idle = database.open().await;
    assert_eq!(idle.drop_before(Duration::from_secs(86_400)).await.unwrap().events, 0, "it ended now");
    assert_eq!(idle.drop_before(Duration::ZERO).await.unwrap().events, 30);
    holds(&store).await;
    assert_eq!(number(&database, SEGMENTS).await, 1);
    store.append(vec![batch(shop, events("later", 3))]).await.unwrap();
    holds(&store).await;
}

const SEGMENTS: &str = "SELECT count(*) FROM segment";

#[tokio::test]
async fn nothing_waits_for_a_drop_that_waits_for_a_reader() {
    let (database, store, shop) = with_two_segments().await;
    let reader = database.sql().await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM event_1").await.unwrap();
    let dropping = tokio::spawn({
        let store = store.clone();
        async move { store.drop_before(Duration::ZERO).await }
    });
    let waits = "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation
                 WHERE relname = 'event_1' AND mode = 'AccessExclusiveLock' AND NOT granted";
    eventually("it waits", async || number(&database, waits).await == 1).await;
    store.append(vec![batch(shop, events("beside", 3))]).await.unwrap();
    store.apply_counts(shop, u64::MAX).await.unwrap();
    assert!(!dropping.is_finished(), "what is stored and counted waits for it");
    reader.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(dropping.await.unwrap().unwrap().events, 30);
    holds(&store).await;
}

#[tokio::test]
async fn a_project_that_cannot_be_sealed_keeps_its_own_events_alone() {
    let database = Database::new().await;
    let store = database.open().await;
    let mut ids = Vec::new();
    for name in ["blog", "shop", "wiki"] {
        ids.push(project(&store, name).await.project.id);
    }
    let (blog, shop, wiki) = (ids[0], ids[1], ids[2]);
    // More than goes at a time where a segment can't go as a whole.
    store.append(vec![batch(blog, events("one", 10_500)), batch(shop, events("one", 40))]).await.unwrap();
    let mut next = store;
    for (round, of) in [("two", [blog, wiki]), ("three", [shop, wiki]), ("four", [blog, shop])] {
        database.age_segment().await;
        next = database.open().await;
        next.append(of.map(|id| batch(id, events(round, 10))).to_vec()).await.unwrap();
    }
    let store = next;
    database
        .sql()
        .await
        .execute("DELETE FROM view_live WHERE project = $1", &[&i32::try_from(shop.0).unwrap()])
        .await
        .unwrap();
    let dropped = store.drop_before(Duration::ZERO).await.unwrap();
    assert_eq!((dropped.segments, dropped.events), (1, 10_530));
    assert_eq!(dropped.kept.keys().copied().collect::<Vec<_>>(), [shop]);
    assert!(matches!(dropped.kept[&shop], Error::CountsMissing(_)));
    let rows = "SELECT count(*) FROM event WHERE segment < 4";
    assert_eq!(number(&database, rows).await, 50, "those of the one");
    for id in [blog, wiki] {
        count_all(&store, id).await;
    }
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 0, "as before");
    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    holds(&store).await;
    let dropped = store.drop_before(Duration::ZERO).await.unwrap();
    assert_eq!((dropped.segments, dropped.events, dropped.kept.len()), (2, 50, 0));
    holds(&store).await;
    for id in ids {
        store.rebuild_counts(id, |_, _| {}).await.unwrap();
    }
    holds(&store).await;
    age_drops(&database, 8).await;
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().identities, 10_580);
    holds(&store).await;
}
