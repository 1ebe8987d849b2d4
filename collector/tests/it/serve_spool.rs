//! Edges with a spool, as processes: the broker, an edge and the machine's patience end at any moment, and every batch that was
//! answered 200 is stored once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use eventbucket_servers::{RabbitMq, shared};
use serde_json::{Value, json};

use crate::harness::{Collector, Keys, eventbucket, eventually, http, run};

/// Two edges on one spool folder, and who stores and counts.
struct Cluster {
    first: Collector,
    second: Collector,
    _storage: Collector,
    keys: Keys,
    rabbitmq: RabbitMq,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let rabbitmq = RabbitMq::start().unwrap();
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = format!(
            "[store]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 2\n[edge]\ndrain_notice = \"1ms\"\nspool = \"{}\"\n",
            shared::database(),
            rabbitmq.url(),
            folder.path().join("spool").display(),
        );
        let start = |name: &str, roles: &str| {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("eventbucket.toml"), &file).unwrap();
            Collector::start_in(&folder, &["--roles", roles])
        };
        let first = start("first", "edge,query");
        let keys = first.keys().clone();
        let (second, storage) = (start("second", "edge"), start("storage", "storage,insight"));
        Self { first, second, _storage: storage, keys, rabbitmq, folder }
    }

    /// Ends the broker in order and starts it again: RabbitMQ 3.10 loses the leader of a queue that it made seconds before it
    /// was killed.
    fn settle_broker(&mut self) {
        self.rabbitmq.stop().unwrap();
        self.rabbitmq.restart().unwrap();
        for edge in [&self.first, &self.second] {
            eventually("an edge publishes again", || {
                edge.logged().matches("connected to RabbitMQ").count() >= 2
            });
        }
    }

    fn spool(&self) -> std::path::PathBuf {
        self.folder.path().join("spool")
    }
}

/// Sends the batch of a number, and expects 200.
async fn send(edge: &Collector, keys: &Keys, number: usize) {
    let events: Vec<Value> =
        (0..3).map(|event| json!({"id": format!("e-{number}-{event}"), "name": "kept", "time": 1_700_000_000_000_i64})).collect();
    let body = json!({"batch_id": format!("b-{number}"), "events": events});
    let sending = http().post(format!("{}/v1/events", edge.url())).bearer_auth(&keys.write).json(&body);
    let response = sending.send().await.unwrap();
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
}

/// What an edge says of itself: its status, and how many batches wait in its spool.
fn ready(edge: &Collector) -> (bool, u64) {
    let answer = edge.get("/healthz/ready");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let document: Value = serde_json::from_str(body).unwrap();
    (head.starts_with("HTTP/1.1 200"), document["spool"]["batches"].as_u64().unwrap_or(0))
}

fn gauge(edge: &Collector, name: &str) -> f64 {
    let metrics = edge.metrics();
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn files(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".db")).count()
}

async fn status_of_batch(edge: &Collector, keys: &Keys, number: usize) -> u16 {
    let asking = http().get(format!("{}/v1/batches/b-{number}", edge.url())).bearer_auth(&keys.write);
    asking.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_edges_keep_outlives_kills_stops_and_the_broker_and_is_stored_once() {
    let mut cluster = tokio::task::spawn_blocking(|| {
        let mut cluster = Cluster::start();
        cluster.settle_broker();
        cluster
    })
    .await
    .unwrap();
    let keys = cluster.keys.clone();
    for number in 0..5 {
        send(&cluster.first, &keys, number).await;
    }
    // The second has seen the key, as an edge at work has.
    send(&cluster.second, &keys, 5).await;
    assert_eq!(ready(&cluster.first), (true, 0));

    cluster.rabbitmq.kill().unwrap();
    for number in 6..26 {
        send(&cluster.first, &keys, number).await;
    }
    assert_eq!(ready(&cluster.first), (true, 20), "it takes batches, and says where they are");
    assert_eq!(gauge(&cluster.first, "eventbucket_spool_batches"), 20.0);
    assert!(gauge(&cluster.first, "eventbucket_spool_bytes") > 1_000.0);
    assert!(gauge(&cluster.first, "eventbucket_spool_oldest_seconds") >= 0.0);
    // As for one that waits in the broker: nothing of it is stored yet.
    assert_eq!(status_of_batch(&cluster.first, &keys, 10).await, 404);
    assert_eq!(std::fs::metadata(cluster.spool()).unwrap().permissions().mode() & 0o777, 0o700);

    // A resend to the other edge, whose answer was perhaps lost: it waits twice and is stored once.
    send(&cluster.second, &keys, 6).await;
    cluster.first.kill();
    eventually("the other edge has what the dead one left", || ready(&cluster.second) == (true, 21));
    let stopped = cluster.second.terminate();
    assert_eq!(stopped.code(), Some(0), "{}", cluster.second.logged());
    assert!(cluster.second.logged().contains("batches stay in the spool"), "{}", cluster.second.logged());
    assert!(files(&cluster.spool()) >= 1);
    // Both start without a broker; whichever is first has all of it.
    cluster.second.restart();
    assert_eq!(ready(&cluster.second), (true, 21));
    cluster.first.restart();
    send(&cluster.first, &keys, 26).await;

    let cluster = tokio::task::spawn_blocking(move || {
        cluster.rabbitmq.restart().unwrap();
        cluster
    })
    .await
    .unwrap();
    for edge in [&cluster.first, &cluster.second] {
        eventually("the spool is empty", || ready(edge) == (true, 0));
    }
    eventually("everything is stored", || {
        gauge(&cluster.first, "eventbucket_events_total{verdict=\"stored\"}") >= 81.0
    });
    assert_eq!(status_of_batch(&cluster.first, &keys, 10).await, 200);
    let mut command = eventbucket(&["audit", "--json", "--url", cluster.first.url()]);
    command.env("EVENTBUCKET_KEY", &keys.secret);
    let audit = tokio::task::spawn_blocking(move || run(command)).await.unwrap().json();
    assert_eq!(audit["projects"][0]["stored"], 27 * 3, "{audit}");
    assert!(gauge(&cluster.first, "eventbucket_events_total{verdict=\"duplicate\"}") >= 3.0, "the resend");
}
