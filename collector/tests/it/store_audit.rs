//! An audit holds on a sound store and names each kind of tampering.

use std::sync::{Arc, Mutex};

use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::{Audit, audit};
use eventbucket_collector::store::{Applied, DATABASE_FILE, EventFilter, EventOrder, Store};

use crate::harness::Collector;
use crate::store_fixture::{Folder, batch, count_all, events, project, refused};

/// A store with two projects whose logs, ranges and counts have something in them.
async fn filled() -> (Folder, Store, ProjectId) {
    let folder = Folder::new();
    let store = folder.open();
    let shop = project(&store, "shop").await.project.id;
    let blog = project(&store, "blog").await.project.id;
    store.append(vec![batch(shop, events("x", 40)), batch(blog, events("x", 7))]).await.unwrap();
    let mut again = batch(shop, events("x", 45));
    again.refused = refused(2);
    store.append(vec![again]).await.unwrap();
    count_all(&store, shop).await;
    count_all(&store, blog).await;
    (folder, store, shop)
}

fn failed(audit: &Audit, project: ProjectId) -> Vec<&'static str> {
    let project = audit.projects.iter().find(|one| one.project_id == project).unwrap();
    project.checks.iter().filter(|check| !check.holds).map(|check| check.name).collect()
}

/// Damages a sound store by SQL and returns which checks fail.
async fn failed_after(sql: &str) -> Vec<&'static str> {
    let (folder, store, shop) = filled().await;
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
    let changed = folder.sql().execute(sql, []).unwrap();
    assert!(changed > 0, "{sql} must change something");
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(!found.holds());
    failed(&found, shop)
}

#[tokio::test]
async fn a_sound_store_holds_and_progress_reaches_the_end() {
    let (_folder, store, shop) = filled().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorder = Arc::clone(&seen);
    let found =
        audit(&store, None, move |done, total| recorder.lock().unwrap().push((done, total))).await.unwrap();
    assert!(found.holds(), "{found:#?}");
    let of_shop = found.projects.iter().find(|one| one.project_id == shop).unwrap();
    assert_eq!((of_shop.stored, of_shop.position, of_shop.applied_to), (45, 45, 45));
    assert_eq!(of_shop.checks.len(), 18);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.first(), seen.last()), (Some(&(0, 52)), Some(&(52, 52))));
}

#[tokio::test]
async fn a_deleted_row_is_found() {
    let failed = failed_after("DELETE FROM event WHERE key = (1 << 40 | 17)").await;
    let expected = ["positions_are_dense", "head_equals_rows", "ranges_equal_rows", "counts_equal_recount"];
    assert_eq!(failed, expected);
}

#[tokio::test]
async fn a_row_with_a_changed_name_is_found() {
    let failed = failed_after("UPDATE event SET name = 'z' WHERE key = (1 << 40 | 17)").await;
    assert_eq!(failed, ["counts_equal_recount"]);
}

#[tokio::test]
async fn a_row_moved_to_another_project_is_found() {
    let failed = failed_after("UPDATE event SET project = 9 WHERE key = (1 << 40 | 17)").await;
    assert_eq!(failed, ["rows_belong"]);
}

#[tokio::test]
async fn a_changed_rollup_is_found() {
    let failed = failed_after(
        "UPDATE rollup_counts SET count = count + 1 WHERE project = 1 AND name = 'a' AND hour_ms = \
         (SELECT min(hour_ms) FROM rollup_counts WHERE project = 1)",
    )
    .await;
    assert_eq!(failed, ["counts_equal_recount"]);
}

#[tokio::test]
async fn counts_swapped_between_names_are_found() {
    let failed = failed_after(
        "UPDATE rollup_counts SET count = count + CASE name WHEN 'a' THEN 1 ELSE -1 END WHERE project = 1 AND \
         name IN ('a', 'b') AND hour_ms = (SELECT min(hour_ms) FROM rollup_counts WHERE project = 1)",
    )
    .await;
    assert_eq!(failed, ["counts_equal_recount"], "although the sum is right");
}

#[tokio::test]
async fn a_bumped_head_is_found() {
    let failed = failed_after("UPDATE head SET position = position + 1 WHERE project = 1").await;
    assert_eq!(failed, ["head_equals_rows", "counts_are_current", "identifications_are_current"]);
}

#[tokio::test]
async fn changed_running_totals_are_found() {
    let failed = failed_after("UPDATE head SET duplicate = duplicate + 1 WHERE project = 1").await;
    assert_eq!(failed, ["ledger_totals_equal_ranges"]);
}

#[tokio::test]
async fn a_changed_range_is_found() {
    let failed = failed_after("UPDATE ranges SET first = 39 WHERE project = 1 AND first = 41").await;
    assert_eq!(failed, ["ranges_are_contiguous", "ledger_balances"]);
}

#[tokio::test]
async fn a_range_that_tells_something_else_of_its_batch_is_found() {
    for change in [
        "verdicts = 'stored*5'",
        "verdicts = NULL",
        "verdicts = 'duplicate*40,stored*9223372036854775807'",
        "refused = 'garbage'",
        "refused = NULL",
        "batch = x'00'",
        "part = 9",
    ] {
        let failed =
            failed_after(&format!("UPDATE ranges SET {change} WHERE project = 1 AND first = 41")).await;
        assert_eq!(failed, ["verdicts_agree"], "{change}");
    }
}

#[tokio::test]
async fn figures_too_large_to_add_up_are_found() {
    let most = i64::MAX;
    let failed =
        failed_after(&format!("UPDATE ranges SET received = {most}, duplicate = {most} WHERE project = 1"))
            .await;
    assert_eq!(failed, ["ledger_balances", "verdicts_agree", "ledger_totals_equal_ranges"]);
}

#[tokio::test]
async fn a_row_at_the_last_key_there_is_ends_the_walk() {
    let failed = failed_after("UPDATE event SET key = 9223372036854775807 WHERE key = (1 << 40 | 17)").await;
    assert!(failed.contains(&"positions_are_dense"), "{failed:?}");
}

#[tokio::test]
async fn a_range_that_does_not_add_up_is_found() {
    let failed = failed_after("UPDATE ranges SET rejected = 1 WHERE project = 1 AND first = 41").await;
    assert_eq!(failed, ["ledger_balances", "verdicts_agree", "ledger_totals_equal_ranges"]);
}

#[tokio::test]
async fn a_deleted_range_is_found() {
    let failed = failed_after("DELETE FROM ranges WHERE project = 1 AND first = 41").await;
    assert_eq!(failed, ["ranges_equal_rows", "ledger_totals_equal_ranges"]);
}

#[tokio::test]
async fn a_view_ahead_of_its_log_is_found() {
    let failed =
        failed_after("UPDATE view_state SET applied_to = 50 WHERE project = 1 AND view = 'counts'").await;
    assert_eq!(failed, ["applied_within_log", "counts_equal_recount"]);
}

#[tokio::test]
async fn a_removed_project_leaves_rows_that_are_found() {
    let (folder, store, shop) = filled().await;
    let sql = folder.sql();
    sql.pragma_update(None, "foreign_keys", false).unwrap();
    assert_eq!(sql.execute("DELETE FROM project WHERE id = ?1", [shop.0]).unwrap(), 1);
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(failed(&found, shop).contains(&"rows_belong"), "{found:#?}");
}

#[tokio::test]
async fn the_same_id_twice_is_found_without_the_index_that_forbids_it() {
    let (folder, store, shop) = filled().await;
    let sql = folder.sql();
    // The unique index belongs to the table, so the table is made again without it.
    sql.execute_batch(
        "BEGIN; ALTER TABLE event RENAME TO old; DROP VIEW events;
         CREATE TABLE event AS SELECT * FROM old; DROP TABLE old;
         CREATE TABLE copy (key INTEGER PRIMARY KEY, project, id, id_text, name, time_ms, skew_ms, received_ms, user,
                            stream, correlation, description, properties);
         INSERT INTO copy SELECT * FROM event; DROP TABLE event; ALTER TABLE copy RENAME TO event;
         UPDATE event SET id = (SELECT id FROM event WHERE key = (1 << 40 | 1)) WHERE key = (1 << 40 | 2);
         COMMIT;",
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert_eq!(failed(&found, shop), ["rows_can_be_read", "ids_are_unique"], "its text is another's too");
}

/// Damages a sound store by SQL and returns which checks of the store as a whole fail, and what the first of them says.
async fn store_failed_after(sql: &str) -> (Vec<&'static str>, String) {
    let (folder, store, _) = filled().await;
    let file = folder.sql();
    file.pragma_update(None, "foreign_keys", false).unwrap();
    file.execute_batch(sql).unwrap();
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(!found.holds());
    let failed: Vec<_> = found.store.into_iter().filter(|check| !check.holds).collect();
    let first = failed.first().map(|check| check.detail.clone()).unwrap_or_default();
    (failed.into_iter().map(|check| check.name).collect(), first)
}

#[tokio::test]
async fn a_project_without_live_counts_is_found_and_a_rebuild_mends_it() {
    for sql in [
        "DELETE FROM view_live WHERE project = 1 AND view = 'counts'",
        "UPDATE view_live SET generation = 0 WHERE project = 1 AND view = 'counts'",
        "DELETE FROM view_state WHERE project = 1 AND view = 'counts'",
    ] {
        let (folder, store, shop) = filled().await;
        folder.sql().execute(sql, []).unwrap();
        let found = audit(&store, None, |_, _| {}).await.unwrap();
        assert!(failed(&found, shop).contains(&"counts_are_live"), "{sql}: {found:#?}");
        let told = store.view_state(shop).await.unwrap_err().to_string();
        assert!(told.contains("eventbucket rebuild"), "{told}");
        assert!(store.apply_counts(shop, u64::MAX).await.is_err());
        store.serving().unwrap();
        assert_eq!(store.rebuild_counts(shop, |_, _| {}).await.unwrap().applied_to, 45, "{sql}");
        let found = audit(&store, None, |_, _| {}).await.unwrap();
        assert!(found.holds(), "{sql}: {found:#?}");
    }
}

#[tokio::test]
async fn a_project_without_its_head_is_found() {
    let failed = failed_after("DELETE FROM head WHERE project = 1").await;
    assert!(failed.contains(&"head_equals_rows"), "{failed:?}");
    let (folder, store, _) = filled().await;
    let empty = project(&store, "empty").await.project.id;
    folder.sql().execute("DELETE FROM head WHERE project = ?1", [empty.0]).unwrap();
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert_eq!(self::failed(&found, empty), ["head_equals_rows"], "although zero rows are stored");
}

#[tokio::test]
async fn counts_that_stay_behind_the_log_are_found() {
    let (_folder, store, shop) = filled().await;
    store.append(vec![batch(shop, events("later", 5))]).await.unwrap();
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert_eq!(failed(&found, shop), ["counts_are_current", "identifications_are_current"]);
    count_all(&store, shop).await;
    assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
}

#[tokio::test]
async fn counts_that_are_catching_up_are_waited_for() {
    let (_folder, store, shop) = filled().await;
    store.append(vec![batch(shop, events("later", 5))]).await.unwrap();
    let auditing = tokio::spawn({
        let store = store.clone();
        async move { audit(&store, None, |_, _| {}).await.unwrap() }
    });
    tokio::task::yield_now().await;
    count_all(&store, shop).await;
    assert!(auditing.await.unwrap().holds());
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_found_and_named_by_reads() {
    for (sql, word) in [
        ("UPDATE event SET properties = 'oops' WHERE key = (1 << 40 | 17)", "properties"),
        ("UPDATE event SET properties = '[1]' WHERE key = (1 << 40 | 17)", "properties"),
        ("UPDATE event SET id = x'0102' WHERE key = (1 << 40 | 17)", "id"),
        ("UPDATE event SET received_ms = 1 << 60 WHERE key = (1 << 40 | 17)", "received"),
        ("UPDATE event SET user = CAST(x'ff' AS TEXT) WHERE key = (1 << 40 | 17)", "user"),
    ] {
        let (folder, store, shop) = filled().await;
        assert_eq!(folder.sql().execute(sql, []).unwrap(), 1);
        let found = audit(&store, None, |_, _| {}).await.unwrap();
        let mut expected = vec!["rows_can_be_read"];
        // Nobody was a user of these events when they were counted.
        expected.extend((word == "user").then_some("users_equal_recount"));
        assert_eq!(failed(&found, shop), expected, "{sql}");
        let order = EventOrder::ByPosition { after: 10 };
        let told = store.events(shop, &EventFilter::default(), order, 20).await.unwrap_err().to_string();
        assert!(told.contains("position 17") && told.contains(word), "{sql}: {told}");
    }
}

#[tokio::test]
async fn a_row_that_no_collector_would_have_stored_is_found() {
    for change in ["id_text = 'other'", "correlation = ''"] {
        let failed = failed_after(&format!("UPDATE event SET {change} WHERE key = (1 << 40 | 17)")).await;
        assert_eq!(failed, ["rows_can_be_read"], "{change}");
    }
}

#[tokio::test]
async fn a_damaged_row_is_an_answer_over_http_and_in_the_command_line_and_never_a_panic() {
    let collector = Collector::start();
    collector.send(serde_json::json!([{"name": "a"}, {"name": "b"}])).await;
    let file = rusqlite::Connection::open(collector.folder().join(DATABASE_FILE)).unwrap();
    file.execute("UPDATE event SET properties = 'oops' WHERE key = (1 << 40 | 2)", []).unwrap();
    for ran in [collector.beside(&["event", "list"]), collector.over_http(&["event", "list"])] {
        ran.assert_failed(1, &["position 2 of project 1", "properties"]);
    }
    let audited = collector.beside(&["audit"]);
    assert_eq!(audited.code, 1, "{audited:?}");
    assert!(audited.stdout.contains("rows_can_be_read\tfails"), "{audited:?}");
}

#[tokio::test]
async fn blocks_of_time_that_hide_events_are_found() {
    for sql in [
        "DELETE FROM event_block WHERE project = 1",
        "UPDATE event_block SET to_ms = to_ms - 1 WHERE project = 1",
        "UPDATE event_block SET from_ms = from_ms + 1 WHERE project = 1",
    ] {
        assert_eq!(failed_after(sql).await, ["blocks_cover_times"], "{sql}");
    }
}

#[tokio::test]
async fn a_schema_that_was_changed_is_found() {
    let (failed, told) = store_failed_after("DROP INDEX event_name").await;
    assert_eq!(failed, ["schema_is_ours"]);
    assert!(told.contains("event_name"), "{told}");
    let (failed, told) =
        store_failed_after("CREATE TRIGGER eats BEFORE INSERT ON event BEGIN SELECT RAISE(IGNORE); END")
            .await;
    assert_eq!(failed, ["schema_is_ours"]);
    assert!(told.contains("eats"), "{told}");
}

#[tokio::test]
async fn a_key_of_no_project_is_found() {
    let (failed, told) = store_failed_after("UPDATE api_key SET project = 77 WHERE project = 2").await;
    assert_eq!(failed, ["references_hold"]);
    assert!(told.contains("api_key"), "{told}");
}

#[tokio::test]
async fn a_rollup_of_no_project_is_found() {
    let (failed, told) = store_failed_after("INSERT INTO rollup_counts SELECT 77, generation, name, hour_ms, count FROM (SELECT * FROM rollup_counts LIMIT 1)").await;
    assert_eq!(failed, ["references_hold"]);
    assert!(told.contains("rollup_counts names project 77"), "{told}");
}

#[tokio::test]
async fn live_counters_are_held_against_a_recount() {
    let (_folder, store, shop) = filled().await;
    let cache = Cache::memory();
    let totals = store.count_totals(shop, 100).await.unwrap();
    assert_eq!(cache.reset(shop, store.epoch(), totals).await, Ok(true));
    // What is stored behind the counters' position doesn't concern them.
    store.append(vec![batch(shop, events("later", 5))]).await.unwrap();
    count_all(&store, shop).await;
    let found = audit(&store, Some(&cache), |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
    assert!(found.projects[0].checks.iter().any(|check| check.name == "counters_equal_recount"));
    let wrong = Applied {
        generation: 1,
        from: 45,
        through: 46,
        per_name: vec![("c".into(), 1)],
        ..Applied::default()
    };
    assert_eq!(cache.count_up(shop, store.epoch(), &wrong).await, Ok(true));
    let found = audit(&store, Some(&cache), |_, _| {}).await.unwrap();
    assert_eq!(failed(&found, shop), ["counters_equal_recount"]);
}
