//! What a process says of itself while a server that it stands on is away; through the binary.

use std::time::{Duration, Instant};

use eventbucket_servers::{Postgres, RabbitMq};

use crate::harness::{Collector, eventually};

#[test]
fn workers_are_not_ready_without_the_broker_and_tell_their_figures_without_the_store() {
    let (postgres, mut rabbitmq) = (Postgres::start().unwrap(), RabbitMq::start().unwrap());
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
            answer.starts_with("HTTP/1.1 503") && answer.contains("RabbitMQ")
        });
    }
    assert!(ready(&processes[2]), "readers need no broker");
}
