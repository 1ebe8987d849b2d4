//! Each backend can be chosen alone: whatever stands behind the collector, an application sees the same.

use eventbucket_servers::{Redis, shared};
use serde_json::json;

use crate::harness::{Collector, eventbucket, eventually, run};

#[tokio::test]
async fn each_backend_can_be_chosen_alone() {
    for chosen in 1..8_u8 {
        let is_chosen = |bit: u8| chosen & bit != 0;
        let mut file = String::new();
        if is_chosen(1) {
            file.push_str(&format!("[store]\nurl = \"{}\"\n", shared::database()));
        }
        if is_chosen(2) {
            file.push_str(&format!("[bus]\nurl = \"{}\"\nshards = 2\n", shared::vhost()));
        }
        let redis = is_chosen(4).then(|| Redis::start().unwrap());
        if let Some(redis) = &redis {
            file.push_str(&format!("[cache]\nurl = \"{}\"\n", redis.url()));
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::write(folder.path().join("eventbucket.toml"), &file).unwrap();
        let mut collector = Collector::start_in(folder.path(), &[]);
        for number in [1, 2, 3, 1] {
            collector.send(json!({"id": format!("e-{number}"), "name": "chosen"})).await;
        }
        eventually(&format!("three of four are stored and counted with {file}"), || {
            let counted = collector.over_http(&["count", "--json"]);
            counted.json()["counts"][0]["count"] == 3
        });
        let audited = collector.over_http(&["audit", "--json"]);
        assert_eq!(audited.code, 0, "{file}{}", audited.stdout);
        assert_eq!(collector.terminate().code(), Some(0), "{file}{}", collector.logged());
        collector.restart();
        let counted = collector.over_http(&["count", "--json"]).json();
        assert_eq!(counted["counts"][0]["count"], 3, "{file}");
        let data = folder.path().to_str().unwrap();
        let beside = run(eventbucket(&["count", "--project", "default", "--data", data, "--json"])).json();
        assert_eq!(beside["counts"][0]["count"], 3, "{file}");
    }
}

/// Starts a collector in vain and returns what it said.
fn refused(variables: &[(&str, String)]) -> String {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = eventbucket(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(folder.path()).envs(variables.iter().map(|(name, value)| (name, value)));
    let ran = run(command);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(!ran.stderr.contains("send again"), "{ran:?}");
    ran.stderr
}

#[test]
fn a_start_that_a_server_refuses_tells_what_to_change() {
    let (store, bus) = (shared::database(), shared::vhost());
    let (server, _) = store.rsplit_once('/').unwrap();
    let told = refused(&[("EVENTBUCKET_STORE_URL", format!("{server}/absent"))]);
    assert!(told.contains("\"absent\" does not exist") && told.contains("CREATE DATABASE"), "{told}");
    let (_, host) = store.rsplit_once('@').unwrap();
    let told = refused(&[("EVENTBUCKET_STORE_URL", format!("postgres://absent@{host}"))]);
    assert!(told.contains("\"absent\" does not exist") && told.contains("check the role"), "{told}");
    let (server, _) = bus.rsplit_once('/').unwrap();
    let told = refused(&[("EVENTBUCKET_BUS_URL", format!("{server}/absent"))]);
    assert!(told.contains("no such virtual host") && !told.contains("is away"), "{told}");
    let redis = shared::redis();
    let told = refused(&[("EVENTBUCKET_CACHE_URL", format!("{}/99", redis.trim_end_matches("/0")))]);
    assert!(told.contains("doesn't have the database") && !told.contains("is away"), "{told}");
}
