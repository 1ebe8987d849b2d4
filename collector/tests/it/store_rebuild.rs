//! A rebuild on Postgres begins with a copy of what was sealed before old events were dropped, which may be large.

use std::time::Duration;

use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{CountsQuery, Store, ViewState};
use eventbucket_protocol::Event;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::store_fixture::{HOUR, NOON, at, batch, count_all, event, eventually, project, totals};
use crate::store_postgres::{Database, holds};

/// Events of as many hours, each by another user: as many rows of counts, and twice as many sketches as days and hours.
fn hours(prefix: &str, count: i64) -> Vec<Event> {
    let one = |i: i64| Event {
        time: at(NOON + i * HOUR),
        user: Some(format!("user-{i}")),
        ..event(&format!("{prefix}{i}"), ["a", "b"][usize::from(i % 2 == 0)])
    };
    (0..count).map(one).collect()
}

/// A log whose first 4,000 events were dropped and are sealed, with 6 behind them.
async fn sealed() -> (Database, Store, ProjectId) {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, hours("old", 4_000))]).await.unwrap();
    database.age_segment().await;
    let store = database.open().await;
    store.append(vec![batch(shop, hours("new", 6))]).await.unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 4_000);
    holds(&store).await;
    (database, store, shop)
}

/// A rebuild that has copied some of what is sealed and waits for `Client`, which takes the place of one sketch.
async fn held_up(database: &Database, store: &Store, shop: ProjectId) -> (Client, JoinHandle<ViewState>) {
    let holder = database.sql().await;
    let place = "BEGIN; INSERT INTO rollup_users (project, generation, hours, start_ms, name, sketch)
         SELECT project, 2, hours, start_ms, name, sketch FROM rollup_users WHERE generation = 0
         ORDER BY hours DESC, start_ms DESC LIMIT 1";
    holder.batch_execute(place).await.unwrap();
    let rebuild = tokio::spawn({
        let store = store.clone();
        async move { store.rebuild_counts(shop, |_, _| {}).await.unwrap() }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let looker = database.sql().await;
    eventually("it waits", async || looker.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
    (holder, rebuild)
}

async fn number(database: &Database, select: &str) -> i64 {
    database.sql().await.query_one(select, &[]).await.unwrap().get(0)
}

/// Rows of generations that are neither sealed nor live.
const LEFT: &str = "
    SELECT count(*) FROM (SELECT project, generation FROM rollup_counts UNION ALL SELECT project, generation FROM rollup_users
                          UNION ALL SELECT project, generation FROM view_state WHERE view = 'counts') AS rows
    WHERE generation NOT IN (0, (SELECT generation FROM view_live WHERE view = 'counts' AND view_live.project = rows.project))";

async fn is_right(database: &Database, store: &Store, shop: ProjectId) {
    holds(store).await;
    assert_eq!(
        totals(store, shop).await.iter().map(|(_, count)| count).sum::<u64>(),
        store.head(shop).await.unwrap()
    );
    assert_eq!(store.users(shop, CountsQuery::default()).await.unwrap().unwrap().rows.len(), 2);
    assert_eq!(number(database, LEFT).await, 0);
}

#[tokio::test]
async fn what_comes_while_a_seal_is_copied_is_counted() {
    let (database, store, shop) = sealed().await;
    let (holder, rebuild) = held_up(&database, &store, shop).await;
    store.append(vec![batch(shop, hours("more", 7))]).await.unwrap();
    assert_eq!(store.apply_counts(shop, u64::MAX).await.unwrap().through, 4_013);
    assert!(!rebuild.is_finished());
    holder.batch_execute("ROLLBACK").await.unwrap();
    rebuild.await.unwrap();
    is_right(&database, &store, shop).await;
}

#[tokio::test]
async fn a_rebuild_that_was_cut_in_the_middle_of_a_seal_leaves_nothing_behind_the_next() {
    let (database, store, shop) = sealed().await;
    let (holder, rebuild) = held_up(&database, &store, shop).await;
    rebuild.abort();
    assert!(rebuild.await.unwrap_err().is_cancelled());
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert!(number(&database, LEFT).await > 0, "some of it was copied");
    holds(&store).await;
    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    is_right(&database, &store, shop).await;
}

#[tokio::test]
async fn a_seal_that_grows_while_it_is_copied_is_copied_anew() {
    let (database, store, shop) = sealed().await;
    let (holder, rebuild) = held_up(&database, &store, shop).await;
    database.age_segment().await;
    let other = database.open().await;
    other.append(vec![batch(shop, hours("more", 7))]).await.unwrap();
    assert_eq!(other.drop_before(Duration::ZERO).await.unwrap().events, 6);
    count_all(&other, shop).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    rebuild.await.unwrap();
    is_right(&database, &store, shop).await;
}

#[tokio::test]
async fn two_rebuilds_at_once_copy_beside_each_other() {
    let (database, store, shop) = sealed().await;
    let (holder, first) = held_up(&database, &store, shop).await;
    let second = tokio::spawn({
        let store = database.open().await;
        async move { store.rebuild_counts(shop, |_, _| {}).await.unwrap() }
    });
    tokio::time::timeout(Duration::from_secs(20), second).await.expect("it needn't wait").unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    first.await.unwrap();
    is_right(&database, &store, shop).await;
}
