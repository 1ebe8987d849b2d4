//! An audit of a store on PostgreSQL names each kind of tampering, by every name it prints, and names nothing else.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::{Audit, Check, audit};
use eventbucket_collector::store::{Applied, Store};
use eventbucket_protocol::Event;
use eventbucket_servers::{Postgres, Redis};
use futures_util::{StreamExt as _, stream};

use crate::cache_fixture::Asked as _;
use crate::store_fixture::{batch, count_all_projects, events, project, refused};
use crate::store_postgres::Database;

/// The project that is damaged.
const SHOP: ProjectId = ProjectId(1);

/// Some of the tampered stores wait for counts that don't move; as many do so at once.
const AT_ONCE: usize = 4;

/// What is done to a sound store, and which checks of the project and of the store as a whole fail then: those and no others.
type Tampered = (&'static str, &'static [&'static str], &'static [&'static str]);

const ROWS: [Tampered; 11] = [
    (
        "DELETE FROM event WHERE project = 1 AND position = 17",
        &["positions_are_dense", "head_equals_rows", "ranges_equal_rows", "counts_equal_recount"],
        &[],
    ),
    ("UPDATE event SET name = 'z' WHERE project = 1 AND position = 17", &["counts_equal_recount"], &[]),
    (
        "UPDATE event SET user_id = 'eve' WHERE project = 1 AND position = 1",
        &["users_equal_recount", "identifications_equal_recount"],
        &[],
    ),
    (
        "UPDATE event SET position = 99 WHERE project = 1 AND position = 45",
        &["positions_are_dense", "counts_equal_recount"],
        &["references_hold"],
    ),
    ("UPDATE event SET properties = 'oops' WHERE project = 1 AND position = 17", &["rows_can_be_read"], &[]),
    ("UPDATE event SET properties = '[1]' WHERE project = 1 AND position = 17", &["rows_can_be_read"], &[]),
    (
        "UPDATE event SET received_ms = 1::int8 << 60 WHERE project = 1 AND position = 17",
        &["rows_can_be_read"],
        &[],
    ),
    ("UPDATE event SET id_text = 'other' WHERE project = 1 AND position = 17", &["rows_can_be_read"], &[]),
    ("UPDATE event SET correlation = '' WHERE project = 1 AND position = 17", &["rows_can_be_read"], &[]),
    (
        "UPDATE event SET (id, id_text) = (SELECT id, id_text FROM event WHERE project = 1 AND position = 1)
         WHERE project = 1 AND position = 2",
        &["ids_are_unique"],
        &[],
    ),
    (
        "DELETE FROM api_key WHERE project = 1; DELETE FROM project WHERE id = 1",
        &["rows_belong"],
        &["references_hold"],
    ),
];

const LEDGER: [Tampered; 13] = [
    (
        "UPDATE head SET position = position + 1 WHERE project = 1",
        &["head_equals_rows", "counts_are_current", "identifications_are_current"],
        &[],
    ),
    ("UPDATE head SET duplicate = duplicate + 1 WHERE project = 1", &["ledger_totals_equal_ranges"], &[]),
    (
        "DELETE FROM head WHERE project = 1",
        &[
            "head_equals_rows",
            "ledger_totals_equal_ranges",
            "counts_equal_recount",
            "users_equal_recount",
            "identifications_equal_recount",
        ],
        &[],
    ),
    (
        "UPDATE ranges SET first = 39 WHERE project = 1 AND first = 41",
        &["ranges_are_contiguous", "ledger_balances"],
        &[],
    ),
    (
        "UPDATE ranges SET rejected = 1 WHERE project = 1 AND first = 41",
        &["ledger_balances", "verdicts_agree", "ledger_totals_equal_ranges"],
        &[],
    ),
    (
        "DELETE FROM ranges WHERE project = 1 AND first = 41",
        &["ranges_equal_rows", "ledger_totals_equal_ranges"],
        &["references_hold"],
    ),
    ("UPDATE ranges SET verdicts = 'stored*5' WHERE project = 1 AND first = 41", &["verdicts_agree"], &[]),
    ("UPDATE ranges SET verdicts = NULL WHERE project = 1 AND first = 41", &["verdicts_agree"], &[]),
    ("UPDATE ranges SET refused = 'garbage' WHERE project = 1 AND first = 41", &["verdicts_agree"], &[]),
    ("UPDATE ranges SET refused = NULL WHERE project = 1 AND first = 41", &["verdicts_agree"], &[]),
    ("UPDATE ranges SET part = 9 WHERE project = 1 AND first = 41", &["verdicts_agree"], &[]),
    (
        "UPDATE ranges SET received = 9223372036854775807, duplicate = 9223372036854775807 WHERE project = 1",
        &["ledger_balances", "verdicts_agree", "ledger_totals_equal_ranges"],
        &[],
    ),
    (
        "UPDATE event_id SET range_id = range_id + 1 WHERE project = 1 AND place = 7",
        &[],
        &["references_hold"],
    ),
];

const COUNTS: [Tampered; 13] = [
    ("DELETE FROM event_block WHERE project = 1", &["blocks_cover_times"], &[]),
    ("UPDATE event_block SET to_ms = to_ms - 1 WHERE project = 1", &["blocks_cover_times"], &[]),
    ("UPDATE event_block SET from_ms = from_ms + 1 WHERE project = 1", &["blocks_cover_times"], &[]),
    (
        "DELETE FROM view_live WHERE project = 1 AND view = 'counts'",
        &["counts_are_live", "counts_are_current"],
        &[],
    ),
    (
        "DELETE FROM view_state WHERE project = 1 AND view = 'counts'",
        &["counts_are_live", "counts_are_current", "counts_equal_recount"],
        &[],
    ),
    (
        "UPDATE view_state SET applied_to = 50 WHERE project = 1 AND view = 'counts'",
        &["applied_within_log", "counts_equal_recount"],
        &[],
    ),
    (
        "UPDATE view_state SET applied_to = 30 WHERE project = 1 AND view = 'counts'",
        &["counts_are_current", "counts_equal_recount"],
        &[],
    ),
    (
        "UPDATE rollup_counts SET count = count + CASE name WHEN 'a' THEN 1 ELSE -1 END WHERE project = 1 AND \
         name IN ('a', 'b') AND hour_ms = (SELECT min(hour_ms) FROM rollup_counts WHERE project = 1)",
        &["counts_equal_recount"],
        &[],
    ),
    (
        "UPDATE rollup_counts SET hour_ms = hour_ms - 3600000 WHERE project = 1 AND name = 'a'",
        &["counts_equal_recount"],
        &[],
    ),
    ("DELETE FROM rollup_users WHERE project = 1 AND hours = 24", &["users_equal_recount"], &[]),
    (
        "DELETE FROM view_live WHERE project = 1 AND view = 'identifications'",
        &["identifications_are_current"],
        &[],
    ),
    (
        "UPDATE identification SET events = events + 1 WHERE project = 1",
        &["identifications_equal_recount"],
        &[],
    ),
    (
        "INSERT INTO rollup_counts SELECT 77, generation, hour_ms, count, name FROM rollup_counts LIMIT 1",
        &[],
        &["references_hold"],
    ),
];

const SCHEMA: [Tampered; 8] = [
    ("DROP INDEX event_name", &[], &["schema_is_ours"]),
    ("ALTER TABLE event_1 DROP CONSTRAINT event_1_pkey", &[], &["schema_is_ours"]),
    ("ALTER TABLE event_id DROP CONSTRAINT event_id_pkey", &[], &["schema_is_ours"]),
    (
        "CREATE FUNCTION eats() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER eats BEFORE INSERT ON event_id FOR EACH ROW EXECUTE FUNCTION eats()",
        &[],
        &["schema_is_ours"],
    ),
    ("CREATE RULE forgets AS ON INSERT TO ranges DO INSTEAD NOTHING", &[], &["schema_is_ours"]),
    ("DELETE FROM event_id WHERE project = 1 AND place = 7", &[], &["references_hold"]),
    ("UPDATE event_id SET project = 2 WHERE project = 1 AND place = 7", &[], &["references_hold"]),
    ("CREATE INDEX mine ON event (project, stream)", &[], &[]),
];

/// A sound store that nobody is connected to: what the others are copied from.
async fn filled(database: Database) -> Database {
    let store = database.open().await;
    let (shop, blog) = (project(&store, "shop").await.project.id, project(&store, "blog").await.project.id);
    assert_eq!(shop, SHOP);
    let mut all = events("x", 45);
    all[0] = Event { user: Some("ada".into()), ..all[0].clone() };
    store.append(vec![batch(shop, all[..40].to_vec()), batch(blog, events("x", 7))]).await.unwrap();
    let mut again = batch(shop, all);
    again.refused = refused(2);
    store.append(vec![again]).await.unwrap();
    count_all_projects(&store).await;
    assert!(audited(&store, None).await.holds());
    store.close().await.unwrap();
    database
}

async fn audited(store: &Store, cache: Option<&Cache>) -> Audit {
    audit(store, cache, |_, _| {}).await.unwrap()
}

fn failed<'a>(checks: impl IntoIterator<Item = &'a Check>) -> Vec<&'static str> {
    checks.into_iter().filter(|check| !check.holds).map(|check| check.name).collect()
}

/// The checks that fail: of the project, and of the store.
fn found(audit: &Audit) -> (Vec<&'static str>, Vec<&'static str>) {
    let others = audit.projects.iter().filter(|project| project.project_id != SHOP);
    assert_eq!(failed(others.flat_map(|project| &project.checks)), [""; 0], "{audit:#?}");
    let shop = audit.projects.iter().find(|project| project.project_id == SHOP);
    (failed(shop.into_iter().flat_map(|project| &project.checks)), failed(&audit.store))
}

async fn differs(sound: &Database, (sql, project, store): Tampered) -> Option<String> {
    let database = sound.copy().await;
    database.sql().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let found = found(&audited(&database.open().await, None).await);
    ((&*found.0, &*found.1) != (project, store)).then(|| format!("{sql}\n  {found:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_tampering_fails_the_checks_that_are_about_it_and_no_others() {
    let sound = filled(Database::new().await).await;
    let tampered = ROWS.into_iter().chain(LEDGER).chain(COUNTS).chain(SCHEMA);
    let judged = stream::iter(tampered).map(|one| differs(&sound, one)).buffer_unordered(AT_ONCE);
    let wrong: Vec<String> = judged.filter_map(async |one| one).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_check_there_is_has_its_tampering() {
    let database = filled(Database::new().await).await;
    let sound = audited(&database.open().await, None).await;
    let checks = sound.projects.iter().flat_map(|project| &project.checks).chain(&sound.store);
    let tampered = ROWS.iter().chain(&LEDGER).chain(&COUNTS).chain(&SCHEMA);
    let mut tried: BTreeSet<_> =
        tampered.flat_map(|(_, project, store)| project.iter().chain(*store)).collect();
    // Damage of pages has a test of its own.
    tried.insert(&"pages_are_sound");
    let left: Vec<_> = checks.map(|check| check.name).filter(|name| !tried.contains(name)).collect();
    assert!(left.is_empty(), "nothing is tried against {left:?}");
}

#[tokio::test]
async fn a_damaged_page_is_found() {
    let mut server = tokio::task::spawn_blocking(|| Postgres::start().unwrap()).await.unwrap();
    let database = filled(Database { url: server.database("damaged").unwrap() }).await;
    let ask = "SELECT pg_relation_filepath('event_1')";
    let path: String = database.sql().await.query_one(ask, &[]).await.unwrap().get(0);
    server.stop().unwrap();
    let page = OpenOptions::new().write(true).open(server.data().join(path)).unwrap();
    page.write_all_at(&[0xff; 512], 0).unwrap();
    server.restart().unwrap();
    let found = audited(&database.open().await, None).await;
    assert_eq!(failed(&found.store), ["pages_are_sound"]);
    let told = found.store.into_iter().find(|check| !check.holds).unwrap().detail;
    assert!(told.contains("invalid page in block 0"), "{told}");
}

#[tokio::test]
async fn live_counters_are_held_against_a_recount() {
    let database = filled(Database::new().await).await;
    let store = database.open().await;
    let cache = Redis::start().unwrap();
    let cache = cache.cache().await;
    let totals = store.count_totals(SHOP, 100).await.unwrap();
    assert_eq!(cache.reset(SHOP, store.epoch(), totals).await, Ok(true));
    // What is stored behind the counters' position doesn't concern them.
    store.append(vec![batch(SHOP, events("later", 5))]).await.unwrap();
    count_all_projects(&store).await;
    let sound = audited(&store, Some(&cache)).await;
    assert!(sound.holds(), "{sound:#?}");
    assert_eq!(sound.projects[0].checks.last().unwrap().name, "counters_equal_recount");
    let wrong = Applied {
        generation: 1,
        from: 45,
        through: 46,
        per_name: vec![("c".into(), 1)],
        ..Applied::default()
    };
    assert_eq!(cache.count_up(SHOP, store.epoch(), &wrong).await, Ok(true));
    assert_eq!(found(&audited(&store, Some(&cache)).await), (vec!["counters_equal_recount"], vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projects_that_are_made_meanwhile_are_no_finding() {
    let database = Database::new().await;
    let store = database.open().await;
    let account = store.create_account("ada@example.com", "team").await.unwrap();
    let making = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0..60 {
                let made = store.create_project(account, &format!("number {number}")).await.unwrap();
                store.append(vec![batch(made.project.id, events("x", 1))]).await.unwrap();
                store.apply_counts(made.project.id, 1).await.unwrap();
            }
        }
    });
    while !making.is_finished() {
        let figures = store.audit_figures(Default::default(), |_, _| {}).await.unwrap();
        let unknown: Vec<_> = figures.projects.iter().filter(|(_, figures)| !figures.known).collect();
        assert!(unknown.is_empty() && figures.reference.is_none(), "{unknown:?} {:?}", figures.reference);
    }
    making.await.unwrap();
}
