//! An edge without its broker, as a process: what it answers, and that it says when to come again.

use std::time::{Duration, Instant};

use eventbucket_servers::{RabbitMq, shared};
use serde_json::{Value, json};

use crate::harness::{Collector, DEADLINE, eventually, http};

/// Sends a batch: the status, the seconds in `Retry-After`, and the code of a problem.
async fn send(edge: &Collector, number: usize) -> (u16, Option<u64>, String) {
    let body =
        json!({"batch_id": format!("b-{number}"), "events": [{"id": format!("e-{number}"), "name": "sent"}]});
    let url = format!("{}/v1/events", edge.url());
    let response = http().post(url).bearer_auth(&edge.keys().write).json(&body).send().await.unwrap();
    let after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    let status = response.status().as_u16();
    let document: Value = response.json().await.unwrap();
    (status, after, document["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_whose_broker_is_away_answers_503_with_a_time_and_goes_on_by_itself() {
    let start = || {
        let mut broker = RabbitMq::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[store]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 2\n[edge]\ndrain_notice = \"1ms\"\n",
            shared::database(),
            broker.url()
        );
        std::fs::write(folder.path().join("eventbucket.toml"), config).unwrap();
        let edge = Collector::start_in(folder.path(), &["--roles", "edge,query"]);
        // RabbitMQ 3.10 loses the leader of a queue that it made seconds before it was killed.
        broker.stop().unwrap();
        broker.restart().unwrap();
        eventually("it publishes again", || edge.logged().matches("connected to RabbitMQ").count() >= 2);
        (broker, folder, edge)
    };
    let (mut broker, _folder, edge) = tokio::task::spawn_blocking(start).await.unwrap();
    assert_eq!(send(&edge, 0).await, (200, None, String::new()));

    broker.kill().unwrap();
    let until = Instant::now() + DEADLINE;
    let mut told = Vec::new();
    // Until the next try, which is 2 s off at most, and a second for its answer: a time that comes nearer.
    while !told.contains(&Some(3)) || !told.contains(&Some(2)) {
        let (status, after, code) = send(&edge, 1).await;
        assert_eq!((status, code.as_str()), (503, "unavailable"));
        told.push(after);
        assert!(Instant::now() < until, "{told:?}");
    }
    assert!(told.iter().all(|after| (Some(1)..=Some(3)).contains(after)), "{told:?}");
    let ready = edge.get("/healthz/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("RabbitMQ"), "{ready}");

    let _broker = tokio::task::spawn_blocking(move || {
        broker.restart().unwrap();
        broker
    })
    .await
    .unwrap();
    let mut look = tokio::time::interval(Duration::from_millis(50));
    while send(&edge, 1).await.0 != 200 {
        look.tick().await;
        assert!(Instant::now() < until + DEADLINE, "it doesn't take batches again");
    }
}
