//! What leaves a store on Postgres because of its age, and what must hold while that is cut short, fails, or is done by
//! two at once.

use std::time::Duration;

use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::Store;
use eventbucket_protocol::Event;

use crate::store_fixture::{batch, events, project};
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
