//! A process and its broker: what an edge answers without one, and the rights that a user of it needs.

use std::time::{Duration, Instant};

use eventbucket_servers::{RabbitMq, shared};
use serde_json::{Value, json};

use crate::harness::{Collector, DEADLINE, eventbucket, eventually, http, run};

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

const GUIDE: &str = include_str!("../../../docs/OPERATIONS.md");

#[tokio::test]
async fn the_rights_in_the_guide_are_all_that_a_user_needs_and_fewer_are_told() {
    let rights = GUIDE.split_once("set_permissions -p VHOST USER ").expect("the guide tells the rights").1;
    let rights = rights.split_once('`').unwrap().0.split(' ').map(|right| right.trim_matches('\''));
    let rights: Vec<&str> = rights.collect();
    let rabbitmq = RabbitMq::start().unwrap();
    rabbitmq.control(&["add_user", "confined", "sesame"]).unwrap();
    let permit = |rights: &[&str]| {
        let words = [&["set_permissions", "-p", "/", "confined"], rights].concat();
        rabbitmq.control(&words).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    let url = rabbitmq.url().replace("guest:guest", "confined:sesame");
    let file = format!("[store]\nurl = \"{}\"\n[bus]\nurl = \"{url}\"\nshards = 1\n", shared::database());
    std::fs::write(folder.path().join("eventbucket.toml"), file).unwrap();

    permit(&["^$", "^$", "^$"]);
    let data = folder.path().to_str().unwrap();
    let refused = run(eventbucket(&["serve", "--listen", "127.0.0.1:0", "--data", data]));
    refused.assert_failed(1, &["doesn't permit", "set_permissions"]);

    permit(&rights);
    let mut collector = Collector::start_in(folder.path(), &[]);
    collector.send(json!({"id": "e-1", "name": "permitted"})).await;
    eventually("it is stored and counted", || {
        collector.over_http(&["count", "--json"]).json()["counts"][0]["count"] == 1
    });
    let listed = collector.over_http(&["dead-letters", "list"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (0, ""), "{listed:?}");
    assert!(!collector.logged().contains("refused for user"), "{}", collector.logged());
    assert_eq!(collector.terminate().code(), Some(0));
}
