//! How a collector ends.

use std::os::unix::process::ExitStatusExt as _;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Collector, DEADLINE, eventbucket, run};

#[tokio::test]
async fn sigterm_and_ctrl_c_finish_what_is_there_and_exit_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut collector = Collector::start();
        let events: Vec<Value> =
            (0..500).map(|i| json!({ "id": format!("e{i}"), "name": "hello" })).collect();
        collector.send(json!({ "events": events })).await;
        collector.signal(signal);
        assert_eq!(collector.wait().code(), Some(0), "{}", collector.logged());
        // The counts caught up, and the write-ahead log is folded into the one file.
        let audit = collector.beside(&["audit", "--json"]).json();
        let project = &audit["projects"][0];
        assert_eq!((&project["stored"], &project["applied_to"]), (&json!(500), &json!(500)), "{audit}");
        let log =
            std::fs::metadata(collector.folder().join("eventbucket.db-wal")).map_or(0, |file| file.len());
        assert_eq!(log, 0);
    }
}

#[tokio::test]
async fn a_request_in_flight_is_answered_while_the_collector_stops() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut collector = Collector::start();
    let body = r#"{"id":"late","name":"late"}"#;
    let address = collector.url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        collector.keys().write,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The collector asks for the body: from here on the request is in its hands.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    collector.signal(Signal::TERM);
    crate::harness::eventually("the signal is noticed", || collector.logged().contains("SIGTERM received"));
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(collector.wait().code(), Some(0));
    assert_eq!(collector.beside(&["event", "show", "late", "--json"]).json()["position"], 1);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    use tokio::io::AsyncWriteExt as _;
    let mut collector = Collector::start();
    let address = collector.url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    // A request whose body doesn't come keeps the collector draining.
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 10\r\n\r\n",
        collector.keys().write
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    collector.signal(Signal::TERM);
    crate::harness::eventually("the signal is noticed", || collector.logged().contains("SIGTERM received"));
    collector.signal(Signal::TERM);
    let status = collector.wait();
    assert_eq!((status.code(), status.signal()), (Some(1), None), "{}", collector.logged());
    assert!(collector.logged().contains("ending at once"));
}

#[tokio::test]
async fn after_a_kill_everything_that_was_answered_is_there() {
    let mut collector = Collector::start();
    for i in 0..20 {
        collector.send(json!({ "id": format!("e{i}"), "name": "hello" })).await;
    }
    collector.kill();
    collector.restart();
    let reply = collector.send(json!({ "id": "e0", "name": "hello" })).await;
    assert!(reply.to_string().contains("duplicate"), "{reply}");
    let data = collector.folder().to_str().unwrap();
    let audit = run(eventbucket(&["audit", "--json", "--data", data]));
    assert_eq!(audit.json()["projects"][0]["stored"], 20);
}
