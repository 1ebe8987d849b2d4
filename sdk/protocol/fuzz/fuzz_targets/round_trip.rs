#![no_main]

use arbitrary::Arbitrary;
use eventbucket_protocol::codec::{self, Format, encode};
use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use uuid::Uuid;

#[derive(Arbitrary, Debug)]
enum Id {
    Uuid(u128),
    Text(String),
}

#[derive(Arbitrary, Debug)]
enum Property {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Property>),
    Object(Vec<(String, Property)>),
}

#[derive(Arbitrary, Debug)]
struct Input {
    batch: u128,
    id: Id,
    name: String,
    description: Option<String>,
    user: Option<String>,
    time: i64,
    stream: Option<String>,
    correlation: Option<String>,
    properties: Vec<(String, Property)>,
}

fuzz_target!(|input: Input| {
    let Some(event) = event(&input) else { return };
    let batch = BatchId::from_uuid(Uuid::from_u128(input.batch));
    let mut body = Vec::new();
    encode::batch_header(batch, 1, &mut body);
    encode::event(&event, &mut body);

    let read = codec::decode(&body, Format::MessagePack).unwrap();
    assert_eq!(read.id, Some(batch));
    assert_eq!(complete(read.events), event);

    let mut json = serde_json::json!({
        "id": event.id.to_string(), "name": event.name, "time": event.time.ms(), "description": event.description,
        "user": event.user, "stream": event.stream, "correlation": event.correlation,
    });
    json["properties"] = object(&input.properties);
    let json = json.to_string();
    for format in [Format::Json, Format::Ndjson] {
        assert_eq!(complete(codec::decode(json.as_bytes(), format).unwrap().events), event);
    }
});

fn complete(
    mut events: Vec<Result<eventbucket_protocol::RawEvent<'_>, eventbucket_protocol::Reason>>,
) -> Event {
    events.remove(0).unwrap().complete(|| unreachable!(), Timestamp::from_ms(0).unwrap()).unwrap()
}

/// `None` when a limit is broken: that is another target's work.
fn event(input: &Input) -> Option<Event> {
    let event = Event {
        id: match &input.id {
            Id::Uuid(bits) => EventId::from_uuid(Uuid::from_u128(*bits)),
            Id::Text(text) if text.is_empty() => return None,
            Id::Text(text) => EventId::from_text(text),
        },
        name: input.name.clone(),
        description: input.description.clone(),
        user: input.user.clone(),
        time: Timestamp::from_ms(input.time)?,
        stream: input.stream.clone(),
        correlation: input.correlation.clone(),
        properties: Properties::parse(&object(&input.properties).to_string()).ok()?,
    };
    event.check().ok().map(|()| event)
}

fn object(members: &[(String, Property)]) -> Value {
    Value::Object(members.iter().map(|(key, value)| (key.clone(), json(value))).collect::<Map<_, _>>())
}

/// NaN and infinity become null, as in any JSON writer.
fn json(property: &Property) -> Value {
    match property {
        Property::Null => Value::Null,
        Property::Bool(value) => Value::from(*value),
        Property::Int(value) => Value::from(*value),
        Property::Float(value) => Value::from(*value),
        Property::Text(text) => Value::from(text.as_str()),
        Property::List(list) => list.iter().map(json).collect(),
        Property::Object(members) => object(members),
    }
}
