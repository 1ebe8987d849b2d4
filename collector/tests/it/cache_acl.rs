//! The cache as a user of Redis who may do no more than the operations guide says.

use std::time::Duration;

use eventbucket_collector::cache::{Cache, Limits, Node, Quota, RateLimit, Recalled, RedisOptions, Tail};
use eventbucket_collector::project::{KeyHash, ProjectId, Standing};
use eventbucket_collector::store::{Applied, CountTotals, ViewState};
use eventbucket_servers::Redis;
use uuid::Uuid;

use crate::cache_conformance::ask;
use crate::cache_fixture::{Asked as _, counters_state, used_today};
use crate::store_fixture::eventually;

const GUIDE: &str = include_str!("../../../docs/OPERATIONS.md");
const SHOP: ProjectId = ProjectId(1);
const EPOCH: Uuid = Uuid::from_u128(1);

/// Somebody who may do what the guide says after `ACL:`, and nothing else.
async fn confined(redis: &Redis) -> Cache {
    let rules = GUIDE.split_once("ACL: `").expect("the guide tells the rules").1.split_once('`').unwrap().0;
    let mut set = vec!["ACL", "SETUSER", "confined", "reset", "on", ">sesame"];
    set.extend(rules.split(' '));
    redis.run::<()>(&set);
    let url = redis.url().replace("redis://", "redis://confined:sesame@");
    let mut options = RedisOptions::new(&url).unwrap();
    options.store = Some("a store".to_owned());
    Cache::redis(options).await.unwrap()
}

#[tokio::test]
async fn the_rights_in_the_guide_are_all_that_is_needed() {
    let redis = Redis::start().unwrap();
    let cache = confined(&redis).await;

    let hash = KeyHash::of("key");
    let asked = ask(&cache, &hash).await;
    cache.remember(hash, Standing::Revoked, asked).await;
    assert_eq!(redis.run::<Vec<String>>(&["KEYS", "eventbucket:{keys}:*"]).len(), 2);
    assert!(cache.forget_keys().await);
    assert!(matches!(cache.standing(&hash).await, Recalled::Ask(_)));

    let state = ViewState { generation: 1, applied_to: 5 };
    let totals = CountTotals { state, per_name: [("a".to_owned(), 5)].into(), complete: true };
    assert_eq!(cache.reset(SHOP, EPOCH, totals).await, Ok(true));
    let step = Applied {
        generation: 1,
        from: 5,
        through: 6,
        per_name: vec![("a".to_owned(), 1)],
        ..Applied::default()
    };
    assert_eq!(cache.count_up(SHOP, EPOCH, &step).await, Ok(true));
    assert_eq!(cache.counters(SHOP).await.unwrap().per_name["a"], 6);
    assert_eq!(counters_state(&cache, SHOP).await.unwrap().applied_to, 6);

    let rate = Some(RateLimit { events_per_s: 10, burst: 50 });
    let limits = Limits { rate, quota: Quota { per_day: Some(100), per_month: None } };
    assert!(cache.recount_quota(SHOP, used_today(0, 0)).await);
    let taken = cache.take(SHOP, 10, &limits).await;
    assert!(taken.exact && taken.refused.is_none(), "{taken:?}");
    cache.give_back(SHOP, 10, &taken).await;

    let mut lock = cache.lock("job", Duration::from_secs(10)).await.unwrap();
    assert!(lock.renew().await);
    lock.release().await;

    let roles = vec!["edge".to_owned()];
    let node = Node {
        id: "one".to_owned(),
        roles,
        address: None,
        version: String::new(),
        started_ms: 0,
        last_seen_ms: 0,
    };
    assert!(cache.heartbeat(&node).await);
    assert_eq!(cache.nodes().await.unwrap().len(), 1);
    cache.leave("one").await;
    cache.close().await;
    assert_eq!(cache.nodes().await.unwrap().len(), 0);

    let mut tail = cache.subscribe_tail();
    assert_eq!(tail.recv().await, Some(Tail::Missed), "it is subscribed");
    assert!(cache.publish_tail(SHOP, b"seen"));
    assert_eq!(tail.recv().await, Some(Tail::Message { project: SHOP, bytes: b"seen".to_vec().into() }));
    let told = async || redis.run::<(String, u64)>(&["PUBSUB", "NUMSUB", "eventbucket:notices"]).1 == 1;
    eventually("notices are heard", told).await;

    assert!(cache.wipe().await.unwrap() > 0);
    let refused: Vec<redis::Value> = redis.run(&["ACL", "LOG"]);
    assert!(refused.is_empty(), "{refused:?}");
    let foreign: Result<(), _> = {
        let url = redis.url().replace("redis://", "redis://confined:sesame@");
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        redis::cmd("GET").arg("another:key").query(&mut connection)
    };
    assert_eq!(foreign.unwrap_err().code(), Some("NOPERM"), "the rules confine");
}
