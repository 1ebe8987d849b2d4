//! What is special about a store in a file: opening, damage, other processes, being cut off.

use std::fs;
use std::sync::mpsc;

use eventbucket_collector::ingest::{Arrival, validate};
use eventbucket_collector::project::{KeyKind, Standing};
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{Access, CountsBy, CountsQuery, Error, SqliteOptions, Store, ViewState};
use eventbucket_protocol::codec::{Format, decode};
use eventbucket_protocol::{Event, EventId, Verdict};
use tokio::sync::oneshot;

use crate::store_fixture::{
    Folder, HOUR, NOON, at, batch, count_all, event, events, eventually, project, totals, with_project,
};

fn open_error(folder: &Folder) -> Error {
    match Store::sqlite(SqliteOptions::new(folder.file())) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn a_file_that_is_not_ours_is_left_alone() {
    let folder = Folder::new();
    fs::write(folder.file(), "a letter to somebody, longer than the header of a database would be".repeat(4))
        .unwrap();
    let before = fs::read(folder.file()).unwrap();
    assert!(matches!(open_error(&folder), Error::NotOurs { .. }));
    assert_eq!(fs::read(folder.file()).unwrap(), before);
    let folder = Folder::new();
    folder.sql().execute_batch("CREATE TABLE cake (id)").unwrap();
    let before = fs::read(folder.file()).unwrap();
    let error = open_error(&folder);
    assert!(matches!(error, Error::NotOurs { .. }));
    assert!(error.to_string().contains("choose another folder with --data"), "{error}");
    assert_eq!(fs::read(folder.file()).unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_its_number() {
    let (folder, store, _) = with_project().await;
    store.close().await.unwrap();
    drop(store);
    folder.sql().pragma_update(None, "user_version", 99).unwrap();
    let error = open_error(&folder);
    assert!(matches!(error, Error::NewerSchema { found: 99, .. }), "{error}");
    let beside = Store::sqlite_beside(&folder.file(), Access::ReadOnly);
    assert!(matches!(beside.err(), Some(Error::NewerSchema { found: 99, .. })));
}

#[tokio::test]
async fn a_read_only_file_is_named() {
    let (folder, store, _) = with_project().await;
    store.close().await.unwrap();
    drop(store);
    let mut permissions = fs::metadata(folder.file()).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(folder.file(), permissions).unwrap();
    let error = open_error(&folder);
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("eventbucket.db can't be written"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = Folder::new();
    fs::write(folder.path().join("data"), "a file stands here").unwrap();
    let inside = folder.path().join("data/deeper");
    let opened = Store::sqlite(SqliteOptions::new(inside.join("eventbucket.db")));
    assert!(matches!(opened.err(), Some(Error::Folder { path, .. }) if path == inside));
    assert!(matches!(Store::lock(&inside).err(), Some(Error::Folder { .. })));
}

#[test]
fn one_process_serves_a_folder() {
    let folder = Folder::new();
    let data = folder.path().join("not/there/yet");
    let lock = Store::lock(&data).unwrap();
    match Store::lock(&data) {
        Err(error @ Error::Locked { pid }) => {
            assert_eq!(pid, Some(std::process::id()));
            assert!(error.to_string().contains(&format!("(process {})", std::process::id())));
        }
        other => panic!("{other:?}"),
    }
    drop(lock);
    Store::lock(&data).unwrap();
}

#[tokio::test]
async fn the_log_survives_closing_and_keeps_its_epoch() {
    let (folder, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 5))]).await.unwrap();
    let epoch = store.epoch();
    store.close().await.unwrap();
    assert!(matches!(store.append(vec![batch(shop, events("y", 1))]).await, Err(Error::Unavailable { .. })));
    assert!(!folder.path().join("eventbucket.db-wal").exists(), "closing leaves one file");
    let store = folder.open();
    assert_eq!((store.epoch(), store.head(shop).await.unwrap()), (epoch, 5));
    let again = store.append(vec![batch(shop, events("x", 6))]).await.unwrap().remove(0);
    assert_eq!((again.range.first, again.range.last), (6, 6));
    assert_ne!(Folder::new().open().epoch(), epoch);
}

#[tokio::test]
async fn the_command_line_works_beside_a_collector() {
    let (folder, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 5))]).await.unwrap();
    let looking = Store::sqlite_beside(&folder.file(), Access::ReadOnly).unwrap();
    assert_eq!(looking.head(shop).await.unwrap(), 5);
    assert!(matches!(looking.create_account("b@example.com", "t").await, Err(Error::ReadOnly { .. })));
    let managing = Store::sqlite_beside(&folder.file(), Access::ReadWrite).unwrap();
    let blog = project(&managing, "blog").await;
    // The serving process sees the new key and appends to the new project without reopening.
    let Standing::Valid(grant) = store.find_key(&blog.write_key.hash()).await.unwrap() else {
        panic!("a new key is valid")
    };
    store.append(vec![batch(grant.project, events("x", 2)), batch(shop, events("y", 2))]).await.unwrap();
    assert_eq!(looking.head(shop).await.unwrap(), 7);
    managing.rebuild_counts(shop, |_, _| {}).await.unwrap();
    count_all(&store, shop).await;
    assert_eq!(store.view_state(shop).await.unwrap(), ViewState { generation: 2, applied_to: 7 });
    count_all(&store, grant.project).await;
    assert!(audit(&looking, None, |_, _| {}).await.unwrap().holds());
    let nowhere = Store::sqlite_beside(&folder.path().join("other.db"), Access::ReadWrite);
    assert!(matches!(nowhere.err(), Some(Error::Missing { .. })));
}

#[tokio::test]
async fn a_short_write_of_another_process_is_waited_for() {
    let (folder, store, shop) = with_project().await;
    let mut other = folder.sql();
    let (locked, waiting) = oneshot::channel();
    let (release, released) = mpsc::channel();
    let holder = std::thread::spawn(move || {
        let transaction = other.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        locked.send(()).unwrap();
        released.recv().unwrap();
        transaction.commit().unwrap();
    });
    waiting.await.unwrap();
    let append = tokio::spawn({
        let store = store.clone();
        async move { store.append(vec![batch(shop, events("x", 1))]).await }
    });
    // Reading is never blocked by a writer.
    assert_eq!(store.head(shop).await.unwrap(), 0);
    assert!(!append.is_finished());
    release.send(()).unwrap();
    append.await.unwrap().unwrap();
    holder.join().unwrap();
    assert_eq!(store.head(shop).await.unwrap(), 1);
}

#[tokio::test]
async fn a_head_moved_by_somebody_else_poisons_the_writer_and_it_recovers() {
    let (folder, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    folder.sql().execute("UPDATE head SET position = 9", []).unwrap();
    match store.append(vec![batch(shop, events("y", 1))]).await {
        Err(error @ Error::Unavailable { .. }) => {
            assert_eq!(error.status(), 503);
            assert!(error.retry().is_some());
            assert!(error.to_string().contains("is at 9 but was left at 3"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    folder.sql().execute("UPDATE head SET position = 3", []).unwrap();
    eventually("reopening", async || store.serving().is_ok()).await;
    let appended = store.append(vec![batch(shop, events("y", 1))]).await.unwrap();
    assert_eq!((&appended[0].verdicts[..], appended[0].range.first), (&[Verdict::Stored][..], 4));
    count_all(&store, shop).await;
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
}

#[tokio::test]
async fn a_write_that_breaks_a_rule_of_the_file_fails_its_group_alone() {
    let (folder, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 2))]).await.unwrap();
    // A row where the next position belongs: the insert can't succeed and must not be taken for a duplicate.
    folder.sql().execute("UPDATE event SET key = key + 1 WHERE key = (1 << 40 | 2)", []).unwrap();
    for _ in 0..3 {
        let failed = store.append(vec![batch(shop, events("y", 1))]).await;
        assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
    }
    assert_eq!(store.head(shop).await.unwrap(), 2);
    folder.sql().execute("UPDATE event SET key = key - 1 WHERE key = (1 << 40 | 3)", []).unwrap();
    eventually("recovering", async || store.append(vec![batch(shop, events("y", 1))]).await.is_ok()).await;
    assert_eq!(store.head(shop).await.unwrap(), 3);
    count_all(&store, shop).await;
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
}

#[tokio::test]
async fn nothing_is_built_on_a_head_that_is_wrong() {
    let (folder, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    store.close().await.unwrap();
    folder.sql().execute("UPDATE head SET position = 9", []).unwrap();
    let store = folder.open();
    // Also after it was reopened because of that.
    for _ in 0..2 {
        let told = store.append(vec![batch(shop, events("y", 1))]).await.unwrap_err().to_string();
        assert!(told.contains("is at 9 but its log ends at 3"), "{told}");
        eventually("the writer is open again", async || store.serving().is_ok()).await;
    }
    folder.sql().execute("UPDATE head SET position = 3", []).unwrap();
    let appended = store.append(vec![batch(shop, events("y", 1))]).await.unwrap();
    assert_eq!(appended[0].range.first, 4);
}

#[tokio::test]
async fn a_vanished_file_is_not_made_anew() {
    let (folder, store, shop) = with_project().await;
    // The head is not in memory yet, so make the writer remember it first.
    store.append(vec![batch(shop, events("x", 1))]).await.unwrap();
    folder.sql().execute("UPDATE head SET position = 7", []).unwrap();
    for file in ["eventbucket.db", "eventbucket.db-wal", "eventbucket.db-shm"] {
        fs::rename(folder.path().join(file), folder.path().join(format!("moved-{file}"))).unwrap();
    }
    assert!(store.append(vec![batch(shop, events("y", 1))]).await.is_err());
    eventually("noticing", async || store.serving().is_err()).await;
    let told = store.append(vec![batch(shop, events("y", 1))]).await.unwrap_err();
    assert!(told.to_string().contains("moved, replaced or deleted"), "{told}");
    assert!(!folder.file().exists());
}

#[tokio::test]
async fn one_jobs_failure_is_its_own() {
    let (_folder, store, shop) = with_project().await;
    // All are given to the writer at once and so share transactions.
    let jobs = (0..20_usize).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let account = store.create_account("same@example.com", "team").await;
            let stored = store.append(vec![batch(shop, events(&format!("{i}-"), 2))]).await;
            (account.is_ok(), stored.unwrap()[0].verdicts.len())
        })
    });
    let mut made = 0;
    for job in jobs.collect::<Vec<_>>() {
        let (account, stored) = job.await.unwrap();
        made += usize::from(account);
        assert_eq!(stored, 2);
    }
    assert_eq!(made, 1);
    assert_eq!(store.head(shop).await.unwrap(), 40);
    assert!(store.serving().is_ok());
}

#[tokio::test]
async fn keys_are_nowhere_in_the_file() {
    let (folder, store, shop) = with_project().await;
    let key = store.rotate_key(shop, KeyKind::Secret, None).await.unwrap();
    let write_key = project(&store, "blog").await.write_key;
    store.close().await.unwrap();
    let bytes = fs::read(folder.file()).unwrap();
    let contains = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(contains(b"blog"), "the search works");
    assert!(!contains(key.text.as_bytes()) && !contains(write_key.text.as_bytes()));
    assert_ne!(key.text, write_key.text);
    assert!(!contains(&key.text.as_bytes()[10..26]), "not even a part");
}

#[tokio::test]
async fn an_event_without_a_time_is_counted_in_the_hour_of_its_arrival_whatever_the_senders_clock_says() {
    let (_folder, store, shop) = with_project().await;
    let body = format!(r#"[{{"name":"undated","id":"u"}},{{"name":"dated","time":{}}}]"#, NOON - 5 * HOUR);
    let raw = decode(body.as_bytes(), Format::Json).unwrap();
    let arrival = Arrival { received: at(NOON), sent_at: Some(at(NOON - 5 * HOUR)) };
    store.append(vec![validate(shop, raw, arrival).batch.into_owned()]).await.unwrap();
    count_all(&store, shop).await;
    let query = CountsQuery { by: CountsBy::Hour, ..CountsQuery::default() };
    let hours: Vec<_> =
        store.counts(shop, query).await.unwrap().into_iter().map(|row| row.start.unwrap()).collect();
    assert_eq!(hours, [at(NOON - NOON % HOUR); 2], "both happened at noon by our clock");
    let undated = store.event(shop, EventId::from_text("u").uuid()).await.unwrap().unwrap();
    assert_eq!((undated.event.time, undated.skew_ms), (at(NOON), None));
    // Sent again an hour later it is the same event still.
    let raw = decode(br#"{"name":"undated","id":"u"}"#, Format::Json).unwrap();
    let again = validate(shop, raw, Arrival { received: at(NOON + HOUR), sent_at: None }).batch.into_owned();
    let verdicts = store.append(vec![again]).await.unwrap().remove(0).verdicts;
    assert_eq!(verdicts, [Verdict::Duplicate { differs: false }]);
}

#[tokio::test]
async fn people_can_read_the_file_with_plain_sql() {
    let (folder, store, shop) = with_project().await;
    let plain = Event {
        time: at(-1),
        user: Some("ada".into()),
        ..event("0190163d-8694-739b-aea5-966c26f8ad91", "a")
    };
    let mut skewed = batch(shop, vec![plain, event("order-17", "b")]);
    skewed.skew_ms = Some(61_000);
    store.append(vec![skewed]).await.unwrap();
    let sql = folder.sql();
    let mut select = sql.prepare(
        "SELECT position || ' ' || id || ' ' || time || ' ' || corrected_time FROM events ORDER BY position",
    );
    let rows: Vec<String> =
        select.as_mut().unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let expected = [
        "1 0190163d-8694-739b-aea5-966c26f8ad91 1969-12-31T23:59:59.999Z 1970-01-01T00:01:00.999Z",
        "2 order-17 2024-03-01T12:34:56.789Z 2024-03-01T12:35:57.789Z",
    ];
    assert_eq!(rows, expected);
    assert!(store.event(shop, EventId::from_text("order-17").uuid()).await.unwrap().is_some());
}

/// 60,000 events are two steps of a rebuild.
async fn large() -> (Folder, Store, eventbucket_collector::project::ProjectId) {
    let (folder, store, shop) = with_project().await;
    for i in 0..6 {
        store.append(vec![batch(shop, events(&format!("{i}-"), 10_000))]).await.unwrap();
    }
    count_all(&store, shop).await;
    (folder, store, shop)
}

/// Starts a rebuild and ends it between its first step and the second.
async fn cut_rebuild(store: &Store, project: eventbucket_collector::project::ProjectId) {
    let store = store.clone();
    let rebuild =
        tokio::spawn(async move { store.rebuild_counts(project, |_, _| panic!("cut off here")).await });
    assert!(rebuild.await.unwrap_err().is_panic());
}

#[tokio::test]
async fn a_rebuild_that_was_cut_off_goes_on_where_it_was() {
    let (folder, store, shop) = large().await;
    let before = totals(&store, shop).await;
    cut_rebuild(&store, shop).await;
    store.close().await.unwrap();
    let store = folder.open();
    assert_eq!(store.view_state(shop).await.unwrap(), ViewState { generation: 1, applied_to: 60_000 });
    assert_eq!(totals(&store, shop).await, before, "the live generation is untouched");
    let unfinished: i64 = folder
        .sql()
        .query_row("SELECT applied_to FROM view_state WHERE generation = 2", [], |row| row.get(0))
        .unwrap();
    assert_eq!(unfinished, 50_000);
    store.append(vec![batch(shop, events("more", 9))]).await.unwrap();
    let rebuilt = store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!(rebuilt, ViewState { generation: 2, applied_to: 60_009 });
    // The other view follows by itself.
    count_all(&store, shop).await;
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
    assert_eq!(generations(&folder), [2], "the old generation is gone");
}

fn generations(folder: &Folder) -> Vec<i64> {
    let sql =
        "SELECT generation FROM view_state WHERE view = 'counts' UNION SELECT generation FROM rollup_counts";
    let file = folder.sql();
    let mut select = file.prepare(sql).unwrap();
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn an_old_generation_of_many_rows_is_removed_to_the_last() {
    let (folder, store, shop) = with_project().await;
    // One row an hour: more than one step removes.
    let hourly = |i: usize| Event { time: at(i as i64 * HOUR), ..event(&format!("x{i}"), "a") };
    store.append(vec![batch(shop, (0..10_500).map(hourly).collect())]).await.unwrap();
    count_all(&store, shop).await;
    assert_eq!(generations(&folder), [1]);
    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!(generations(&folder), [2]);
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
}

#[tokio::test]
async fn two_rebuilds_beside_appends_and_applies_finish_together() {
    let (_folder, store, shop) = large().await;
    let append = async {
        for i in 0..20 {
            store.append(vec![batch(shop, events(&format!("more{i}-"), 50))]).await.unwrap();
            store.apply_counts(shop, u64::MAX).await.unwrap();
        }
    };
    let (one, two, ()) =
        tokio::join!(store.rebuild_counts(shop, |_, _| {}), store.rebuild_counts(shop, |_, _| {}), append);
    assert_eq!((one.unwrap().generation, two.unwrap().generation), (2, 2));
    count_all(&store, shop).await;
    assert_eq!(store.view_state(shop).await.unwrap().applied_to, 61_000);
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
}
