//! Whether the collector can work, and its figures.

use std::collections::BTreeMap;

use eventbucket_collector::config::EdgeConfig;
use serde_json::json;

use crate::in_process::{Answer, Form, collector, collector_with};

#[tokio::test(flavor = "multi_thread")]
async fn health_and_version_ask_for_no_key() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let get = |path: &str| Answer::to(collector.client.get(collector.url(path)));
        let said = get("/healthz/live").await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"status":"live"}"#);
        }
        let said = get("/healthz/ready").await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"status":"ready"}"#);
        }
        let version = get("/version").await.json();
        assert_eq!((&version["name"], &version["protocol"]), (&json!("eventbucket"), &json!(1)));
        assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_below_the_mark_refuses_batches_but_not_readers() {
    let config = EdgeConfig { free_disk_min: u64::MAX, ..EdgeConfig::default() };
    let collector = collector_with(config, None).await;
    let refused = collector.send(r#"{"name":"a"}"#).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "30"));
    let problem = refused.problem();
    assert!(problem.starts_with("503 disk_low: The disk is almost full."), "{problem}");
    assert!(collector.get("/healthz/ready").await.problem().contains("disk_low"));
    assert_eq!(collector.get("/healthz/live").await.status, 200);
    assert_eq!(collector.get("/v1/events").await.status, 200);
    assert_eq!(collector.head().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_stored_is_never_answered_200() {
    let collector = collector().await;
    collector.store.close().await.unwrap();
    let refused = collector.send(r#"{"name":"a"}"#).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{refused:?}");
    assert_eq!(refused.json()["code"], "unavailable");
    let ready = Answer::to(collector.client.get(collector.url("/healthz/ready"))).await;
    assert_eq!((ready.status, &ready.json()["code"]), (503, &json!("unavailable")), "{ready:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_hold_the_ledger_and_name_nobody() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let event = |id: &str| json!({"id": id, "name": "secret_name", "user": "ada@example.com"});
        collector.send(json!([event("1"), event("2"), {"name": ""}]).to_string()).await;
        collector.send(json!([event("2")]).to_string()).await;
        Answer::to(collector.client.get(collector.url("/nowhere/ada"))).await;
        let answer = Answer::to(collector.client.get(collector.url("/metrics"))).await;
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let figures: BTreeMap<&str, &str> =
            answer.body.lines().filter_map(|line| line.rsplit_once(' ')).collect();
        for (name, value) in [
            ("eventbucket_events_received_total", "4"),
            ("eventbucket_events_total{verdict=\"stored\"}", "2"),
            ("eventbucket_events_total{verdict=\"duplicate\"}", "1"),
            ("eventbucket_events_total{verdict=\"rejected\"}", "1"),
            ("eventbucket_events_total{verdict=\"quarantined\"}", "0"),
            ("eventbucket_http_requests_total{route=\"/v1/events\",status=\"200\"}", "2"),
            ("eventbucket_http_requests_total{route=\"unmatched\",status=\"404\"}", "1"),
        ] {
            assert_eq!(figures.get(name), Some(&value), "{name} in {}", answer.body);
        }
        for word in ["ada", "secret_name", "shop", "example.com"] {
            assert!(!answer.body.contains(word), "{word} in {}", answer.body);
        }
    }
}
