//! What each project may send, and what a process with a part of the roles answers; through the binary.

use std::process::Command;

use serde_json::json;

use crate::harness::{Collector, eventbucket, http, run};

async fn send(collector: &Collector, events: usize) -> reqwest::Response {
    let body: Vec<_> = (0..events).map(|_| json!({"name": "tick"})).collect();
    let request = http().post(format!("{}/v1/events", collector.url())).bearer_auth(&collector.keys().write);
    request.json(&body).send().await.unwrap()
}

fn header(response: &reqwest::Response, name: &str) -> u64 {
    response.headers()[name].to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_over_its_quota_is_told_when_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.toml");
    std::fs::write(&file, "[limits]\nevents_per_day = 10\n").unwrap();
    let collector = Collector::start_with(&["--config", file.to_str().unwrap()]);
    let first = send(&collector, 8).await;
    assert_eq!((first.status().as_u16(), header(&first, "ratelimit-limit")), (200, 10));
    assert_eq!(header(&first, "ratelimit-remaining"), 2);
    let second = send(&collector, 3).await;
    assert_eq!(
        (second.status().as_u16(), header(&second, "ratelimit-remaining")),
        (200, 0),
        "it uses the rest up"
    );
    let third = send(&collector, 1).await;
    assert_eq!((third.status().as_u16(), header(&third, "ratelimit-remaining")), (429, 0));
    let (wait, reset) = (header(&third, "retry-after"), header(&third, "ratelimit-reset"));
    assert!((1..=86_400).contains(&wait) && reset <= 86_400, "{wait} {reset}");
    let problem: serde_json::Value = third.json().await.unwrap();
    assert_eq!(problem["code"], "limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_nothing_is_said_of_them() {
    let collector = Collector::start();
    assert!(!send(&collector, 1).await.headers().contains_key("ratelimit-limit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_asked_without_a_key() {
    let mut collector = Collector::start();
    let ask = |url: &str| run(eventbucket(&["health", "--url", url]));
    let ready = ask(collector.url());
    assert_eq!((ready.code, ready.stdout.as_str()), (0, "ready\n"));
    let url = collector.url().to_owned();
    collector.terminate();
    ask(&url).assert_failed(1, &["check the collector's health"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_lists_this_process() {
    let collector = Collector::start();
    let request = http().get(format!("{}/v1/nodes", collector.url())).bearer_auth(&collector.keys().write);
    let nodes: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(nodes["nodes"][0]["address"], collector.url());
    assert_eq!(nodes["nodes"][0]["roles"], json!(["edge", "storage", "insight", "notify", "query"]));
}

#[test]
fn a_part_of_the_roles_alone_is_refused_with_what_it_needs() {
    let mut command: Command = eventbucket(&["serve", "--roles", "edge"]);
    command.env_remove("EVENTBUCKET_STORE_URL");
    run(command).assert_failed(1, &["needs `store.url`", "needs `bus.url`"]);
}
