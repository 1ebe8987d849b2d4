//! The dead letters over HTTP: a project's own, page by page, looked at without loss, put back and thrown away.

use eventbucket_collector::bus::{Bus, RabbitOptions};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::config::EdgeConfig;
use eventbucket_collector::query::Reader;
use eventbucket_servers::shared::vhost;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use serde_json::{Value, json};

use crate::bus_fixture::{Direct, bus, numbered, options, shared, until, url};
use crate::harness::{Collector, Ran, eventbucket, eventually, run};
use crate::in_process::{Answer, Running, collector, collector_on};

const PATH: &str = "/v1/dead-letters";

/// A collector on a broker, and the queue of its dead letters.
async fn on_a_broker() -> (Running, Bus, Direct) {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    (collector_on(bus.clone(), EdgeConfig::default(), None).await, bus, direct)
}

/// Buries one event of each number for the collector's project, and letters that are none of its business around them.
async fn bury(collector: &Running, bus: &Bus, direct: &Direct, numbers: std::ops::RangeInclusive<usize>) {
    let options = BasicPublishOptions::default();
    let channel = direct.channel().await;
    let unreadable = BasicProperties::default().with_delivery_mode(2);
    channel
        .basic_publish(direct.named("dead"), "".into(), options, b"\xfaunreadable", unreadable)
        .await
        .unwrap();
    channel.close(200, "done".into()).await.unwrap();
    for number in numbers {
        bus.bury(&numbered(999, number), "another project's").await.unwrap();
        bus.bury(&numbered(collector.project.0, number), &format!("reason {number}")).await.unwrap();
    }
}

fn reasons(page: &Value) -> Vec<&str> {
    page["dead_letters"].as_array().unwrap().iter().map(|l| l["reason"].as_str().unwrap()).collect()
}

fn id(page: &Value, place: usize) -> String {
    page["dead_letters"][place]["id"].as_str().unwrap().to_owned()
}

async fn until_dead(direct: &Direct, letters: u32) {
    until("they are in their place", || async { direct.look("dead").await.unwrap().0 == letters }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_sees_its_own_dead_letters_page_by_page_and_takes_none() {
    let (collector, bus, direct) = on_a_broker().await;
    bury(&collector, &bus, &direct, 1..=3).await;
    let first = collector.get(&format!("{PATH}?limit=2")).await.json();
    assert_eq!(reasons(&first), ["reason 1", "reason 2"]);
    let letter = &first["dead_letters"][0];
    assert_eq!((&letter["projects"], &letter["events"]), (&json!([1]), &json!(1)), "{letter}");
    assert_eq!(first["next"], id(&first, 1));
    let cursor = id(&first, 1);
    let second = collector.get(&format!("{PATH}?cursor={cursor}")).await.json();
    assert_eq!((reasons(&second), &second["next"]), (vec!["reason 3"], &Value::Null));
    until_dead(&direct, 7).await;

    let shown = collector.get(&format!("{PATH}/{cursor}")).await.json();
    assert_eq!(shown["batches"][0]["events"][0]["id"], "event-2", "{shown}");
    until_dead(&direct, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_look_at_once_both_see_them_all() {
    let (collector, bus, direct) = on_a_broker().await;
    bury(&collector, &bus, &direct, 1..=3).await;
    let cache = Cache::memory();
    let reader = || Reader::new(collector.store.clone(), cache.clone()).with_bus(bus.clone());
    let (one, two) = (reader(), reader());
    for _ in 0..10 {
        let look = |reader: &Reader| {
            let reader = reader.clone();
            async move { reader.dead_letters(collector.project, None, 100).await.unwrap().letters.len() }
        };
        assert_eq!(tokio::join!(look(&one), look(&two)), (3, 3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_projects_dead_letters_can_be_neither_seen_nor_touched() {
    let (collector, bus, direct) = on_a_broker().await;
    let account = collector.store.create_account("other@example.com", "other").await.unwrap();
    let other = collector.store.create_project(account, "other").await.unwrap();
    bury(&collector, &bus, &direct, 1..=1).await;
    let own = id(&collector.get(PATH).await.json(), 0);
    let as_other = |request: reqwest::RequestBuilder| Answer::to(request.bearer_auth(&other.secret_key.text));
    let path = |path: &str| collector.url(&format!("{PATH}{path}"));
    let listed = as_other(collector.client.get(path(""))).await.json();
    assert_eq!(listed, json!({"dead_letters": [], "next": null}));
    for request in [
        collector.client.get(path(&format!("/{own}"))),
        collector.client.post(path(&format!("/{own}/replay"))),
        collector.client.delete(path(&format!("/{own}"))),
    ] {
        let answer = as_other(request).await;
        assert!(answer.problem().starts_with("404 not_found"), "{answer:?}");
    }
    let write = collector.client.get(path("")).bearer_auth(&collector.write_key);
    assert!(Answer::to(write).await.problem().starts_with("403 wrong_key_kind"));
    until_dead(&direct, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_replayed_or_thrown_away_and_the_others_stay() {
    let (collector, bus, direct) = on_a_broker().await;
    bury(&collector, &bus, &direct, 1..=3).await;
    let listed = collector.get(PATH).await.json();
    let replayed = collector.post(&format!("{PATH}/{}/replay", id(&listed, 0)), &json!({})).await;
    assert_eq!((replayed.status, &replayed.json()["reason"]), (200, &json!("reason 1")));
    until("it is stored", || async { collector.head().await == 1 }).await;
    assert_eq!(collector.get("/v1/events/event-1").await.json()["name"], "numbered");
    let url = collector.url(&format!("{PATH}/{}", id(&listed, 1)));
    let gone = Answer::to(collector.client.delete(url).bearer_auth(&collector.secret_key)).await;
    assert_eq!((gone.status, &gone.json()["reason"]), (200, &json!("reason 2")));
    until_dead(&direct, 5).await;
    assert_eq!(reasons(&collector.get(PATH).await.json()), ["reason 3"]);
    assert_eq!(collector.head().await, 1);

    let cursor = collector.get(&format!("{PATH}?cursor={}", id(&listed, 0))).await;
    assert!(cursor.problem().starts_with("400 invalid_cursor"), "{cursor:?}");
    let limit = collector.get(&format!("{PATH}?limit=0")).await;
    assert!(limit.problem().starts_with("400 invalid_query"), "{limit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_without_a_broker_has_none() {
    let collector = collector().await;
    assert_eq!(collector.get(PATH).await.json(), json!({"dead_letters": [], "next": null}));
    assert!(collector.get(&format!("{PATH}/0123")).await.problem().starts_with("404 not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_process_tells_how_many_there_are() {
    let vhost = vhost();
    let file = format!("[bus]\nurl = \"{vhost}\"\n");
    let bus = bus(&RabbitOptions::new(url(&vhost))).await;
    for number in 1..=2 {
        bus.bury(&numbered(999, number), "a reason").await.unwrap();
    }
    let started = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("eventbucket.toml"), file).unwrap();
        let collector = Collector::start_in(folder.path(), &[]);
        let told = || collector.metrics().lines().any(|line| line == "eventbucket_dead_letters 2");
        eventually("the figure is told", told);
    });
    started.await.unwrap();
}

async fn command(collector: &Running, words: &[&str]) -> Ran {
    let mut command = eventbucket(&["dead-letters"]);
    command.args(words).args(["--url", &collector.url("")]).env("EVENTBUCKET_KEY", &collector.secret_key);
    tokio::task::spawn_blocking(move || run(command)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_the_same_over_a_collectors_address() {
    let (collector, bus, direct) = on_a_broker().await;
    bury(&collector, &bus, &direct, 1..=3).await;
    let listed = command(&collector, &["list", "--json"]).await.json();
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|l| l["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 3, "{listed}");
    let shown = command(&collector, &["show", ids[2]]).await.json();
    assert_eq!(shown["batches"][0]["events"][0]["id"], "event-3");
    let mistyped = command(&collector, &["discard", ids[0], "nonsense"]).await;
    mistyped.assert_failed(1, &["nonsense", "dead-letters list"]);
    assert_eq!(command(&collector, &["discard", ids[0], "--json"]).await.json()["messages"], 1);
    assert_eq!(command(&collector, &["replay", "--all", "--json"]).await.json()["messages"], 2);
    until("they are stored", || async { collector.head().await == 2 }).await;
    assert_eq!(command(&collector, &["list"]).await.stdout, "");
    until_dead(&direct, 4).await;
}
