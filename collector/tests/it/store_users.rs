//! How many different users: the same on every store, over any span, after every detour.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use eventbucket_collector::cache::Cache;
use eventbucket_collector::insight::STANDARD_ERROR;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::Reader;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{CountsBy, CountsQuery, Store, UserCounts};
use eventbucket_protocol::{Event, Timestamp};

use crate::random::Random;
use crate::store_fixture::{
    Folder, HOUR, NOON, Place, at, batch, count_all, count_all_projects, event, events, project,
};
use crate::store_postgres::Database;

const DAY: i64 = 24 * HOUR;

async fn holds(store: &Store) {
    count_all_projects(store).await;
    let found = audit(store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
}

/// The checks of a project that fail, with what they tell.
async fn complaints(store: &Store) -> Vec<(&'static str, String)> {
    let found = audit(store, None, |_, _| {}).await.unwrap();
    let checks = found.projects.into_iter().flat_map(|project| project.checks);
    checks.filter(|check| !check.holds).map(|check| (check.name, check.detail)).collect()
}

/// Events of three names over four days around a midnight and 1970, by up to 40 users and by nobody.
fn random_events(random: &mut Random, count: usize) -> Vec<Event> {
    let one = |i: usize| {
        let name = ["a", "b", "ünï"][random.below(3) as usize];
        let user = (random.below(5) > 0).then(|| format!("user-{}", random.below(40)));
        let time = at(-DAY + i64::try_from(random.below(4 * 86_400)).unwrap() * 1_000);
        Event { user, time, ..event(&format!("x{i}"), name) }
    };
    (0..count).map(one).collect()
}

/// What the users of events are, counted one by one.
fn recount(events: &[Event], query: &CountsQuery) -> UserCounts {
    let mut rows: BTreeMap<_, BTreeSet<&String>> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for event in events {
        let ms = event.time.ms();
        let start = |length| Some(at(ms - ms.rem_euclid(length)));
        let asked = query.name.as_ref().is_none_or(|name| *name == event.name)
            && query.from_hour.is_none_or(|from| start(HOUR) >= Some(from))
            && query.to_hour.is_none_or(|to| start(HOUR) < Some(to));
        let Some(user) = event.user.as_ref().filter(|_| asked) else { continue };
        let start = match query.by {
            CountsBy::Total => None,
            CountsBy::Day => start(DAY),
            CountsBy::Hour => start(HOUR),
        };
        rows.entry((event.name.clone(), start)).or_default().insert(user);
        all.insert(user);
    }
    let rows = rows.into_iter().map(|(row, users)| (row, users.len() as u64)).collect();
    UserCounts { rows, total: all.len() as u64 }
}

async fn users(store: &Store, project: ProjectId, query: &CountsQuery) -> UserCounts {
    store.users(project, query.clone()).await.unwrap().expect("users are counted")
}

#[tokio::test]
async fn users_count_once_over_any_span_of_hours() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let next_door = project(&store, "next door").await.project.id;
        let mut random = Random::new(11);
        let all = random_events(&mut random, 600);
        store.append(vec![batch(next_door, events("x", 9))]).await.unwrap();
        for (i, some) in all.chunks(70).enumerate() {
            store.append(vec![batch(shop, some.to_vec())]).await.unwrap();
            // In steps of their own, so that later ones meet sketches that are there.
            store.apply_counts(shop, 70 * i as u64 + 35).await.unwrap();
        }
        count_all(&store, shop).await;
        for i in 0..60 {
            let bound = |random: &mut Random| {
                (random.below(4) > 0).then(|| at(-2 * DAY + i64::try_from(random.below(150)).unwrap() * HOUR))
            };
            let name =
                ["a", "b", "ünï", "nobody"].get(random.below(8) as usize).map(|name| (*name).to_owned());
            let by = [CountsBy::Total, CountsBy::Day, CountsBy::Hour][i % 3];
            let query = CountsQuery {
                name,
                from_hour: bound(&mut random),
                to_hour: bound(&mut random),
                by,
                users: true,
            };
            assert_eq!(users(&store, shop, &query).await, recount(&all, &query), "{query:?}");
            // Every row of users is a row of counts.
            let counts = store.counts(shop, query.clone()).await.unwrap();
            let rows: BTreeMap<(String, Option<Timestamp>), u64> =
                counts.into_iter().map(|row| ((row.name, row.start), row.count)).collect();
            for (row, users) in users(&store, shop, &query).await.rows {
                assert!(rows[&row] >= users, "{query:?}: {row:?}");
            }
        }
        let everything = CountsQuery::default();
        assert_eq!(
            users(&store, next_door, &everything).await,
            UserCounts::default(),
            "events without users"
        );
        let before = users(&store, shop, &everything).await;
        store.rebuild_counts(shop, |_, _| {}).await.unwrap();
        assert_eq!(users(&store, shop, &everything).await, before, "a rebuild gives the same");
        holds(&store).await;
    }
}

#[tokio::test]
async fn many_users_are_estimated_within_the_error_and_the_same_on_every_store() {
    let mut estimates = Vec::new();
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let of_user = |i: usize| Event {
            user: Some(format!("user-{}", i % 6_000)),
            time: at(NOON - NOON % DAY + i64::try_from(i % 30).unwrap() * HOUR),
            ..event(&format!("x{i}"), ["a", "b"][i / 6_000])
        };
        for from in (0..12_000).step_by(3_000) {
            let some = (from..from + 3_000).map(of_user).collect();
            store.append(vec![batch(shop, some)]).await.unwrap();
            store.apply_counts(shop, from as u64 + 1_000).await.unwrap();
        }
        count_all(&store, shop).await;
        let total = users(&store, shop, &CountsQuery::default()).await;
        assert_eq!(total.rows.len(), 2);
        for estimate in total.rows.values().chain([&total.total]) {
            let error = (*estimate as f64 - 6_000.0) / 6_000.0;
            assert!(error.abs() <= 3.0 * STANDARD_ERROR, "{estimate} of 6,000");
        }
        let days = users(&store, shop, &CountsQuery { by: CountsBy::Day, ..CountsQuery::default() }).await;
        assert_eq!(days.rows.len(), 4);
        assert_eq!(days.total, total.total, "both cover the same events");
        holds(&store).await;
        store.rebuild_counts(shop, |_, _| {}).await.unwrap();
        assert_eq!(users(&store, shop, &CountsQuery::default()).await, total, "however it was cut");
        estimates.push((total, days));
    }
    assert_eq!(estimates[0], estimates[1]);
}

#[tokio::test]
async fn users_are_told_when_they_are_asked_for_alone() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let of =
            |i: usize| Event { user: Some("ada".into()), ..event(&format!("x{i}"), &format!("name-{i}")) };
        store.append(vec![batch(shop, (0..9).map(of).collect())]).await.unwrap();
        count_all(&store, shop).await;
        let reader = Reader::new(store, Cache::memory());
        let counts = async |users| {
            let query = CountsQuery { users, ..CountsQuery::default() };
            reader.counts(shop, query).await.unwrap()
        };
        let without = counts(false).await;
        assert_eq!((without.rows.len(), without.rows[0].users, without.users), (9, None, None));
        let with = counts(true).await;
        assert_eq!((with.rows.len(), with.rows[0].users, with.users), (9, Some(1), Some(1)));
    }
}

#[tokio::test]
async fn a_resend_and_an_event_already_stored_add_nobody() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let of = |user: &str, id: &str| Event { user: Some(user.into()), ..event(id, "a") };
        store.append(vec![batch(shop, vec![of("ada", "x"), of("ada", "y")])]).await.unwrap();
        // The same id by another user is a duplicate that differs: it was never stored.
        store.append(vec![batch(shop, vec![of("grace", "x"), of("ada", "y")])]).await.unwrap();
        count_all(&store, shop).await;
        count_all(&store, shop).await;
        assert_eq!(users(&store, shop, &CountsQuery::default()).await.total, 1);
    }
}

#[tokio::test]
async fn an_audit_finds_what_was_changed() {
    let tampered = [
        (
            "UPDATE rollup_users SET sketch = (SELECT other.sketch FROM rollup_users AS other WHERE other.name = 'b' \
          AND other.hours = 0 LIMIT 1) WHERE name = 'a' AND hours = 0",
            "\"a\" of all time",
        ),
        ("DELETE FROM rollup_users WHERE name = 'b' AND hours = 24", "\"b\" of the day that begins at"),
        (
            "UPDATE rollup_users SET start_ms = start_ms + 3600000 WHERE name = 'b' AND hours = 1",
            "\"b\" of the hour",
        ),
    ];
    for (place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let of = |i: usize| Event {
            user: Some(format!("user-{i}")),
            ..event(&format!("x{i}"), ["a", "b"][i % 2])
        };
        store.append(vec![batch(shop, (0..10).map(of).collect())]).await.unwrap();
        holds(&store).await;
        for (sql, told) in tampered {
            place.change(sql).await;
            let found = complaints(&store).await;
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, "users_equal_recount");
            assert!(found[0].1.contains(told), "{found:?}");
            store.rebuild_counts(shop, |_, _| {}).await.unwrap();
            holds(&store).await;
        }
        let log = match place {
            Place::Sqlite(_) => "UPDATE event SET user = 'mallory' WHERE user = 'user-7'",
            Place::Postgres(_) => "UPDATE event SET user_id = 'mallory' WHERE user_id = 'user-7'",
        };
        place.change(log).await;
        assert_eq!(complaints(&store).await[0].0, "users_equal_recount", "a user of the log was changed");
    }
}

#[tokio::test]
async fn hostile_bytes_in_the_place_of_a_sketch_are_told_and_mended_by_a_rebuild() {
    for (place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let of = |id: &str| Event { user: Some("ada".into()), ..event(id, "a") };
        store.append(vec![batch(shop, vec![of("x")])]).await.unwrap();
        count_all(&store, shop).await;
        match place {
            Place::Sqlite(_) => place.change("UPDATE rollup_users SET sketch = x'02ffffff'").await,
            Place::Postgres(_) => place.change("UPDATE rollup_users SET sketch = '\\x02ffffff'").await,
        }
        let read = store.users(shop, CountsQuery::default()).await.unwrap_err().to_string();
        assert!(read.contains("the users of \"a\"") && read.contains("eventbucket rebuild"), "{read}");
        store.append(vec![batch(shop, vec![of("y")])]).await.unwrap();
        assert!(store.apply_counts(shop, u64::MAX).await.is_err(), "nothing is built on it");
        assert_eq!(complaints(&store).await[0].0, "counts_are_current");
        store.rebuild_counts(shop, |_, _| {}).await.unwrap();
        assert_eq!(users(&store, shop, &CountsQuery::default()).await.total, 1);
        holds(&store).await;
    }
}

#[tokio::test]
async fn users_of_dropped_events_stay_counted() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let of = |i: usize| Event { user: Some(format!("user-{i}")), ..event(&format!("x{i}"), "a") };
    store.append(vec![batch(shop, (0..30).map(of).collect())]).await.unwrap();
    store.apply_counts(shop, 10).await.unwrap();
    database.age_segment().await;
    let store = database.open().await;
    store
        .append(vec![batch(shop, (20..50).map(of).map(|e| Event { id: new_id(&e), ..e }).collect())])
        .await
        .unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 30);
    count_all(&store, shop).await;
    assert_eq!(users(&store, shop, &CountsQuery::default()).await.total, 50);
    holds(&store).await;
    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!(
        users(&store, shop, &CountsQuery::default()).await.total,
        50,
        "a rebuild begins with the seal"
    );
    holds(&store).await;
}

fn new_id(event: &Event) -> eventbucket_protocol::EventId {
    eventbucket_protocol::EventId::from_text(&format!("new-{}", event.id))
}

/// A database as the version before users left it, with an unfinished rebuild in it.
const OLDER_SQLITE: &str = "
    INSERT INTO epoch VALUES (1, x'0190a0b0c0d0e0f00102030405060708', 0);
    INSERT INTO account VALUES (1, 'ada@example.com', 'team', 0);
    INSERT INTO project VALUES (1, 1, 'shop', 0), (2, 1, 'empty', 0);
    INSERT INTO event (key, project, id, name, time_ms, received_ms, user, properties)
    VALUES (1 << 40 | 1, 1, x'00000000000000000000000000000001', 'a', 1709290800000, 1709290800000, 'ada', '{}'),
           (1 << 40 | 2, 1, x'00000000000000000000000000000002', 'a', 1709290800000, 1709290800000, 'grace', '{}');
    INSERT INTO event_block VALUES (1, 0, 1709290800000, 1709290800000);
    INSERT INTO head VALUES (1, 2, 2, 2, 0, 0, 0), (2, 0, 0, 0, 0, 0, 0);
    INSERT INTO ranges VALUES (1, 1, 1, 2, x'00000000000000000000000000000003', 1709290800000, 2, 2, 0, 0, 0, 0, 1, NULL, NULL);
    INSERT INTO view_state VALUES ('counts', 1, 1, 2), ('counts', 1, 2, 1), ('counts', 2, 1, 0);
    INSERT INTO view_live VALUES ('counts', 1, 1), ('counts', 2, 1);
    INSERT INTO rollup_counts VALUES (1, 1, 'a', 1709290800000, 2), (1, 2, 'a', 1709290800000, 1);
    PRAGMA application_id = 0x45764275;
    PRAGMA user_version = 1;";

/// Takes back what the migration does.
const OLDER_POSTGRES: &str = "
    DROP TABLE rollup_users, retention, usage, identification;
    DELETE FROM view_state WHERE view = 'identifications';
    DELETE FROM view_live WHERE view = 'identifications';
    ALTER TABLE view_state DROP COLUMN has_users;
    INSERT INTO view_state (view, project, generation, applied_to) VALUES ('counts', 1, 2, 1);
    INSERT INTO rollup_counts (project, generation, hour_ms, count, name) VALUES (1, 2, 1709290800000, 1, 'a');
    UPDATE schema_version SET version = 1 WHERE part = 'log'";

#[tokio::test]
async fn an_older_database_is_upgraded_and_a_rebuild_counts_its_users() {
    let folder = Folder::new();
    let file = folder.sql();
    file.execute_batch(include_str!("../../migrations/sqlite/0001_first.sql")).unwrap();
    file.execute_batch(OLDER_SQLITE).unwrap();
    drop(file);
    upgraded(&folder.open()).await;
    upgraded(&older_postgres().await.open().await).await;
}

async fn older_postgres() -> Database {
    let database = Database::new().await;
    let store = database.open().await;
    let account = store.create_account("ada@example.com", "team").await.unwrap();
    let shop = store.create_project(account, "shop").await.unwrap().project.id;
    store.create_project(account, "empty").await.unwrap();
    let of = |user: &str| Event { user: Some(user.into()), time: at(1_709_290_800_000), ..event(user, "a") };
    store.append(vec![batch(shop, vec![of("ada"), of("grace")])]).await.unwrap();
    count_all(&store, shop).await;
    store.close().await.unwrap();
    database.sql().await.batch_execute(OLDER_POSTGRES).await.unwrap();
    database
}

#[tokio::test]
async fn no_number_is_told_where_a_worker_of_the_version_before_counted_first() {
    let database = older_postgres().await;
    let store = database.open().await;
    let empty = ProjectId(2);
    let of = |user: &str| Event { user: Some(user.into()), time: at(1_709_290_800_000), ..event(user, "a") };
    store.append(vec![batch(empty, vec![of("ada")])]).await.unwrap();
    let older_worker = "
        INSERT INTO rollup_counts (project, generation, hour_ms, count, name) VALUES (2, 1, 1709290800000, 1, 'a');
        UPDATE view_state SET applied_to = 1 WHERE project = 2 AND generation = 1 AND view = 'counts'";
    database.sql().await.batch_execute(older_worker).await.unwrap();
    store.append(vec![batch(empty, vec![of("grace")])]).await.unwrap();
    holds(&store).await;
    assert_eq!(store.users(empty, CountsQuery::default()).await.unwrap(), None);
    store.rebuild_counts(empty, |_, _| {}).await.unwrap();
    assert_eq!(users(&store, empty, &CountsQuery::default()).await.total, 2);
    holds(&store).await;
}

async fn upgraded(store: &Store) {
    let (shop, empty) = (ProjectId(1), ProjectId(2));
    let query = CountsQuery::default();
    assert_eq!(store.counts(shop, query.clone()).await.unwrap()[0].count, 2, "the counts are what they were");
    holds(store).await;
    // New events are counted as before, and nobody is told a number that would be too small.
    store
        .append(vec![batch(shop, vec![Event { user: Some("joan".into()), ..event("new", "a") }])])
        .await
        .unwrap();
    holds(store).await;
    assert_eq!(store.users(shop, query.clone()).await.unwrap(), None);
    let joins = Event { user: Some("joan".into()), ..event("new", "a") };
    store.append(vec![batch(empty, vec![joins])]).await.unwrap();
    holds(store).await;
    assert_eq!(users(store, empty, &query).await.total, 1, "nothing was counted before");
    let rebuilt = store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!((rebuilt.generation, rebuilt.applied_to), (2, 3));
    assert_eq!(users(store, shop, &query).await.total, 3);
    assert_eq!(store.counts(shop, query).await.unwrap()[0].count, 3, "the unfinished rebuild was begun anew");
    holds(store).await;
}
