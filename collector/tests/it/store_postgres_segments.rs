//! Segments of the log on Postgres: when the next one begins, and that dropping an old one takes nothing young with it.

use std::time::Duration;

use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{EventFilter, EventOrder, PostgresOptions, Store};
use eventbucket_protocol::Verdict;

use crate::store_fixture::{batch, count_all_projects, events, eventually, project};
use crate::store_postgres::{Database, holds};

/// Another process, which looks this often whether it is time for the next segment.
async fn process(database: &Database, look: Duration) -> Store {
    let mut options = PostgresOptions::parse(&database.url, None).unwrap();
    options.segment_look = look;
    Store::postgres(options).await.unwrap()
}

async fn append(store: &Store, project: ProjectId, prefix: &str) {
    let appended = store.append(vec![batch(project, events(prefix, 3))]).await.unwrap();
    assert!(appended[0].verdicts.iter().all(|verdict| *verdict == Verdict::Stored));
}

async fn count(database: &Database, select: &str) -> i64 {
    database.sql().await.query_one(select, &[]).await.unwrap().get(0)
}

const SEGMENTS: &str = "SELECT count(*) FROM segment";

#[tokio::test]
async fn the_next_segment_begins_in_time_however_often_events_come() {
    let database = Database::new().await;
    let store = process(&database, Duration::from_millis(200)).await;
    let shop = project(&store, "shop").await.project.id;
    append(&store, shop, "first").await;
    database.age_segment().await;
    let mut round = 0;
    let (database, store) = (&database, &store);
    // An append every few milliseconds never leaves the log alone for as long as a look may wait.
    eventually("the next segment begins", || {
        round += 1;
        async move {
            append(store, shop, &format!("r{round}-")).await;
            count(database, SEGMENTS).await == 2
        }
    })
    .await;
    append(store, shop, "last").await;
    assert_eq!(count(database, "SELECT segment::int8 FROM head").await, 2);
    holds(store).await;
}

#[tokio::test]
async fn what_a_process_stores_that_knows_of_no_newer_segment_is_never_dropped_with_the_old() {
    let database = Database::new().await;
    // The one looks once and never again, the other each time.
    let busy = process(&database, Duration::MAX).await;
    let other = process(&database, Duration::ZERO).await;
    let (shop, blog) = (project(&busy, "shop").await.project.id, project(&other, "blog").await.project.id);
    append(&busy, shop, "old").await;
    append(&other, blog, "old").await;
    database.age_segment().await;
    append(&other, blog, "new").await;
    assert_eq!(count(&database, SEGMENTS).await, 2);
    append(&busy, shop, "fresh").await;
    let dropped = other.drop_before(Duration::ZERO).await.unwrap();
    assert_eq!((dropped.segments, dropped.events), (1, 6));
    let order = EventOrder::ByPosition { after: 0 };
    let page = busy.events(shop, &EventFilter::default(), order, 10).await.unwrap();
    let kept: Vec<u64> = page.events.iter().map(|event| event.position).collect();
    assert_eq!(kept, [4, 5, 6], "stored a moment ago");
    append(&busy, shop, "later").await;
    count_all_projects(&busy).await;
    holds(&busy).await;
}

#[tokio::test]
async fn a_segment_is_not_closed_while_somebody_writes_to_it_and_nobody_waits_for_that() {
    let database = Database::new().await;
    let busy = process(&database, Duration::MAX).await;
    let other = process(&database, Duration::ZERO).await;
    let (shop, blog) = (project(&busy, "shop").await.project.id, project(&other, "blog").await.project.id);
    append(&busy, shop, "old").await;
    // The head is held, so that the append is in the middle of its transaction.
    let holder = database.sql().await;
    let hold = format!("BEGIN; SELECT * FROM head WHERE project = {shop} FOR UPDATE");
    holder.batch_execute(&hold).await.unwrap();
    let writing = tokio::spawn({
        let busy = busy.clone();
        async move { append(&busy, shop, "slow").await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let looked = &database;
    eventually("the append waits", || async move { count(looked, waiting).await == 1 }).await;
    database.age_segment().await;
    let beside = tokio::time::timeout(Duration::from_secs(15), append(&other, blog, "beside"));
    beside.await.expect("it stores beside the one that waits");
    assert_eq!(count(&database, SEGMENTS).await, 1);
    assert!(!writing.is_finished(), "the append still waits");
    holder.batch_execute("ROLLBACK").await.unwrap();
    writing.await.unwrap();
    append(&other, blog, "next").await;
    assert_eq!(count(&database, SEGMENTS).await, 2, "it is closed once nobody writes");
    count_all_projects(&busy).await;
    holds(&busy).await;
}

#[tokio::test]
async fn a_segment_can_be_begun_at_any_time_beside_those_that_append() {
    let database = Database::new().await;
    let (busy, other) = (process(&database, Duration::MAX).await, database.open().await);
    let shop = project(&busy, "shop").await.project.id;
    other.begin_segment().await.unwrap();
    for round in 0..3 {
        append(&busy, shop, &format!("r{round}-")).await;
        other.begin_segment().await.unwrap();
    }
    assert_eq!(count(&database, SEGMENTS).await, 4);
    assert_eq!(count(&database, "SELECT count(DISTINCT segment) FROM event").await, 3);
    append(&busy, shop, "last").await;
    assert_eq!(other.drop_before(Duration::ZERO).await.unwrap().events, 9);
    count_all_projects(&busy).await;
    holds(&busy).await;
}

#[tokio::test]
async fn a_log_that_went_back_to_before_its_newest_segment_is_written_on() {
    let database = Database::new().await;
    let store = process(&database, Duration::MAX).await;
    let shop = project(&store, "shop").await.project.id;
    append(&store, shop, "old").await;
    database.age_segment().await;
    let other = process(&database, Duration::ZERO).await;
    append(&other, shop, "new").await;
    append(&store, shop, "newer").await;
    let back = "DROP TABLE event_2;
                DELETE FROM segment WHERE id = 2;
                DELETE FROM segment_project WHERE segment = 2;
                DELETE FROM event_id USING ranges WHERE ranges.id = range_id AND first > 3;
                DELETE FROM ranges WHERE first > 3;
                UPDATE head SET position = 3, segment = 1, received = 3, stored = 3";
    database.sql().await.batch_execute(back).await.unwrap();
    append(&store, shop, "after").await;
    let all =
        "DROP TABLE event_1, event_2; DELETE FROM segment; DELETE FROM segment_project; DELETE FROM event_id;
               DELETE FROM ranges; DELETE FROM event_block;
               UPDATE head SET position = 0, segment = 0, received = 0, stored = 0";
    database.sql().await.batch_execute(all).await.unwrap();
    append(&store, shop, "begun").await;
    assert_eq!(store.head(shop).await.unwrap(), 3);
    count_all_projects(&store).await;
    holds(&store).await;
}
