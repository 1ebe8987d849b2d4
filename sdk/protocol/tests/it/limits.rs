use eventbucket_protocol::Code;
use eventbucket_protocol::codec::{self, DecodeError, Format};
use eventbucket_protocol::limits::{
    BATCH_EVENTS_MAX, DEPTH_MAX, DESCRIPTION_CHARS_MAX, EVENT_BYTES_MAX, ID_CHARS_MAX, KEY_CHARS_MAX,
    KEYS_MAX, NAME_CHARS_MAX, REFERENCE_CHARS_MAX,
};
use serde_json::{Map, Value, json};

use crate::written::{messagepack_body, only};

/// Tries an event in each format: all take it, or all refuse it with the same code.
fn verdict(event: &Value) -> Option<Code> {
    let json = event.to_string();
    let code = |body: &[u8], format| only(body, format).err().map(|reason| reason.code);
    let found = code(json.as_bytes(), Format::Json);
    assert_eq!(found, code(json.as_bytes(), Format::Ndjson));
    assert_eq!(found, code(&messagepack_body(event), Format::MessagePack));
    found
}

fn with_properties(properties: Value) -> Value {
    json!({ "name": "a", "properties": properties })
}

#[test]
fn texts_are_limited_in_characters() {
    for (field, chars_max, code) in [
        ("name", NAME_CHARS_MAX, Code::InvalidName),
        ("id", ID_CHARS_MAX, Code::InvalidField),
        ("description", DESCRIPTION_CHARS_MAX, Code::InvalidField),
        ("user", REFERENCE_CHARS_MAX, Code::InvalidField),
        ("stream", REFERENCE_CHARS_MAX, Code::InvalidField),
        ("correlation", REFERENCE_CHARS_MAX, Code::InvalidField),
    ] {
        for (text, expected) in [
            ("\u{1F600}".repeat(chars_max), None),
            ("\u{1F600}".repeat(chars_max + 1), Some(code)),
            (String::new(), Some(code)),
            ("a\0".into(), Some(code)),
        ] {
            let mut event = json!({ "name": "a" });
            event[field] = text.into();
            assert_eq!(verdict(&event), expected, "{field}");
        }
    }
    assert_eq!(verdict(&json!({ "user": "u" })), Some(Code::InvalidName));
}

#[test]
fn keys_are_limited_in_number_and_characters() {
    let flat =
        |keys: usize| Value::Object((0..keys).map(|i| (format!("k{i}"), json!(i))).collect::<Map<_, _>>());
    assert_eq!(verdict(&with_properties(flat(KEYS_MAX))), None);
    assert_eq!(verdict(&with_properties(flat(KEYS_MAX + 1))), Some(Code::TooManyKeys));
    let inner = json!({ "list": [flat(KEYS_MAX / 2), flat(KEYS_MAX / 2)] });
    assert_eq!(verdict(&with_properties(inner)), Some(Code::TooManyKeys));
    let named = |key: String| with_properties(json!({ key: 1 }));
    assert_eq!(verdict(&named("ü".repeat(KEY_CHARS_MAX))), None);
    assert_eq!(verdict(&named("ü".repeat(KEY_CHARS_MAX + 1))), Some(Code::InvalidProperties));
    assert_eq!(verdict(&named(String::new())), Some(Code::InvalidProperties));
    assert_eq!(verdict(&named("a\0".into())), Some(Code::InvalidProperties));
}

#[test]
fn depth_is_limited_over_objects_and_lists() {
    let nested = |levels: usize| {
        (1..levels).fold(
            json!({ "a": 1 }),
            |inner, i| if i % 2 == 0 { json!({ "a": inner }) } else { json!([inner]) },
        )
    };
    // An odd number of levels ends with an object outside.
    let objects = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }));
    assert_eq!(verdict(&with_properties(objects(DEPTH_MAX))), None);
    assert_eq!(verdict(&with_properties(objects(DEPTH_MAX + 1))), Some(Code::TooDeep));
    assert_eq!(verdict(&with_properties(json!({ "a": nested(DEPTH_MAX - 1) }))), None);
    assert_eq!(verdict(&with_properties(json!({ "a": nested(DEPTH_MAX) }))), Some(Code::TooDeep));
}

#[test]
fn an_event_is_limited_in_bytes() {
    let fill = |bytes: usize| with_properties(json!({ "t": "x".repeat(bytes) }));
    let frame = fill(0).to_string().len();
    let json =
        |bytes: usize| only(fill(bytes - frame).to_string().as_bytes(), Format::Json).err().map(|r| r.code);
    assert_eq!(json(EVENT_BYTES_MAX), None);
    assert_eq!(json(EVENT_BYTES_MAX + 1), Some(Code::EventTooLarge));
    assert_eq!(verdict(&fill(EVENT_BYTES_MAX + 1)), Some(Code::EventTooLarge));
    // Small in MessagePack, over the limit as the JSON text it becomes.
    let grows = messagepack_body(&with_properties(json!({ "t": "\u{1}".repeat(EVENT_BYTES_MAX / 2) })));
    assert!(grows.len() < EVENT_BYTES_MAX);
    assert_eq!(only(&grows, Format::MessagePack).unwrap_err().code, Code::EventTooLarge);
}

#[test]
fn one_event_too_large_costs_only_itself() {
    let large = with_properties(json!({ "t": "x".repeat(EVENT_BYTES_MAX) }));
    let body = json!([{ "name": "a" }, large, { "name": "b" }]).to_string();
    let events = codec::decode(body.as_bytes(), Format::Json).unwrap().events;
    assert_eq!(events.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn a_batch_is_limited_in_events() {
    let list = |events: usize| Value::from(vec![json!({ "name": "a" }); events]);
    let count = |events: usize| {
        let value = list(events);
        let lines = format!("{}\n", json!({ "name": "a" })).repeat(events);
        [
            codec::decode(value.to_string().as_bytes(), Format::Json).map(|batch| batch.events.len()),
            codec::decode(json!({ "events": value }).to_string().as_bytes(), Format::Json)
                .map(|batch| batch.events.len()),
            codec::decode(lines.as_bytes(), Format::Ndjson).map(|batch| batch.events.len()),
            codec::decode(&messagepack_body(&value), Format::MessagePack).map(|batch| batch.events.len()),
        ]
    };
    assert_eq!(count(BATCH_EVENTS_MAX), [const { Ok(BATCH_EVENTS_MAX) }; 4]);
    assert_eq!(count(BATCH_EVENTS_MAX + 1), [const { Err(DecodeError::TooManyEvents) }; 4]);
}
