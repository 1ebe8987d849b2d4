//! What `eventbucket doctor` finds: over each form, over what is broken, and without changing anything.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use eventbucket_collector::store::{DATABASE_FILE, SqliteOptions, Store};
use eventbucket_servers::{Redis, shared};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Collector, Ran, eventbucket, eventually, run};
use crate::store_fixture::{batch, count_all, events, project};

/// Nobody listens there: what a folder's configuration says unless a test says otherwise.
const NOWHERE: &str = "127.0.0.1:1";

fn doctor(data: &Path, listen: &str) -> Ran {
    let mut command = eventbucket(&["doctor", "--data", data.to_str().unwrap()]);
    command.env("EVENTBUCKET_LISTEN", listen);
    run(command)
}

/// What it printed, with its exit code as it must be.
fn report(ran: &Ran) -> Value {
    let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let code = match report["status"].as_str().unwrap() {
        "ok" => 0,
        "warning" => 1,
        _ => 2,
    };
    assert_eq!(ran.code, code, "{report}");
    report
}

/// Findings that are not as they should be; the disk of whoever runs the tests is left out.
fn complaints(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let bad = findings.filter(|finding| finding["level"] != "ok" && finding["area"] != "disk");
    bad.map(|finding| {
        format!("{} {}: {}", finding["level"], finding["area"], finding["found"]).replace('"', "")
    })
    .collect()
}

fn tells(report: &Value, area: &str, part: &str) -> bool {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .any(|finding| finding["area"] == area && finding["found"].as_str().unwrap().contains(part))
}

fn files(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn host(collector: &Collector) -> &str {
    collector.url().strip_prefix("http://").unwrap()
}

#[tokio::test]
async fn a_folder_that_is_served_is_explained() {
    let mut collector = Collector::start();
    for id in ["a", "b", "c"] {
        collector.send(json!({ "events": [{ "id": id, "name": "x" }] })).await;
    }
    eventually("all is counted", || collector.beside(&["audit"]).code == 0);
    let told = report(&doctor(collector.folder(), host(&collector)));
    assert_eq!(complaints(&told), [""; 0], "{told}");
    for (area, part) in [
        ("program", "eventbucket "),
        ("collector", "answers at"),
        ("collector", "ready"),
        ("collector", "3 events stored"),
        ("database", "SQLite 3."),
        ("folder", "is its owner's alone"),
    ] {
        assert!(tells(&told, area, part), "{area}: {part} is not in {told}");
    }
    let shop = &told["projects"][0];
    assert_eq!(
        (&shop["name"], &shop["events"], &shop["position"]),
        (&json!("default"), &json!(3), &json!(3))
    );
    assert_eq!(shop["behind"], 0);
    assert!(
        shop["bytes"].as_u64().unwrap() > 0 && shop["oldest"].as_str() <= shop["newest"].as_str(),
        "{shop}"
    );

    let over_http = collector.over_http(&["doctor"]);
    assert_eq!(complaints(&report(&over_http)), [""; 0]);
    assert_eq!(report(&over_http).get("projects"), None, "a key isn't asked for");
    collector.terminate();
    let state = || (files(collector.folder()), fs::read(collector.folder().join(DATABASE_FILE)).unwrap());
    // What SQLite keeps beside a file for readers, here too, holds nothing.
    let mut before = state();
    before.0.extend(["-shm", "-wal"].map(|ending| format!("{DATABASE_FILE}{ending}")));
    let told = report(&doctor(collector.folder(), NOWHERE));
    assert_eq!(complaints(&told), [""; 0], "one that is stopped is well too: {told}");
    assert!(tells(&told, "collector", "none answers here"), "{told}");
    assert_eq!(state(), before, "the file is as it was");
    assert_eq!(fs::metadata(collector.folder().join("eventbucket.db-wal")).unwrap().len(), 0);
    let gone = collector.over_http(&["doctor"]);
    assert!(complaints(&report(&gone))[0].starts_with("problem collector: "), "{gone:?}");
}

/// A closed data folder with some events, its owner's alone.
async fn made(data: &Path) -> PathBuf {
    let file = data.join(DATABASE_FILE);
    let store = Store::sqlite(SqliteOptions::new(&file)).unwrap();
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("e", 10))]).await.unwrap();
    count_all(&store, shop).await;
    store.close().await.unwrap();
    file
}

#[tokio::test]
async fn what_is_broken_is_told_with_what_to_do() {
    let around = tempfile::tempdir().unwrap();
    let data = around.path().join("data");
    let told = report(&doctor(&data, NOWHERE));
    assert_eq!(told["status"], "problem");
    assert!(tells(&told, "folder", "there is no folder"), "{told}");
    assert!(!data.exists(), "nothing is made");

    let file = made(&data).await;
    let sql = |statement: &str| Connection::open(&file).unwrap().execute_batch(statement).unwrap();
    let found = |part: &str| {
        let told = complaints(&report(&doctor(&data, NOWHERE)));
        assert!(told.iter().any(|one| one.contains(part)), "{part:?} is not in {told:?}");
    };
    assert_eq!(complaints(&report(&doctor(&data, NOWHERE))), [""; 0]);
    sql("DELETE FROM view_live");
    found("problem counts: the counts of \\shop\\ are missing");
    sql(
        "INSERT INTO view_live VALUES ('counts', 1, 1); CREATE TRIGGER mine AFTER INSERT ON usage BEGIN SELECT 1; END",
    );
    found("warning database: the trigger mine is not ours");
    let ahead = SystemTime::now() + Duration::from_secs(3_600);
    let ahead_ms = ahead.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    sql(&format!("DROP TRIGGER mine; UPDATE event SET received_ms = {ahead_ms}"));
    found("warning clock: the newest event of \\shop\\ arrived in the future");
    fs::write(data.join("eventbucket.db.partial"), "half").unwrap();
    found("warning copies: eventbucket.db.partial (4 B) is a copy that isn't whole");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    found("warning folder: other users of this machine may look into");
    fs::write(data.join("eventbucket.toml"), "listne = \"127.0.0.1:1\"\n").unwrap();
    found("problem configuration: ");
    fs::write(data.join("eventbucket.toml"), "[edge]\nfree_disk_min = \"0MiB\"\n").unwrap();
    found("warning configuration: edge.free_disk_min is 0");
    let far = doctor(&data, "0.0.0.0:1");
    assert!(complaints(&report(&far)).iter().any(|one| one.contains("without TLS")), "{far:?}");
    sql("PRAGMA user_version = 99");
    found("problem database: the database has schema 99");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    found("problem database: ");
    fs::write(&file, "a letter to somebody, longer than a header would be".repeat(9)).unwrap();
    found("is not an Event Bucket database");
    fs::remove_file(&file).unwrap();
    found("problem database: there is no database at");
}

#[tokio::test]
async fn what_a_collector_warned_of_is_kept_for_who_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(data.join("eventbucket.toml"), "[edge]\nfree_disk_min = \"1000TiB\"\n").unwrap();
    let mut collector = Collector::start_in(&data, &[]);
    let told = report(&doctor(&data, host(&collector)));
    assert!(tells(&told, "collector", "not ready: "), "{told}");
    assert!(tells(&told, "disk", "batches are refused"), "{told}");
    collector.kill();
    let told = report(&doctor(&data, NOWHERE));
    let warned = told["warned"].as_array().unwrap();
    assert!(
        warned.iter().any(|line| line["message"].as_str().unwrap().starts_with("the disk is almost full")),
        "{told}"
    );
    let mode = fs::metadata(data.join("eventbucket.warnings")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "they are their owner's alone");
}

#[tokio::test]
async fn servers_are_explained_and_nothing_is_made_on_them() {
    let mut redis = Redis::start().unwrap();
    let (store, folder) = (shared::database(), tempfile::tempdir().unwrap());
    let file = format!(
        "[store]\nurl = \"{store}\"\n[cache]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 2\n",
        redis.url(),
        shared::vhost()
    );
    let toml = folder.path().join("eventbucket.toml");
    fs::write(&toml, file).unwrap();
    fs::set_permissions(&toml, fs::Permissions::from_mode(0o640)).unwrap();
    let look = |listen: &str| report(&doctor(folder.path(), listen));
    // Twice: what the first made, the second would find.
    for _ in 0..2 {
        let told = look(NOWHERE);
        for (area, part) in [
            ("database", "no collector has made its log yet"),
            ("database", "no collector has made its accounts yet"),
            ("Redis", "nobody's yet"),
            ("RabbitMQ", "no collector has made its queues yet"),
        ] {
            assert!(tells(&told, area, part), "{area}: {part} is not in {told}");
        }
    }
    assert!(tells(&look(NOWHERE), "configuration", "holds a password and others may read it"));
    fs::set_permissions(&toml, fs::Permissions::from_mode(0o600)).unwrap();
    let collector = Collector::start_in(folder.path(), &[]);
    collector.send(json!({ "events": [{ "name": "x" }, { "name": "y" }] })).await;
    eventually("it is counted", || {
        let told = look(host(&collector));
        told["projects"][0]["events"] == 2 && told["projects"][0]["behind"] == 0
    });
    let told = look(host(&collector));
    assert_eq!(complaints(&told), [""; 0], "{told}");
    for (area, part) in [
        ("database", "PostgreSQL "),
        ("Redis", "of the store postgres-"),
        ("RabbitMQ", "0 messages wait to be stored"),
        ("collector", "ready"),
    ] {
        assert!(tells(&told, area, part), "{area}: {part} is not in {told}");
    }
    redis.kill().unwrap();
    let told = look(host(&collector));
    assert!(complaints(&told).iter().any(|one| one.starts_with("problem Redis: redis at")), "{told}");
    let absent = format!("{store}-absent");
    let mut command = eventbucket(&["doctor", "--data", folder.path().to_str().unwrap()]);
    command.env("EVENTBUCKET_STORE_URL", absent).env("EVENTBUCKET_LISTEN", NOWHERE);
    let told = report(&run(command));
    assert!(complaints(&told).iter().any(|one| one.starts_with("problem database: ")), "{told}");
}
