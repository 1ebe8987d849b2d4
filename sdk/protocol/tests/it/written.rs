use eventbucket_protocol::codec::{self, DecodeError, Format, encode};
use eventbucket_protocol::{
    BatchId, Code, Event, EventId, Properties, RawBatch, RawEvent, Reason, Timestamp,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use rmp::encode as mp;
use serde_json::{Map, Value, json};

/// Text without NUL, of any other character.
pub(crate) fn text(chars_max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>().prop_filter("no NUL", |c| *c != '\0'), 1..=chars_max)
        .prop_map(|chars| chars.into_iter().collect())
}

fn value() -> impl Strategy<Value = Value> {
    let finite = proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::SUBNORMAL;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        finite.prop_map(Value::from),
        text(20).prop_map(Value::from),
        Just(Value::from("")),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(text(8), inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

pub(crate) fn object() -> impl Strategy<Value = Map<String, Value>> {
    btree_map(text(8), value(), 0..8).prop_map(|map| map.into_iter().collect())
}

fn id() -> impl Strategy<Value = EventId> {
    prop_oneof![
        any::<u128>().prop_map(|bits| EventId::from_uuid(uuid::Uuid::from_u128(bits))),
        text(200).prop_map(|text| EventId::from_text(&text)),
    ]
}

/// Any event the protocol allows, though far smaller than the largest.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    event_and_json().prop_map(|(event, _)| event)
}

/// An event and the same as a person would write it in JSON.
pub(crate) fn event_and_json() -> impl Strategy<Value = (Event, Value)> {
    let texts = (text(200), option::of(text(60)), option::of(text(60)), option::of(text(60)));
    let time = (-62_135_596_800_000_i64..=253_402_207_200_000).prop_map(|ms| Timestamp::from_ms(ms).unwrap());
    (id(), texts, option::of(text(60)), time, object()).prop_map(
        |(id, (name, description, user, stream), correlation, time, object)| {
            let object = Value::Object(object);
            let properties = Properties::parse(&object.to_string()).unwrap();
            let event = Event { id, name, description, user, time, stream, correlation, properties };
            let json = as_json(&event, object);
            (event, json)
        },
    )
}

fn as_json(event: &Event, properties: Value) -> Value {
    json!({
        "id": event.id.to_string(),
        "name": event.name,
        "time": event.time.to_string(),
        "description": event.description,
        "user": event.user,
        "stream": event.stream,
        "correlation": event.correlation,
        "properties": properties,
    })
}

/// A JSON value as the MessagePack another client's library would write, so properties are a map.
pub(crate) fn as_messagepack(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => mp::write_nil(out).unwrap(),
        Value::Bool(value) => mp::write_bool(out, *value).unwrap(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => drop(mp::write_uint(out, value).unwrap()),
            (None, Some(value)) => drop(mp::write_sint(out, value).unwrap()),
            (None, None) => mp::write_f64(out, number.as_f64().unwrap()).unwrap(),
        },
        Value::String(text) => mp::write_str(out, text).unwrap(),
        Value::Array(list) => {
            mp::write_array_len(out, u32::try_from(list.len()).unwrap()).unwrap();
            list.iter().for_each(|value| as_messagepack(value, out));
        }
        Value::Object(object) => {
            mp::write_map_len(out, u32::try_from(object.len()).unwrap()).unwrap();
            for (key, value) in object {
                mp::write_str(out, key).unwrap();
                as_messagepack(value, out);
            }
        }
    }
}

/// A JSON value as a MessagePack body.
pub(crate) fn messagepack_body(value: &Value) -> Vec<u8> {
    let mut body = Vec::new();
    as_messagepack(value, &mut body);
    body
}

/// The body the SDK sends.
pub(crate) fn sdk_body(batch: BatchId, events: &[Event]) -> Vec<u8> {
    let mut body = Vec::new();
    encode::batch_header(batch, u32::try_from(events.len()).unwrap(), &mut body);
    events.iter().for_each(|event| encode::event(event, &mut body));
    body
}

/// An event in MessagePack with one field besides its name, whose value the caller writes.
pub(crate) fn event_with(field: &str, value: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    mp::write_map_len(&mut body, 2).unwrap();
    mp::write_str(&mut body, "name").unwrap();
    mp::write_str(&mut body, "ping").unwrap();
    mp::write_str(&mut body, field).unwrap();
    value(&mut body);
    body
}

/// Fills what a client left open: id `made`, time 5 ms.
pub(crate) fn complete(raw: RawEvent<'_>) -> Result<Event, Reason> {
    raw.complete(|| EventId::from_text("made"), Timestamp::from_ms(5).unwrap())
}

pub(crate) fn complete_all(batch: RawBatch<'_>) -> Vec<Result<Event, Reason>> {
    batch.events.into_iter().map(|raw| raw.and_then(complete)).collect()
}

/// The only event of a body, complete or with the reason against it.
pub(crate) fn only(body: &[u8], format: Format) -> Result<Event, Reason> {
    let mut events = complete_all(codec::decode(body, format).unwrap());
    assert_eq!(events.len(), 1, "one event expected");
    events.remove(0)
}

/// The code and the sentence against the only event of a body.
pub(crate) fn refusal(body: &[u8], format: Format) -> (Code, String) {
    let reason = only(body, format).unwrap_err();
    (reason.code, reason.message.into_owned())
}

/// What is wrong with a body as a whole, in words.
pub(crate) fn malformed(body: &[u8], format: Format) -> String {
    match codec::decode(body, format) {
        Err(error @ DecodeError::Malformed { .. }) => error.to_string(),
        other => panic!("malformed expected, got {other:?}"),
    }
}
