//! What the commands that read and manage refuse, and how they say it.

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::json;

use crate::harness::{Collector, eventbucket, run};

const COMMANDS: &[&[&str]] = &[
    &["project", "list"],
    &["project", "create", "x"],
    &["project", "rotate-key", "default", "--kind", "write"],
    &["event", "list"],
    &["event", "tail"],
    &["event", "show", "x"],
    &["count"],
    &["rebuild"],
];

#[test]
fn a_wrong_key_is_refused_by_every_command() {
    let collector = Collector::start();
    for args in COMMANDS.iter().chain([&["audit"][..]].iter()) {
        let mut command = eventbucket(args);
        command.args(["--url", collector.url(), "--key", "eb_secret_nonsense"]);
        let code = if args[0] == "audit" { 2 } else { 1 };
        run(command).assert_failed(code, &["eventbucket: ", "key", "EVENTBUCKET_KEY"]);
    }
    let mut command = eventbucket(&["count", "--url", collector.url()]);
    command.env("EVENTBUCKET_KEY", &collector.keys().write);
    run(command).assert_failed(1, &["secret key"]);
}

#[tokio::test]
async fn a_collector_that_is_down_is_named_by_every_command() {
    // A port that is held by a socket nobody listens on, so that no other test gets it.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", held.local_addr().unwrap());
    for args in COMMANDS.iter().chain([&["audit"][..]].iter()) {
        let mut command = eventbucket(args);
        command.args(["--url", &url, "--key", "k"]);
        let code = if args[0] == "audit" { 2 } else { 1 };
        run(command).assert_failed(code, &[&url, "can't be reached", "refused", "eventbucket serve"]);
    }
}

#[test]
fn something_else_at_the_address_is_noticed() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", other.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = other.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    });
    run(eventbucket(&["count", "--url", &url, "--key", "k"]))
        .assert_failed(1, &["the answer can't be read", "Event Bucket collector"]);
    server.join().unwrap();
}

#[test]
fn a_folder_without_a_collector_is_refused_by_every_command_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("nothing");
    for args in COMMANDS.iter().chain([&["audit"][..]].iter()) {
        let mut command = eventbucket(args);
        command.arg("--data").arg(&data);
        let code = if args[0] == "audit" { 2 } else { 1 };
        run(command).assert_failed(code, &["eventbucket: open the data folder", "eventbucket serve"]);
    }
    assert!(!data.exists());
}

#[test]
fn a_project_that_does_not_exist_is_answered_with_those_that_do() {
    let collector = Collector::start();
    for args in [&["count"][..], &["event", "list"], &["event", "tail"], &["rebuild"]] {
        let mut command = eventbucket(args);
        command.arg("--data").arg(collector.folder()).args(["--project", "shpo"]);
        run(command).assert_failed(1, &["eventbucket: find the project", "\"shpo\"", "default"]);
    }
    for ask in [Collector::beside, Collector::over_http] {
        let ran = ask(&collector, &["project", "rotate-key", "shpo", "--kind", "write"]);
        ran.assert_failed(1, &["eventbucket: find the project", "\"shpo\""]);
        ask(&collector, &["event", "show", "absent"]).assert_failed(1, &["show the event", "absent"]);
    }
}

#[test]
fn flags_that_do_not_go_together_are_a_wrong_use() {
    let both = run(eventbucket(&["count", "--data", "x", "--url", "http://127.0.0.1:1"]));
    both.assert_failed(2, &["--data", "--url"]);
    let project = run(eventbucket(&["count", "--url", "http://127.0.0.1:1", "--key", "k", "--project", "x"]));
    project.assert_failed(2, &["--project goes with --data"]);
    run(eventbucket(&["count", "--url", "http://127.0.0.1:1"])).assert_failed(2, &["EVENTBUCKET_KEY"]);
    run(eventbucket(&["count", "--url", "nonsense", "--key", "k"]))
        .assert_failed(2, &["http://127.0.0.1:4000"]);
    run(eventbucket(&["count", "--from", "yesterday"])).assert_failed(2, &["2026-01-31T12:00:00Z"]);
    let browser = ["project", "rotate-key", "default", "--kind", "secret", "--browser"];
    run(eventbucket(&browser)).assert_failed(2, &["--browser is for write keys"]);
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let collector = Collector::start();
    let events: Vec<_> = (0..1_000)
        .map(|i| serde_json::json!({ "id": format!("e{i}"), "name": "hello", "properties": { "pad": "x".repeat(500) } }))
        .collect();
    collector.send(serde_json::json!({ "events": events })).await;
    let mut command = eventbucket(&["event", "list", "--limit", "1000", "--data"]);
    let mut child =
        command.arg(collector.folder()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[tokio::test]
async fn control_characters_of_senders_do_not_reach_the_terminal() {
    let collector = Collector::start();
    collector.send(serde_json::json!({ "name": "a\u{1b}[31mred\tb" })).await;
    let lines = collector.beside(&["event", "list"]).stdout;
    assert!(!lines.contains('\x1b'), "{lines:?}");
    assert_eq!(lines.trim_end().split('\t').count(), 5, "{lines:?}");
    assert!(lines.contains("a\\u{1b}[31mred\\tb"), "{lines:?}");
}

/// A device on which every write fails with "No space left on device".
fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn keys_that_can_not_be_printed_are_not_lost() {
    let collector = Collector::start();
    let data = collector.folder().to_str().unwrap();
    for args in [
        &["project", "create", "shop"][..],
        &["project", "create", "blog", "--json"],
        &["project", "rotate-key", "shop", "--kind", "secret"],
    ] {
        let mut command = eventbucket(args);
        let output = command.args(["--data", data]).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("eb_secret_") && said.contains("write to stdout"), "{said}");
    }
}

#[test]
fn an_audit_that_can_not_be_printed_has_found_nothing_wrong() {
    let collector = Collector::start();
    for json in [&[][..], &["--json"]] {
        let mut command = eventbucket(&["audit", "--data", collector.folder().to_str().unwrap()]);
        let output = command.args(json).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("write to stdout"), "{said}");
    }
}

#[tokio::test]
async fn text_that_turns_the_line_around_is_shown_and_not_obeyed() {
    let collector = Collector::start();
    collector
        .send(json!({ "id": "1", "name": "gpj\u{202e}exe", "properties": { "a\u{2066}": "\u{200f}\u{9b}" } }))
        .await;
    let lines = collector.beside(&["event", "list"]).stdout;
    assert!(lines.contains("gpj\\u{202e}exe"), "{lines:?}");
    let shown = collector.beside(&["event", "show", "1"]).stdout;
    for text in [lines, shown] {
        assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\u{9b}']), "{text:?}");
    }
    let exact = collector.beside(&["event", "show", "1", "--json"]).json();
    assert_eq!(exact["name"], "gpj\u{202e}exe", "a program gets what was sent");
}

#[test]
fn a_tail_from_behind_the_end_of_the_log_is_refused_both_ways() {
    let collector = Collector::start();
    for ask in [Collector::beside, Collector::over_http] {
        ask(&collector, &["event", "tail", "--after", "7"])
            .assert_failed(1, &["follow the log", "position 7 lies beyond the end of the log (0)"]);
    }
}

#[test]
fn what_is_said_of_an_address_is_not_ignored_when_there_is_none() {
    let collector = Collector::start();
    let mut command = eventbucket(&["count", "--key", "k"]);
    command.env("EVENTBUCKET_DATA", collector.folder());
    run(command).assert_failed(2, &["--key goes with --url"]);
    let mut command = eventbucket(&["count", "--ca-file", "f"]);
    command.env("EVENTBUCKET_DATA", collector.folder());
    run(command).assert_failed(2, &["--ca-file goes with --url"]);
}

#[test]
fn a_variable_that_is_not_text_is_not_ignored() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    for args in [&["serve", "--check-config"][..], &["count"]] {
        let mut command = eventbucket(args);
        command.current_dir(folder.path());
        command.env("EVENTBUCKET_DATA", std::ffi::OsStr::from_bytes(b"/srv/\xff"));
        run(command).assert_failed(2, &["EVENTBUCKET_DATA", "UTF-8"]);
    }
}
