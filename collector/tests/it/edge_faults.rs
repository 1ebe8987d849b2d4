//! What an edge decides while what it stands on is full, or away.

use std::pin::pin;

use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::{Cache, Limits, Quota};
use eventbucket_collector::ingest::{self, Arrival, Ingest, Valid, validate};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{DATABASE_FILE, SqliteOptions, Store};
use eventbucket_protocol::Timestamp;
use eventbucket_protocol::codec::{Format, decode};
use futures_util::FutureExt as _;

/// Events that nobody sent before, as they are after decoding.
fn batch(project: ProjectId, events: usize) -> Valid {
    let body = format!("[{}]", vec![r#"{"name":"tick"}"#; events].join(","));
    let arrival = Arrival { received: Timestamp::from_ms(1_700_000_000_000).unwrap(), sent_at: None };
    validate(project, decode(body.as_bytes(), Format::Json).unwrap(), arrival)
}

#[tokio::test]
async fn a_batch_that_is_not_taken_costs_its_project_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::sqlite(SqliteOptions::new(folder.path().join(DATABASE_FILE))).unwrap();
    let account = store.create_account("owner@example.com", "team").await.unwrap();
    let shop = store.create_project(account, "shop").await.unwrap().project.id;
    let (bus, cache) =
        (Bus::in_process(bus::Limits { events_max: 10, ..bus::Limits::default() }), Cache::memory());
    let limits = Limits { rate: None, quota: Quota { per_day: Some(100), per_month: None } };
    let ingest = Ingest::new(bus.clone(), store, cache).with_limits(limits);

    let first = batch(shop, 10);
    let admitted = ingest.admit(shop, &first).await.unwrap();
    let mut waiting = pin!(ingest.publish_admitted(first, &admitted));
    assert!(waiting.as_mut().now_or_never().is_none(), "nobody stores it");
    let second = batch(shop, 20);
    let admitted = ingest.admit(shop, &second).await.unwrap();
    let refused = ingest.publish_admitted(second, &admitted).await.unwrap_err();
    assert!(matches!(refused, ingest::Error::Bus(bus::Error::Full { .. })), "{refused}");
    bus.close();
    let third = batch(shop, 30);
    let admitted = ingest.admit(shop, &third).await.unwrap();
    let refused = ingest.publish_admitted(third, &admitted).await.unwrap_err();
    assert!(matches!(refused, ingest::Error::Bus(bus::Error::Closed)), "{refused}");
    let left = ingest.admit(shop, &batch(shop, 1)).await.unwrap().closest.unwrap();
    assert_eq!(left.remaining, 100 - 10 - 1, "the batch that waits, and this one");
}
