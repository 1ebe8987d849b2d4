//! Copies of a database: taken while events arrive at full speed, put back, refused, cut off by kills.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{DATABASE_FILE, Error, SqliteOptions, Store};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Collector, Ran, eventbucket, eventually, http, run};
use crate::random::{Random, rounds};
use crate::store_fixture::{batch, count_all, events, project};

/// Quiet, for those who look at the end alone.
fn untold(_: u64, _: u64) {}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn restore(from: &Path, data: &Path, more: &[&str]) -> Ran {
    let mut command = eventbucket(&["restore", "--json", "--from", name(from), "--data", name(data)]);
    command.args(more);
    run(command)
}

/// A closed data folder with one project and so many counted events.
async fn made(data: &Path, count: usize) {
    let store = Store::sqlite(SqliteOptions::new(data.join(DATABASE_FILE))).unwrap();
    let shop = project(&store, "shop").await.project.id;
    for (at, part) in events("e", count).chunks(1_000).enumerate() {
        let mut batch = batch(shop, part.to_vec());
        batch.batch = eventbucket_protocol::BatchId::from_text(&format!("batch {at}"));
        store.append(vec![batch]).await.unwrap();
    }
    count_all(&store, shop).await;
    store.close().await.unwrap();
}

/// Opens what is in a data folder as a collector would, audits it and returns its last position.
async fn sound(data: &Path) -> u64 {
    let store = Store::sqlite(SqliteOptions::new(data.join(DATABASE_FILE))).unwrap();
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:?}");
    store.close().await.unwrap();
    found.projects[0].position
}

fn files(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Sends batches of large events as fast as they are answered; notes what was confirmed.
async fn send_on(url: String, key: String, sender: u64, confirmed: Arc<Confirmed>) {
    let client = http();
    for round in 0.. {
        if confirmed.stop.load(Ordering::Relaxed) {
            return;
        }
        let ids: Vec<String> = (0..50).map(|i| format!("s{sender}-{round}-{i}")).collect();
        let text = "x".repeat(2_000);
        let events: Vec<Value> = ids
            .iter()
            .map(|id| json!({ "id": id, "name": "sent", "properties": { "text": text } }))
            .collect();
        let request = client.post(format!("{url}/v1/events")).bearer_auth(&key);
        let answer = request.json(&json!({ "events": events })).send().await.unwrap();
        if answer.status() == 200 {
            confirmed.ids.lock().unwrap().extend(ids);
            confirmed.batches.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Confirmed {
    ids: Mutex<BTreeSet<String>>,
    batches: AtomicU64,
    stop: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_at_full_speed_holds_everything_confirmed_before_it() {
    let collector = Collector::start();
    let confirmed = Arc::new(Confirmed::default());
    let senders: Vec<_> = (0..3)
        .map(|sender| {
            let key = collector.keys().write.clone();
            tokio::spawn(send_on(collector.url().to_owned(), key, sender, Arc::clone(&confirmed)))
        })
        .collect();
    let around = tempfile::tempdir().unwrap();
    let copy = around.path().join("copy.db");
    eventually("there is something to copy", || confirmed.batches.load(Ordering::Relaxed) > 150);
    let before = confirmed.ids.lock().unwrap().clone();
    let batches = confirmed.batches.load(Ordering::Relaxed);
    let told = collector.beside(&["backup", "--json", "--to", name(&copy)]).json();
    let during = confirmed.batches.load(Ordering::Relaxed) - batches;
    confirmed.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    assert!(during > 0, "the collector stored nothing meanwhile");
    assert_eq!(told["bytes"], fs::metadata(&copy).unwrap().len());
    assert_eq!(files(around.path()), BTreeSet::from(["copy.db".to_owned()]), "one file, and no other");

    let data = around.path().join("data");
    let restored = restore(&copy, &data, &[]).json();
    assert_eq!(restored["projects"], told["projects"]);
    let position = told["projects"][0]["position"].as_u64().unwrap();
    assert!(position >= before.len() as u64, "{told}");
    let sql = Connection::open(data.join(DATABASE_FILE)).unwrap();
    let mut select = sql.prepare("SELECT id FROM events").unwrap();
    let stored: BTreeSet<String> =
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let missing: Vec<_> = before.difference(&stored).take(3).collect();
    assert!(missing.is_empty(), "confirmed before, and not in the copy: {missing:?}");
    assert_eq!(stored.len() as u64, position);
    drop(select);
    drop(sql);
    let again = Collector::start_in(&data, &[]);
    assert_eq!(again.beside(&["audit"]).code, 0);
}

#[tokio::test]
async fn whoever_saw_later_events_notices_that_a_copy_was_restored() {
    let mut collector = Collector::start();
    let copy = collector.folder().with_file_name("copy.db");
    let send = |id: &str| json!({ "events": [{ "id": id, "name": "x" }] });
    collector.send(send("one")).await;
    assert_eq!(collector.beside(&["backup", "--to", name(&copy)]).code, 0);
    for id in ["two", "three"] {
        collector.send(send(id)).await;
    }
    let page = |collector: &Collector, cursor: &str| {
        let path = format!("{}/v1/events?order=position&limit=1{cursor}", collector.url());
        let request = http().get(path).bearer_auth(&collector.keys().secret);
        async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let (_, first) = page(&collector, "").await;
    let cursor = format!("&cursor={}", first["next"].as_str().unwrap());
    assert_eq!(page(&collector, &cursor).await.0, 200);
    let refused = restore(&copy, collector.folder(), &["--replace"]);
    refused.assert_failed(1, &["serves this folder already"]);
    collector.terminate();
    restore(&copy, collector.folder(), &[]).assert_failed(1, &["eventbucket.db is there already; --replace"]);
    let done = restore(&copy, collector.folder(), &["--replace"]).json();
    collector.restart();
    let (status, told) = page(&collector, &cursor).await;
    assert!(status >= 400, "a cursor of another history: {told}");
    assert_eq!(collector.beside(&["audit"]).code, 0);
    assert_eq!(
        collector.send(send("two")).await["verdicts"][0]["verdict"],
        "stored",
        "it is not known any more"
    );
    let replaced = Connection::open(done["replaced"].as_str().unwrap()).unwrap();
    let kept: i64 = replaced.query_row("SELECT position FROM head", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 3, "what was replaced is whole");
}

#[tokio::test]
async fn what_is_no_whole_copy_of_this_version_is_refused_and_changes_nothing() {
    let around = tempfile::tempdir().unwrap();
    let (data, copy) = (around.path().join("data"), around.path().join("copy.db"));
    made(&data, 3_000).await;
    Store::back_up(&data.join(DATABASE_FILE), &copy, &untold).unwrap();
    let before = fs::read(data.join(DATABASE_FILE)).unwrap();

    let refused = |bytes: &[u8], parts: &[&str]| {
        let file = around.path().join("given.db");
        fs::write(&file, bytes).unwrap();
        let nowhere = around.path().join("nowhere");
        restore(&file, &nowhere, &[]).assert_failed(1, parts);
        restore(&file, &data, &["--replace"]).assert_failed(1, parts);
        assert!(!nowhere.join(DATABASE_FILE).exists());
        assert_eq!(fs::read(data.join(DATABASE_FILE)).unwrap(), before);
        assert!(!files(&data).iter().any(|name| name.contains("partial") || name.contains("replaced")));
    };
    let whole = fs::read(&copy).unwrap();
    refused(b"a letter to somebody", &["is not an Event Bucket database"]);
    refused(b"", &["is not an Event Bucket database"]);
    refused(&whole[..whole.len() / 2], &["isn't whole"]);
    refused(&whole[..whole.len() - 4_096], &["isn't whole"]);
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2 / 4_096 * 4_096;
    damaged[middle..middle + 4_096].fill(0x5a);
    refused(&damaged, &["isn't whole"]);

    let newer = around.path().join("newer.db");
    fs::copy(&copy, &newer).unwrap();
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    refused(&fs::read(&newer).unwrap(), &["the database has schema 99", "start a newer eventbucket"]);
    restore(&around.path().join("absent.db"), &data, &["--replace"])
        .assert_failed(1, &["there is no database at"]);
    assert_eq!(sound(&data).await, 3_000);
}

#[tokio::test]
async fn a_copy_replaces_no_file_and_says_what_it_holds() {
    let around = tempfile::tempdir().unwrap();
    let (data, copy) = (around.path().join("data"), around.path().join("copy.db"));
    made(&data, 2).await;
    let back_up = |to: &Path| run(eventbucket(&["backup", "--data", name(&data), "--to", name(to)]));
    let told = back_up(&copy);
    let bytes = fs::metadata(&copy).unwrap().len();
    assert!(
        told.stdout.starts_with(&format!("file\t{}\nbytes\t{bytes}\nschema\t", copy.display())),
        "{told:?}"
    );
    assert!(told.stdout.ends_with("\nproject\tshop\t2\t2\n"), "{told:?}");
    let before = fs::read(&copy).unwrap();
    back_up(&copy).assert_failed(1, &["copy.db is there already and is left alone"]);
    assert_eq!(fs::read(&copy).unwrap(), before);
    back_up(&around.path().join("no/folder/copy.db")).assert_failed(1, &["can't use the folder"]);
    let mut nothing =
        eventbucket(&["backup", "--data", name(&around.path().join("none")), "--to", name(&copy)]);
    nothing.args(["--json"]);
    assert_eq!(run(nothing).code, 1);
    let mut server =
        eventbucket(&["backup", "--to", "x", "--store-url", "postgres://ann:geheim@h/d?sslmode=require"]);
    server.current_dir(around.path());
    let said = run(server);
    said.assert_failed(2, &["pg_dump --format=custom", "--dbname='postgres://ann@h/d?sslmode=require'"]);
    assert!(!said.stderr.contains("geheim"));
}

/// A disk that takes no more, made of a limit on the size of files; signals that are ignored stay so in the program.
#[tokio::test]
async fn a_disk_that_takes_no_more_leaves_no_half_copy() {
    let around = tempfile::tempdir().unwrap();
    let (data, to) = (around.path().join("data"), around.path().join("to"));
    made(&data, 5_000).await;
    fs::create_dir(&to).unwrap();
    let script = format!(
        "trap '' XFSZ; ulimit -f 400; exec {} backup --data {} --to {}",
        env!("CARGO_BIN_EXE_eventbucket"),
        data.display(),
        to.join("copy.db").display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null());
    run(command).assert_failed(1, &["back up the store", "a write failed"]);
    assert!(files(&to).is_empty(), "{:?}", files(&to));
    assert_eq!(sound(&data).await, 5_000);
}

/// A disk of 4 MiB, where this user may make one.
#[tokio::test]
async fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    let around = tempfile::tempdir().unwrap();
    let (data, to) = (around.path().join("data"), around.path().join("to"));
    made(&data, 100).await;
    fs::create_dir(&to).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4m none {to} || exit 77; {} backup --data {} --to {to}/copy.db; code=$?; ls -A {to} >&2; exit $code",
        env!("CARGO_BIN_EXE_eventbucket"),
        data.display(),
        to = to.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script]).stdin(Stdio::null());
    let ran = run(command);
    if ran.code == 77 || ran.stderr.contains("unshare") {
        println!("not shown: this user can't mount a disk of its own: {}", ran.stderr);
        return;
    }
    ran.assert_failed(1, &["the disk of", "has 4194304 free", "free some space or choose another disk"]);
    assert!(ran.stderr.ends_with("choose another disk\n"), "nothing is left there: {}", ran.stderr);
}

/// Starts a command and kills it after a while that goes from nothing to a little more than it takes.
fn killed(mut command: Command, random: &mut Random, longest: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + longest.mul_f64(random.below(1_100) as f64 / 1_000.0);
    while Instant::now() < until && child.try_wait().unwrap().is_none() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let cut = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    child.wait().unwrap();
    cut
}

struct Killing {
    around: TempDir,
    random: Random,
    rounds: u64,
}

impl Killing {
    fn new() -> Self {
        let seed = rounds("BACKUP_SEED", u64::from(std::process::id()));
        println!("replay with BACKUP_SEED={seed}");
        let around = tempfile::tempdir().unwrap();
        Self { around, random: Random::new(seed), rounds: rounds("BACKUP_KILLS", 25) }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.around.path().join(name)
    }
}

#[tokio::test]
async fn a_killed_backup_leaves_a_whole_copy_or_none() {
    let mut killing = Killing::new();
    let (data, copy) = (killing.at("data"), killing.at("copy.db"));
    made(&data, 20_000).await;
    let command = || eventbucket(&["backup", "--data", name(&data), "--to", name(&copy)]);
    let began = Instant::now();
    assert_eq!(run(command()).code, 0);
    let longest = began.elapsed();
    let mut cuts = 0;
    for _ in 0..killing.rounds {
        let _ = fs::remove_file(&copy);
        cuts += u64::from(killed(command(), &mut killing.random, longest));
        if copy.exists() {
            let back = killing.at("back");
            assert_eq!(restore(&copy, &back, &["--replace"]).json()["projects"][0]["events"], 20_000);
            fs::remove_dir_all(&back).unwrap();
        }
    }
    assert!(cuts > 0, "none was killed in time");
    let _ = fs::remove_file(&copy);
    assert_eq!(run(command()).code, 0);
    let left: Vec<_> =
        files(killing.around.path()).into_iter().filter(|name| name.contains("partial")).collect();
    assert!(left.is_empty(), "what the killed ones left is taken over: {left:?}");
    assert_eq!(sound(&data).await, 20_000);
}

#[tokio::test]
async fn a_killed_restore_leaves_what_was_there_or_the_copy() {
    let mut killing = Killing::new();
    let (data, large, small) = (killing.at("data"), killing.at("large.db"), killing.at("small.db"));
    for (file, count) in [(&large, 20_000), (&small, 7)] {
        let made_in = killing.at(&format!("made-{count}"));
        made(&made_in, count).await;
        Store::back_up(&made_in.join(DATABASE_FILE), file, &untold).unwrap();
    }
    let command =
        |from: &Path| eventbucket(&["restore", "--from", name(from), "--data", name(&data), "--replace"]);
    let began = Instant::now();
    assert_eq!(run(command(&large)).code, 0);
    let longest = began.elapsed();
    assert_eq!(run(command(&small)).code, 0);
    let (mut before, mut cuts, mut done) = (7, 0, 0);
    for _ in 0..killing.rounds {
        let (from, after) = if before == 7 { (&large, 20_000) } else { (&small, 7) };
        cuts += u64::from(killed(command(from), &mut killing.random, longest));
        let position = sound(&data).await;
        assert!([before, after].contains(&position), "{position}");
        done += u64::from(position == after);
        before = position;
    }
    println!("{cuts} were killed, {done} had done it");
    assert!(cuts > 0, "none was killed in time");
}

#[tokio::test]
async fn a_database_that_can_not_be_read_any_more_is_kept_with_its_log() {
    let around = tempfile::tempdir().unwrap();
    let (data, copy) = (around.path().join("data"), around.path().join("copy.db"));
    made(&data, 5).await;
    Store::back_up(&data.join(DATABASE_FILE), &copy, &untold).unwrap();
    let (database, log) = (data.join(DATABASE_FILE), data.join("eventbucket.db-wal"));
    fs::write(&database, [7; 8_192]).unwrap();
    fs::write(&log, [9; 4_096]).unwrap();
    let done = restore(&copy, &data, &["--replace"]).json();
    let replaced = PathBuf::from(done["replaced"].as_str().unwrap());
    assert_eq!(fs::read(&replaced).unwrap(), [7; 8_192]);
    assert_eq!(fs::read(format!("{}-wal", replaced.display())).unwrap(), [9; 4_096]);
    assert_eq!(sound(&data).await, 5);
    // A log whose database is gone is not left beside another's, nor thrown away.
    fs::remove_file(&database).unwrap();
    fs::write(&log, [9; 4_096]).unwrap();
    restore(&copy, &data, &[]).assert_failed(1, &["eventbucket.db-wal is there already"]);
    let done = restore(&copy, &data, &["--replace"]).json();
    assert_eq!(fs::read(done["replaced"].as_str().unwrap()).unwrap(), [9; 4_096]);
    assert_eq!(sound(&data).await, 5);
}

#[tokio::test]
async fn what_root_restores_belongs_to_the_owner_of_the_folder() {
    const SERVICE: u32 = 10_001;
    if !rustix::process::geteuid().is_root() {
        println!("not shown: this user can't give files away");
        return;
    }
    let around = tempfile::tempdir().unwrap();
    let (data, copy, service) =
        (around.path().join("data"), around.path().join("copy.db"), around.path().join("service"));
    made(&data, 5).await;
    Store::back_up(&data.join(DATABASE_FILE), &copy, &untold).unwrap();
    fs::create_dir(&service).unwrap();
    std::os::unix::fs::chown(&service, Some(SERVICE), Some(SERVICE)).unwrap();
    assert_eq!(restore(&copy, &service, &[]).code, 0);
    for entry in fs::read_dir(&service).unwrap() {
        let found = entry.unwrap();
        assert_eq!(found.metadata().unwrap().uid(), SERVICE, "{}", found.path().display());
    }
}

#[tokio::test]
async fn a_database_that_somebody_reads_is_not_replaced_under_them() {
    let around = tempfile::tempdir().unwrap();
    let (data, copy) = (around.path().join("data"), around.path().join("copy.db"));
    made(&data, 5).await;
    Store::back_up(&data.join(DATABASE_FILE), &copy, &untold).unwrap();
    let reader = Connection::open(data.join(DATABASE_FILE)).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM event").unwrap();
    restore(&copy, &data, &["--replace"]).assert_failed(1, &["another program has", "open"]);
    reader.execute_batch("COMMIT").unwrap();
    drop(reader);
    assert_eq!(restore(&copy, &data, &["--replace"]).code, 0);
}

/// The schemas there were, as files of the source.
const SCHEMAS: [&str; 2] = [
    include_str!("../../migrations/sqlite/0001_first.sql"),
    include_str!("../../migrations/sqlite/0002_users.sql"),
];

/// A database as an earlier version left it, with one event.
fn earlier(file: &Path, schema: usize) {
    let sql = Connection::open(file).unwrap();
    for migration in &SCHEMAS[..schema] {
        sql.execute_batch(migration).unwrap();
    }
    sql.execute_batch(
        "INSERT INTO epoch VALUES (1, randomblob(16), 5);
         INSERT INTO account VALUES (1, 'a@b.c', 'team', 0);
         INSERT INTO project VALUES (1, 1, 'shop', 0);
         INSERT INTO head VALUES (1, 0, 0, 0, 0, 0, 0);
         INSERT INTO view_live VALUES ('counts', 1, 1);
         INSERT INTO view_state (view, project, generation, applied_to) VALUES ('counts', 1, 1, 0);
         PRAGMA application_id = 0x45764275",
    )
    .unwrap();
    sql.pragma_update(None, "user_version", i64::try_from(schema).unwrap()).unwrap();
}

#[tokio::test]
async fn an_upgrade_keeps_the_database_as_it_was() {
    let around = tempfile::tempdir().unwrap();
    let file = around.path().join(DATABASE_FILE);
    earlier(&file, 2);
    for older in ["eventbucket.db.before-1", "eventbucket.db.before-2"] {
        fs::write(around.path().join(older), "of long ago").unwrap();
    }
    assert_eq!(sound(around.path()).await, 0);
    let kept: Vec<String> = files(around.path()).into_iter().filter(|name| name.contains("before")).collect();
    assert_eq!(kept.len(), 2, "the newest two: {kept:?}");
    assert!(kept.contains(&"eventbucket.db.before-2".to_owned()), "{kept:?}");
    let newest = kept.iter().find(|name| !name.ends_with("-2")).unwrap();
    let schema = |file: &Path| -> i64 {
        Connection::open(file).unwrap().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    };
    let now = schema(&file);
    assert_eq!(*newest, format!("eventbucket.db.before-{now}"));
    let newest = around.path().join(newest);
    assert_eq!(schema(&newest), 2);
    // It can be copied and put back, and is upgraded anew.
    let told = restore(&newest, around.path(), &["--replace"]).json();
    assert_eq!(told["schema"], 2);
    assert_eq!(sound(around.path()).await, 0);
    assert_eq!(schema(&file), now);
    // What can't be kept isn't upgraded.
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join(DATABASE_FILE);
    earlier(&file, 1);
    fs::create_dir(other.path().join(format!("eventbucket.db.before-{now}"))).unwrap();
    let refused = Store::sqlite(SqliteOptions::new(&file)).err();
    assert!(matches!(refused, Some(Error::Folder { .. })), "{refused:?}");
    assert_eq!(schema(&file), 1);
}
