//! What a project has sent by day and month, and that its quotas find out.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::{Bound, Cache, Limits, Quota};
use eventbucket_collector::ingest::{Arrival, Error, Ingest, validate};
use eventbucket_collector::project::{OwnLimits, ProjectId};
use eventbucket_collector::store::Store;
use eventbucket_protocol::codec::{self, Format};
use eventbucket_protocol::{BatchId, Timestamp};
use eventbucket_servers::Redis;
use tokio_util::sync::CancellationToken;

use crate::cache_fixture::Asked as _;
use crate::store_fixture::{Place, at, batch, events, eventually, project, refused};
use crate::store_postgres::{Database, holds};
use crate::store_retention::worker;

const DAY: i64 = 86_400_000;

/// A batch that arrived at a time.
fn arrived(project: ProjectId, prefix: &str, count: usize, received_ms: i64) -> ValidBatch {
    let id = BatchId::from_text(prefix);
    ValidBatch { received: at(received_ms), batch: id, ..batch(project, events(prefix, count)) }
}

#[tokio::test]
async fn usage_is_counted_by_days_whatever_became_of_the_events() {
    for (place, store) in Place::both().await {
        let (shop, blog) =
            (project(&store, "shop").await.project.id, project(&store, "blog").await.project.id);
        let twice = |received_ms| arrived(shop, "x", 5, received_ms);
        let odd = ValidBatch { refused: refused(2), ..arrived(shop, "y", 3, 2 * DAY) };
        store.append(vec![twice(DAY - 1), twice(DAY), odd, arrived(blog, "z", 7, DAY)]).await.unwrap();
        store.append(vec![arrived(shop, "w", 4, 2 * DAY + 5), arrived(shop, "v", 1, -1)]).await.unwrap();
        let since = async |store: &Store, day| store.received_since(shop, day).await.unwrap();
        let all = async |store: &Store| {
            let mut found = Vec::new();
            for day in -2..4 {
                found.push(since(store, day).await);
            }
            found
        };
        let expected = [20, 20, 19, 14, 9, 0];
        assert_eq!(all(&store).await, expected);
        assert_eq!(store.received_since(blog, 0).await.unwrap(), 7);
        // The version before had no such table, nor what came later.
        store.close().await.unwrap();
        let store = match &place {
            Place::Sqlite(folder) => {
                place
                    .change(
                        "DROP TABLE usage; ALTER TABLE project DROP COLUMN events_per_s;
                         ALTER TABLE project DROP COLUMN events_per_day; DROP TABLE identification;
                         DELETE FROM view_live WHERE view = 'identifications';
                         DELETE FROM view_state WHERE view = 'identifications'; PRAGMA user_version = 2",
                    )
                    .await;
                folder.open()
            }
            Place::Postgres(database) => {
                place
                    .change(
                        "DROP TABLE usage; DROP TABLE identification;
                         DELETE FROM view_live WHERE view = 'identifications';
                         DELETE FROM view_state WHERE view = 'identifications';
                         UPDATE schema_version SET version = 3 WHERE part = 'log'",
                    )
                    .await;
                database.open().await
            }
        };
        assert_eq!(all(&store).await, expected);
    }
}

#[tokio::test]
async fn what_was_dropped_because_of_its_age_stays_on_its_days() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let old = (0..20).map(|day| arrived(shop, &format!("{day}-"), 10, day * DAY)).collect();
    store.append(old).await.unwrap();
    database.age_segment().await;
    let store = database.open().await;
    store.append(vec![arrived(shop, "new", 1, 20 * DAY)]).await.unwrap();
    store.drop_before(Duration::ZERO).await.unwrap();
    let age = "UPDATE dropped SET at = at - '8 days'::interval";
    database.sql().await.batch_execute(age).await.unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().identities, 200);
    assert_eq!(store.received_since(shop, 19).await.unwrap(), 11, "not all of history on its last day");
    assert_eq!(store.received_since(shop, 0).await.unwrap(), 201);
}

#[tokio::test]
async fn days_of_usage_are_forgotten_after_four_hundred_and_nothing_else_is() {
    for (_place, store) in Place::both().await {
        let (shop, blog) =
            (project(&store, "shop").await.project.id, project(&store, "blog").await.project.id);
        let today = Timestamp::from_system(SystemTime::now()).ms().div_euclid(DAY);
        for (ago, count) in [(800, 9), (401, 5), (400, 3), (30, 2), (0, 1)] {
            for project in [shop, blog] {
                let batch = arrived(project, &format!("{ago}-"), count, (today - ago) * DAY + 1);
                store.append(vec![batch]).await.unwrap();
            }
        }
        let since = async |project, ago| store.received_since(project, today - ago).await.unwrap();
        assert_eq!((since(shop, 1_000).await, since(shop, 400).await), (20, 6));
        let _worker = worker(&store, &Cache::memory(), None);
        let forgotten = async || (since(shop, 1_000).await, since(blog, 1_000).await) == (6, 6);
        eventually("the days are forgotten", forgotten).await;
        assert_eq!((since(shop, 400).await, since(shop, 0).await), (6, 1));
        assert_eq!(store.ledger(Some(shop)).await.unwrap().received, 20, "the ledger stays");
        holds(&store).await;
        assert_eq!(store.forget_usage().await.unwrap(), 0, "nothing is left to forget");
    }
}

/// Sends events through the limits until one is refused.
async fn refused_in_the_end(store: &Store, cache: Cache, shop: ProjectId, per_day: u64) -> Bound {
    let quota = Quota { per_day: Some(per_day), per_month: None };
    let ingest = Ingest::new(Bus::in_process(bus::Limits::default()), store.clone(), cache)
        .with_limits(Limits { rate: None, quota });
    let cancel = CancellationToken::new();
    let recounts = tokio::spawn(ingest.clone().recount_quotas(cancel.clone()));
    let bound = Cell::new(None);
    eventually("the quota finds out", async || {
        let raw = codec::decode(br#"[{"name":"tick"}]"#, Format::Json).unwrap();
        let now = Timestamp::from_system(SystemTime::now());
        let valid = validate(shop, raw, Arrival { received: now, sent_at: None });
        match ingest.admit(OwnLimits::default(), &ingest.prepare(valid)).await {
            Ok(_) => {}
            Err(Error::Limited { bound: found, .. }) => bound.set(Some(found)),
            Err(error) => panic!("{error}"),
        }
        bound.get().is_some()
    })
    .await;
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(20), recounts).await.unwrap().unwrap();
    bound.get().unwrap()
}

#[tokio::test]
async fn quotas_go_on_from_the_ledger_where_the_cache_knows_nothing_or_too_little() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let now = Timestamp::from_system(SystemTime::now()).ms();
        for part in 0..10 {
            store.append(vec![arrived(shop, &format!("{part}-"), 10_000, now)]).await.unwrap();
        }
        assert_eq!(refused_in_the_end(&store, Cache::memory(), shop, 100_000).await, Bound::Day);
        let redis = Redis::start().unwrap();
        assert_eq!(refused_in_the_end(&store, redis.cache().await, shop, 100_000).await, Bound::Day);
        // A state of the same day comes back: it says that it was recounted, and what was used then.
        let key = format!("eventbucket:{{{}}}:limits", shop.0);
        redis.run::<i64>(&["HSET", &key, "day_used", "3", "month_used", "3"]);
        assert_eq!(refused_in_the_end(&store, redis.cache().await, shop, 100_000).await, Bound::Day);
    }
}
