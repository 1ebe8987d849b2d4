//! What an edge decides while what it stands on is full, or away.

use std::pin::pin;
use std::time::{Duration, Instant};

use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::{Cache, Limits, Quota, Recalled};
use eventbucket_collector::ingest::{self, Arrival, Ingest, Prepared, validate};
use eventbucket_collector::project::{Grant, KeyHash, KeyKind, OwnLimits, ProjectId};
use eventbucket_collector::query::Reader;
use eventbucket_collector::store::{DATABASE_FILE, NewProject, PostgresOptions, SqliteOptions, Store};
use eventbucket_protocol::Timestamp;
use eventbucket_protocol::codec::{Format, decode};
use eventbucket_servers::{Postgres, Redis};
use futures_util::FutureExt as _;

use crate::cache_fixture::Asked as _;
use crate::store_fixture::{eventually, project};

/// Events that nobody sent before, as they are before the limits.
fn batch(ingest: &Ingest, project: ProjectId, events: usize) -> Prepared {
    let body = format!("[{}]", vec![r#"{"name":"tick"}"#; events].join(","));
    let arrival = Arrival { received: Timestamp::from_ms(1_700_000_000_000).unwrap(), sent_at: None };
    ingest.prepare(validate(project, decode(body.as_bytes(), Format::Json).unwrap(), arrival))
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

    let first = batch(&ingest, shop, 10);
    let admitted = ingest.admit(OwnLimits::default(), &first).await.unwrap();
    let mut waiting = pin!(ingest.publish_admitted(first, &admitted));
    assert!(waiting.as_mut().now_or_never().is_none(), "nobody stores it");
    let second = batch(&ingest, shop, 20);
    let admitted = ingest.admit(OwnLimits::default(), &second).await.unwrap();
    let refused = ingest.publish_admitted(second, &admitted).await.unwrap_err();
    assert!(matches!(refused, ingest::Error::Bus(bus::Error::Full { .. })), "{refused}");
    bus.close();
    let third = batch(&ingest, shop, 30);
    let admitted = ingest.admit(OwnLimits::default(), &third).await.unwrap();
    let refused = ingest.publish_admitted(third, &admitted).await.unwrap_err();
    assert!(matches!(refused, ingest::Error::Bus(bus::Error::Closed)), "{refused}");
    let left = ingest.admit(OwnLimits::default(), &batch(&ingest, shop, 1)).await.unwrap().closest.unwrap();
    assert_eq!(left.remaining, 100 - 10 - 1, "the batch that waits, and this one");
}

/// Two processes of a collector: one takes batches, the other replaces keys.
struct Two {
    edge: Ingest,
    edge_cache: Cache,
    other: Ingest,
    reader: Reader,
    shop: NewProject,
    postgres: Postgres,
    redis: Redis,
}

impl Two {
    async fn start() -> Self {
        let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
        let open =
            async || Store::postgres(PostgresOptions::parse(&postgres.url(), None).unwrap()).await.unwrap();
        let (store, edge_cache) = (open().await, redis.cache().await);
        let shop = project(&store, "shop").await;
        let edge = Ingest::new(Bus::in_process(bus::Limits::default()), store, edge_cache.clone());
        let (store, cache) = (open().await, redis.cache().await);
        let other = Ingest::new(Bus::in_process(bus::Limits::default()), store.clone(), cache.clone());
        Self { edge, edge_cache, other, reader: Reader::new(store, cache), shop, postgres, redis }
    }

    /// The key is used on the edge, and its subscription stands: nothing it was told from now on was missed.
    async fn used(&self) {
        let (key, hash) = (&self.shop.write_key.text, self.shop.write_key.hash());
        let both = ["PUBSUB", "NUMSUB", "eventbucket:notices"];
        eventually("both are subscribed", async || self.redis.run::<(String, u64)>(&both).1 == 2).await;
        eventually("the key is believed", async || {
            self.edge.authenticate(key).await.unwrap();
            self.edge_cache.believed(&hash).is_some()
        })
        .await;
    }

    async fn rotate(&self) {
        self.reader.rotate_key(self.shop.project.id, KeyKind::Write, None).await.unwrap();
    }

    /// What the edge says of the key once neither the store nor Redis knows anything of it.
    async fn without_the_store(&mut self) -> Result<Grant, ingest::Error> {
        self.postgres.kill().unwrap();
        assert!(self.edge_cache.wipe().await.is_some());
        let key = self.shop.write_key.text.clone();
        // What the edge remembers ends after a second.
        let fresh = async || matches!(self.edge_cache.standing(&KeyHash::of(&key)).await, Recalled::Known(_));
        eventually("the store is asked", async || !fresh().await).await;
        self.edge.authenticate(&key).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_use_is_believed_while_the_store_is_away() {
    let mut two = Two::start().await;
    two.used().await;
    assert_eq!(two.without_the_store().await.unwrap().project, two.shop.project.id);
    // Redis goes and comes back with nothing in it: nobody could revoke a key meanwhile.
    two.redis.kill().unwrap();
    two.redis.restart().unwrap();
    eventually("redis is back", async || two.edge_cache.serving().is_ok()).await;
    two.edge.authenticate(&two.shop.write_key.text).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_use_is_believed_while_the_store_hangs() {
    let two = Two::start().await;
    two.used().await;
    two.postgres.pause().unwrap();
    assert!(two.edge_cache.wipe().await.is_some());
    let key = &two.shop.write_key.text;
    // What the edge remembers ends after a second; no request takes longer than that.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let told = tokio::time::timeout(Duration::from_secs(3), two.edge.authenticate(key)).await;
        assert_eq!(told.expect("it hangs too").unwrap().project, two.shop.project.id);
    }
    // A key that nobody knows is asked for as long as it takes.
    two.postgres.resume().unwrap();
    let told = two.edge.authenticate("eb_write_unknown").await;
    assert!(matches!(told, Err(ingest::Error::UnknownKey)), "{told:?}");
    eventually("the store is asked again", async || two.edge.authenticate(key).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_key_stays_replaced_on_an_edge_that_heard_of_it_through_redis() {
    let mut two = Two::start().await;
    two.used().await;
    two.rotate().await;
    let key = &two.shop.write_key.text;
    // The other edge asks the store and leaves the answer in Redis, where this one finds it.
    eventually("the key is revoked", async || {
        let revoked = |told| matches!(told, Err(ingest::Error::RevokedKey));
        revoked(two.other.authenticate(key).await) && revoked(two.edge.authenticate(key).await)
    })
    .await;
    let told = two.without_the_store().await;
    assert!(matches!(told, Err(ingest::Error::Store(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_key_stays_replaced_on_an_edge_that_was_only_told() {
    let mut two = Two::start().await;
    two.used().await;
    two.rotate().await;
    let hash = two.shop.write_key.hash();
    eventually("the edge is told", async || two.edge_cache.believed(&hash).is_none()).await;
    let told = two.without_the_store().await;
    assert!(matches!(told, Err(ingest::Error::Store(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_replaced_while_redis_was_away_is_not_believed_later() {
    let mut two = Two::start().await;
    two.used().await;
    two.redis.pause().unwrap();
    two.rotate().await;
    let hash = two.shop.write_key.hash();
    two.redis.resume().unwrap();
    eventually("the edge is told", async || two.edge_cache.believed(&hash).is_none()).await;
    let told = two.without_the_store().await;
    assert!(matches!(told, Err(ingest::Error::Store(_))), "{told:?}");
}
