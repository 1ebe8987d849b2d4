use eventbucket_protocol::codec::{self, Format, encode};
use eventbucket_protocol::{BatchId, Event, Properties};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::written::{
    as_messagepack, complete_all, event, event_and_json, event_with, messagepack_body, object, only,
    sdk_body, text,
};

fn decoded(body: &[u8], format: Format) -> Vec<Event> {
    let batch = codec::decode(body, format).unwrap();
    complete_all(batch).into_iter().map(Result::unwrap).collect()
}

proptest! {
    #[test]
    fn what_the_sdk_encodes_comes_back_equal(events in vec(event(), 0..5), batch: u128) {
        let id = BatchId::from_uuid(Uuid::from_u128(batch));
        let body = sdk_body(id, &events);
        prop_assert_eq!(codec::decode(&body, Format::MessagePack).unwrap().id, Some(id));
        prop_assert_eq!(decoded(&body, Format::MessagePack), events);
    }

    #[test]
    fn json_ndjson_and_messagepack_maps_say_the_same(written in vec(event_and_json(), 1..4)) {
        let (events, values): (Vec<Event>, Vec<Value>) = written.into_iter().unzip();
        let batch = json!({ "batch_id": "b", "events": &values });
        let lines: Vec<String> = values.iter().map(Value::to_string).collect();
        prop_assert_eq!(&decoded(batch.to_string().as_bytes(), Format::Json), &events);
        prop_assert_eq!(&decoded(lines.join("\n").as_bytes(), Format::Ndjson), &events);
        prop_assert_eq!(&decoded(&messagepack_body(&batch), Format::MessagePack), &events);
    }

    #[test]
    fn properties_say_the_same_as_a_map_and_as_json_text(object in object()) {
        let value = Value::Object(object);
        let json = value.to_string();
        let map = event_with("properties", |out| as_messagepack(&value, out));
        let bin = event_with("properties", |out| {
            rmp::encode::write_bin(out, json.as_bytes()).unwrap();
        });
        let as_map = only(&map, Format::MessagePack).unwrap();
        prop_assert_eq!(&as_map, &only(&bin, Format::MessagePack).unwrap());
        prop_assert_eq!(as_map.properties.as_json(), json);
    }

    #[test]
    fn the_size_is_never_less_than_the_encoding_and_close_to_it(event in event()) {
        let mut encoded = Vec::new();
        encode::event(&event, &mut encoded);
        // Four optional fields are each counted with a few bytes to spare.
        let spare = event.size_bytes().checked_sub(encoded.len());
        prop_assert!(spare.is_some_and(|spare| spare <= 64), "{} {}", event.size_bytes(), encoded.len());
    }

    #[test]
    fn an_id_depends_on_its_text_alone(text in text(200)) {
        let body = |time: i64| json!({ "id": text, "name": "a", "time": time }).to_string();
        let early = only(body(0).as_bytes(), Format::Json).unwrap();
        let late = only(body(1_700_000_000_000).as_bytes(), Format::Json).unwrap();
        prop_assert_eq!(&early.id, &late.id);
        prop_assert_eq!(early.id.to_string(), text);
    }
}

#[test]
fn the_largest_event_fits_its_size_too() {
    let wide = "ü".repeat(200);
    let event = Event {
        id: wide.as_str().into(),
        name: wide,
        description: Some("ü".repeat(2_000)),
        user: Some("u".repeat(512)),
        time: eventbucket_protocol::Timestamp::from_ms(i64::from(i32::MAX)).unwrap(),
        stream: Some("s".repeat(512)),
        correlation: Some("c".repeat(512)),
        properties: Properties::parse(&json!({ "text": "x".repeat(250_000) }).to_string()).unwrap(),
    };
    let mut encoded = Vec::new();
    encode::event(&event, &mut encoded);
    assert!((0..=64).contains(&(event.size_bytes() - encoded.len())));
    assert_eq!(only(&encoded, Format::MessagePack).unwrap(), event);
}

#[test]
fn numbers_in_properties_keep_their_digits() {
    let digits = r#"{"wide":123456789012345678901234567890,"zero":-0,"fraction":1.10,"exponent":1e2}"#;
    let body = format!("{{\"name\":\"a\",\"properties\":{digits}}}");
    assert_eq!(only(body.as_bytes(), Format::Json).unwrap().properties.as_json(), digits);
}
