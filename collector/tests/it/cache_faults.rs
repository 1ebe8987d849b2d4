//! The cache on Redis while Redis is paused, killed, emptied, or comes back older.

use std::time::{Duration, Instant};

use eventbucket_collector::cache::{
    Away, Bound, Cache, Error, Limits, NODE_TTL, Node, NotLocked, Quota, RateLimit, Recalled, RedisOptions,
    Tail,
};
use eventbucket_collector::project::{
    AccountId, Grant, KeyHash, KeyKind, OwnLimit, OwnLimits, ProjectId, Standing,
};
use eventbucket_collector::store::{Applied, CountTotals, ViewState};
use eventbucket_servers::Redis;
use uuid::Uuid;

use crate::cache_conformance::ask;
use crate::cache_fixture::{Asked as _, used_today};
use crate::store_fixture::eventually;

const SHOP: ProjectId = ProjectId(1);
const EPOCH: Uuid = Uuid::from_u128(1);
const VALID: Standing = Standing::Valid(Grant {
    account: AccountId(9),
    project: SHOP,
    kind: KeyKind::Secret,
    browser: false,
    limits: OwnLimits { events_per_s: OwnLimit::None, events_per_day: OwnLimit::Default },
});

/// The timeout of one question, and what a busy machine adds.
const ONE_TIMEOUT: Duration = Duration::from_millis(450);

async fn back(cache: &Cache) {
    eventually("redis is back", async || cache.serving().is_ok()).await;
}

async fn known(cache: &Cache, hash: KeyHash) {
    let asked = ask(cache, &hash).await;
    cache.remember(hash, VALID, asked).await;
    assert_eq!(cache.standing(&hash).await, Recalled::Known(VALID));
}

/// An edge.
fn node(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        roles: vec!["edge".to_owned()],
        address: None,
        version: "1".to_owned(),
        started_ms: 0,
        last_seen_ms: 0,
    }
}

fn totals(applied_to: u64) -> CountTotals {
    let state = ViewState { generation: 1, applied_to };
    CountTotals { state, per_name: [("a".to_owned(), applied_to)].into(), complete: true }
}

/// Everything a request or a worker asks, each answered by "not known".
async fn nothing_is_known(cache: &Cache) {
    let hash = KeyHash::of("any");
    let asked = ask(cache, &hash).await;
    cache.remember(hash, VALID, asked).await;
    assert_eq!(cache.standing(&hash).await, Recalled::Known(VALID), "this process knows it alone");
    let step = Applied { generation: 1, from: 0, through: 1, per_name: vec![], ..Applied::default() };
    assert_eq!(cache.count_up(SHOP, EPOCH, &step).await, Err(Away));
    assert_eq!(cache.reset(SHOP, EPOCH, totals(1)).await, Err(Away));
    assert_eq!((cache.counters(SHOP).await, cache.counters_states(&[SHOP]).await), (None, Err(Away)));
    let lock = cache.lock("job", Duration::from_secs(1)).await;
    assert!(lock.is_err_and(|why| why == NotLocked::Unknown) && cache.nodes().await.is_none());
    let rate = RateLimit { events_per_s: 1_000, burst: 1_000 };
    let taken = cache.take(SHOP, 10, &Limits { rate: Some(rate), quota: Quota::default() }).await;
    assert_eq!((taken.refused, taken.exact), (None, false));
    assert!(!cache.forget_keys().await);
    cache.publish_tail(SHOP, b"lost");
}

#[tokio::test]
async fn a_paused_redis_holds_up_no_request_for_longer_than_one_timeout() {
    let redis = Redis::start().unwrap();
    let cache = redis.cache().await;
    redis.pause().unwrap();
    let since = Instant::now();
    let all = (0..100).map(|i| {
        let cache = cache.clone();
        tokio::spawn(async move { ask(&cache, &KeyHash::of(&format!("key-{i}"))).await })
    });
    futures_util::future::join_all(all).await;
    assert!(since.elapsed() < ONE_TIMEOUT, "{:?}", since.elapsed());
    // The other connection finds out by itself.
    eventually("both connections are down", async || {
        let since = Instant::now();
        cache.counters(SHOP).await;
        since.elapsed() < Duration::from_millis(5)
    })
    .await;
    let since = Instant::now();
    nothing_is_known(&cache).await;
    assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
    let error = cache.serving().unwrap_err().to_string();
    assert!(error.contains("is away (") && error.contains("check that it runs"), "{error}");
    redis.resume().unwrap();
    back(&cache).await;
    eventually("counters are kept again", async || cache.reset(SHOP, EPOCH, totals(5)).await == Ok(true))
        .await;
}

#[tokio::test]
async fn a_killed_redis_is_found_again_and_starts_from_nothing() {
    let mut redis = Redis::start().unwrap();
    let cache = redis.cache().await;
    let mut tail = cache.subscribe_tail();
    assert_eq!(tail.recv().await, Some(Tail::Missed));
    assert_eq!(cache.reset(SHOP, EPOCH, totals(5)).await, Ok(true));
    redis.kill().unwrap();
    eventually("the loss is noticed", async || cache.serving().is_err()).await;
    cache.counters(SHOP).await;
    let since = Instant::now();
    nothing_is_known(&cache).await;
    assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
    redis.restart().unwrap();
    let since = Instant::now();
    back(&cache).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    eventually("counters are kept again", async || cache.reset(SHOP, EPOCH, totals(6)).await == Ok(true))
        .await;
    let missed =
        tokio::time::timeout(Duration::from_secs(10), tail.recv()).await.expect("the follower is told");
    assert_eq!(missed, Some(Tail::Missed));
    eventually("the tail goes on", async || cache.publish_tail(SHOP, b"again")).await;
    let again = Tail::Message { project: SHOP, bytes: b"again".to_vec().into() };
    let heard = async { while tail.recv().await != Some(again.clone()) {} };
    tokio::time::timeout(Duration::from_secs(10), heard).await.expect("the tail goes on");
}

#[tokio::test]
async fn a_revoked_key_stops_working_at_once_in_every_process() {
    let redis = Redis::start().unwrap();
    let (edge, revoker) = (redis.cache().await, redis.cache().await);
    let hash = KeyHash::of("key");
    // The subscription of the edge stands when an invalidation gets through long before an entry ends by itself.
    for _ in 0..10 {
        known(&edge, hash).await;
        assert!(revoker.forget_keys().await);
        let since = Instant::now();
        eventually("forgetting", async || matches!(edge.standing(&hash).await, Recalled::Ask(_))).await;
        assert!(since.elapsed() < Duration::from_millis(1_050), "{:?}", since.elapsed());
        if since.elapsed() < Duration::from_millis(500) {
            return;
        }
    }
    panic!("nobody was told");
}

#[tokio::test]
async fn a_revoked_key_stops_working_within_a_second_without_pub_sub() {
    let redis = Redis::start().unwrap();
    redis.run::<()>(&["ACL", "SETUSER", "default", "-@pubsub"]);
    let (edge, revoker) = (redis.cache().await, redis.cache().await);
    let hash = KeyHash::of("key");
    known(&edge, hash).await;
    assert_eq!(revoker.standing(&hash).await, Recalled::Known(VALID), "they share what they know");
    assert!(revoker.forget_keys().await);
    let since = Instant::now();
    assert_eq!(edge.standing(&hash).await, Recalled::Known(VALID), "nobody told it");
    eventually("forgetting", async || matches!(edge.standing(&hash).await, Recalled::Ask(_))).await;
    assert!(since.elapsed() < Duration::from_millis(1_050), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_key_revoked_before_an_older_redis_came_back_is_not_believed() {
    let mut redis = Redis::start().unwrap();
    let hash = KeyHash::of("key");
    {
        let edge = redis.cache().await;
        known(&edge, hash).await;
        redis.run::<()>(&["SAVE"]);
        assert!(edge.forget_keys().await);
    }
    redis.kill().unwrap();
    redis.restart().unwrap();
    let entries: Vec<String> = redis.run(&["KEYS", "eventbucket:{keys}:*"]);
    assert_eq!(entries.len(), 2, "the entry came back, and the version it was written under: {entries:?}");
    let edge = redis.cache().await;
    ask(&edge, &hash).await;
}

#[tokio::test]
async fn a_key_revoked_while_redis_could_not_be_reached_is_not_believed_afterwards() {
    let redis = Redis::start().unwrap();
    let (edge, revoker) = (redis.cache().await, redis.cache().await);
    let hash = KeyHash::of("key");
    known(&edge, hash).await;
    redis.pause().unwrap();
    assert!(!revoker.forget_keys().await);
    let since = Instant::now();
    eventually("the loss is noticed", async || edge.serving().is_err()).await;
    redis.resume().unwrap();
    back(&edge).await;
    // What the edge itself remembers ends after a second; what Redis remembers is worth nothing any more.
    eventually("forgetting", async || matches!(edge.standing(&hash).await, Recalled::Ask(_))).await;
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    back(&revoker).await;
    ask(&revoker, &hash).await;
}

#[tokio::test]
async fn tokens_of_a_lock_rise_over_a_redis_that_lost_everything() {
    let redis = Redis::start().unwrap();
    let (one, two) = (redis.cache().await, redis.cache().await);
    let mut first = one.lock("job", Duration::from_secs(30)).await.unwrap();
    redis.run::<()>(&["FLUSHALL"]);
    let second = two.lock("job", Duration::from_secs(30)).await.unwrap();
    assert!(second.token() > first.token(), "{} after {}", second.token(), first.token());
    assert!(!first.renew().await, "another holds it");
}

#[tokio::test]
async fn a_node_that_fell_silent_is_no_longer_listed() {
    let redis = Redis::start().unwrap();
    let (one, two) = (redis.cache().await, redis.cache().await);
    assert!(one.heartbeat(&node("dies")).await);
    let since = Instant::now();
    let cancel = tokio_util::sync::CancellationToken::new();
    let beats = tokio::spawn({
        let (two, cancel) = (two.clone(), cancel.clone());
        async move { two.heartbeats(node("lives"), cancel).await }
    });
    eventually("both are listed", async || one.nodes().await.is_some_and(|nodes| nodes.len() == 2)).await;
    eventually("one is left", async || one.nodes().await.is_some_and(|nodes| nodes.len() == 1)).await;
    let took = since.elapsed();
    assert!(took >= NODE_TTL && took < NODE_TTL + Duration::from_secs(1), "{took:?}");
    assert_eq!(two.nodes().await.unwrap()[0].id, "lives");
    cancel.cancel();
    beats.await.unwrap();
}

/// Two edges that take as fast as they can get no more between them than one would.
#[tokio::test(flavor = "multi_thread")]
async fn edges_share_a_rate() {
    let redis = Redis::start().unwrap();
    let limits =
        Limits { rate: Some(RateLimit { events_per_s: 2_000, burst: 500 }), quota: Quota::default() };
    let since = Instant::now();
    let mut edges = Vec::new();
    for _ in 0..2 {
        let edge = redis.cache().await;
        edges.push(tokio::spawn(async move {
            let mut passed = 0;
            while since.elapsed() < Duration::from_secs(1) {
                if edge.take(SHOP, 10, &limits).await.refused.is_none() {
                    passed += 10;
                } else {
                    tokio::task::yield_now().await;
                }
            }
            passed
        }));
    }
    let mut passed = 0;
    for edge in edges {
        passed += edge.await.unwrap();
    }
    let granted = 500.0 + 2_000.0 * since.elapsed().as_secs_f64();
    assert!(f64::from(passed) <= granted + 1.0, "{passed} of {granted}");
    assert!(f64::from(passed) >= granted * 0.9, "{passed} of {granted}");
}

/// While Redis is away each edge grants its share; what passed meanwhile is read from the ledger afterwards.
#[tokio::test]
async fn edges_that_lost_redis_go_on_with_their_share() {
    let mut redis = Redis::start().unwrap();
    let (one, two) = (redis.cache().await, redis.cache().await);
    let rate = RateLimit { events_per_s: 100, burst: 100 };
    let quota = Quota { per_day: Some(1_000_000), per_month: None };
    let limits = Limits { rate: Some(rate), quota };
    for (cache, id) in [(&one, "one"), (&two, "two"), (&one, "one")] {
        assert!(cache.heartbeat(&node(id)).await);
    }
    assert!(one.recount_quota(SHOP, used_today(0, 0)).await);
    assert!(!one.take(SHOP, 100, &limits).await.recount);
    redis.kill().unwrap();
    eventually("the loss is noticed", async || one.serving().is_err() && two.serving().is_err()).await;
    for edge in [&one, &two] {
        let taken = edge.take(SHOP, 50, &limits).await;
        assert_eq!((taken.refused, taken.exact, taken.rate.unwrap().limit), (None, false, 50));
        assert_eq!(edge.take(SHOP, 50, &limits).await.refused, Some(Bound::Rate));
    }
    redis.restart().unwrap();
    back(&one).await;
    let taken = one.take(SHOP, 1, &limits).await;
    assert!(taken.exact && taken.recount, "{taken:?}");
    assert!(one.recount_quota(SHOP, used_today(150, 150)).await);
    let taken = one.take(SHOP, 1, &limits).await;
    assert_eq!((taken.recount, taken.day.unwrap().remaining), (false, 1_000_000 - 151));
}

#[tokio::test]
async fn what_an_edge_holds_ready_goes_back_when_it_stops() {
    let redis = Redis::start().unwrap();
    let (one, two) = (redis.cache().await, redis.cache().await);
    let limits = Limits { rate: None, quota: Quota { per_day: Some(500), per_month: None } };
    assert!(one.recount_quota(SHOP, used_today(0, 0)).await);
    assert_eq!(one.take(SHOP, 1, &limits).await.day.unwrap().remaining, 499);
    assert_eq!(two.take(SHOP, 1, &limits).await.refused, Some(Bound::Day), "the other holds it all");
    one.close().await;
    let gets_it = async || two.take(SHOP, 499, &limits).await.refused.is_none();
    eventually("the rest is there again", gets_it).await;
    assert_eq!(two.take(SHOP, 1, &limits).await.refused, Some(Bound::Day));
}

#[tokio::test]
async fn what_was_taken_yesterday_is_not_given_back_to_today() {
    let redis = Redis::start().unwrap();
    let cache = redis.cache().await;
    let limits = Limits { rate: None, quota: Quota { per_day: Some(100), per_month: Some(100) } };
    assert!(cache.recount_quota(SHOP, used_today(0, 0)).await);
    let taken = cache.take(SHOP, 30, &limits).await;
    cache.close().await;
    let limits_of_shop = "eventbucket:{1}:limits";
    let day: i64 = redis.run(&["HGET", limits_of_shop, "day"]);
    redis.run::<()>(&["HSET", limits_of_shop, "day", &(day + 1).to_string(), "day_used", "20"]);
    cache.give_back(SHOP, 30, &taken).await;
    let used: (u64, u64) = redis.run(&["HMGET", limits_of_shop, "day_used", "month_used"]);
    assert_eq!(used, (20, 0), "the day after counted none of them, the month did");
}

#[tokio::test]
async fn a_registry_that_somebody_wrote_over_is_made_anew() {
    let redis = Redis::start().unwrap();
    let (cache, other) = (redis.cache().await, redis.cache().await);
    let listed = async || {
        let nodes = cache.nodes().await?;
        Some(nodes.into_iter().map(|node| node.id).collect::<Vec<_>>())
    };
    let keys = ["eventbucket:{nodes}:seen", "eventbucket:{nodes}:nodes"];
    for written in [&keys[..1], &keys[1..], &keys[..]] {
        assert!(cache.heartbeat(&node("a")).await && other.heartbeat(&node("b")).await);
        for key in written {
            redis.run::<()>(&["SET", key, "mine"]);
        }
        assert_eq!(listed().await, None, "{written:?} can't be read");
        assert!(cache.heartbeat(&node("a")).await, "{written:?}");
        assert_eq!(listed().await.unwrap(), ["a"], "{written:?}");
        assert!(other.heartbeat(&node("b")).await);
        assert_eq!(listed().await.unwrap(), ["a", "b"], "{written:?}");
    }
}

#[tokio::test]
async fn starting_without_redis_says_what_to_do_and_no_password() {
    let mut redis = Redis::start_with(&["--requirepass", "sesame"]).unwrap();
    let at = |password: &str| {
        let url = redis.url().replace("redis://", &format!("redis://default:{password}@"));
        RedisOptions::new(&url).unwrap()
    };
    assert!(Cache::redis(at("sesame")).await.is_ok());
    for wrong in [at("hunter2"), RedisOptions::new(&redis.url()).unwrap()] {
        match Cache::redis(wrong).await.err() {
            Some(error @ Error::Refused { .. }) => {
                let said = format!("{error} {error:?}");
                assert!(said.contains("check [cache] url") && !said.contains("hunter2"), "{said}");
            }
            other => panic!("{other:?}"),
        }
    }
    let gone = at("sesame");
    redis.kill().unwrap();
    let error = Cache::redis(gone).await.err().unwrap();
    let said = format!("{error} {error:?}");
    assert!(said.contains("check that it runs") && !said.contains("sesame"), "{said}");
}

#[tokio::test]
async fn tls_is_used_and_a_server_of_another_authority_is_refused() {
    let authority = || {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        (parameters.self_signed(&key).unwrap().pem(), rcgen::Issuer::new(parameters, key))
    };
    let ((trusted, issuer), (other, _)) = (authority(), authority());
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (certificate, key) =
        (write("server.pem", &certificate.pem()), write("server.key", &key.serialize_pem()));
    let authority = write("ca.pem", &trusted);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let _redis = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &authority,
        "--tls-auth-clients",
        "no",
    ])
    .unwrap();
    let mut options = RedisOptions::new(&format!("rediss://localhost:{port}/0")).unwrap();
    options.root_certificate_pem = Some(trusted.into_bytes());
    let cache = Cache::redis(options.clone()).await.unwrap();
    let mut tail = cache.subscribe_tail();
    assert_eq!(tail.recv().await, Some(Tail::Missed), "a subscription stands over TLS, too");
    assert_eq!(cache.reset(SHOP, EPOCH, totals(5)).await, Ok(true));
    options.root_certificate_pem = Some(other.into_bytes());
    let error = Cache::redis(options).await.err().unwrap().to_string();
    assert!(error.contains("certificate"), "{error}");
}
