//! Reading events and counts back.

use eventbucket_collector::project::ProjectId;
use serde_json::{Value, json};

use crate::in_process::{Answer, Form, Running};

/// Twenty events of two names and two users, one a minute from 2024-03-01 12:00 on.
async fn with_events(form: Form) -> Running {
    let collector = form.start().await;
    let events: Vec<Value> = (0..20)
        .map(|i| {
            let (name, user) = (["opened", "closed"][i % 2], ["ada", "bob"][i / 10]);
            json!({"id": format!("e{i}"), "name": name, "user": user, "time": format!("2024-03-01T12:{:02}:00Z", i * 4 % 60), "properties": {"n": i}})
        })
        .collect();
    assert_eq!(collector.send(json!(events).to_string()).await.status, 200);
    collector
}

fn ids(page: &Value) -> Vec<String> {
    let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// Follows the cursors from the first page to the last.
async fn all_pages(collector: &Running, query: &str) -> Vec<String> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = collector.get(&format!("/v1/events?{query}{cursor}")).await.json();
        found.extend(ids(&page));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_comes_back_as_it_was_sent() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let event = json!({
            "id": "order-17", "name": "order_paid", "description": "Ada paid", "user": "ada", "stream": "order",
            "correlation": "req-1", "time": "2024-03-01T13:00:00+01:00", "properties": {"amount": 12.50, "items": [1, {"a": null}]},
        });
        collector.send(event.to_string()).await;
        let found = collector.get("/v1/events/order-17").await;
        let received = found.json()["received"].as_str().unwrap().to_owned();
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.body.replace(&received, "RECEIVED"), @r#"{"position":1,"id":"order-17","name":"order_paid","description":"Ada paid","user":"ada","time":"2024-03-01T12:00:00.000Z","received":"RECEIVED","stream":"order","correlation":"req-1","properties":{"amount":12.5,"items":[1,{"a":null}]}}"#);
        }

        let made = collector.send(r#"{"name":"bare"}"#).await.json();
        let id = made["ids"][0].as_str().unwrap();
        assert_eq!(collector.get(&format!("/v1/events/{id}")).await.json()["position"], 2);
        let said = collector.get("/v1/events/order-18").await.problem();
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"404 not_found: There is nothing here. there is no event "order-18" in this project"#);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_with_a_slash_is_found_when_it_is_escaped() {
    for form in Form::BOTH {
        let collector = form.start().await;
        collector.send(r#"{"name":"a","id":"orders/17 ü"}"#).await;
        assert_eq!(collector.get("/v1/events/orders%2F17%20%C3%BC").await.json()["id"], "orders/17 ü");
        assert_eq!(collector.get("/v1/events/%ff").await.json()["code"], "invalid_query");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_cover_the_log_in_both_orders() {
    for form in Form::BOTH {
        let collector = with_events(form).await;
        let in_order: Vec<String> = (0..20).map(|i| format!("e{i}")).collect();
        let newest: Vec<String> = in_order.iter().rev().cloned().collect();
        for limit in [1, 3, 7, 20, 1000] {
            assert_eq!(all_pages(&collector, &format!("limit={limit}&order=position")).await, in_order);
            assert_eq!(all_pages(&collector, &format!("limit={limit}")).await, newest);
        }
        // Pages by position begin behind the cursor, also a plain one.
        let page = collector.get("/v1/events?order=position&cursor=17").await.json();
        assert_eq!(ids(&page), ["e17", "e18", "e19"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_events_than_are_read_at_once_fill_one_page() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let events: Vec<Value> = (0..1500).map(|i| json!({"id": format!("e{i}"), "name": "tick"})).collect();
        collector.send(json!(events).to_string()).await;
        let page = collector.get("/v1/events?limit=1000&order=position").await.json();
        assert_eq!(ids(&page).len(), 1000);
        assert_eq!(all_pages(&collector, "limit=1000&order=position").await.len(), 1500);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_huge_events_ends_early_and_the_next_goes_on() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let large = "x".repeat(200_000);
        for batch in 0..5 {
            let events: Vec<Value> = (0..20)
                .map(|i| json!({"id": format!("{batch}-{i}"), "name": "big", "properties": {"x": large}}))
                .collect();
            assert_eq!(collector.send(json!(events).to_string()).await.status, 200);
        }
        let page = collector.get("/v1/events?limit=1000").await;
        assert!(page.body.len() < 20 << 20, "{} bytes", page.body.len());
        assert!(page.json()["next"].is_string());
        assert_eq!(all_pages(&collector, "limit=1000").await.len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_what_is_listed() {
    for form in Form::BOTH {
        let collector = with_events(form).await;
        let count = async |query: &str| all_pages(&collector, query).await.len();
        assert_eq!(count("name=opened").await, 10);
        assert_eq!(count("user=ada").await, 10);
        assert_eq!(count("name=opened&user=ada&limit=2").await, 5);
        assert_eq!(count("name=nothing").await, 0);
        assert_eq!(count("from=2024-03-01T12:04:00Z&to=2024-03-01T12:08:00Z").await, 2);
        assert_eq!(count("from=2024-03-01T13:00:00Z").await, 0);
        assert_eq!(count("to=1709294400000").await, 0, "12:00 as Unix milliseconds");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_parameter_is_named() {
    for form in Form::BOTH {
        let collector = with_events(form).await;
        let mut found = Vec::new();
        for path in [
            "/v1/events?limit=0",
            "/v1/events?limit=1001",
            "/v1/events?limit=ten",
            "/v1/events?order=oldest",
            "/v1/events?cursor=abc",
            "/v1/events?cursor=17.00000000",
            "/v1/events?from=yesterday",
            "/v1/events?user=",
            "/v1/events?user=a&user=b",
            "/v1/events?nmae=opened",
            "/v1/counts?by=week",
            "/v1/counts?users=all",
            "/v1/counts?from=2024-03-01T12:30:00Z",
            "/v1/events/tail?after=21",
        ] {
            found.push(collector.get(path).await.problem());
        }
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.join("\n"), @r#"
            400 invalid_query: A parameter can't be used. limit: 0 is not between 1 and 1000
            400 invalid_query: A parameter can't be used. limit: 1001 is not between 1 and 1000
            400 invalid_query: A parameter can't be used. limit: "ten" is not a number
            400 invalid_query: A parameter can't be used. order: "oldest" is none of newest, position
            400 invalid_cursor: The cursor can't be used. cursor "abc" can't be read; use "next" of the page before, or a position
            400 invalid_cursor: The cursor can't be used. the log was restored since this cursor was given out; begin again without one
            400 invalid_query: A parameter can't be used. from: "yesterday" is neither RFC 3339 (2026-11-21T03:00:00Z) nor Unix milliseconds (1795230000000)
            400 invalid_query: A parameter can't be used. user: is empty; leave it out instead
            400 invalid_query: A parameter can't be used. user: is given twice
            400 invalid_query: A parameter can't be used. nmae: is not known; this path takes order, cursor, limit, name, user, from, to, after, before, where, at_least
            400 invalid_query: A parameter can't be used. by: "week" is none of total, day, hour
            400 invalid_query: A parameter can't be used. users: "all" is none of false, true
            400 invalid_query: A parameter can't be used. from: 2024-03-01T12:30:00.000Z is not the beginning of an hour, and counts are kept by hour; use 2024-03-01T12:00:00.000Z
            400 invalid_cursor: The cursor can't be used. position 21 lies beyond the end of the log (20), which may have been restored; begin again
            "#);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_live_and_by_hour() {
    for form in Form::BOTH {
        let collector = with_events(form).await;
        collector.counted().await;
        let said = collector.get("/v1/counts?by=total").await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"counts":[{"name":"closed","count":10,"users":null},{"name":"opened","count":10,"users":null}],"total":20,"users":null,"applied_to":20,"position":20}"#);
        }
        let said = collector.get("/v1/counts?users=true").await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"counts":[{"name":"closed","count":10,"users":2},{"name":"opened","count":10,"users":2}],"total":20,"users":2,"applied_to":20,"position":20}"#);
        }
        let said = collector.get("/v1/counts?name=opened&by=hour&users=true").await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"counts":[{"name":"opened","hour":"2024-03-01T12:00:00.000Z","count":10,"users":2}],"total":10,"users":2,"applied_to":20,"position":20}"#);
        }
        let said = collector.get("/v1/counts?name=opened&by=day&users=true").await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"counts":[{"name":"opened","day":"2024-03-01T00:00:00.000Z","count":10,"users":2}],"total":10,"users":2,"applied_to":20,"position":20}"#);
        }
        assert_eq!(collector.get("/v1/counts?from=2024-03-01T13:00:00Z&users=true").await.json()["users"], 0);
        assert_eq!(collector.get("/v1/counts?from=2024-03-01T13:00:00Z").await.json()["total"], 0);
        assert_eq!(collector.get("/v1/counts?from=2024-03-01T12:00:00Z").await.json()["total"], 20);
        assert_eq!(collector.get("/v1/counts?name=nothing").await.json()["total"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_project_sees_nothing() {
    for form in Form::BOTH {
        let collector = with_events(form).await;
        let other = collector.store.create_project(collector.account, "other").await.unwrap();
        assert_ne!(other.project.id, ProjectId(0));
        let get = |path: &str| {
            Answer::to(collector.client.get(collector.url(path)).bearer_auth(&other.secret_key.text))
        };
        assert_eq!(ids(&get("/v1/events").await.json()).len(), 0);
        assert_eq!(get("/v1/events/e1").await.status, 404);
        assert_eq!(get("/v1/counts").await.json()["total"], 0);
        // The same id is another event there.
        let request = collector.client.post(collector.url("/v1/events")).bearer_auth(&other.write_key.text);
        let sent = Answer::to(request.json(&json!({"id": "e1", "name": "theirs"}))).await;
        let sent = collector.finally(sent, &other.write_key.text).await;
        assert_eq!(sent.json()["verdicts"][0]["verdict"], "stored");
        assert_eq!(get("/v1/events/e1").await.json()["name"], "theirs");
        assert_eq!(collector.get("/v1/events/e1").await.json()["name"], "closed");
    }
}

/// Ids that are parts of a path, or of an address, to somebody.
const AWKWARD_IDS: [&str; 14] = [
    "tail",
    "by-id",
    ".",
    "..",
    "a/b",
    "a/../b",
    "/",
    "50%",
    "%2F",
    "two words",
    "a?b#c&d=e+f",
    "\\",
    " ",
    "\u{202e}ünï",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_id_that_is_taken_can_be_read() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let events: Vec<Value> = AWKWARD_IDS.iter().map(|id| json!({"name": "a", "id": id})).collect();
        assert_eq!(collector.send(json!(events).to_string()).await.json()["all"]["verdict"], "stored");
        for id in AWKWARD_IDS {
            let mut url = reqwest::Url::parse(&collector.url("/v1/events/by-id")).unwrap();
            url.query_pairs_mut().append_pair("id", id);
            let found = Answer::to(collector.client.get(url).bearer_auth(&collector.secret_key)).await;
            assert_eq!((found.status, &found.json()["id"]), (200, &json!(id)), "{found:?}");
        }
        let problem = collector.get("/v1/events/by-id?id=absent").await.problem();
        assert_eq!(
            problem,
            "404 not_found: There is nothing here. there is no event \"absent\" in this project"
        );
        assert_eq!(collector.get("/v1/events/by-id").await.json()["code"], "invalid_query");
        let request =
            collector.client.get(collector.url("/v1/events/by-id?id=tail")).bearer_auth(&collector.write_key);
        assert_eq!(Answer::to(request).await.json()["code"], "wrong_key_kind");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_not_utf_8_is_refused() {
    for form in Form::BOTH {
        let collector = form.start().await;
        collector.send(r#"{"name":"a"}"#).await;
        for path in
            ["/v1/events?name=%ff", "/v1/counts?name=%C3", "/v1/events?%ff=a", "/v1/events/by-id?id=%e2%82"]
        {
            let answer = collector.get(path).await;
            assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("invalid_query")), "{path}");
            assert!(answer.body.contains("UTF-8"), "{}", answer.body);
        }
        assert_eq!(
            collector.get("/v1/events?name=%EF%BF%BD").await.status,
            200,
            "U+FFFD itself is a character"
        );
    }
}
