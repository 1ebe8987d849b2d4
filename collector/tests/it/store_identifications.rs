//! Who the users are: the same on every store, after every detour.

use std::collections::BTreeSet;
use std::time::Duration;

use eventbucket_collector::cache::Cache;
use eventbucket_collector::insight::identification::RefusedFor;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::query::{Error, Reader, UsersQuery};
use eventbucket_collector::store::{SeenBefore, Store, UserLookup, UserProfile, UserRow};
use eventbucket_protocol::{Event, Properties};
use serde_json::json;

use crate::store_fixture::{NOON, Place, at, batch, count_all, count_all_projects, event, project};
use crate::store_postgres::Database;

pub(crate) fn seen(id: &str, user: &str, seconds: i64) -> Event {
    Event { user: Some(user.to_owned()), time: at(NOON + seconds * 1_000), ..event(id, "seen") }
}

pub(crate) fn identify(id: &str, user: &str, seconds: i64, traits: &serde_json::Value) -> Event {
    let properties = Properties::parse(&traits.to_string()).unwrap();
    Event { name: "$identify".to_owned(), properties, ..seen(id, user, seconds) }
}

pub(crate) fn alias(id: &str, user: &str, other: &str, seconds: i64) -> Event {
    let said = json!({ "alias": other });
    Event { name: "$alias".to_owned(), ..identify(id, user, seconds, &said) }
}

async fn profile(store: &Store, project: ProjectId, id: &str) -> UserProfile {
    store.identification(project, id).await.unwrap().unwrap_or_else(|| panic!("there is no {id}"))
}

fn traits(profile: &UserProfile) -> serde_json::Value {
    let one = |value: &str| -> serde_json::Value { serde_json::from_str(value).unwrap() };
    profile.traits.iter().map(|(name, set)| (name.to_owned(), one(set.value().get()))).collect()
}

/// Every user, by pages of three, and everything that is known of each.
pub(crate) async fn everything(store: &Store, project: ProjectId) -> Vec<UserProfile> {
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page: Vec<UserRow> = store.identifications(project, before, 3).await.unwrap();
        let Some(last) = page.last() else { return found };
        let last = SeenBefore { last_ms: last.last_seen.ms(), last_position: last.last_position };
        assert!(before.is_none_or(|before: SeenBefore| {
            (before.last_ms, before.last_position) > (last.last_ms, last.last_position)
        }));
        before = Some(last);
        for row in page {
            let profile = profile(store, project, &row.id).await;
            assert_eq!(profile.row, row);
            found.push(profile);
        }
    }
}

pub(crate) async fn holds(store: &Store) {
    count_all_projects(store).await;
    let found = audit(store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
}

/// The checks of a project that fail.
async fn complaints(store: &Store) -> Vec<(&'static str, String)> {
    let found = audit(store, None, |_, _| {}).await.unwrap();
    let checks = found.projects.into_iter().flat_map(|project| project.checks);
    checks.filter(|check| !check.holds).map(|check| (check.name, check.detail)).collect()
}

async fn timeline(store: &Store, project: ProjectId, id: &str, limit: usize) -> Vec<String> {
    let (mut ids, mut before) = (Vec::new(), None);
    loop {
        let page = store.timeline(project, id, before, limit).await.unwrap().unwrap();
        ids.extend(page.events.iter().map(|stored| stored.event.id.to_string()));
        before = page.next;
        if before.is_none() {
            return ids;
        }
    }
}

#[tokio::test]
async fn a_user_is_made_of_what_was_said_and_done() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let first = vec![
            seen("e1", "anon-1", 50),
            identify("e2", "ada", 60, &json!({"email": "ada@example.com", "plan": "free", "n": 1.50})),
            alias("e3", "ada", "anon-1", 61),
            seen("e4", "grace", 10),
        ];
        let second = vec![
            seen("e5", "anon-1", 5),
            identify("e6", "anon-1", 70, &json!({"plan": "pro", "n": null})),
            identify("e7", "grace", 5, &json!({"email": "grace@example.com"})),
            alias("e8", "grace", "anon-1", 71),
        ];
        store.append(vec![batch(shop, first)]).await.unwrap();
        count_all(&store, shop).await;
        let mut late = batch(shop, second);
        late.skew_ms = Some(1_000);
        store.append(vec![late]).await.unwrap();
        count_all(&store, shop).await;
        for id in ["ada", "anon-1"] {
            let ada = profile(&store, shop, id).await;
            assert_eq!((ada.row.id.as_str(), ada.row.identified, ada.row.events), ("ada", true, 5));
            assert_eq!(ada.row.email.as_deref(), Some("ada@example.com"));
            assert_eq!((ada.row.first_seen, ada.row.last_seen), (at(NOON + 6_000), at(NOON + 71_000)));
            assert_eq!((ada.row.last_position, ada.row.links), (6, 1));
            assert_eq!(ada.ids, [("anon-1".to_owned(), 3)]);
            assert_eq!(traits(&ada), json!({"email": "ada@example.com", "plan": "pro"}));
            let (_, plan) = ada.traits.iter().find(|(name, _)| *name == "plan").unwrap();
            assert_eq!((plan.time_ms(), plan.position()), (NOON + 71_000, 6), "by the corrected time");
        }
        let grace = profile(&store, shop, "grace").await;
        assert_eq!(grace.refused.len(), 1);
        assert_eq!((grace.refused[0].reason, grace.refused[0].position), (RefusedFor::Linked, 8));
        assert_eq!(timeline(&store, shop, "anon-1", 2).await, ["e6", "e5", "e3", "e2", "e1"]);
        assert_eq!(timeline(&store, shop, "grace", 100).await, ["e8", "e7", "e4"]);
        let listed: Vec<String> =
            everything(&store, shop).await.into_iter().map(|user| user.row.id).collect();
        assert_eq!(listed, ["grace", "ada"], "the last seen first, and no linked id");
        assert!(store.identification(shop, "nobody").await.unwrap().is_none());
        assert!(store.timeline(shop, "nobody", None, 9).await.unwrap().is_none());
        holds(&store).await;
    }
}

#[tokio::test]
async fn users_are_looked_up_by_id_email_and_beginning() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let emails = ["zoe@example.com", "ada@example.com", "Ada@example.com"];
        let email = |i: usize| json!({ "email": emails[i % 3] });
        let mut events: Vec<Event> =
            (0..6).map(|i| identify(&format!("i{i}"), &format!("user-{i}"), 1, &email(i))).collect();
        events.push(alias("a", "user-3", "z-device", 1));
        events.push(seen("last", "\u{10ffff}", 1));
        store.append(vec![batch(shop, events)]).await.unwrap();
        count_all(&store, shop).await;
        let found = async |lookup| {
            let users = store.find_identifications(shop, lookup, 4).await.unwrap();
            users.into_iter().map(|user| user.id).collect::<Vec<_>>()
        };
        let beginning = async |text: &str| found(UserLookup::Beginning(text.to_owned())).await;
        assert_eq!(found(UserLookup::Id("z-device".into())).await, ["user-3"]);
        assert_eq!(found(UserLookup::Id("user".into())).await, [""; 0]);
        assert_eq!(found(UserLookup::Email("ada@example.com".into())).await, ["user-1", "user-4"]);
        assert_eq!(found(UserLookup::Email("ada@example".into())).await, [""; 0]);
        assert_eq!(beginning("ada@").await, ["user-1", "user-4"]);
        assert_eq!(beginning("z").await, ["user-3", "user-0"], "by a linked id, then by emails");
        assert_eq!(beginning("user").await, ["user-0", "user-1", "user-2", "user-3"], "as many as wanted");
        assert_eq!(beginning("\u{10ffff}").await, ["\u{10ffff}"]);
        assert_eq!(beginning("%").await, [""; 0]);
    }
}

#[tokio::test]
async fn hostile_texts_come_back_as_they_were_sent() {
    let long = "\u{202e}<script>alert(1)</script>\u{1f600}".repeat(350);
    let ids = [
        "<img src=x onerror=alert(1)>",
        "\u{202e}evil\u{202c}",
        "a\tb\r\nc\u{1b}[31m",
        "'; DROP TABLE identification; --",
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "%_\\*",
        "..",
        &"\u{10ffff}".repeat(512),
    ];
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        for (i, id) in ids.iter().enumerate() {
            let said =
                json!({"email": *id, "bio": long, (*id): {"deep": [long, null, 1]}, "esc\"aped\u{7}": *id});
            let said = if id.len() > 200 { json!({"email": *id, "bio": long}) } else { said };
            let events = vec![
                identify(&format!("i{i}"), id, 1, &said),
                alias(&format!("a{i}"), id, &format!("{}~", id.chars().skip(1).collect::<String>()), 2),
                seen(&format!("b{i}"), id, 3),
            ];
            store.append(vec![batch(shop, events)]).await.unwrap();
            count_all(&store, shop).await;
            let user = profile(&store, shop, id).await;
            assert_eq!((user.row.id.as_str(), user.row.email.as_deref()), (*id, Some(*id)));
            assert_eq!(traits(&user), said);
            let linked = user.ids[0].0.clone();
            assert_eq!(profile(&store, shop, &linked).await, user);
            let found = store.find_identifications(shop, UserLookup::Beginning((*id).to_owned()), 9).await;
            assert_eq!(found.unwrap().len(), 1, "{id:?}");
            assert_eq!(timeline(&store, shop, &linked, 1).await.len(), 3);
        }
        let before = everything(&store, shop).await;
        assert_eq!(before.len(), ids.len());
        store.rebuild_identifications(shop, |_, _| {}).await.unwrap();
        assert_eq!(everything(&store, shop).await, before);
        holds(&store).await;
    }
}

#[tokio::test]
async fn pages_stay_where_they_were_while_events_arrive() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let all: Vec<Event> =
            (0..20_i64).map(|i| seen(&format!("e{i}"), &format!("user-{i:02}"), 100 + i / 4)).collect();
        store.append(vec![batch(shop, all)]).await.unwrap();
        count_all(&store, shop).await;
        let reader = Reader::new(store.clone(), Cache::memory());
        let (mut told, mut cursor) = (Vec::new(), None);
        for round in 0.. {
            let page =
                reader.users(shop, UsersQuery { cursor, limit: 3, ..UsersQuery::default() }).await.unwrap();
            let page = serde_json::to_value(&page).unwrap();
            told.extend(
                page["users"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()),
            );
            let Some(next) = page["next"].as_str() else { break };
            cursor = Some(next.to_owned());
            // Somebody new, and somebody who was told already, are seen now; another late.
            let news = vec![
                seen(&format!("n{round}"), &format!("new-{round}"), 500 + round),
                seen(&format!("m{round}"), &told[0], 600 + round),
                seen(&format!("l{round}"), "user-00", -round),
            ];
            store.append(vec![batch(shop, news)]).await.unwrap();
            count_all(&store, shop).await;
        }
        let different: BTreeSet<&String> = told.iter().collect();
        assert_eq!((told.len(), different.len()), (20, 20), "{told:?}");
        let events = timeline(&store, shop, "user-00", 2).await;
        assert_eq!(events.len(), events.iter().collect::<BTreeSet<_>>().len());
        // What a cursor says is checked.
        for cursor in ["17", "x_1.00000000", "5_5.00000000", "9223372036854775808_1.00000000"] {
            let query = UsersQuery { cursor: Some(cursor.to_owned()), ..UsersQuery::default() };
            assert!(matches!(reader.users(shop, query).await, Err(Error::Cursor(_))), "{cursor}");
        }
    }
}

#[tokio::test]
async fn another_projects_users_are_not_found() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let blog = project(&store, "blog").await.project.id;
        let said = json!({"email": "ada@example.com"});
        let events = vec![identify("i", "ada", 1, &said), alias("a", "ada", "anon", 1)];
        store.append(vec![batch(shop, events), batch(blog, vec![seen("s", "anon", 1)])]).await.unwrap();
        count_all_projects(&store).await;
        assert!(store.identification(blog, "ada").await.unwrap().is_none());
        assert_eq!(profile(&store, blog, "anon").await.row.id, "anon");
        assert_eq!(timeline(&store, blog, "anon", 9).await, ["s"]);
        assert_eq!(timeline(&store, shop, "anon", 9).await, ["a", "i"]);
        for lookup in [UserLookup::Email("ada@example.com".into()), UserLookup::Beginning("ada".into())] {
            assert_eq!(store.find_identifications(blog, lookup, 9).await.unwrap(), []);
        }
        assert_eq!(everything(&store, blog).await.len(), 1);
    }
}

#[tokio::test]
async fn what_arrives_twice_changes_nothing() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let sent = [
            seen("e1", "anon", 1),
            identify("e2", "ada", 2, &json!({"plan": "pro"})),
            alias("e3", "ada", "anon", 3),
            seen("e4", "anon", 4),
        ];
        store.append(vec![batch(shop, sent[..3].to_vec())]).await.unwrap();
        count_all(&store, shop).await;
        store.append(vec![batch(shop, sent[1..].to_vec())]).await.unwrap();
        for through in [2, 4, 3, 4, 1, u64::MAX] {
            store.apply_counts(shop, through).await.unwrap();
        }
        // A resend that says otherwise was never stored.
        store.append(vec![batch(shop, vec![identify("e2", "ada", 9, &json!({"plan": "x"}))])]).await.unwrap();
        count_all(&store, shop).await;
        let ada = profile(&store, shop, "ada").await;
        assert_eq!((ada.row.events, traits(&ada)), (4, json!({"plan": "pro"})));
        holds(&store).await;
    }
}

#[tokio::test]
async fn a_long_backlog_is_taken_in_steps() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let one = |i: usize| match i % 2 {
            0 => seen(&format!("e{i}"), &format!("anon-{i}"), 1),
            _ => alias(&format!("e{i}"), &format!("user-{}", i % 30), &format!("anon-{}", i - 1), 2),
        };
        for from in [0, 2_000] {
            store.append(vec![batch(shop, (from..from + 2_000).map(one).collect())]).await.unwrap();
        }
        // Where users wait for a pause of the counts the first step is these alone.
        let mut step = store.apply_counts(shop, u64::MAX).await.unwrap();
        assert_eq!(step.through, 4_000);
        if step.identified.through == 0 {
            step = store.apply_counts(shop, u64::MAX).await.unwrap();
        }
        assert_eq!(step.identified.through, 2_000, "1,000 of them say who users are");
        count_all(&store, shop).await;
        assert_eq!(store.identification_state(shop).await.unwrap().applied_to, 4_000);
        let users = everything(&store, shop).await;
        assert_eq!(users.iter().map(|user| (user.row.events, user.row.links)).max(), Some((268, 134)));
        assert_eq!((users.len(), timeline(&store, shop, "user-1", 50).await.len()), (15, 268));
        holds(&store).await;
    }
}

#[tokio::test]
async fn an_audit_finds_what_was_changed_and_a_rebuild_mends_it() {
    let tampered = [
        "UPDATE identification SET events = events + 1 WHERE user_id = 'ada'",
        "UPDATE identification SET traits = '{}' WHERE user_id = 'ada'",
        "UPDATE identification SET linked_to = NULL, linked_at = NULL WHERE user_id = 'anon'",
        "DELETE FROM identification WHERE user_id = 'anon'",
    ];
    for (place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let events = vec![identify("e1", "ada", 2, &json!({"plan": "pro"})), alias("e2", "ada", "anon", 3)];
        store.append(vec![batch(shop, events)]).await.unwrap();
        holds(&store).await;
        for sql in tampered {
            place.change(sql).await;
            let found = complaints(&store).await;
            assert_eq!(found.len(), 1, "{sql}: {found:?}");
            assert_eq!(found[0].0, "identifications_equal_recount");
            store.rebuild_identifications(shop, |_, _| {}).await.unwrap();
            holds(&store).await;
        }
        // One that can't be read stops the view and not the counts' rebuild.
        place.change("UPDATE identification SET traits = '[7]' WHERE user_id = 'ada'").await;
        let told = store.identification(shop, "ada").await.unwrap_err().to_string();
        assert!(told.contains("\"ada\"") && told.contains("eventbucket rebuild"), "{told}");
        store.rebuild_identifications(shop, |_, _| {}).await.unwrap();
        // Who follows the log makes the view again when somebody removed its state.
        place.change("DELETE FROM view_live WHERE view = 'identifications'").await;
        place.change("DELETE FROM view_state WHERE view = 'identifications'").await;
        assert_eq!(complaints(&store).await[0].0, "identifications_are_current");
        holds(&store).await;
        assert_eq!(profile(&store, shop, "anon").await.row.events, 2);
    }
}

#[tokio::test]
async fn users_of_dropped_events_stay() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let old = vec![
        seen("e1", "anon", 1),
        identify("e2", "ada", 2, &json!({"plan": "pro"})),
        alias("e3", "ada", "anon", 3),
        seen("e4", "device", 4),
    ];
    store.append(vec![batch(shop, old)]).await.unwrap();
    store.apply_counts(shop, 2).await.unwrap();
    database.age_segment().await;
    let store = database.open().await;
    let new = vec![seen("e5", "anon", 5), alias("e6", "ada", "device", 6), alias("e7", "grace", "anon", 7)];
    store.append(vec![batch(shop, new)]).await.unwrap();
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().events, 4);
    holds(&store).await;
    let live = everything(&store, shop).await;
    let ada = profile(&store, shop, "device").await;
    assert_eq!((ada.row.id.as_str(), ada.row.events, ada.row.links), ("ada", 6, 2));
    assert_eq!((ada.row.first_seen, traits(&ada)), (at(NOON + 1_000), json!({"plan": "pro"})));
    assert_eq!(timeline(&store, shop, "ada", 9).await, ["e6", "e5"], "what is left of it");
    store.rebuild_identifications(shop, |_, _| {}).await.unwrap();
    assert_eq!(everything(&store, shop).await, live, "a rebuild begins with the seal");
    holds(&store).await;
}

#[tokio::test]
async fn a_database_that_went_back_is_followed_from_where_it_is() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let events: Vec<Event> = (0..9_i64).map(|i| seen(&format!("e{i}"), &format!("user-{i}"), i)).collect();
    store.append(vec![batch(shop, events)]).await.unwrap();
    count_all(&store, shop).await;
    let reader = Reader::new(store.clone(), Cache::memory());
    let query = |cursor| UsersQuery { cursor, limit: 3, ..UsersQuery::default() };
    let page = reader.users(shop, query(None)).await.unwrap();
    // What a restored snapshot looks like: all of it as it was before the append.
    let back = "TRUNCATE event, event_id, ranges, rollup_counts, rollup_users, identification, event_block, segment_project;
                UPDATE head SET position = 0, segment = 0, received = 0, stored = 0;
                UPDATE view_state SET applied_to = 0";
    database.sql().await.batch_execute(back).await.unwrap();
    let other = vec![identify("x", "ada", 1, &json!({"plan": "pro"}))];
    store.append(vec![batch(shop, other)]).await.unwrap();
    let refused = reader.users(shop, query(page.next)).await.unwrap_err().to_string();
    assert!(refused.contains("restored"), "{refused}");
    holds(&store).await;
    let users = everything(&store, shop).await;
    assert_eq!(users.into_iter().map(|user| user.row.id).collect::<Vec<_>>(), ["ada"]);
}
