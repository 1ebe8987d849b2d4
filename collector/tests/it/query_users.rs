//! Reading users back over HTTP and by the command line.

use serde_json::{Value, json};

use crate::harness::{Collector, Ran, eventually};
use crate::in_process::{Answer, Form, Running};
use crate::store_fixture;

/// A user with an anonymous id, one without, and an id that nothing was said of.
fn said() -> Value {
    let time = |minute: u32| format!("2024-03-01T12:{minute:02}:00Z");
    json!([
        {"id": "e1", "name": "opened", "user": "anon-1", "time": time(0)},
        {"id": "e2", "name": "$identify", "user": "u/17 ü", "time": time(1),
         "properties": {"email": "ada@example.com", "name": "Ada <b>", "plan": "free", "old": 1}},
        {"id": "e3", "name": "$alias", "user": "u/17 ü", "time": time(2), "properties": {"alias": "anon-1"}},
        {"id": "e4", "name": "$identify", "user": "u/17 ü", "time": time(3), "properties": {"plan": "pro", "old": null}},
        {"id": "e5", "name": "$alias", "user": "grace", "time": time(4), "properties": {"alias": "anon-1"}},
        {"id": "e6", "name": "closed", "user": "by-id", "time": time(5)},
    ])
}

async fn with_users(form: Form) -> Running {
    let collector = form.start().await;
    assert_eq!(collector.send(said().to_string()).await.status, 200);
    store_fixture::eventually("the users are there", async || {
        collector.get("/v1/users").await.json()["applied_to"] == 6
    })
    .await;
    collector
}

fn ids(page: &Value, of: &str) -> Vec<String> {
    let found = page[of].as_array().unwrap_or_else(|| panic!("{page}"));
    found.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_listed_looked_up_and_shown() {
    for form in Form::BOTH {
        let collector = with_users(form).await;
        let listed = collector.get("/v1/users?limit=2").await;
        let next = listed.json()["next"].as_str().unwrap().to_owned();
        let epoch = next.split_once('.').unwrap().1;
        insta::allow_duplicates! {
            insta::assert_snapshot!(listed.body.replace(epoch, "EPOCH"), @r#"{"users":[{"id":"by-id","identified":false,"email":null,"events":1,"first_seen":"2024-03-01T12:05:00.000Z","last_seen":"2024-03-01T12:05:00.000Z","links":0},{"id":"grace","identified":false,"email":null,"events":1,"first_seen":"2024-03-01T12:04:00.000Z","last_seen":"2024-03-01T12:04:00.000Z","links":0}],"next":"1709294640000_5.EPOCH","applied_to":6,"position":6}"#);
        }
        let second = collector.get(&format!("/v1/users?limit=2&cursor={next}")).await.json();
        assert_eq!((ids(&second, "users"), &second["next"]), (vec!["u/17 ü".to_owned()], &Value::Null));
        for query in ["id=anon-1", "email=ada@example.com", "search=ada", "search=u%2F", "search=anon"] {
            let page = collector.get(&format!("/v1/users?{query}")).await.json();
            assert_eq!(ids(&page, "users"), ["u/17 ü"], "{query}");
        }
        assert_eq!(ids(&collector.get("/v1/users?email=nobody").await.json(), "users"), [""; 0]);
        let shown = collector.get("/v1/users/u%2F17%20%C3%BC").await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(shown.body, @r#"{"id":"u/17 ü","identified":true,"email":"ada@example.com","events":4,"first_seen":"2024-03-01T12:00:00.000Z","last_seen":"2024-03-01T12:03:00.000Z","links":1,"traits":{"email":{"value":"ada@example.com","time":"2024-03-01T12:01:00.000Z","position":2},"name":{"value":"Ada <b>","time":"2024-03-01T12:01:00.000Z","position":2},"plan":{"value":"pro","time":"2024-03-01T12:03:00.000Z","position":4}},"ids":[{"id":"anon-1","position":3}],"refused":[]}"#);
        }
        assert_eq!(collector.get("/v1/users/anon-1").await.body, shown.body);
        assert_eq!(collector.get("/v1/users/by-id?id=anon-1").await.body, shown.body);
        assert_eq!(collector.get("/v1/users/by-id?id=by-id").await.json()["events"], 1);
        let refused = collector.get("/v1/users/grace").await.json();
        assert_eq!(refused["refused"], json!([{"reason": "linked", "id": "anon-1", "position": 5}]));
        assert_eq!(refused["identified"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_holds_the_events_of_linked_ids_and_comes_in_pages() {
    for form in Form::BOTH {
        let collector = with_users(form).await;
        for path in ["/v1/users/anon-1/events?", "/v1/users/by-id/events?id=u%2F17%20%C3%BC&"] {
            let first = collector.get(&format!("{path}limit=3")).await.json();
            assert_eq!(ids(&first, "events"), ["e4", "e3", "e2"]);
            let next = first["next"].as_str().unwrap();
            let second = collector.get(&format!("{path}limit=3&cursor={next}")).await.json();
            assert_eq!((ids(&second, "events"), &second["next"]), (vec!["e1".to_owned()], &Value::Null));
            assert_eq!(second["events"][0]["user"], "anon-1", "as it was sent");
        }
        assert_eq!(ids(&collector.get("/v1/users/by-id/events?id=by-id").await.json(), "events"), ["e6"]);
        // More than are read at once.
        let many: Vec<Value> =
            (0..150).map(|i| json!({"id": format!("m{i}"), "name": "m", "user": "grace"})).collect();
        assert_eq!(collector.send(json!(many).to_string()).await.status, 200);
        store_fixture::eventually("all are there", async || {
            let page = collector.get("/v1/users/grace/events?limit=1000").await.json();
            ids(&page, "events").len() == 151
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_the_wrong_way_is_told() {
    for form in Form::BOTH {
        let collector = with_users(form).await;
        let mut found = Vec::new();
        for path in [
            "/v1/users?limit=0",
            "/v1/users?id=a&email=b",
            "/v1/users?search=a&cursor=1_1.00000000",
            "/v1/users?cursor=17",
            "/v1/users?cursor=17_1.00000000",
            "/v1/users?name=a",
            "/v1/users?search=",
            "/v1/users/nobody",
            "/v1/users/nobody/events",
            "/v1/users/grace?limit=1",
            "/v1/users/grace/events?limit=1001",
            "/v1/users/grace/events?cursor=x",
            "/v1/users/by-id",
        ] {
            found.push(collector.get(path).await.problem());
        }
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.join("\n"), @r#"
            400 invalid_query: A parameter can't be used. limit: 0 is not between 1 and 1000
            400 invalid_query: A parameter can't be used. id, email and search exclude each other; give one
            400 invalid_query: A parameter can't be used. cursor: users that are looked up come on one page; leave it out
            400 invalid_cursor: The cursor can't be used. cursor "17" can't be read; use "next" of the page before
            400 invalid_cursor: The cursor can't be used. the log was restored since this cursor was given out; begin again without one
            400 invalid_query: A parameter can't be used. name: is not known; this path takes id, email, search, cursor, limit
            400 invalid_query: A parameter can't be used. search: is empty; leave it out instead
            404 not_found: There is nothing here. there is no user "nobody" in this project
            404 not_found: There is nothing here. there is no user "nobody" in this project
            400 invalid_query: A parameter can't be used. limit: is not known; this path takes no parameters
            400 invalid_query: A parameter can't be used. limit: 1001 is not between 1 and 1000
            400 invalid_cursor: The cursor can't be used. cursor "x" can't be read; use "next" of the page before, or a position
            400 invalid_query: A parameter can't be used. id: is missing; this path needs it
            "#);
        }
        let written = collector.client.get(collector.url("/v1/users")).bearer_auth(&collector.write_key);
        assert_eq!(Answer::to(written).await.json()["code"], "wrong_key_kind");
        let other = collector.store.create_project(collector.account, "other").await.unwrap();
        let get = |path: &str| {
            Answer::to(collector.client.get(collector.url(path)).bearer_auth(&other.secret_key.text))
        };
        assert_eq!(ids(&get("/v1/users").await.json(), "users"), [""; 0]);
        for path in ["/v1/users/grace", "/v1/users/grace/events", "/v1/users/by-id?id=anon-1"] {
            assert_eq!(get(path).await.status, 404, "{path}");
        }
    }
}

#[tokio::test]
async fn the_command_line_shows_users_both_ways() {
    let collector = Collector::start();
    collector.send(json!({ "events": said() })).await;
    eventually("the users are there", || {
        collector.beside(&["user", "list", "--json"]).json()["applied_to"] == 6
    });
    for args in [
        &["user", "list", "--json"][..],
        &["user", "list", "--json", "--limit", "1"],
        &["user", "list", "--json", "--email", "ada@example.com"],
        &["user", "list", "--search", "anon"],
        &["user", "list", "--json", "--id", "grace"],
        &["user", "show", "anon-1", "--json"],
        &["user", "show", "by-id"],
        &["user", "timeline", "u/17 ü", "--json", "--limit", "2"],
        &["user", "timeline", "u/17 ü"],
    ] {
        let (beside, over_http) = (collector.beside(args), collector.over_http(args));
        assert_eq!(beside.stdout, over_http.stdout, "{args:?}");
        assert!(!beside.stdout.is_empty(), "{args:?}");
    }
    type Way = fn(&Collector, &[&str]) -> Ran;
    let ways: [Way; 2] = [Collector::beside, Collector::over_http];
    for ask in ways {
        insta::allow_duplicates! {
            insta::assert_snapshot!(ask(&collector, &["user", "list"]).stdout.replace('\t', "|"), @r#"
            by-id||1|2024-03-01T12:05:00.000Z|2024-03-01T12:05:00.000Z|0
            grace||1|2024-03-01T12:04:00.000Z|2024-03-01T12:04:00.000Z|0
            u/17 ü|ada@example.com|4|2024-03-01T12:00:00.000Z|2024-03-01T12:03:00.000Z|1
            "#);
            insta::assert_snapshot!(ask(&collector, &["user", "show", "anon-1"]).stdout, @r#"
            id          u/17 ü
            identified  yes
            email       ada@example.com
            events      4
            first seen  2024-03-01T12:00:00.000Z
            last seen   2024-03-01T12:03:00.000Z
            trait       email = "ada@example.com"  2024-03-01T12:01:00.000Z, event 2
            trait       name = "Ada <b>"  2024-03-01T12:01:00.000Z, event 2
            trait       plan = "pro"  2024-03-01T12:03:00.000Z, event 4
            linked id   anon-1  event 3
            "#);
            insta::assert_snapshot!(ask(&collector, &["user", "show", "grace"]).stdout, @r#"
            id          grace
            identified  no
            events      1
            first seen  2024-03-01T12:04:00.000Z
            last seen   2024-03-01T12:04:00.000Z
            refused     linked anon-1  event 5
            "#);
            insta::assert_snapshot!(ask(&collector, &["user", "timeline", "grace"]).stdout.replace('\t', "|"), @r#"5|2024-03-01T12:04:00.000Z|$alias|grace|{"alias":"anon-1"}"#);
        }
        let first = ask(&collector, &["user", "timeline", "anon-1", "--limit", "3", "--json"]).json();
        let next = first["next"].as_str().unwrap();
        let args = ["user", "timeline", "anon-1", "--limit", "3", "--cursor", next, "--json"];
        assert_eq!(ids(&ask(&collector, &args).json(), "events"), ["e1"]);
        ask(&collector, &["user", "show", "nobody"]).assert_failed(1, &["there is no user \"nobody\""]);
    }
    for ask in ways {
        let rebuilt = ask(&collector, &["rebuild", "--json"]).json();
        assert_eq!(rebuilt["identifications"]["applied_to"], 6);
    }
    assert!(collector.over_http(&["audit", "--json"]).stdout.contains("identifications_equal_recount"));
}
