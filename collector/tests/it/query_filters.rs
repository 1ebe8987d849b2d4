//! Filters, cursors and waiting, over HTTP.

use std::time::{Duration, Instant};

use eventbucket_collector::store::LOOKED_AT_MAX;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::in_process::{Answer, DEADLINE, Form, Running};
use crate::query_tail::Tail;

/// Sends events with these properties; they get the positions from 1 on.
async fn with(form: Form, properties: &[Value]) -> Running {
    let collector = form.start().await;
    let events: Vec<Value> = properties
        .iter()
        .enumerate()
        .map(|(i, properties)| {
            let name = ["opened", "closed", "paid"][i % 3];
            json!({"id": format!("e{i}"), "name": name, "properties": properties})
        })
        .collect();
    assert_eq!(collector.send(json!(events).to_string()).await.status, 200);
    collector
}

/// Reads a path with parameters that are escaped as a browser does.
async fn get(collector: &Running, path: &str, parameters: &[(&str, &str)]) -> Answer {
    let mut url = reqwest::Url::parse(&collector.url(path)).unwrap();
    url.query_pairs_mut().extend_pairs(parameters);
    Answer::to(collector.client.get(url).bearer_auth(&collector.secret_key)).await
}

fn positions(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
    events.iter().map(|event| event["position"].as_u64().unwrap()).collect()
}

async fn found(collector: &Running, conditions: &[&str]) -> Vec<u64> {
    let mut parameters: Vec<(&str, &str)> = conditions.iter().map(|text| ("where", *text)).collect();
    parameters.push(("order", "position"));
    let page = get(collector, "/v1/events", &parameters).await.json();
    assert_eq!(page["next"], Value::Null, "a small log is looked at in one go");
    positions(&page)
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_narrow_what_is_listed() {
    for form in Form::BOTH {
        let properties = [
            json!({"plan": "pro", "price": 10, "note": "winter sale"}),
            json!({"plan": "free", "price": 10.5, "coupon": null}),
            json!({"plan": "10", "price": "10", "address": {"city": "Porto"}}),
            json!({"tags": ["a", "b"], "items": [{"sku": "x", "n": 3}], "a.b": true}),
        ];
        let collector = with(form, &properties).await;
        for (conditions, expected) in [
            (&["plan=pro"][..], &[1][..]),
            (&["plan!=pro"], &[2, 3]),
            (&["plan=\"10\""], &[3]),
            (&["plan=10"], &[]),
            (&["price=10"], &[1]),
            (&["price>10"], &[2]),
            (&["price>=10", "price<=10.0"], &[1]),
            (&["price<10.5", "plan"], &[1]),
            (&["note~sale"], &[1]),
            (&["coupon"], &[2]),
            (&["coupon=null"], &[2]),
            (&["address.city=Porto"], &[3]),
            (&["address.city < Q"], &[3]),
            (&["tags=b", "items.sku=x", "items.n>2"], &[4]),
            (&["a\\.b=true"], &[4]),
            (&["a.b=true"], &[]),
        ] {
            assert_eq!(found(&collector, conditions).await, expected, "{conditions:?}");
        }
        // As somebody types it into an address, and as a tail is asked.
        assert_eq!(positions(&collector.get("/v1/events?where=price%3E10&where=coupon").await.json()), [2]);
        assert_eq!(positions(&collector.get("/v1/events?where=note~winter+sale").await.json()), [1]);
        let mut tail = Tail::open(&collector, "?after=0&where=price&name=opened&name=paid", None).await;
        assert_eq!(tail.positions(2).await, [1, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_positions_narrow_what_is_listed() {
    for form in Form::BOTH {
        let collector = with(form, &vec![json!({}); 12]).await;
        for (query, expected) in [
            ("name=opened&name=paid&order=position", &[1, 3, 4, 6, 7, 9, 10, 12][..]),
            ("name=opened&name=opened", &[10, 7, 4, 1]),
            ("after=3&before=6", &[5, 4]),
            ("after=3&before=6&cursor=5", &[4]),
            ("after=3&before=6&cursor=4&order=position", &[5]),
            ("after=12", &[]),
            ("before=1", &[]),
            ("after=18446744073709551615", &[]),
            ("before=18446744073709551615&after=10", &[12, 11]),
            ("name=paid&after=5&before=10", &[9, 6]),
        ] {
            let page = collector.get(&format!("/v1/events?{query}")).await.json();
            assert_eq!(positions(&page), expected, "{query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_can_not_be_read_says_what_to_write() {
    for form in Form::BOTH {
        let collector = with(form, &[json!({})]).await;
        let mut said = Vec::new();
        for conditions in [&["plan="][..], &["=pro"], &["a!b"], &["a>true"], &["a=\"b"], &["a"; 9]] {
            let parameters: Vec<_> = conditions.iter().map(|text| ("where", *text)).collect();
            said.push(get(&collector, "/v1/events", &parameters).await.problem());
        }
        let names: Vec<_> = ["1", "2", "3", "4", "5", "6", "7", "8", "9"].map(|name| ("name", name)).into();
        said.push(get(&collector, "/v1/events", &names).await.problem());
        said.push(get(&collector, "/v1/events/tail", &names).await.problem());
        said.push(get(&collector, "/v1/events", &[("where", "")]).await.problem());
        said.push(get(&collector, "/v1/events", &[("before", "-1")]).await.problem());
        insta::allow_duplicates! {
            insta::assert_snapshot!(said.join("\n"), @r#"
            400 invalid_query: A parameter can't be used. where: the value is missing in "plan="; write "" for an empty text
            400 invalid_query: A parameter can't be used. where: a key is missing in "=pro"; write KEY, KEY=VALUE or a path like a.b=VALUE
            400 invalid_query: A parameter can't be used. where: a ! without = in "a!b"; write != for not equal, or \! in a key
            400 invalid_query: A parameter can't be used. where: nothing is greater or less than true in "a>true"; use = or !=, or the text "true"
            400 invalid_query: A parameter can't be used. where: "b is not a text as JSON writes it (EOF while parsing a string at line 1 column 2); end it with " and write \" within it
            400 invalid_query: A parameter can't be used. where: is given 9 times, at most 8 are taken
            400 invalid_query: A parameter can't be used. name: is given 9 times, at most 8 are taken
            400 invalid_query: A parameter can't be used. name: is given 9 times, at most 8 are taken
            400 invalid_query: A parameter can't be used. where: is empty; leave it out instead
            400 invalid_query: A parameter can't be used. before: "-1" is not a number
            "#);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_and_properties_come_back_as_they_were_sent() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let long = "x".repeat(10_000);
        let hostile =
            ["<script>alert(1)</script>", "\u{202e}txet", "\u{1b}[2J\r\n\t\u{7}", "👩\u{200d}🚀", &long];
        let events: Vec<Value> = hostile
            .iter()
            .map(|text| {
                let short: String = text.chars().take(100).collect();
                json!({"name": short, "user": short, "properties": {&*short: text, "same": true}})
            })
            .collect();
        assert!(collector.send(json!(events).to_string()).await.json()["all"].is_object());
        for (position, text) in (1..).zip(hostile) {
            let short: String = text.chars().take(100).collect();
            let key: String = short.chars().flat_map(|c| ['\\', c]).collect();
            let equal = format!("{key}={}", serde_json::to_string(&text[..text.len().min(3_000)]).unwrap());
            let equal = if text.len() > 3_000 { equal.replacen('=', "~", 1) } else { equal };
            let by: [&[(&str, &str)]; 3] = [&[("name", &short)], &[("user", &short)], &[("where", &equal)]];
            for parameters in by {
                let page = get(&collector, "/v1/events", parameters).await.json();
                assert_eq!(positions(&page), [position], "{parameters:?}");
                assert_eq!(page["events"][0]["properties"][&short], text);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_how_far_it_has_looked() {
    for form in Form::BOTH {
        let collector = with(form, &vec![json!({}); 5]).await;
        let page = collector.get("/v1/events?order=position&where=x").await.json();
        assert_eq!((positions(&page), &page["next"], &page["through"]), (vec![], &Value::Null, &json!(5)));
        assert!(page["looked_to"].is_string(), "{page}");
        let page = collector.get("/v1/events?order=position&limit=2").await.json();
        assert_eq!(page["through"], 2);
        assert_eq!(collector.get("/v1/events?limit=2").await.json()["through"], 4);
        assert_eq!(collector.get("/v1/events").await.json()["through"], 1);
        // Who follows the log goes on from there.
        assert_eq!(collector.send(r#"{"name":"later","properties":{"x":1}}"#).await.status, 200);
        let page = collector.get("/v1/events?order=position&where=x&cursor=5").await.json();
        assert_eq!(positions(&page), [6]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rare_property_is_found_page_by_page() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let count = 3 * LOOKED_AT_MAX;
        for first in (0..count).step_by(4_096) {
            let events: Vec<Value> = (first..first + 4_096)
                .map(|i| json!({"name": "a", "properties": if i == 7 { json!({"rare": 1}) } else { json!({"n": i}) }}))
                .collect();
            assert_eq!(collector.send(json!(events).to_string()).await.status, 200);
        }
        let (mut cursor, mut found, mut through) = (String::new(), Vec::new(), u64::MAX);
        loop {
            let page = collector.get(&format!("/v1/events?where=rare{cursor}")).await.json();
            found.extend(positions(&page));
            let reached = page["through"].as_u64().unwrap();
            assert!(reached < through, "each page looks further");
            through = reached;
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!((found, through), (vec![8], 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_as_they_are_while_events_arrive() {
    for form in Form::BOTH {
        let collector = with(form, &vec![json!({"n": 1}); 30]).await;
        for order in ["newest", "position"] {
            let (mut found, mut cursor, mut rounds) = (Vec::new(), String::new(), 0);
            let before = collector.get("/v1/counts").await.json()["position"].as_u64().unwrap();
            loop {
                let query = format!("/v1/events?order={order}&limit=4&where=n=1{cursor}");
                let page = collector.get(&query).await.json();
                found.extend(positions(&page));
                // More arrives between any two pages, for a while.
                if rounds < 5 {
                    let more = json!([{"name": "more", "properties": {"n": 1}}, {"name": "other"}]);
                    assert_eq!(collector.send(more.to_string()).await.status, 200);
                }
                rounds += 1;
                match page["next"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            let mut sorted = found.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), found.len(), "{order}: none twice");
            if order == "newest" {
                assert!(found.is_sorted_by(|one, next| one > next) && found[0] <= before, "{found:?}");
                assert_eq!(found.len(), 30);
            } else {
                assert!(found.is_sorted(), "{found:?}");
                assert_eq!(found.len(), 40, "those of both rounds");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_elsewhere_shows_nothing_of_elsewhere() {
    for form in Form::BOTH {
        let collector = with(form, &vec![json!({"n": 1}); 12]).await;
        let next = collector.get("/v1/events?limit=4").await.json()["next"].as_str().unwrap().to_owned();
        assert!(next.starts_with("9."), "{next}");
        // With another filter or another order it is the place it names, and no more.
        let page = collector.get(&format!("/v1/events?name=paid&cursor={next}")).await.json();
        assert_eq!(positions(&page), [6, 3]);
        let page = collector.get(&format!("/v1/events?order=position&cursor={next}")).await.json();
        assert_eq!(positions(&page), [10, 11, 12]);
        // In another project it is a place in that one's log.
        let other = collector.store.create_project(collector.account, "other").await.unwrap();
        let ask = |query: String| {
            let url = collector.url(&format!("/v1/events?{query}"));
            Answer::to(collector.client.get(url).bearer_auth(&other.secret_key.text))
        };
        assert_eq!(positions(&ask(format!("cursor={next}")).await.json()), [0; 0]);
        let refused = ask(format!("order=position&cursor={next}")).await;
        assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("invalid_cursor")));
        // Made up, and of another epoch.
        let (_, epoch) = next.split_once('.').unwrap();
        let changed: String = epoch.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
        for cursor in [
            format!("9.{changed}"),
            "9.".into(),
            "-9".into(),
            "9e1".into(),
            format!("99999999999999999999.{epoch}"),
        ] {
            let refused = get(&collector, "/v1/events", &[("cursor", &cursor)]).await;
            assert_eq!(
                (refused.status, &refused.json()["code"]),
                (400, &json!("invalid_cursor")),
                "{cursor}"
            );
        }
        let beyond = get(&collector, "/v1/events", &[("order", "position"), ("cursor", "13")]).await;
        assert!(beyond.problem().contains("position 13 lies beyond the end of the log (12)"), "{beyond:?}");
    }
}

/// Asks again as a client does while the answer is behind, as it may be on a busy machine.
async fn reached(collector: &Running, path: &str) -> Value {
    let asking = async {
        loop {
            let answer = collector.get(path).await;
            if answer.status == 200 {
                return answer.json();
            }
            assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("behind")), "{answer:?}");
        }
    };
    timeout(DEADLINE, asking).await.expect("it is reached in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_waits_until_it_goes_far_enough() {
    for form in Form::BOTH {
        let collector = with(form, &vec![json!({}); 3]).await;
        let counts = reached(&collector, "/v1/counts?at_least=3").await;
        assert_eq!((&counts["total"], &counts["applied_to"]), (&json!(3), &json!(3)));
        let hours = reached(&collector, "/v1/counts?at_least=3&by=hour&name=paid").await;
        assert_eq!((&hours["total"], &hours["applied_to"]), (&json!(1), &json!(3)));
        // Both ask for what isn't there yet, and get it.
        let (counts, events, sent) = tokio::join!(
            reached(&collector, "/v1/counts?at_least=4"),
            reached(&collector, "/v1/events?at_least=4&limit=1"),
            collector.send(r#"{"name":"later"}"#),
        );
        assert_eq!((sent.status, &counts["total"]), (200, &json!(4)));
        assert_eq!(positions(&events), [4]);
        // What doesn't come is told as such, after a wait.
        let asked = Instant::now();
        let (counts, events) = tokio::join!(
            collector.get("/v1/counts?at_least=5"),
            collector.get("/v1/events?at_least=5&order=position"),
        );
        assert!(asked.elapsed() >= Duration::from_secs(5));
        for (answer, what) in [(counts, "counts"), (events, "events")] {
            assert_eq!(answer.header("retry-after"), "1", "{answer:?}");
            assert_eq!(
                answer.problem(),
                format!(
                    "503 behind: The answer does not go that far yet. the {what} go through position 4, not yet through 5; ask again"
                )
            );
        }
        let refused = collector.get("/v1/counts?at_least=soon").await;
        assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("invalid_query")));
    }
}
