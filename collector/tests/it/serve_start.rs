//! What a start does: prints, makes, refuses.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::harness::{Collector, eventbucket, run};

fn serve(data: &str, listen: &str) -> crate::harness::Ran {
    run(eventbucket(&["serve", "--data", data, "--listen", listen]))
}

#[tokio::test]
async fn the_first_start_prints_keys_that_work_and_later_ones_print_none() {
    let mut collector = Collector::start();
    let keys = collector.keys().clone();
    let welcome = collector.welcome().to_owned();
    assert!(welcome.contains(&format!("{}/#write={}&secret={}", collector.url(), keys.write, keys.secret)));
    assert!(welcome.contains("curl --json"), "{welcome}");
    assert!(welcome.contains("eventbucket::Bucket::builder("), "{welcome}");
    assert!(!welcome.contains('\x1b'), "no colour on a pipe: {welcome}");

    let reply = collector.send(json!({ "name": "hello" })).await;
    assert!(reply.to_string().contains("stored"), "{reply}");

    assert_eq!(collector.terminate().code(), Some(0));
    collector.restart();
    assert!(!collector.welcome().contains("eb_write_") && !collector.welcome().contains("eb_secret_"));
    assert!(collector.welcome().contains("rotate-key default"), "{}", collector.welcome());
    assert_eq!(collector.keys().write, keys.write);
    let reply = collector.send(json!({ "name": "hello again" })).await;
    assert!(reply.to_string().contains("stored"), "{reply}");
}

#[tokio::test]
async fn no_command_serves() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = eventbucket(&["--data", folder.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = crate::harness::lines_of(child.stdout.take().unwrap());
    let listening = lines.iter().find(|line| line.starts_with("listening on http://127.0.0.1:"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(listening.is_some());
}

#[test]
fn keys_never_reach_the_log() {
    let mut collector = Collector::start_with(&[]);
    let keys = collector.keys().clone();
    assert_eq!(collector.terminate().code(), Some(0));
    let logged = collector.logged();
    assert!(logged.contains("stopped"), "{logged}");
    assert!(!logged.contains(&keys.write) && !logged.contains(&keys.secret), "{logged}");
}

#[test]
fn logs_as_json_are_one_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.toml");
    fs::write(&file, "[log]\nformat = \"json\"\nlevel = \"debug\"\n").unwrap();
    let mut collector = Collector::start_with(&["--config", file.to_str().unwrap()]);
    assert_eq!(collector.terminate().code(), Some(0));
    let logged = collector.logged();
    let lines: Vec<serde_json::Value> =
        logged.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["level"] == "INFO" && line["message"].is_string()), "{logged}");
}

#[test]
fn a_port_in_use_is_named_and_no_keys_are_lost() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    serve(data, &address).assert_failed(1, &["eventbucket: listen on", &address, "is in use", "--listen"]);
    // The keys are shown once: the start that could show them is the one that makes them.
    let collector = Collector::start_in(folder.path(), &[]);
    assert!(collector.keys().write.starts_with("eb_write_"));
}

#[test]
fn a_second_collector_on_the_folder_is_told_who_serves_it() {
    let collector = Collector::start();
    let pid = collector.pid().to_string();
    let data = collector.folder().to_str().unwrap();
    serve(data, "127.0.0.1:0").assert_failed(1, &["eventbucket: open the data folder", &pid, "--data"]);
}

#[test]
fn a_data_folder_that_is_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let data = file.to_str().unwrap();
    serve(data, "127.0.0.1:0")
        .assert_failed(1, &["eventbucket: open the data folder", "is a file", "--data"]);
    run(eventbucket(&["count", "--data", data])).assert_failed(1, &["is a file", "--data"]);
}

#[test]
fn a_bad_address_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for address in ["localhost", "127.0.0.1", "127.0.0.1:99999", "x:1"] {
        serve(data.to_str().unwrap(), address)
            .assert_failed(1, &["flag --listen", address, "127.0.0.1:4000"]);
    }
    // An address of nobody here: documentation addresses are routed nowhere.
    serve(data.to_str().unwrap(), "192.0.2.1:4000").assert_failed(1, &["is not an address of this machine"]);
}

#[test]
fn a_file_that_is_not_our_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("eventbucket.db");
    let content = "a letter to somebody".repeat(100);
    fs::write(&file, &content).unwrap();
    let data = folder.path().to_str().unwrap();
    serve(data, "127.0.0.1:0").assert_failed(1, &["is not an Event Bucket database", "--data"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), content);

    fs::remove_file(&file).unwrap();
    let foreign = rusqlite::Connection::open(&file).unwrap();
    foreign.execute_batch("CREATE TABLE recipe (name TEXT)").unwrap();
    drop(foreign);
    serve(data, "127.0.0.1:0").assert_failed(1, &["is not an Event Bucket database"]);
}

#[test]
fn a_newer_schema_is_refused_by_its_number() {
    let mut collector = Collector::start();
    assert_eq!(collector.terminate().code(), Some(0));
    let file = collector.folder().join("eventbucket.db");
    let database = rusqlite::Connection::open(&file).unwrap();
    database.pragma_update(None, "user_version", 999).unwrap();
    drop(database);
    let data = collector.folder().to_str().unwrap();
    let parts = ["schema 999", "newer eventbucket"];
    serve(data, "127.0.0.1:0").assert_failed(1, &parts);
    run(eventbucket(&["audit", "--data", data])).assert_failed(2, &parts);
}

#[test]
fn a_database_that_can_not_be_written_is_refused() {
    let mut collector = Collector::start();
    assert_eq!(collector.terminate().code(), Some(0));
    let file = collector.folder().join("eventbucket.db");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let data = collector.folder().to_str().unwrap();
    serve(data, "127.0.0.1:0").assert_failed(1, &["can't be written", "permissions"]);
}

#[test]
fn an_unknown_flag_is_a_wrong_use() {
    let ran = run(eventbucket(&["serve", "--lisen", "127.0.0.1:0"]));
    ran.assert_failed(2, &["--lisen", "--listen"]);
}

#[test]
fn keys_that_stdout_does_not_take_go_to_stderr() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut command = eventbucket(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = command.stdout(full).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let lines = crate::harness::lines_of(child.stderr.take().unwrap());
    let said: Vec<String> = std::iter::from_fn(|| lines.recv_timeout(crate::harness::DEADLINE).ok())
        .take_while(|line| !line.starts_with("listening on http://"))
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let said = said.join("\n");
    assert!(said.contains("eb_write_") && said.contains("eb_secret_"), "{said}");
}

#[test]
fn a_first_start_that_can_show_its_keys_nowhere_ends() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = eventbucket(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
    let mut child = command.stdout(full()).stderr(full()).spawn().unwrap();
    let mut ended = None;
    crate::harness::eventually("it ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(2));
}
