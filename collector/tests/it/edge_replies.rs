//! What the edge answers to batches, good, half good and bad.

use serde_json::json;

use crate::in_process::{Answer, Form, collector};
use crate::store_fixture::eventually;

const FIRST: &str = "019363a0-0000-7000-8000-000000000001";
const BATCH: &str = "019363a0-0000-7000-8000-0000000000ff";

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_come_in_the_order_of_the_body() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let one = json!({"batch_id": BATCH, "events": [{"id": FIRST, "name": "signed_up", "user": "ada"}]});
        let answer = collector.send(one.to_string()).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
        insta::allow_duplicates! {
            insta::assert_snapshot!(answer.body, @r#"{"batch_id":"019363a0-0000-7000-8000-0000000000ff","events":1,"verdicts":[{"verdict":"stored"}]}"#);
        }

        // The first again, with other content; two that are refused around one that is new.
        let half_good = json!({"batch_id": "half", "events": [
            {"name": ""},
            {"id": FIRST, "name": "signed_up", "user": "bob"},
            {"id": "order-17", "name": "order_paid"},
            {"id": "x", "name": "deep", "properties": nested(17)},
        ]});
        let answer = collector.send(half_good.to_string()).await;
        assert_eq!(answer.status, 200);
        insta::allow_duplicates! {
            insta::assert_snapshot!(verdicts(&answer), @r#"
            rejected invalid_name: the name is empty; say what happened
            duplicate, differs
            stored
            rejected too_deep: properties nest deeper than 16 levels; flatten them
            "#);
        }
        assert_eq!(collector.head().await, 2);
        let ledger = collector.store.ledger(None).await.unwrap();
        assert_eq!((ledger.received, ledger.stored, ledger.duplicate, ledger.rejected), (5, 2, 1, 2));
        assert!(ledger.balances());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alike_verdicts_are_said_once_and_made_ids_are_returned() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let body = json!({"batch_id": BATCH, "events": (0..500).map(|i| json!({"id": format!("e{i}"), "name": "tick"})).collect::<Vec<_>>()});
        let said = collector.send(body.to_string()).await.body;
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @r#"{"batch_id":"019363a0-0000-7000-8000-0000000000ff","events":500,"all":{"verdict":"stored"}}"#);
        }

        let answer = collector
            .send(json!([{"name": "a"}, {"name": ""}, {"name": "b", "id": "mine"}]).to_string())
            .await;
        let ids = &answer.json()["ids"];
        assert_eq!(ids[0].as_str().unwrap().len(), 36, "{ids}");
        assert_eq!((ids[1].is_null(), &ids[2]), (true, &json!("mine")), "{ids}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_and_format_of_a_body_is_taken() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let messagepack = b"\x82\xa4name\xa1a\xaaproperties\x81\xa1x\x01";
        for (content_type, body, events) in [
            ("application/json", &b"{\"name\":\"a\"}"[..], 1),
            ("application/json; charset=utf-8", b"[{\"name\":\"a\"},{\"name\":\"b\"}]", 2),
            ("application/x-ndjson", b"{\"name\":\"a\"}\n\n{\"name\":\"b\"}\n{\"name\":\"c\"}", 3),
            ("application/msgpack", messagepack, 1),
            ("application/json", b"{\"events\":[]}", 0),
        ] {
            let answer = collector.send_as(content_type, body).await;
            assert_eq!((answer.status, &answer.json()["events"]), (200, &json!(events)), "{answer:?}");
        }
        assert_eq!(collector.head().await, 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_one_event_costs_only_that_event() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let long_name = "n".repeat(201);
        let large = "x".repeat(256 * 1024);
        let keys: String = (0..600).map(|i| format!("\"k{i}\":1,")).collect();
        let bad = [
            r#"{"id":"1"}"#.to_owned(),
            format!(r#"{{"name":"{long_name}"}}"#),
            r#"{"name":"a","user":""}"#.to_owned(),
            r#"{"name":"a","colour":"red"}"#.to_owned(),
            r#"{"name":"a","time":"yesterday"}"#.to_owned(),
            r#"{"name":"a","time":999999999999999999}"#.to_owned(),
            r#"{"name":"a","properties":[1]}"#.to_owned(),
            r#"{"name":"a","properties":{"k":1,"k":2}}"#.to_owned(),
            r#"{"name":"a","properties":{"k":"\u0000"}}"#.to_owned(),
            format!(r#"{{"name":"a","properties":{}}}"#, nested(17)),
            format!(r#"{{"name":"a","properties":{{{keys}"z":1}}}}"#),
            format!(r#"{{"name":"a","properties":{{"x":"{large}"}}}}"#),
        ];
        let body = format!("[{},{{\"name\":\"good\"}}]", bad.join(","));
        let answer = collector.send(body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(verdicts(&answer), @r#"
            rejected invalid_name: an event needs a name; add "name": "what_happened"
            rejected invalid_name: name has 201 characters, more than 200
            rejected invalid_field: user is empty; leave the field out instead
            rejected invalid_event: unknown field `colour`, expected one of `id`, `name`, `description`, `user`, `time`, `stream`, `correlation`, `properties` at line 1 column 20
            rejected invalid_time: time must be RFC 3339 (2026-11-21T03:30:00Z) or integer Unix milliseconds, from 0001-01-01 to 9999-12-30T22:00:00Z
            rejected invalid_time: time must be RFC 3339 (2026-11-21T03:30:00Z) or integer Unix milliseconds, from 0001-01-01 to 9999-12-30T22:00:00Z
            rejected invalid_properties: properties must be an object, {"key": value}
            rejected duplicate_key: key "k" stands twice in one object; keep one
            rejected invalid_properties: properties contain a NUL character (\u0000), which databases can't hold; remove it
            rejected too_deep: properties nest deeper than 16 levels; flatten them
            rejected too_many_keys: properties hold more than 512 keys; split the event or use a list
            rejected event_too_large: the event takes 262178 bytes, more than 262144; send less in one event
            stored
            "#);
        }
        assert_eq!(collector.head().await, 1, "the good one is stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messagepack_that_json_cannot_hold_is_refused() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let with = |value: &[u8]| [b"\x82\xa4name\xa1a\xaaproperties\x81\xa1x", value].concat();
        let bodies = [
            with(b"\xcb\x7f\xf8\0\0\0\0\0\0"),
            with(b"\xcb\x7f\xf0\0\0\0\0\0\0"),
            with(b"\xc4\x01\xff"),
            with(b"\xd4\x01\x00"),
            b"\x82\xa4name\xa1a\xaaproperties\x81\x01\x01".to_vec(),
            b"\x81\xa4name\xa2\xff\xfe".to_vec(),
        ];
        let mut found = Vec::new();
        for body in bodies {
            let answer = collector.send_as("application/msgpack", body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            found.push(verdicts(&answer));
        }
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.join("\n"), @r#"
            rejected invalid_properties: properties contain NaN or infinity, which JSON can't hold; send null
            rejected invalid_properties: properties contain NaN or infinity, which JSON can't hold; send null
            rejected invalid_properties: properties contain binary or text that isn't UTF-8, which JSON can't hold; send base64 text
            rejected invalid_properties: properties contain a MessagePack extension; send a plain value, times as RFC 3339 text
            rejected invalid_properties: properties aren't valid MessagePack: invalid type: integer `1`, expected a text as key
            rejected invalid_event: name: a text is not UTF-8
            "#);
        }
        // Nothing was stored, and the ledger says why.
        let ledger = collector.store.ledger(Some(collector.project)).await.unwrap();
        assert_eq!((ledger.received, ledger.stored, ledger.rejected), (6, 0, 6));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_read_at_all_gets_one_problem() {
    let collector = collector().await;
    let mut found = Vec::new();
    for (content_type, body) in [
        ("application/json", &b""[..]),
        ("application/json", b"{\"events\":[{\"name\":\"a\"}"),
        ("application/json", b"{\"name\":NaN}"),
        ("application/json", b"{\"name\":\"\xff\"}"),
        ("application/json", b"17"),
        ("application/json", b"{\"events\":[],\"evnets\":[]}"),
        ("application/msgpack", b"\x91\x82\xa4name"),
        ("application/msgpack", b"\xc1"),
        ("text/plain", b"{}"),
        ("application/x-www-form-urlencoded", b"{}"),
    ] {
        found.push(collector.send_as(content_type, body).await.problem());
    }
    insta::assert_snapshot!(found.join("\n"), @r#"
    400 truncated_body: The body breaks off. the body is empty; send a batch or an event
    400 truncated_body: The body breaks off. the body ends in the middle of a value; 23 bytes arrived
    400 malformed_body: The body can't be read. the body can't be read as JSON: expected value at line 1 column 9
    400 malformed_body: The body can't be read. the body can't be read as JSON: byte 9 is not UTF-8; JSON is always UTF-8
    400 malformed_body: The body can't be read. the body can't be read as JSON: expected a batch {"events": […]}, a list of events or one event
    400 malformed_body: The body can't be read. the body can't be read as JSON: unknown field "evnets" beside "events"; a batch has batch_id and events
    400 truncated_body: The body breaks off. the body ends in the middle of a value; 7 bytes arrived
    400 malformed_body: The body can't be read. the body can't be read as MessagePack: expected a batch {"events": […]}, a list of events or one event
    415 unsupported_media_type: The content type is not supported. Content-Type "text/plain" is not taken; send application/json, application/x-ndjson or application/msgpack (curl: use --json)
    415 unsupported_media_type: The content type is not supported. Content-Type "application/x-www-form-urlencoded" is not taken; send application/json, application/x-ndjson or application/msgpack (curl: use --json)
    "#);
    assert_eq!(collector.store.ledger(None).await.unwrap().received, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_methods_and_paths_are_refused_in_words() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let request = |method: &str, path: &str, key: Option<&str>| {
            let request = collector.client.request(method.parse().unwrap(), collector.url(path));
            let request = request.header("content-type", "application/json").body("{\"name\":\"a\"}");
            key.into_iter().fold(request, |request, key| request.header("authorization", key))
        };
        let write = format!("Bearer {}", collector.write_key);
        let mut found = Vec::new();
        for (method, path, key) in [
            ("POST", "/v1/events", None),
            ("POST", "/v1/events", Some("Basic YTpi")),
            ("POST", "/v1/events", Some("Bearer eb_write_nobody")),
            ("GET", "/v1/events", Some(&*write)),
            ("GET", "/v1/audit", Some(&*write)),
            ("PUT", "/v1/events", Some(&*write)),
            ("POST", "/v1/counts", Some(&*write)),
            ("POST", "/v1/event", Some(&*write)),
        ] {
            let answer = Answer::to(request(method, path, key)).await;
            let extra: Vec<String> = ["allow", "www-authenticate"]
                .iter()
                .filter(|name| answer.headers.contains_key(**name))
                .map(|name| format!(" [{name}: {}]", answer.header(name)))
                .collect();
            found.push(format!("{}{}", answer.problem(), extra.concat()));
        }
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.join("\n"), @r#"
            401 missing_key: No key was given. add the header Authorization: Bearer YOUR_KEY [www-authenticate: Bearer]
            401 missing_key: No key was given. the Authorization header must read: Bearer YOUR_KEY [www-authenticate: Bearer]
            401 unknown_key: The key is not known. this key is not known here; check that it was copied whole and belongs to this collector [www-authenticate: Bearer]
            403 wrong_key_kind: The key may not do this. this is a write key, which may only send events; use the project's secret key (eb_secret_…)
            403 wrong_key_kind: The key may not do this. this is a write key, which may only send events; use the project's secret key (eb_secret_…)
            405 method_not_allowed: The path does not take this method. /v1/events doesn't take PUT; the Allow header says what it takes [allow: POST,OPTIONS,GET,HEAD]
            405 method_not_allowed: The path does not take this method. /v1/counts doesn't take POST; the Allow header says what it takes [allow: GET,HEAD]
            404 not_found: There is nothing here. there is no path /v1/event; events are sent by POST /v1/events, the page at / shows how
            "#);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_key_may_send_too_and_a_revoked_key_says_so() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let event = json!({"name": "a"});
        assert_eq!(collector.post("/v1/events", &event).await.status, 200);
        let path = format!("/v1/projects/{}/keys/rotate", collector.project);
        let made = collector.post(&path, &json!({"kind": "write"})).await;
        assert_eq!(made.status, 201, "{made:?}");
        let refused = collector.send(event.to_string()).await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(refused.problem(), @"401 revoked_key: The key was revoked. this key was revoked when a new one was made; use the new one");
        }
        let key = made.json()["key"].as_str().unwrap().to_owned();
        let request = collector.client.post(collector.url("/v1/events")).bearer_auth(key).json(&event);
        assert_eq!(Answer::to(request).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_batch_twice_at_once_is_stored_once() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let events: Vec<_> = (0..2000).map(|i| json!({"id": format!("e{i}"), "name": "tick"})).collect();
        let body = json!({"batch_id": BATCH, "events": events}).to_string();
        let (one, two) = tokio::join!(collector.send(body.clone()), collector.send(body));
        let mut found = [one, two].map(|answer| answer.json()["all"]["verdict"].as_str().unwrap().to_owned());
        found.sort();
        // Who asks by the batch's id is told what became of it the first time.
        let second = if form == Form::Embedded { "duplicate" } else { "stored" };
        assert_eq!(found, [second, "stored"]);
        eventually("both are stored", async || collector.received().await == 4000).await;
        let ledger = collector.store.ledger(Some(collector.project)).await.unwrap();
        assert_eq!((ledger.stored, ledger.duplicate), (2000, 2000));
        assert_eq!(collector.head().await, 2000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_ten_years_off_is_corrected_beside_the_time_it_told() {
    for form in Form::BOTH {
        let collector = form.start().await;
        const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let theirs = i64::try_from(now.as_millis()).unwrap() - TEN_YEARS_MS;
        let send = |sent_at: String| {
            let request =
                collector.client.post(collector.url("/v1/events")).bearer_auth(&collector.write_key);
            let request = request.header("event-bucket-sent-at", sent_at);
            Answer::to(request.json(&json!({"name": "tick", "time": theirs})))
        };
        let sent = collector.finally(send(theirs.to_string()).await, &collector.write_key).await;
        assert_eq!(sent.status, 200);
        let event = &collector.get("/v1/events").await.json()["events"][0];
        let skew_ms = event["skew_ms"].as_i64().unwrap();
        assert!((0..60_000).contains(&(skew_ms - TEN_YEARS_MS)), "{event}");
        assert!(event["time"].as_str().unwrap() < "2017", "its own time stays: {event}");

        collector.counted().await;
        let counts = collector.get("/v1/counts?by=hour").await.json();
        let hour = counts["counts"][0]["hour"].as_str().unwrap().to_owned();
        assert_eq!(hour[..13], event["received"].as_str().unwrap()[..13], "counted in our hour: {counts}");

        let said = send("noon".to_owned()).await.problem();
        insta::allow_duplicates! {
            insta::assert_snapshot!(said, @"400 invalid_header: A header can't be used. event-bucket-sent-at must be Unix milliseconds from 0001-01-01 to 9999-12-30T22:00:00Z");
        }
    }
}

/// Objects within each other.
fn nested(levels: usize) -> serde_json::Value {
    (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }))
}

/// One verdict a line.
fn verdicts(answer: &Answer) -> String {
    let json = answer.json();
    let verdicts = json["verdicts"].as_array().unwrap_or_else(|| panic!("{json}"));
    let line = |verdict: &serde_json::Value| {
        let text = |field: &str| verdict[field].as_str().unwrap_or_default().to_owned();
        match (verdict["code"].is_string(), verdict["differs"] == true) {
            (true, _) => format!("{} {}: {}", text("verdict"), text("code"), text("message")),
            (false, true) => format!("{}, differs", text("verdict")),
            (false, false) => text("verdict"),
        }
    };
    verdicts.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A newer SDK at an older collector, or one of another product, loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_name_that_is_not_known_is_stored_like_any_other() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let answer = collector.send(r#"[{"name":"$pageview","id":"1"},{"name":"$","id":"2"}]"#).await;
        assert_eq!(answer.json()["all"]["verdict"], "stored");
        assert_eq!(collector.get("/v1/events?name=%24pageview").await.json()["events"][0]["id"], "1");
    }
}
