use eventbucket_protocol::codec::{self, DecodeError, Format};
use eventbucket_protocol::{BatchId, Code};
use serde_json::{Value, json};

use crate::written::{complete, complete_all, malformed, messagepack_body, only};

/// The names of the events in a body, of either format.
fn names(body: &[u8], format: Format) -> Vec<String> {
    complete_all(codec::decode(body, format).unwrap()).into_iter().map(|event| event.unwrap().name).collect()
}

fn both(value: &Value) -> [(Vec<u8>, Format); 2] {
    [(value.to_string().into_bytes(), Format::Json), (messagepack_body(value), Format::MessagePack)]
}

#[test]
fn a_batch_a_list_and_a_single_event_are_read() {
    let shapes = [
        (json!({ "batch_id": "b", "events": [{ "name": "a" }, { "name": "b" }] }), vec!["a", "b"]),
        (json!({ "events": [{ "name": "a" }] }), vec!["a"]),
        (json!([{ "name": "a" }, { "name": "b" }]), vec!["a", "b"]),
        (json!({ "name": "a" }), vec!["a"]),
        (json!([]), vec![]),
        (json!({ "events": [] }), vec![]),
    ];
    for (value, expected) in shapes {
        for (body, format) in both(&value) {
            assert_eq!(names(&body, format), expected, "{value} as {format:?}");
        }
    }
}

#[test]
fn the_batch_id_is_text_or_a_uuid_and_may_be_absent_or_null() {
    let id = |value: Value| both(&value).map(|(body, format)| codec::decode(&body, format).unwrap().id);
    let text = "0190163d-8694-739b-aea5-966c26f8ad91";
    assert_eq!(id(json!({ "batch_id": text, "events": [] })), [Some(BatchId::from_text(text)); 2]);
    assert_eq!(id(json!({ "events": [], "batch_id": "mine" })), [Some(BatchId::from_text("mine")); 2]);
    assert_eq!(id(json!({ "batch_id": null, "events": [] })), [None; 2]);
    assert_eq!(id(json!([])), [None; 2]);
    for (wrong, said) in [(json!(""), "empty"), (json!("x".repeat(201)), "longer than 200"), (json!(7), "")] {
        for (body, format) in both(&json!({ "batch_id": wrong, "events": [] })) {
            assert!(malformed(&body, format).contains(said), "{wrong} as {format:?}");
        }
    }
    for (body, format) in both(&json!({ "batch_id": "ü".repeat(200), "events": [] })) {
        assert!(codec::decode(&body, format).unwrap().id.is_some());
    }
}

#[test]
fn an_empty_body_breaks_off_and_an_empty_ndjson_body_holds_no_events() {
    for (body, format) in [(&b""[..], Format::Json), (b" \n\t", Format::Json), (b"", Format::MessagePack)] {
        let received = body.len();
        assert_eq!(codec::decode(body, format).unwrap_err(), DecodeError::Truncated { received });
    }
    for body in [&b""[..], b"\n\r\n  \n", b"\xef\xbb\xbf\n"] {
        assert!(codec::decode(body, Format::Ndjson).unwrap().events.is_empty());
    }
}

#[test]
fn what_is_neither_batch_list_nor_event_is_malformed() {
    for value in [json!(1), json!("text"), json!(null), json!(true)] {
        for (body, format) in both(&value) {
            assert!(malformed(&body, format).contains("expected a batch"), "{value} as {format:?}");
        }
    }
    for value in [json!({ "events": {} }), json!({ "events": 5 }), json!({ "events": null })] {
        for (body, format) in both(&value) {
            malformed(&body, format);
        }
    }
}

#[test]
fn a_batch_has_no_other_fields() {
    for value in [json!({ "events": [], "sent_at": 5 }), json!({ "api_key": "x", "events": [] })] {
        for (body, format) in both(&value) {
            let message = malformed(&body, format);
            assert!(
                message.contains("unknown field") && message.contains("batch_id and events"),
                "{message}"
            );
        }
    }
}

#[test]
fn an_answer_repeats_little_of_what_it_refuses() {
    let long = "\0".repeat(100_000);
    for value in [
        json!({ "events": [], &long: 5 }),
        json!({ "name": "a", &long: 5 }),
        json!({ "name": "a", "properties": &long }),
        json!({ "name": "a", "time": &long }),
        json!({ "name": "a", "id": &long }),
        json!({ &long: "a" }),
    ] {
        for (body, format) in both(&value) {
            let message = match codec::decode(&body, format) {
                Err(error) => error.to_string(),
                Ok(batch) => complete_all(batch).remove(0).unwrap_err().message.into_owned(),
            };
            assert!(message.chars().count() < 600, "{format:?}: {} characters", message.chars().count());
        }
    }
}

#[test]
fn a_bad_event_costs_only_itself() {
    let value =
        json!([{ "name": "a" }, 5, { "name": "b", "colour": "red" }, ["id", "name"], { "name": "c" }]);
    for (body, format) in both(&value) {
        let batch = codec::decode(&body, format).unwrap();
        let codes: Vec<Option<Code>> =
            complete_all(batch).into_iter().map(|event| event.err().map(|reason| reason.code)).collect();
        let bad = Some(Code::InvalidEvent);
        assert_eq!(codes, [None, bad, bad, bad, None], "{format:?}");
    }
}

#[test]
fn null_stands_for_a_field_left_out() {
    let value = json!({ "name": "a", "id": null, "time": null, "user": null, "description": null,
        "stream": null, "correlation": null, "properties": null });
    let [json, messagepack] = both(&value).map(|(body, format)| only(&body, format).unwrap());
    assert_eq!(json, messagepack);
    assert_eq!((json.id.to_string().as_str(), json.time.ms(), json.user), ("made", 5, None));
    assert!(json.properties.is_empty());
}

#[test]
fn lines_end_in_lf_or_crlf_and_bad_ones_cost_only_themselves() {
    let body = b"\xef\xbb\xbf{\"name\":\"a\"}\r\n\r\nnot json\n{\"name\":\"b\"\n{\"name\":\"\xff\"}\n  {\"name\":\"c\"}";
    let events = codec::decode(body, Format::Ndjson).unwrap().events;
    let read: Vec<Option<String>> =
        events.into_iter().map(|raw| raw.and_then(complete).ok().map(|event| event.name)).collect();
    assert_eq!(read, [Some("a".into()), None, None, None, Some("c".into())]);
}

#[test]
fn a_line_may_not_be_a_batch() {
    let events = codec::decode(b"{\"events\":[]}\n[{\"name\":\"a\"}]", Format::Ndjson).unwrap().events;
    assert!(events.iter().all(Result::is_err), "{events:?}");
}

#[test]
fn content_types_name_the_format() {
    for (value, format) in [
        ("application/json", Some(Format::Json)),
        ("Application/JSON; charset=utf-8", Some(Format::Json)),
        ("application/x-ndjson", Some(Format::Ndjson)),
        ("application/jsonl", Some(Format::Ndjson)),
        (" application/msgpack ", Some(Format::MessagePack)),
        ("application/vnd.msgpack", Some(Format::MessagePack)),
        ("text/plain", None),
        ("", None),
        ("application/jsonx", None),
    ] {
        assert_eq!(Format::from_content_type(value), format, "{value}");
    }
}
