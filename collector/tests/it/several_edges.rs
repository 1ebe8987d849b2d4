//! What holds over several edges of one collector: its limits, its keys, its live tail.

use std::time::{Duration, Instant};

use eventbucket_collector::cache::{Limits, RateLimit};
use serde_json::json;

use crate::in_process::{Answer, Form, Running, distributed_with};
use crate::query_tail::Tail;

/// How soon a revoked key is refused everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

/// How often a reader looks at the log when nothing is announced.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

async fn send(edge: &Running, key: &str, events: usize) -> Answer {
    let events = vec![json!({"name": "a"}); events];
    Answer::to(edge.client.post(edge.url("/v1/events")).bearer_auth(key).json(&events)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_one_for_all_edges() {
    // What is granted anew meanwhile lets nothing of this through within minutes.
    let limits = Limits { rate: Some(RateLimit { events_per_s: 1, burst: 1_000 }), ..Limits::default() };
    let one = distributed_with(limits).await;
    let two = one.another(limits).await;
    let key = &one.write_key;
    assert_eq!(send(&one, key, 600).await.status, 200);
    let refused = send(&two, key, 600).await;
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("limited")), "{refused:?}");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=200).contains(&wait), "600 of the 400 that are left: {wait} s");
    let rest = send(&two, key, 390).await;
    assert_eq!((rest.status, rest.header("ratelimit-limit")), (200, "1000"), "{rest:?}");
    for edge in [&one, &two] {
        assert_eq!(send(edge, key, 300).await.status, 429);
    }
    assert_eq!(one.finally(rest, key).await.json()["all"]["verdict"], "stored");
    assert_eq!(two.head().await, 990, "what was refused is nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_at_one_edge_is_refused_at_the_other_within_a_second() {
    let one = Form::Distributed.start().await;
    let two = one.another(Limits::default()).await;
    let path = format!("/v1/projects/{}/keys/rotate", one.project);
    for kind in ["write", "secret"] {
        let old = if kind == "write" { one.write_key.clone() } else { one.secret_key.clone() };
        assert_eq!(send(&two, &old, 1).await.status, 200);
        let made = one.post(&path, &json!({ "kind": kind })).await;
        assert_eq!(made.status, 201, "{made:?}");
        let revoked = Instant::now();
        assert_eq!(send(&two, made.json()["key"].as_str().unwrap(), 1).await.status, 200);
        let refused = loop {
            let since = revoked.elapsed();
            let answer = send(&two, &old, 1).await;
            if answer.status != 200 {
                break answer;
            }
            assert!(since < REVOKED_WITHIN, "a {kind} key was taken {since:?} after it was revoked");
        };
        assert_eq!((refused.status, &refused.json()["code"]), (401, &json!("revoked_key")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_at_two_processes_see_every_event_as_it_is_stored() {
    const ROUNDS: u64 = 20;
    let one = Form::Distributed.start().await;
    let two = one.another(Limits::default()).await;
    let mut tails = [Tail::open(&one, "", None).await, Tail::open(&two, "", None).await];
    let mut soonest = [Duration::MAX; 2];
    for round in 1..=ROUNDS {
        let edge = if round % 2 == 0 { &one } else { &two };
        let sent = Instant::now();
        assert_eq!(send(edge, &one.write_key, 1).await.status, 200);
        for (tail, soonest) in tails.iter_mut().zip(&mut soonest) {
            assert_eq!(tail.positions(1).await, [round]);
            *soonest = sent.elapsed().min(*soonest);
        }
    }
    // Without announcements each would come with the look that follows the one before it, a whole period later.
    assert!(soonest.iter().all(|took| *took < LOOK_PERIOD / 2), "nothing was announced: {soonest:?}");
}
