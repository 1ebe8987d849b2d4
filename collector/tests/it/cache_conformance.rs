//! What every cache does, whatever stands behind it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use eventbucket_collector::cache::{
    Asked, Bound, COUNTER_NAMES_MAX, Cache, Counters, CountersState, Limits, Node, NotLocked, Quota,
    RateLimit, Recalled, RedisOptions, TAIL_BYTES_MAX, Tail, TailReceiver,
};
use eventbucket_collector::project::{AccountId, Grant, KeyHash, KeyKind, OwnLimits, ProjectId, Standing};
use eventbucket_collector::store::{Applied, CountTotals, ViewState};
use eventbucket_servers::Redis;
use uuid::Uuid;

use crate::cache_fixture::{Asked as _, used_today};
use crate::harness::DEADLINE;
use crate::store_fixture::eventually;

const SHOP: ProjectId = ProjectId(1);
const BLOG: ProjectId = ProjectId(2);
const EPOCH: Uuid = Uuid::from_u128(1);

/// Each backend by its name, each with nothing in it.
async fn each() -> [(&'static str, Cache, Option<Redis>); 2] {
    let redis = Redis::start().unwrap();
    let cache = redis.cache().await;
    [("memory", Cache::memory(), None), ("redis", cache, Some(redis))]
}

fn valid(project: ProjectId) -> Standing {
    Standing::Valid(Grant {
        account: AccountId(9),
        project,
        kind: KeyKind::Write,
        browser: true,
        limits: OwnLimits::default(),
    })
}

pub(crate) async fn ask(cache: &Cache, hash: &KeyHash) -> Asked {
    match cache.standing(hash).await {
        Recalled::Ask(asked) => asked,
        Recalled::Known(standing) => panic!("{standing:?} is known already"),
    }
}

#[tokio::test]
async fn a_key_is_recalled_for_a_second_and_forgotten_at_once_when_told() {
    for (backend, cache, _redis) in each().await {
        for standing in [valid(SHOP), Standing::Revoked, Standing::Unknown] {
            let hash = KeyHash::of(&format!("{standing:?}"));
            let asked = ask(&cache, &hash).await;
            cache.remember(hash, standing, asked).await;
            assert_eq!(cache.standing(&hash).await, Recalled::Known(standing), "{backend}");
            assert!(cache.forget_keys().await);
            ask(&cache, &hash).await;
        }
        let wrong = KeyHash::of("wrong");
        let asked = ask(&cache, &wrong).await;
        let since = Instant::now();
        cache.remember(wrong, Standing::Unknown, asked).await;
        eventually("forgetting", async || matches!(cache.standing(&wrong).await, Recalled::Ask(_))).await;
        assert!(since.elapsed() < Duration::from_millis(1_200), "{backend}: {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn an_answer_from_before_a_revocation_is_not_remembered() {
    for (_, cache, _redis) in each().await {
        let hash = KeyHash::of("stale");
        let asked = ask(&cache, &hash).await;
        cache.forget_keys().await;
        cache.remember(hash, valid(SHOP), asked).await;
        ask(&cache, &hash).await;
    }
}

fn totals(generation: u64, applied_to: u64, names: &[(&str, u64)]) -> CountTotals {
    let per_name = names.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    CountTotals { state: ViewState { generation, applied_to }, per_name, complete: true }
}

fn applied(generation: u64, from: u64, through: u64) -> Applied {
    Applied {
        generation,
        from,
        through,
        per_name: vec![("a".to_owned(), through - from)],
        ..Applied::default()
    }
}

#[tokio::test]
async fn only_what_follows_on_is_counted() {
    for (backend, cache, _redis) in each().await {
        assert_eq!(
            cache.count_up(SHOP, EPOCH, &applied(2, 0, 1)).await,
            Ok(false),
            "{backend}: nothing is known"
        );
        // A name may be anything, also what a field is called.
        assert_eq!(cache.reset(SHOP, EPOCH, totals(2, 10, &[("a", 9), ("applied_to", 1)])).await, Ok(true));
        for other in [applied(2, 9, 12), applied(2, 11, 12), applied(1, 10, 12), applied(3, 10, 12)] {
            assert_eq!(cache.count_up(SHOP, EPOCH, &other).await, Ok(false), "{backend}: {other:?}");
        }
        assert_eq!(
            cache.count_up(SHOP, Uuid::from_u128(2), &applied(2, 10, 12)).await,
            Ok(false),
            "{backend}: epoch"
        );
        assert_eq!(cache.count_up(BLOG, EPOCH, &applied(2, 10, 12)).await, Ok(false), "{backend}: project");
        assert_eq!(cache.count_up(SHOP, EPOCH, &applied(2, 10, 12)).await, Ok(true));
        assert_eq!(cache.count_up(SHOP, EPOCH, &applied(2, 10, 12)).await, Ok(false), "{backend}: twice");
        let per_name = BTreeMap::from([("a".to_owned(), 11), ("applied_to".to_owned(), 1)]);
        let counters = Counters { epoch: EPOCH, generation: 2, applied_to: 12, per_name };
        assert_eq!(cache.counters(SHOP).await, Some(counters.clone()), "{backend}");
        let states = cache.counters_states(&[BLOG, SHOP, BLOG]).await;
        assert_eq!(states, Ok(vec![None, Some(counters.state()), None]), "{backend}");
    }
}

#[tokio::test]
async fn counters_never_go_back_within_an_epoch() {
    for (backend, cache, _redis) in each().await {
        assert_eq!(cache.reset(SHOP, EPOCH, totals(2, 100, &[("a", 100), ("gone", 3)])).await, Ok(true));
        assert_eq!(
            cache.reset(SHOP, EPOCH, totals(2, 99, &[])).await,
            Ok(false),
            "{backend}: older position"
        );
        assert_eq!(
            cache.reset(SHOP, EPOCH, totals(1, 200, &[])).await,
            Ok(false),
            "{backend}: older generation"
        );
        assert_eq!(
            cache.reset(SHOP, EPOCH, totals(2, 100, &[("a", 90)])).await,
            Ok(true),
            "{backend}: same state"
        );
        assert_eq!(
            cache.reset(SHOP, EPOCH, totals(3, 50, &[("a", 50)])).await,
            Ok(true),
            "{backend}: newer generation"
        );
        assert_eq!(cache.counters(SHOP).await.unwrap().per_name, BTreeMap::from([("a".to_owned(), 50)]));
        let restored = Uuid::from_u128(7);
        assert_eq!(
            cache.reset(SHOP, restored, totals(1, 5, &[("a", 5)])).await,
            Ok(true),
            "{backend}: another log"
        );
        let state = CountersState { epoch: restored, generation: 1, applied_to: 5 };
        assert_eq!(cache.counters_states(&[SHOP]).await, Ok(vec![Some(state)]));
    }
}

#[tokio::test]
async fn more_names_than_are_kept_leave_the_state_alone() {
    let redis = Redis::start().unwrap();
    // 100,000 names take a debug build on a busy machine longer than a collector waits for them.
    let mut options = RedisOptions::new(&redis.url()).unwrap();
    options.bulk_timeout = DEADLINE;
    let patient = Cache::redis(options).await.unwrap();
    for (backend, cache) in [("memory", Cache::memory()), ("redis", patient)] {
        let per_name = (0..COUNTER_NAMES_MAX).map(|i| (format!("name-{i}"), i as u64)).collect();
        let full = CountTotals { per_name, ..totals(2, 10, &[]) };
        assert_eq!(cache.reset(SHOP, EPOCH, full.clone()).await, Ok(true), "{backend}");
        assert_eq!(cache.counters(SHOP).await.map(|counters| counters.per_name), Some(full.per_name));
        assert_eq!(
            cache.count_up(SHOP, EPOCH, &applied(2, 10, 11)).await,
            Ok(true),
            "{backend}: one name more"
        );
        assert_eq!(cache.counters(SHOP).await, None, "{backend}");
        assert_eq!(
            cache.count_up(SHOP, EPOCH, &applied(2, 11, 12)).await,
            Ok(true),
            "{backend}: the state goes on"
        );
        let state = CountersState { epoch: EPOCH, generation: 2, applied_to: 12 };
        assert_eq!(
            (cache.counters(SHOP).await, cache.counters_states(&[SHOP]).await),
            (None, Ok(vec![Some(state)]))
        );
        let incomplete = CountTotals { complete: false, ..totals(2, 13, &[]) };
        assert_eq!(cache.reset(SHOP, EPOCH, incomplete).await, Ok(true));
        assert_eq!(cache.counters(SHOP).await, None);
    }
}

async fn heard(receiver: &mut TailReceiver) -> Tail {
    tokio::time::timeout(Duration::from_secs(10), receiver.recv()).await.expect("something is heard").unwrap()
}

#[tokio::test]
async fn the_tail_reaches_every_follower_in_order_and_says_what_is_missing() {
    for (backend, cache, redis) in each().await {
        let other = match &redis {
            Some(redis) => redis.cache().await,
            None => cache.clone(),
        };
        let mut followers = [cache.subscribe_tail(), other.subscribe_tail()];
        if redis.is_some() {
            for follower in &mut followers {
                assert_eq!(heard(follower).await, Tail::Missed, "the subscription begins");
            }
        }
        for i in 0..200_u8 {
            assert!(cache.publish_tail(SHOP, &[i; 100]));
        }
        assert!(cache.publish_tail(BLOG, b""));
        for follower in &mut followers {
            for i in 0..200_u8 {
                let message = Tail::Message { project: SHOP, bytes: vec![i; 100].into() };
                assert_eq!(heard(follower).await, message, "{backend}");
            }
            let empty = Tail::Message { project: BLOG, bytes: Vec::new().into() };
            assert_eq!(heard(follower).await, empty, "{backend}");
        }
        assert!(!cache.publish_tail(SHOP, &vec![0; TAIL_BYTES_MAX + 1]), "{backend}: too large");
        for follower in &mut followers {
            assert_eq!(heard(follower).await, Tail::Missed, "{backend}");
        }
    }
}

#[tokio::test]
async fn a_follower_that_falls_behind_is_told_and_goes_on() {
    for (backend, cache, redis) in each().await {
        let mut follower = cache.subscribe_tail();
        if redis.is_some() {
            assert_eq!(heard(&mut follower).await, Tail::Missed);
        }
        // Far more than waits for anyone; what doesn't fit into the publisher's queue is tried again.
        for i in 0..3_000_u32 {
            eventually("room", async || cache.publish_tail(SHOP, &i.to_be_bytes())).await;
        }
        let last = Tail::Message { project: SHOP, bytes: 2_999_u32.to_be_bytes().to_vec().into() };
        let (mut missed, mut read) = (false, 0);
        loop {
            let tail = heard(&mut follower).await;
            missed |= tail == Tail::Missed;
            read += 1;
            if tail == last {
                break;
            }
        }
        assert!(missed && read < 3_000, "{backend}: {read}");
    }
}

#[tokio::test]
async fn a_lock_has_one_holder_and_rising_tokens() {
    for (backend, cache, redis) in each().await {
        let other = match &redis {
            Some(redis) => redis.cache().await,
            None => cache.clone(),
        };
        let long = Duration::from_secs(30);
        let mut first = cache.lock("retention", long).await.unwrap();
        assert!(
            other.lock("retention", long).await.is_err_and(|why| why == NotLocked::Held),
            "{backend}: held"
        );
        assert!(other.lock("rebuild", long).await.is_ok(), "{backend}: another name");
        assert!(first.held() && first.renew().await, "{backend}");
        let token = first.token();
        first.release().await;
        let second = other.lock("retention", long).await.unwrap();
        assert!(second.token() > token, "{backend}: {} after {token}", second.token());
        drop(second);
        eventually("dropping lets go", async || cache.lock("retention", long).await.is_ok()).await;
    }
}

#[tokio::test]
async fn a_holder_that_was_paused_finds_out_and_takes_nothing_from_the_next() {
    for (backend, cache, redis) in each().await {
        let other = match &redis {
            Some(redis) => redis.cache().await,
            None => cache.clone(),
        };
        let short = Duration::from_millis(100);
        let mut paused = cache.lock("job", short).await.unwrap();
        let since = Instant::now();
        let next = loop {
            assert!(since.elapsed() < Duration::from_millis(400), "{backend}: a dead holder blocks");
            match other.lock("job", Duration::from_secs(30)).await {
                Ok(next) => break next,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(!paused.held() && !paused.renew().await, "{backend}");
        paused.release().await;
        assert!(cache.lock("job", short).await.is_err(), "{backend}: the next one still holds it");
        assert!(next.held(), "{backend}");
    }
}

fn node(id: &str, roles: &[&str]) -> Node {
    Node {
        id: id.to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        address: Some(format!("http://{id}:4100")),
        version: "1.2.3".to_owned(),
        started_ms: 1_700_000_000_000,
        last_seen_ms: 0,
    }
}

#[tokio::test]
async fn nodes_are_listed_until_they_leave() {
    for (backend, cache, redis) in each().await {
        assert_eq!(cache.nodes().await, Some(vec![]), "{backend}");
        assert!(cache.heartbeat(&node("a", &["edge", "storage"])).await);
        let listed = cache.nodes().await.unwrap();
        assert!(listed[0].last_seen_ms > 1_700_000_000_000, "{backend}: {listed:?}");
        let without_time: Vec<_> = listed.into_iter().map(|node| Node { last_seen_ms: 0, ..node }).collect();
        assert_eq!(without_time, [node("a", &["edge", "storage"])]);
        if let Some(redis) = &redis {
            let other = redis.cache().await;
            assert!(other.heartbeat(&node("b", &["insight"])).await);
            assert_eq!(cache.nodes().await.unwrap().len(), 2);
            other.leave("b").await;
            assert_eq!(cache.nodes().await.unwrap().len(), 1);
        }
        cache.leave("a").await;
        assert_eq!(cache.nodes().await, Some(vec![]), "{backend}");
    }
}

#[tokio::test]
async fn a_rate_grants_the_burst_and_says_when_there_is_more() {
    for (backend, cache, _redis) in each().await {
        let limits =
            Limits { rate: Some(RateLimit { events_per_s: 10, burst: 50 }), quota: Quota::default() };
        let first = cache.take(SHOP, 40, &limits).await;
        assert_eq!((first.refused, first.exact, first.recount), (None, true, false), "{backend}");
        let left = first.rate.unwrap();
        assert_eq!((left.limit, left.remaining), (50, 10), "{backend}");
        assert!((3.5..=4.0).contains(&left.resets_after.as_secs_f64()), "{backend}: {left:?}");
        let second = cache.take(SHOP, 30, &limits).await;
        assert_eq!(second.refused, Some(Bound::Rate), "{backend}");
        assert!((1.5..=2.0).contains(&second.retry_after.as_secs_f64()), "{backend}: {second:?}");
        assert_eq!(cache.take(SHOP, 5, &limits).await.refused, None, "{backend}: fewer pass");
        assert_eq!(cache.take(BLOG, 50, &limits).await.refused, None, "{backend}: another project");
        assert_eq!(cache.take(BLOG, 1, &Limits::default()).await.refused, None, "{backend}: no limit");
        let passes = async || cache.take(BLOG, 1, &limits).await.refused.is_none();
        eventually("more", passes).await;
    }
}

#[tokio::test]
async fn a_batch_larger_than_the_burst_passes_and_is_paid_back() {
    for (backend, cache, _redis) in each().await {
        let limits =
            Limits { rate: Some(RateLimit { events_per_s: 100, burst: 50 }), quota: Quota::default() };
        assert_eq!(cache.take(SHOP, 250, &limits).await.refused, None, "{backend}");
        let next = cache.take(SHOP, 1, &limits).await;
        assert_eq!(next.refused, Some(Bound::Rate), "{backend}");
        assert!((1.7..=2.02).contains(&next.retry_after.as_secs_f64()), "{backend}: {next:?}");
    }
}

#[tokio::test]
async fn a_rate_that_is_set_later_asks_nothing_back_for_what_a_quota_let_pass() {
    for (backend, cache, _redis) in each().await {
        let quota = Quota { per_day: Some(1_000_000), per_month: None };
        assert_eq!(cache.take(SHOP, 100_000, &Limits { rate: None, quota }).await.refused, None, "{backend}");
        let rate = Some(RateLimit { events_per_s: 10, burst: 50 });
        let taken = cache.take(SHOP, 20, &Limits { rate, quota }).await;
        assert_eq!((taken.refused, taken.rate.unwrap().remaining), (None, 30), "{backend}");
    }
}

#[tokio::test]
async fn a_limit_that_is_changed_holds_from_the_next_batch_on() {
    for (backend, cache, _redis) in each().await {
        let rate = |events_per_s| Limits { rate: Some(RateLimit::new(events_per_s)), ..Limits::default() };
        let taken = cache.take(SHOP, 10, &rate(1_000)).await;
        assert_eq!((taken.refused, taken.rate.unwrap().remaining), (None, 9_990), "{backend}");
        let lowered = cache.take(SHOP, 10, &rate(1)).await;
        let left = lowered.rate.unwrap();
        assert_eq!((lowered.refused, left.limit, left.remaining), (None, 10, 0), "{backend}");
        assert_eq!(cache.take(SHOP, 10, &rate(1)).await.refused, Some(Bound::Rate), "{backend}");
        let raised = async || cache.take(SHOP, 10, &rate(1_000_000)).await.refused.is_none();
        eventually("it is raised", raised).await;
        let quota = Quota { per_day: Some(5), per_month: None };
        let bounded = cache.take(SHOP, 10, &Limits { rate: None, quota }).await;
        assert_eq!((bounded.refused, bounded.rate), (Some(Bound::Day), None), "{backend}");
        let lifted = cache.take(SHOP, 10_000_000, &Limits::default()).await;
        assert_eq!((lifted.refused, lifted.day), (None, None), "{backend}");
    }
}

#[tokio::test]
async fn what_is_given_back_may_be_taken_again() {
    for (backend, cache, _redis) in each().await {
        let rate = Some(RateLimit { events_per_s: 1, burst: 50 });
        let limits = Limits { rate, quota: Quota { per_day: Some(120), per_month: Some(1_000) } };
        assert!(cache.recount_quota(SHOP, used_today(0, 0)).await);
        let taken = cache.take(SHOP, 50, &limits).await;
        assert_eq!(taken.refused, None, "{backend}");
        assert_eq!(cache.take(SHOP, 50, &limits).await.refused, Some(Bound::Rate), "{backend}");
        cache.give_back(SHOP, 50, &taken).await;
        let again = cache.take(SHOP, 50, &limits).await;
        assert_eq!((again.refused, again.day.unwrap().remaining), (None, 70), "{backend}");
        assert_eq!(again.month.unwrap().remaining, 950, "{backend}");
    }
}

#[tokio::test]
async fn quotas_go_on_from_what_the_ledger_says() {
    for (backend, cache, _redis) in each().await {
        let quota = Quota { per_day: Some(100), per_month: Some(1_000) };
        let limits = Limits { rate: None, quota };
        let first = cache.take(SHOP, 10, &limits).await;
        assert!(first.recount && first.refused.is_none(), "{backend}: {first:?}");
        assert!(cache.recount_quota(SHOP, used_today(70, 400)).await);
        let second = cache.take(SHOP, 10, &limits).await;
        assert_eq!((second.day.unwrap().remaining, second.month.unwrap().remaining), (20, 590), "{backend}");
        assert!(!second.recount, "{backend}: {second:?}");
        // What the edge holds ready is part of what is left.
        for _ in 0..4 {
            assert_eq!(cache.take(SHOP, 5, &limits).await.refused, None, "{backend}");
        }
        let refused = cache.take(SHOP, 5, &limits).await;
        assert_eq!(refused.refused, Some(Bound::Day), "{backend}");
        let until_tomorrow = refused.day.unwrap().resets_after;
        assert_eq!(refused.retry_after, until_tomorrow);
        assert!(
            until_tomorrow <= Duration::from_secs(86_400)
                && refused.month.unwrap().resets_after >= until_tomorrow
        );
        assert!(cache.recount_quota(SHOP, used_today(0, 1_000)).await);
        assert_eq!(cache.take(SHOP, 5, &limits).await.refused, Some(Bound::Month), "{backend}");
    }
}
