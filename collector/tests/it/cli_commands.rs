//! The commands that read and manage, both ways: on the data folder beside the running collector, and over HTTP.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Collector, DEADLINE, Ran, eventbucket, eventually, lines_of, run};

type Way = fn(&Collector, &[&str]) -> Ran;

const WAYS: [(&str, Way); 2] = [("data", Collector::beside), ("url", Collector::over_http)];

async fn with_events() -> Collector {
    let collector = Collector::start();
    let time = |minute: u32| format!("2026-01-01T00:{minute:02}:00Z");
    let mut events: Vec<Value> = (0..10)
        .map(|i| json!({ "id": format!("view-{i}"), "name": "view", "user": "ada", "time": time(i) }))
        .collect();
    events.push(json!({ "id": "order-1", "name": "order", "user": "bob", "time": "2026-01-01T01:00:00Z",
        "properties": { "amount": 12.5, "plan": "pro" } }));
    collector.send(json!({ "events": events })).await;
    eventually("everything is counted", || {
        let counts = collector.beside(&["count", "--json"]).json();
        counts["applied_to"] == 11
    });
    collector
}

#[tokio::test]
async fn both_ways_give_the_same_documents() {
    let collector = with_events().await;
    for args in [
        &["event", "list", "--json", "--limit", "3"][..],
        &["event", "list", "--json", "--order", "position", "--name", "view", "--user", "ada"],
        &["event", "list", "--json", "--from", "2026-01-01T00:05:00Z", "--to", "2026-01-01T00:07:00Z"],
        &["event", "list", "--json", "--name", "view", "--name", "order", "--after", "9"],
        &["event", "list", "--json", "--before", "12", "--where", "amount>12", "--where", "plan~pr"],
        &["event", "show", "order-1", "--json"],
        &["count", "--json"],
        &["count", "--json", "--by", "hour", "--name", "view"],
        &["count", "--json", "--by", "day"],
        &["project", "list", "--json"],
    ] {
        let (beside, over_http) = (collector.beside(args), collector.over_http(args));
        assert_eq!(beside.json(), over_http.json(), "{args:?}");
        assert_eq!(beside.stdout, over_http.stdout, "{args:?}: in the same order");
    }
}

#[tokio::test]
async fn events_are_listed_paged_and_shown() {
    let collector = with_events().await;
    for (way, ask) in WAYS {
        let first = ask(&collector, &["event", "list", "--json", "--limit", "6"]).json();
        assert_eq!(first["events"][0]["name"], "order", "{way}");
        let next = first["next"].as_str().unwrap();
        let second = ask(&collector, &["event", "list", "--json", "--limit", "6", "--cursor", next]).json();
        assert_eq!(second["events"].as_array().unwrap().len(), 5, "{way}");
        assert_eq!(second["events"][0]["position"], 5, "{way}");
        assert_eq!(second["next"], Value::Null, "{way}");

        let lines = ask(&collector, &["event", "list", "--limit", "1"]).stdout;
        let fields: Vec<&str> = lines.trim_end().split('\t').collect();
        assert_eq!(fields[..4], ["11", "2026-01-01T01:00:00.000Z", "order", "bob"], "{way}");
        assert_eq!(
            serde_json::from_str::<Value>(fields[4]).unwrap(),
            json!({ "amount": 12.5, "plan": "pro" })
        );

        let shown = ask(&collector, &["event", "show", "order-1"]).stdout;
        assert!(shown.contains("user        bob") && shown.contains("\"amount\": 12.5"), "{way}: {shown}");
    }
}

#[tokio::test]
async fn every_filter_of_the_list_narrows_it() {
    let collector = with_events().await;
    for (way, ask) in WAYS {
        let positions = |args: &[&str]| -> Vec<u64> {
            let ran = ask(&collector, &[&["event", "list", "--json", "--order", "position"], args].concat());
            let page = ran.json();
            page["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| event["position"].as_u64().unwrap())
                .collect()
        };
        assert_eq!(positions(&["--where", "plan=pro"]), [11], "{way}");
        assert_eq!(positions(&["--where", "amount>=12.5", "--where", "plan"]), [11], "{way}");
        assert_eq!(positions(&["--where", "amount=\"12.5\""]), [0; 0], "{way}");
        assert_eq!(positions(&["--name", "order", "--name", "view", "--after", "9"]), [10, 11], "{way}");
        assert_eq!(positions(&["--name", "view", "--before", "3"]), [1, 2], "{way}");
        ask(&collector, &["event", "list", "--where", "plan="]).assert_failed(2, &["empty text"]);
    }
}

#[tokio::test]
async fn hostile_events_take_one_line_each_on_a_pipe() {
    let collector = Collector::start();
    let hostile = ["<b>&\"'", "\u{202e}txet", "\u{1b}[2J\r\n\t\u{7}\u{9b}", "👩\u{200d}🚀"];
    let long = "x".repeat(10_000);
    let mut events: Vec<Value> = hostile
        .iter()
        .map(|text| json!({ "name": text, "user": text, "properties": { *text: text } }))
        .collect();
    events.push(json!({ "name": "long", "user": "u", "properties": { "long": long } }));
    collector.send(json!({ "events": events })).await;
    for (way, ask) in WAYS {
        let listed = ask(&collector, &["event", "list", "--order", "position"]).stdout;
        assert_eq!(listed.lines().count(), 5, "{way}: {listed}");
        for line in listed.lines() {
            assert_eq!(line.split('\t').count(), 5, "{way}: {line:?}");
            assert!(
                !line.replace('\t', "").contains(char::is_control) && !line.contains('\u{202e}'),
                "{line:?}"
            );
        }
        assert!(listed.contains(&long), "a pipe gets everything");
        for (i, text) in hostile.iter().enumerate() {
            let key: String = text.chars().flat_map(|c| ['\\', c]).collect();
            let condition = format!("{key}={}", json!(text));
            let found = ask(&collector, &["event", "list", "--json", "--name", text, "--where", &condition]);
            assert_eq!(found.json()["events"][0]["position"], i + 1, "{way}: {condition:?}");
        }
    }
}

#[tokio::test]
async fn counts_come_by_name_and_hour() {
    let collector = with_events().await;
    for (way, ask) in WAYS {
        assert_eq!(ask(&collector, &["count"]).stdout, "order\t1\t1\nview\t10\t1\n", "{way}");
        let hourly = ask(&collector, &["count", "--by", "hour"]).stdout;
        assert!(hourly.contains("view\t2026-01-01T00:00:00.000Z\t10\t1\n"), "{way}: {hourly}");
        assert!(hourly.contains("order\t2026-01-01T01:00:00.000Z\t1\t1\n"), "{way}: {hourly}");
        let daily = ask(&collector, &["count", "--by", "day", "--name", "view"]).stdout;
        assert_eq!(daily, "view\t2026-01-01T00:00:00.000Z\t10\t1\n", "{way}");
        assert_eq!(ask(&collector, &["count", "--json"]).json()["users"], 2, "{way}: each once");
        let half = ask(&collector, &["count", "--from", "2026-01-01T00:30:00Z"]);
        half.assert_failed(1, &["eventbucket: count the events", "2026-01-01T00:00:00.000Z"]);
    }
}

#[tokio::test]
async fn the_audit_holds_and_a_rebuild_changes_nothing() {
    let collector = with_events().await;
    for (way, ask) in WAYS {
        let audit = ask(&collector, &["audit", "--json"]).json();
        let project = &audit["projects"][0];
        for (field, value) in [("name", json!("default")), ("stored", json!(11)), ("position", json!(11))] {
            assert_eq!(project[field], value, "{way}: {audit}");
        }
        assert!(project["project_id"].is_u64() && project["applied_to"] == 11, "{way}: {audit}");
        let checks = project["checks"].as_array().unwrap();
        assert!(checks.len() >= 8 && checks.iter().all(|check| check["holds"] == true), "{way}: {audit}");

        let lines = ask(&collector, &["audit"]);
        assert_eq!(lines.code, 0);
        assert!(
            lines.stdout.lines().all(|line| line.split('\t').nth(2) == Some("holds")),
            "{}",
            lines.stdout
        );
        assert_eq!(lines.stderr, "", "no progress bar on a pipe");

        let before = ask(&collector, &["count", "--by", "hour"]).stdout;
        let rebuilt = ask(&collector, &["rebuild", "--json"]).json();
        assert_eq!(rebuilt["applied_to"], 11, "{way}");
        assert_eq!(ask(&collector, &["count", "--by", "hour"]).stdout, before, "{way}");
    }
}

#[tokio::test]
async fn an_audit_that_finds_a_difference_exits_1() {
    let mut collector = with_events().await;
    assert_eq!(collector.terminate().code(), Some(0));
    let database = rusqlite::Connection::open(collector.folder().join("eventbucket.db")).unwrap();
    let tables: Vec<String> = database
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE '%head%'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(tables.len(), 1, "{tables:?}");
    database.execute_batch(&format!("UPDATE {} SET position = position + 1", tables[0])).unwrap();
    drop(database);
    let ran = collector.beside(&["audit"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stdout.contains("\tfails\t"), "{}", ran.stdout);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut unread = eventbucket(&["audit", "--data", collector.folder().to_str().unwrap()]);
    assert_eq!(
        unread.stdout(writer).status().unwrap().code(),
        Some(1),
        "a reader that went away hides nothing"
    );
    let ran = collector.beside(&["audit", "--json"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let audit: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(audit["projects"][0]["checks"].as_array().unwrap().iter().any(|check| check["holds"] == false));
}

#[tokio::test]
async fn projects_are_made_and_keys_renewed_beside_a_running_collector() {
    let collector = Collector::start();
    for (way, ask) in WAYS {
        let name = format!("shop-{way}");
        let made = ask(&collector, &["project", "create", &name, "--json"]).json();
        assert!(made["project_id"].is_u64(), "{made}");
        assert!(made["write_key"].as_str().unwrap().starts_with("eb_write_"), "{made}");
        let secret = made["secret_key"].as_str().unwrap().to_owned();
        assert!(secret.starts_with("eb_secret_"), "{made}");

        let listed = ask(&collector, &["project", "list"]).stdout;
        assert!(listed.contains(&format!("\t{name}\t0\t")), "{listed}");
        let again = ask(&collector, &["project", "create", &name]);
        again.assert_failed(1, &["eventbucket: create the project", &name, "another name"]);

        let mut renew = eventbucket(&["project", "rotate-key", &name, "--kind", "secret", "--json"]);
        match way {
            "data" => renew.arg("--data").arg(collector.folder()),
            _ => renew.args(["--url", collector.url(), "--key", &secret]),
        };
        let renewed = run(renew).json();
        assert!(renewed["key"].as_str().unwrap().starts_with("eb_secret_"), "{renewed}");
        eventually("the old key stops working", || {
            let old = run(eventbucket(&["count", "--url", collector.url(), "--key", &secret]));
            old.code == 1 && old.stderr.contains("EVENTBUCKET_KEY")
        });
        let new = renewed["key"].as_str().unwrap();
        assert_eq!(run(eventbucket(&["count", "--url", collector.url(), "--key", new])).code, 0);
    }
}

#[tokio::test]
async fn a_tail_shows_events_as_they_arrive() {
    let collector = Collector::start();
    for way in ["data", "url"] {
        let filter = ["--name", way, "--where", "i<9"];
        let mut command = eventbucket(&[&["event", "tail", "--json", "--after", "0"][..], &filter].concat());
        match way {
            "data" => command.arg("--data").arg(collector.folder()),
            _ => command.args(["--url", collector.url(), "--key", &collector.keys().secret]),
        };
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        for i in 0..3 {
            collector.send(json!({ "name": "other" })).await;
            collector.send(json!({ "name": way, "properties": { "i": 9 } })).await;
            collector.send(json!({ "name": way, "properties": { "i": i } })).await;
            let line = lines.recv_timeout(DEADLINE).unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&event["name"], &event["properties"]["i"]), (&json!(way), &json!(i)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[tokio::test]
async fn a_tail_goes_on_over_a_restart_of_the_collector() {
    let mut collector = Collector::start();
    let mut command = eventbucket(&["event", "tail", "--json", "--after", "0", "--url", collector.url()]);
    command.env("EVENTBUCKET_KEY", &collector.keys().secret);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    for i in 1..=3 {
        collector.send(json!({ "name": "hello" })).await;
        let event: Value = serde_json::from_str(&lines.recv_timeout(DEADLINE).unwrap()).unwrap();
        assert_eq!(event["position"], i);
        collector.kill();
        collector.restart();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn an_id_is_shown_whatever_it_looks_like() {
    let collector = Collector::start();
    let ids = ["tail", ".", "..", "a/b", "../x", "50%", "two words", "a?b#c&d", " "];
    for id in ids {
        collector.send(json!({ "id": id, "name": "hello" })).await;
    }
    for (way, ask) in WAYS {
        for id in ids {
            assert_eq!(ask(&collector, &["event", "show", id, "--json"]).json()["id"], id, "{way}");
        }
        ask(&collector, &["event", "show", ""]).assert_failed(2, &["<ID>"]);
    }
}

#[tokio::test]
async fn a_tail_misses_nothing_that_comes_while_it_is_away() {
    let mut collector = Collector::start();
    collector.send(json!({ "name": "before" })).await;
    let mut command = eventbucket(&["event", "tail", "--json", "--name", "wanted", "--url", collector.url()]);
    command.env("EVENTBUCKET_KEY", &collector.keys().secret);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (lines, notes) = (lines_of(child.stdout.take().unwrap()), lines_of(child.stderr.take().unwrap()));
    eventually("the tail is open", || {
        let figures = collector.metrics();
        figures.contains("eventbucket_http_requests_total{route=\"/v1/events/tail\",status=\"200\"} 1")
    });
    collector.kill();
    assert!(notes.recv_timeout(DEADLINE).unwrap().contains("broke off"));
    // The tail tries again every second. What is stored before it is back, it has not seen: the tail was paused.
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    collector.restart();
    collector.send(json!({ "name": "wanted", "properties": { "i": 1 } })).await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let event: Value = serde_json::from_str(&lines.recv_timeout(DEADLINE).unwrap()).unwrap();
    assert_eq!((&event["position"], &event["properties"]["i"]), (&json!(2), &json!(1)));
    child.kill().unwrap();
    child.wait().unwrap();
}
