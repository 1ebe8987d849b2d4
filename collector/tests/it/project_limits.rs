//! What one project may send where that is its own: over HTTP in both forms, over several edges, by the command line.

use std::time::{Duration, Instant};

use eventbucket_collector::bus::RabbitOptions;
use eventbucket_collector::cache::{Limits, Quota};
use eventbucket_collector::config::EdgeConfig;
use eventbucket_servers::{Redis, shared};
use serde_json::{Value, json};

use crate::bus_fixture::{bus, options, own, until};
use crate::harness::{Collector, eventbucket, eventually, http, run};
use crate::in_process::{Answer, Form, Running, collector_on, distributed_with};

/// How soon every edge goes by new limits.
const EVERYWHERE_WITHIN: Duration = Duration::from_secs(2);

async fn send(edge: &Running, key: &str, events: usize) -> Answer {
    let events = vec![json!({"name": "a"}); events];
    Answer::to(edge.client.post(edge.url("/v1/events")).bearer_auth(key).json(&events)).await
}

async fn set(edge: &Running, change: Value) -> Answer {
    edge.patch(&format!("/v1/projects/{}/limits", edge.project), &change).await
}

/// What the headers say of the limit that is closest to its end: how much it is, what is left of it.
fn limit(answer: &Answer) -> [&str; 2] {
    ["ratelimit-limit", "ratelimit-remaining"].map(|name| answer.header(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_limited_by_what_was_set_for_it_alone() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let other = collector.store.create_project(collector.account, "blog").await.unwrap().write_key.text;
        let key = &collector.write_key;
        assert_eq!(limit(&send(&collector, key, 60).await), ["", ""], "nothing is limited");
        let changed = set(&collector, json!({"events_per_day": 10})).await;
        let expected = json!({"events_per_s": "default", "events_per_day": 10});
        let document = json!({"project_id": collector.project, "limits": expected});
        assert_eq!((changed.status, changed.json()), (200, document));
        for (events, status, left) in [(8, 200, "2"), (3, 200, "0"), (1, 429, "0")] {
            let answer = send(&collector, key, events).await;
            assert_eq!((answer.status, limit(&answer)), (status, ["10", left]), "{answer:?}");
        }
        let changed = set(&collector, json!({"events_per_s": 1_000_000})).await;
        let expected = json!({"events_per_s": 1_000_000, "events_per_day": 10});
        assert_eq!(changed.json()["limits"], expected, "what isn't named stays");
        let refused = send(&collector, key, 1).await;
        assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("limited")), "{refused:?}");
        let seconds = |name| refused.header(name).parse::<u64>().unwrap();
        assert!((1..=86_400).contains(&seconds("retry-after")) && seconds("ratelimit-reset") <= 86_400);
        let untouched = send(&collector, &other, 60).await;
        assert_eq!((untouched.status, limit(&untouched)), (200, ["", ""]), "another project");
        let listed = collector.get("/v1/projects").await.json();
        assert_eq!(listed["projects"][0]["limits"], expected);
        let usual = json!({"events_per_s": "default", "events_per_day": "default"});
        assert_eq!(listed["projects"][1]["limits"], usual);
        set(&collector, json!({"events_per_day": "none"})).await;
        assert_eq!(send(&collector, key, 20).await.status, 200);
        set(&collector, usual).await;
        assert_eq!(limit(&send(&collector, key, 20).await), ["", ""]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_before_the_answer_is_not_charged_for_what_was_not_taken() {
    let server = own().await;
    let options = RabbitOptions { confirm_timeout: Duration::from_secs(2), ..options(&server) };
    let collector = collector_on(bus(&options).await, EdgeConfig::default(), None).await;
    let key = &collector.write_key;
    assert_eq!(set(&collector, json!({"events_per_day": 100})).await.status, 200);
    assert_eq!(limit(&send(&collector, key, 1).await), ["100", "99"]);
    server.pause().unwrap();
    let request = collector.client.post(collector.url("/v1/events")).bearer_auth(key);
    let leaving = request.json(&vec![json!({"name": "a"}); 10]).timeout(Duration::from_millis(500));
    assert!(leaving.send().await.unwrap_err().is_timeout());
    // An empty batch is charged nothing and tells what is left.
    until("it was given back", || async { limit(&send(&collector, key, 0).await) == ["100", "99"] }).await;
    server.resume().unwrap();
    until("it goes on", || async { send(&collector, key, 1).await.status == 200 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_make_no_sense_or_are_anothers_are_refused_in_words() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let other = collector.store.create_project(collector.account, "blog").await.unwrap().project.id;
        let mut found = Vec::new();
        for change in [
            json!({"events_per_s": 0}),
            json!({"events_per_day": 2_000_000_000_000_u64}),
            json!({"events_per_day": "lots"}),
            json!({"events_per_s": null}),
            json!({"rate": 5}),
        ] {
            found.push(set(&collector, change).await.problem());
        }
        let all = json!({"events_per_s": 1});
        found.push(collector.patch(&format!("/v1/projects/{other}/limits"), &all).await.problem());
        let own = collector.url(&format!("/v1/projects/{}/limits", collector.project));
        let as_sender = collector.client.patch(own).bearer_auth(&collector.write_key).json(&all);
        found.push(Answer::to(as_sender).await.problem());
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.join("\n"), @r#"
            400 malformed_body: The body can't be read. the body can't be used: `0` isn't a limit: give events from 1 to 1000000000000, default or none at line 1 column 18
            400 malformed_body: The body can't be read. the body can't be used: `2000000000000` isn't a limit: give events from 1 to 1000000000000, default or none at line 1 column 32
            400 malformed_body: The body can't be read. the body can't be used: `lots` isn't a limit: give events from 1 to 1000000000000, default or none at line 1 column 25
            400 malformed_body: The body can't be read. the body can't be used: `null` isn't a limit: give events from 1 to 1000000000000, default or none at line 1 column 21
            400 malformed_body: The body can't be read. the body can't be used: unknown field `rate`, expected `events_per_s` or `events_per_day` at line 1 column 7
            404 not_found: There is nothing here. a secret key changes limits of its own project alone, which is 1
            403 wrong_key_kind: The key may not do this. this is a write key, which may only send events; use the project's secret key (eb_secret_…)
            "#);
        }
        let listed = collector.get("/v1/projects").await.json();
        assert!(!listed.to_string().contains("\"events_per_s\":1"), "{listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_set_at_one_edge_hold_at_the_other_within_two_seconds() {
    let quota = Quota { per_day: Some(1_000_000), per_month: None };
    let usual = Limits { rate: None, quota };
    let one = distributed_with(usual).await;
    let two = one.another(usual).await;
    let key = &one.write_key;
    // What one edge holds ready for a moment is missing at the other.
    for (change, expected) in [("default", "1000000"), ("5000", "5000"), ("none", ""), ("default", "1000000")]
    {
        let change = change.parse::<u64>().map_or_else(|_| json!(change), |events| json!(events));
        assert_eq!(set(&one, json!({"events_per_day": change})).await.status, 200);
        let since = Instant::now();
        loop {
            let asked = since.elapsed();
            let answer = send(&two, key, 1).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if limit(&answer)[0] == expected {
                break;
            }
            assert!(asked < EVERYWHERE_WITHIN, "{asked:?} after {change}: {answer:?}");
        }
    }
    // A bucket that was full lets through what it then has to pay back.
    set(&one, json!({"events_per_s": 1})).await;
    let since = Instant::now();
    let refused = loop {
        let asked = since.elapsed();
        let answer = send(&two, key, 1_000).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(asked < EVERYWHERE_WITHIN, "{asked:?}");
    };
    assert_eq!((refused.status, limit(&refused)), (429, ["10", "0"]), "{refused:?}");
    assert_eq!(send(&one, key, 1).await.status, 429, "one rate for all edges");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sets_and_shows_them_both_ways() {
    let collector = Collector::start();
    let mut before = "default\tdefault".to_owned();
    for (rate, quota) in [("50", "7000000"), ("none", "default")] {
        for ask in [Collector::beside, Collector::over_http] {
            assert_eq!(
                ask(&collector, &["project", "limits", "1"]).stdout,
                format!("1\tdefault\t{before}\n")
            );
            let set = ask(&collector, &["project", "limits", "default", "--rate", rate, "--quota", quota]);
            before = format!("{rate}\t{quota}");
            assert_eq!((set.code, set.stderr.as_str()), (0, ""), "{set:?}");
            assert_eq!(set.stdout, format!("1\tdefault\t{before}\n"));
            let listed = ask(&collector, &["project", "list"]).stdout;
            assert!(listed.ends_with(&format!("\t{before}\n")), "{listed}");
            // A process that isn't told finds out within a second.
            eventually("it goes by them", || ratelimit(&collector) == if rate == "50" { "500" } else { "" });
        }
    }
    let json = collector.beside(&["project", "limits", "1", "--quota", "5", "--json"]).json();
    let expected = json!({"project_id": 1, "limits": {"events_per_s": "none", "events_per_day": 5}});
    assert_eq!(json, expected);
    for (args, code, words) in [
        (
            ["project", "limits", "nobody", "--rate", "5"],
            1,
            "there is none with the id or the name \"nobody\"",
        ),
        (
            ["project", "limits", "1", "--rate", "0"],
            2,
            "give events from 1 to 1000000000000, default or none",
        ),
        (["project", "limits", "1", "--quota", "much"], 2, "give events from 1 to"),
    ] {
        collector.beside(&args).assert_failed(code, &[words]);
    }
}

/// The limit that an answer to one event names.
fn ratelimit(collector: &Collector) -> String {
    let request = http().post(format!("{}/v1/events", collector.url())).bearer_auth(&collector.keys().write);
    let sent = tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(request.json(&json!({"name": "x"})).send())
    });
    let headers = sent.unwrap().headers().clone();
    headers.get("ratelimit-limit").map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_set_on_the_servers_reach_their_collectors() {
    /// Far below the minute for which Redis remembers what a key may do.
    const SOON: Duration = Duration::from_secs(20);
    let (folder, redis, store_url) =
        (tempfile::tempdir().unwrap(), Redis::start().unwrap(), shared::database());
    let file = format!("[store]\nurl = \"{store_url}\"\n[cache]\nurl = \"{}\"\n", redis.url());
    std::fs::write(folder.path().join("eventbucket.toml"), file).unwrap();
    let collector = Collector::start_in(folder.path(), &[]);
    let limits = |more: &[&str]| {
        let mut command = eventbucket(&["project", "limits", "default", "--store-url", &store_url]);
        command.args(more);
        run(command)
    };
    assert_eq!(ratelimit(&collector), "");
    let set = limits(&["--rate", "70", "--cache-url", &redis.url()]);
    assert_eq!((set.code, set.stdout.as_str(), set.stderr.as_str()), (0, "1\tdefault\t70\tdefault\n", ""));
    let since = Instant::now();
    eventually("it goes by them", || ratelimit(&collector) == "700");
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let untold = limits(&["--rate", "none"]);
    assert!(
        untold.stderr.contains("go by the old ones for up to a minute, unless --cache-url"),
        "{untold:?}"
    );
}
