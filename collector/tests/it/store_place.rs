//! The files under a store: moved, deleted or replaced while it is open, locked, and for nobody else's eyes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{DATABASE_FILE, Error, SqliteOptions, Store};
use eventbucket_collector::workers;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::harness::{self, Collector, http};
use crate::store_fixture::{batch, count_all, event, events, eventually, project, with_project};

/// A store in a data folder that can be moved, with three events.
struct Movable {
    around: TempDir,
    store: Store,
    shop: ProjectId,
}

impl Movable {
    async fn start() -> Self {
        let around = tempfile::tempdir().unwrap();
        let store = open(&around.path().join("data"));
        let shop = project(&store, "shop").await.project.id;
        store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
        Self { around, store, shop }
    }

    fn data(&self) -> PathBuf {
        self.around.path().join("data")
    }

    /// Appends one event, which must fail, and returns why.
    async fn refused(&self) -> Error {
        self.store.append(vec![batch(self.shop, events("y", 1))]).await.unwrap_err()
    }
}

fn open(data: &Path) -> Store {
    Store::sqlite(SqliteOptions::new(data.join(DATABASE_FILE))).unwrap()
}

#[tokio::test]
async fn a_folder_that_is_moved_away_takes_nothing_in_until_it_is_back() {
    let at = Movable::start().await;
    let elsewhere = at.around.path().join("elsewhere");
    fs::rename(at.data(), &elsewhere).unwrap();
    let told = at.refused().await;
    assert_eq!(told.status(), 503);
    assert!(told.to_string().contains("moved, replaced or deleted"), "{told}");
    assert!(at.store.serving().is_err());
    assert!(!at.data().exists(), "nothing is made in its place");
    fs::rename(elsewhere, at.data()).unwrap();
    eventually("serving again", async || at.store.serving().is_ok()).await;
    at.store.append(vec![batch(at.shop, events("y", 1))]).await.unwrap();
    count_all(&at.store, at.shop).await;
    assert!(audit(&at.store, None, |_, _| {}).await.unwrap().holds());
    assert_eq!(at.store.head(at.shop).await.unwrap(), 4);
}

#[tokio::test]
async fn a_folder_that_is_moved_is_noticed_without_an_append() {
    let at = Movable::start().await;
    fs::rename(at.data(), at.around.path().join("elsewhere")).unwrap();
    eventually("noticing", async || at.store.serving().is_err()).await;
}

#[tokio::test]
async fn a_deleted_folder_is_not_made_anew() {
    let at = Movable::start().await;
    fs::remove_dir_all(at.data()).unwrap();
    assert_eq!(at.refused().await.status(), 503);
    assert_eq!(at.refused().await.status(), 503);
    assert!(at.store.serving().is_err());
    assert!(!at.data().exists());
}

#[tokio::test]
async fn a_database_replaced_by_a_copy_takes_nothing_in() {
    let at = Movable::start().await;
    let (file, copy) = (at.data().join(DATABASE_FILE), at.data().join("copy"));
    fs::copy(&file, &copy).unwrap();
    fs::rename(copy, file).unwrap();
    let told = at.refused().await.to_string();
    assert!(told.contains("moved, replaced or deleted"), "{told}");
}

#[tokio::test]
async fn a_deleted_write_ahead_log_costs_no_confirmed_event() {
    let at = Movable::start().await;
    fs::remove_file(at.data().join("eventbucket.db-wal")).unwrap();
    let told = at.refused().await.to_string();
    assert!(told.contains("eventbucket.db-wal"), "{told}");
    // As a kill would leave it: what was confirmed is in the file already.
    let after = at.around.path().join("after");
    fs::create_dir(&after).unwrap();
    fs::copy(at.data().join(DATABASE_FILE), after.join(DATABASE_FILE)).unwrap();
    let store = open(&after);
    assert!(store.head(at.shop).await.unwrap() >= 3);
    count_all(&store, at.shop).await;
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
}

#[tokio::test]
async fn a_deleted_index_of_the_log_stops_the_writer_before_it_meets_another() {
    let mut collector = Collector::start();
    for name in ["first", "second"] {
        collector.send(json!({ "name": name })).await;
    }
    fs::remove_file(collector.folder().join("eventbucket.db-shm")).unwrap();
    // It makes the index anew and writes to the same log.
    let made = collector.beside(&["project", "create", "beside", "--json"]);
    assert_eq!(made.code, 0, "{made:?}");
    let url = format!("{}/v1/events", collector.url());
    let send = http().post(url).bearer_auth(&collector.keys().write).json(&json!({ "name": "third" }));
    let refused = send.send().await.unwrap();
    assert_eq!(refused.status(), 503);
    let told = refused.text().await.unwrap();
    assert!(told.contains("eventbucket.db-shm"), "{told}");
    assert!(collector.terminate().success(), "{}", collector.logged());
    collector.restart();
    let listed = collector.beside(&["project", "list"]);
    assert!(listed.stdout.contains("beside"), "{listed:?}");
    collector.send(json!({ "name": "third" })).await;
    let audited = collector.beside(&["audit", "--json"]).json();
    assert_eq!(audited["projects"][0]["stored"], 3, "{audited}");
}

#[tokio::test]
async fn a_database_deleted_beside_its_write_ahead_log_is_not_made_anew() {
    let at = Movable::start().await;
    let after = at.around.path().join("after");
    fs::create_dir(&after).unwrap();
    let log = "eventbucket.db-wal";
    fs::copy(at.data().join(log), after.join(log)).unwrap();
    let before = fs::read(after.join(log)).unwrap();
    let opened = Store::sqlite(SqliteOptions::new(after.join(DATABASE_FILE)));
    let told = opened.err().expect("refused").to_string();
    assert!(told.contains("eventbucket.db-wal"), "{told}");
    assert_eq!(fs::read(after.join(log)).unwrap(), before);
}

#[tokio::test]
async fn an_empty_database_beside_a_log_is_refused_and_keeps_the_log() {
    let mut collector = Collector::start();
    collector.send(json!({ "name": "kept" })).await;
    collector.kill();
    let log = collector.folder().join("eventbucket.db-wal");
    let before = fs::read(&log).unwrap();
    assert!(!before.is_empty());
    fs::write(collector.folder().join(DATABASE_FILE), "").unwrap();
    for (command, code) in [(&["count"][..], 1), (&["audit"], 2), (&["project", "create", "new"], 1)] {
        collector.beside(command).assert_failed(code, &["gone or empty", "eventbucket.db-wal"]);
    }
    let opened = Store::sqlite(SqliteOptions::new(collector.folder().join(DATABASE_FILE)));
    assert!(matches!(opened, Err(Error::LogAlone { .. })));
    assert_eq!(fs::read(log).unwrap(), before);
}

#[tokio::test]
async fn a_database_with_two_names_is_refused() {
    let around = tempfile::tempdir().unwrap();
    let first = around.path().join("first");
    drop(open(&first));
    for (name, link) in [("hard", fs::hard_link as fn(PathBuf, PathBuf) -> _), ("symbolic", symlink)] {
        let folder = around.path().join(name);
        fs::create_dir(&folder).unwrap();
        link(first.join(DATABASE_FILE), folder.join(DATABASE_FILE)).unwrap();
        let opened = Store::sqlite(SqliteOptions::new(folder.join(DATABASE_FILE)));
        assert!(matches!(opened, Err(Error::Linked { .. })), "{name}");
        fs::remove_dir_all(folder).unwrap();
    }
    drop(open(&first));
}

#[test]
fn a_deleted_lock_file_lets_nobody_else_in() {
    let around = tempfile::tempdir().unwrap();
    let data = around.path().join("data");
    let _lock = Store::lock(&data).unwrap();
    fs::remove_file(data.join("eventbucket.lock")).unwrap();
    assert!(matches!(Store::lock(&data), Err(Error::Locked { .. })));
    fs::rename(&data, around.path().join("moved")).unwrap();
    assert!(matches!(Store::lock(&around.path().join("moved")), Err(Error::Locked { .. })));
}

#[tokio::test]
async fn what_is_made_is_for_its_owner_alone() {
    let around = tempfile::tempdir().unwrap();
    let data = around.path().join("deep/data");
    let _lock = Store::lock(&data).unwrap();
    let store = open(&data);
    project(&store, "shop").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for file in fs::read_dir(&data).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_batch_the_database_refuses_costs_its_neighbours_nothing() {
    let (folder, store, shop) = with_project().await;
    folder
        .sql()
        .execute_batch(
            "CREATE TRIGGER no_poison BEFORE INSERT ON event WHEN NEW.name = 'poison'
             BEGIN SELECT RAISE(ABORT, 'no poison here'); END",
        )
        .unwrap();
    let bus = Bus::in_process(bus::Limits::default());
    let publish = |id: &str, name: &str| {
        let (bus, batch) = (bus.clone(), batch(shop, vec![event(id, name)]));
        tokio::spawn(async move { bus.publish(batch).await })
    };
    let published = [publish("1", "a"), publish("2", "poison"), publish("3", "b")];
    // The test has one thread: once each task had its turn, all batches wait and share one group.
    tokio::task::yield_now().await;
    let cancel = CancellationToken::new();
    tokio::spawn(workers::storage::run(bus.clone(), store.clone(), Cache::memory(), cancel.clone()));
    let mut stored = Vec::new();
    for one in published {
        stored.push(one.await.unwrap().map_err(|error| error.to_string()));
    }
    assert!(stored[0].is_ok() && stored[2].is_ok(), "{stored:?}");
    assert!(stored[1].as_ref().is_err_and(|told| told.contains("no poison here")), "{stored:?}");
    assert_eq!(store.head(shop).await.unwrap(), 2);
    store.serving().unwrap();
    cancel.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_whose_folder_is_moved_answers_503_and_is_not_ready() {
    let around = tempfile::tempdir().unwrap();
    let (data, elsewhere) = (around.path().join("data"), around.path().join("elsewhere"));
    let collector = Arc::new(Collector::start_in(&data, &[]));
    collector.send(json!({"name": "before"})).await;
    fs::rename(&data, &elsewhere).unwrap();
    let request = http().post(format!("{}/v1/events", collector.url())).bearer_auth(&collector.keys().write);
    let answer = request.json(&json!({"name": "after"})).send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("moved, replaced or deleted"), "{text}");
    let ready = format!("{}/healthz/ready", collector.url());
    assert_eq!(http().get(ready).send().await.unwrap().status(), 503);
    assert!(!data.exists());
    let second = harness::run(harness::eventbucket(&[
        "serve",
        "--data",
        elsewhere.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
    ]));
    second.assert_failed(1, &["another collector"]);
}
