//! What a process says of itself while a server that it stands on is away; through the binary.

use std::time::{Duration, Instant};

use eventbucket_servers::{Postgres, RabbitMq};
use serde_json::json;

use crate::harness::{Collector, eventbucket, eventually, run};
use crate::store_fixture;
use crate::store_postgres::sql;

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_stops_without_its_store_gives_back_what_it_holds_and_says_where_it_is() {
    let servers = || (Postgres::start().unwrap(), RabbitMq::start().unwrap());
    let (mut postgres, rabbitmq) = tokio::task::spawn_blocking(servers).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!(
        "[store]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 1\n[edge]\ndrain_notice = \"1ms\"\n",
        postgres.url(),
        rabbitmq.url()
    );
    let start = |name: &str, roles: &str| {
        let data = folder.path().join(name);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("eventbucket.toml"), &file).unwrap();
        Collector::start_in(&data, &["--roles", roles])
    };
    let edge = start("edge", "edge,query");
    let mut storage = start("storage", "storage");
    edge.send(json!({ "batch_id": "first", "events": [{ "id": "a", "name": "first" }] })).await;
    let stored = |count: &str| {
        edge.metrics().contains(&format!("eventbucket_events_total{{verdict=\"stored\"}} {count}\n"))
    };
    eventually("it is stored", || stored("1"));

    postgres.kill().unwrap();
    for number in 0..20 {
        edge.send(json!({ "events": [{ "id": format!("b{number}"), "name": "later" }] })).await;
    }
    eventually("they are held", || storage.logged().contains("batches can't be stored yet"));
    let since = Instant::now();
    let ended = storage.terminate();
    assert_eq!(ended.code(), Some(0), "{}", storage.logged());
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    let said = storage.logged();
    assert!(said.contains("RabbitMQ keeps them") && said.contains("stored or waits in RabbitMQ"), "{said}");

    postgres.restart().unwrap();
    storage.restart();
    eventually("the others are stored too", || stored("21"));

    // There, but silent: it isn't waited for as long as a statement may take.
    let in_the_way = sql(&postgres.url()).await;
    in_the_way.batch_execute("BEGIN; LOCK TABLE head").await.unwrap();
    edge.send(json!({ "events": [{ "id": "c", "name": "last" }] })).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let waits = async || in_the_way.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0;
    store_fixture::eventually("storage waits for it", waits).await;
    let since = Instant::now();
    assert_eq!(storage.terminate().code(), Some(0), "{}", storage.logged());
    assert!(since.elapsed() < Duration::from_secs(16), "{:?}", since.elapsed());
    in_the_way.batch_execute("ROLLBACK").await.unwrap();
    storage.restart();
    eventually("the last is stored too", || stored("22"));
}

#[test]
fn workers_are_not_ready_without_the_broker_and_tell_their_figures_without_the_store() {
    let (mut postgres, mut rabbitmq) = (Postgres::start().unwrap(), RabbitMq::start().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file =
        format!("[store]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 1\n", postgres.url(), rabbitmq.url());
    let start = |role: &str| {
        let data = folder.path().join(role);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("eventbucket.toml"), &file).unwrap();
        Collector::start_in(&data, &["--roles", role])
    };
    let processes = ["storage", "insight", "query"].map(start);
    let ready = |process: &Collector| process.get("/healthz/ready").starts_with("HTTP/1.1 200");
    for process in &processes {
        eventually("it is ready", || ready(process));
        assert!(process.metrics().contains("eventbucket_events_received_total 0"));
    }

    let elsewhere = processes[0].get("/v1/events");
    assert!(elsewhere.contains("404") && elsewhere.contains("role edge"), "{elsewhere}");

    // Silent, not gone: nothing that waits for it is told so.
    postgres.pause().unwrap();
    let since = Instant::now();
    let figures = processes[0].metrics();
    assert!(figures.starts_with("HTTP/1.1 200"), "{figures}");
    assert!(figures.contains("eventbucket_http_connections 1"), "{figures}");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    postgres.resume().unwrap();

    rabbitmq.kill().unwrap();
    for process in &processes[..2] {
        eventually("it isn't ready", || {
            let answer = process.get("/healthz/ready");
            answer.starts_with("HTTP/1.1 503")
                && answer.contains("RabbitMQ is away")
                && !answer.contains("127.0.0.1")
        });
    }
    assert!(ready(&processes[2]), "readers need no broker");

    // What isn't ready is asked for nothing, and finds out by itself that the server is back.
    postgres.kill().unwrap();
    let key = ["count", "--url", processes[2].url(), "--key", "eb_secret_nobody"];
    run(eventbucket(&key)).assert_failed(1, &["the store is away"]);
    eventually("it isn't ready", || !ready(&processes[2]));
    postgres.restart().unwrap();
    eventually("it is ready again", || ready(&processes[2]));
}

#[test]
fn processes_whose_store_hangs_end_in_time() {
    let (postgres, rabbitmq) = (Postgres::start().unwrap(), RabbitMq::start().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = format!(
        "[store]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 1\n[shutdown]\ncatch_up_timeout = \"1s\"\n",
        postgres.url(),
        rabbitmq.url()
    );
    let start = |roles: &str| {
        let data = folder.path().join(roles);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("eventbucket.toml"), &file).unwrap();
        Collector::start_in(&data, &["--roles", roles])
    };
    let mut processes = ["insight", "storage"].map(start);
    postgres.pause().unwrap();
    // Each of them waits a second for the ledger, in vain, and the store is looked at once a second.
    for _ in 0..3 {
        assert!(processes[0].metrics().starts_with("HTTP/1.1 200"));
    }
    for process in &mut processes {
        let since = Instant::now();
        let ended = process.terminate();
        assert_eq!(ended.code(), Some(0), "{}", process.logged());
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    }
    postgres.resume().unwrap();
}
