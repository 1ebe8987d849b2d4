//! The live tail.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::in_process::{Answer, DEADLINE, Form, Running, client};

/// A tail and what of it was not read yet.
pub(crate) struct Tail(reqwest::Response, String);

impl Tail {
    pub(crate) async fn open(collector: &Running, query: &str, last: Option<u64>) -> Self {
        let request = collector.client.get(collector.url(&format!("/v1/events/tail{query}")));
        // Each message has a deadline; the whole of them lives as long as the test.
        let request = request.bearer_auth(&collector.secret_key).timeout(20 * DEADLINE);
        let request = last.into_iter().fold(request, |request, last| request.header("last-event-id", last));
        let mut tail = Self(request.send().await.unwrap(), String::new());
        assert_eq!(tail.0.headers()["content-type"], "text/event-stream");
        let opening = tail.message().await.expect("an opening");
        assert!(opening.starts_with("retry: 1000\n: following from position "), "{opening}");
        tail
    }

    /// The next message as it was written; `None` at the end.
    async fn message(&mut self) -> Option<String> {
        loop {
            if let Some((message, rest)) = self.1.split_once("\n\n") {
                let (message, rest) = (message.to_owned(), rest.to_owned());
                self.1 = rest;
                return Some(message);
            }
            let chunk = timeout(DEADLINE, self.0.chunk()).await.expect("a message in time").unwrap()?;
            self.1.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event, whose id must be its position. On a busy machine 15 s may pass before it.
    async fn event(&mut self) -> Value {
        let mut message = self.message().await.expect("an event");
        while message.starts_with(": still here at position ") {
            message = self.message().await.expect("an event");
        }
        let (head, data) = message.split_once("\ndata: ").unwrap_or_else(|| panic!("{message}"));
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(head, format!("event: event\nid: {}", event["position"]));
        event
    }

    pub(crate) async fn positions(&mut self, count: usize) -> Vec<u64> {
        let mut found = Vec::new();
        while found.len() < count {
            found.push(self.event().await["position"].as_u64().unwrap());
        }
        found
    }
}

async fn send(collector: &Running, events: impl IntoIterator<Item = Value>) {
    let events: Vec<Value> = events.into_iter().collect();
    assert_eq!(collector.send(json!(events).to_string()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_appear_as_they_are_stored() {
    for form in Form::BOTH {
        let collector = form.start().await;
        send(&collector, [json!({"name": "before"})]).await;
        let mut tail = Tail::open(&collector, "", None).await;
        send(&collector, [json!({"name": "a", "user": "ada", "properties": {"n": 1}}), json!({"name": "b"})])
            .await;
        let event = tail.event().await;
        assert_eq!(
            (&event["position"], &event["name"], &event["user"]),
            (&json!(2), &json!("a"), &json!("ada"))
        );
        assert_eq!(event["properties"], json!({"n": 1}));
        assert_eq!(tail.event().await["name"], "b");
        send(&collector, [json!({"name": "c"})]).await;
        assert_eq!(tail.event().await["name"], "c");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_where_it_was_and_loses_nothing() {
    for form in Form::BOTH {
        let collector = form.start().await;
        send(&collector, (0..300).map(|i| json!({"id": format!("e{i}"), "name": "tick"}))).await;
        let mut tail = Tail::open(&collector, "", Some(17)).await;
        assert_eq!(tail.positions(283).await, (18..=300).collect::<Vec<u64>>());
        let mut from_start = Tail::open(&collector, "?after=0", None).await;
        assert_eq!(from_start.positions(300).await, (1..=300).collect::<Vec<u64>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_lags_behind_and_loses_nothing() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let mut tail = Tail::open(&collector, "", None).await;
        // 10 MB: more than sockets hold, and more ranges than the bus remembers.
        let large = "x".repeat(4_000);
        let mut senders = tokio::task::JoinSet::new();
        for sender in 0..25 {
            let (client, url, key) = (client(None), collector.url("/v1/events"), collector.write_key.clone());
            let large = large.clone();
            senders.spawn(async move {
                for batch in 0..50 {
                    let event = |i| json!({"id": format!("{sender}-{batch}-{i}"), "name": "big", "properties": {"x": large}});
                    let request = client.post(&url).bearer_auth(&key).json(&json!([event(0), event(1)]));
                    assert_eq!(request.send().await.unwrap().status(), 200);
                }
            });
        }
        senders.join_all().await;
        assert_eq!(tail.positions(2500).await, (1..=2500).collect::<Vec<u64>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_for_what_is_live_too() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let mut by_name = Tail::open(&collector, "?name=a", None).await;
        let mut by_user = Tail::open(&collector, "?user=ada", None).await;
        send(&collector, (0..100).map(|_| json!({"name": "b"}))).await;
        send(&collector, [json!({"name": "b", "user": "ada"}), json!({"name": "a"})]).await;
        assert_eq!(by_name.event().await["position"], 102);
        assert_eq!(by_user.event().await["position"], 101);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_others_do_not_appear() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let other = collector.store.create_project(collector.account, "other").await.unwrap();
        let mut tail = Tail::open(&collector, "", None).await;
        let request = collector.client.post(collector.url("/v1/events")).bearer_auth(&other.write_key.text);
        assert_eq!(Answer::to(request.json(&json!({"name": "theirs"}))).await.status, 200);
        send(&collector, [json!({"name": "ours"})]).await;
        assert_eq!(tail.event().await["name"], "ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_stream_as_it_should() {
    for form in Form::BOTH {
        let mut collector = form.start().await;
        let mut tail = Tail::open(&collector, "", None).await;
        collector.drained().await;
        assert_eq!(tail.message().await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_not_in_the_log_is_refused() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let ask = |last: &'static str| {
            let request =
                collector.client.get(collector.url("/v1/events/tail")).bearer_auth(&collector.secret_key);
            Answer::to(request.header("last-event-id", last))
        };
        for last in ["7", "x", "-1"] {
            assert_eq!(ask(last).await.json()["code"], "invalid_cursor", "{last}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_knows_its_place_before_anything_happened() {
    for form in Form::BOTH {
        let collector = form.start().await;
        send(&collector, [json!({"name": "before"}), json!({"name": "before"})]).await;
        let mut tail = Tail(
            collector
                .client
                .get(collector.url("/v1/events/tail"))
                .bearer_auth(&collector.secret_key)
                .send()
                .await
                .unwrap(),
            String::new(),
        );
        let opening = tail.message().await.unwrap();
        assert!(opening.lines().any(|line| line == "id: 2"), "what Last-Event-ID takes: {opening}");
    }
}

/// The key is looked at every 15 s; this is the one test that waits for it, in both forms at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_reading_a_log_that_never_rests() {
    tokio::join!(stops_reading(Form::Embedded), stops_reading(Form::Distributed));
}

async fn stops_reading(form: Form) {
    let collector = form.start().await;
    let mut tail = Tail::open(&collector, "", None).await;
    let path = format!("/v1/projects/{}/keys/rotate", collector.project);
    assert_eq!(collector.post(&path, &json!({"kind": "secret"})).await.status, 201);
    let ended = async {
        loop {
            send(&collector, [json!({"name": "busy"})]).await;
            let message = tail.message().await.expect("a reason before the end");
            if message.starts_with("event: problem") {
                return message;
            }
        }
    };
    let problem = timeout(DEADLINE, ended).await.expect("a revoked key is noticed");
    assert!(problem.contains("revoked_key"), "{problem}");
}
