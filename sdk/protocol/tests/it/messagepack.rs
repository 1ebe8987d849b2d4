use eventbucket_protocol::codec::{self, DecodeError, Format};
use eventbucket_protocol::{Code, EventId};
use rmp::encode as mp;
use serde_json::json;
use uuid::Uuid;

use crate::written::{event_with, malformed, messagepack_body, only, refusal};

/// An event whose properties are `{"a": value}`, the value given as bytes.
fn with_property(value: &[u8]) -> Vec<u8> {
    event_with("properties", |out| {
        mp::write_map_len(out, 1).unwrap();
        mp::write_str(out, "a").unwrap();
        out.extend_from_slice(value);
    })
}

fn with_bytes(field: &str, value: &[u8]) -> Vec<u8> {
    event_with(field, |out| out.extend_from_slice(value))
}

fn properties_refusal(value: &[u8]) -> String {
    let (code, message) = refusal(&with_property(value), Format::MessagePack);
    assert_eq!(code, Code::InvalidProperties, "{message}");
    message
}

#[test]
fn nan_and_infinity_are_refused_in_both_widths() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bytes = [&[0xca][..], &value.to_be_bytes()].concat();
        assert!(properties_refusal(&bytes).contains("NaN or infinity"));
        let bytes = [&[0xcb][..], &f64::from(value).to_be_bytes()].concat();
        assert!(properties_refusal(&bytes).contains("NaN or infinity"));
    }
    let finite = with_property(&[&[0xca][..], &0.1_f32.to_be_bytes()].concat());
    assert_eq!(only(&finite, Format::MessagePack).unwrap().properties.as_json(), r#"{"a":0.1}"#);
}

#[test]
fn extensions_are_refused_in_every_width() {
    let extensions: [&[u8]; 8] = [
        &[0xd4, 1, 0],
        &[0xd5, 1, 0, 0],
        &[0xd6, 0xff, 0, 0, 0, 0],
        &[0xd7, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xd8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xc7, 1, 5, 0],
        &[0xc8, 0, 1, 5, 0],
        &[0xc9, 0, 0, 0, 1, 5, 0],
    ];
    for extension in extensions {
        assert!(properties_refusal(extension).contains("extension"));
        assert!(properties_refusal(&[&[0x91][..], extension].concat()).contains("extension"));
        let (code, _) = refusal(&with_bytes("time", extension), Format::MessagePack);
        assert_eq!(code, Code::InvalidTime);
    }
}

#[test]
fn binary_and_text_that_is_not_utf8_are_refused_inside_properties() {
    for value in [&[0xc4, 1, b'x'][..], &[0x91, 0xc5, 0, 1, b'x'], &[0xa1, 0xff]] {
        assert!(properties_refusal(value).contains("binary or text that isn't UTF-8"));
    }
    let not_json = |bytes: &[u8]| {
        refusal(&event_with("properties", |out| mp::write_bin(out, bytes).unwrap()), Format::MessagePack)
    };
    for bytes in [&b"{\"a\":\"\xff\"}"[..], b"", b"[]", b"{\"a\":", b"{}x", b"\xef\xbb\xbf{}"] {
        assert_eq!(not_json(bytes).0, Code::InvalidProperties);
    }
    assert_eq!(not_json(b"{\"a\":1,\"a\":1}").0, Code::DuplicateKey);
}

#[test]
fn keys_that_are_not_text_are_refused_on_every_level() {
    for key in [&[0x07][..], &[0xc0], &[0xc4, 1, b'k'], &[0x90], &[0x80], &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let property = event_with("properties", |out| out.extend([&[0x81][..], key, &[0x01]].concat()));
        assert_eq!(refusal(&property, Format::MessagePack).0, Code::InvalidProperties);
        // In a list the event alone is refused; as the whole body nothing says that it is one.
        let event = [&[0x81][..], key, &[0x01]].concat();
        assert_eq!(refusal(&[&[0x91][..], &event].concat(), Format::MessagePack).0, Code::InvalidEvent);
        malformed(&event, Format::MessagePack);
    }
    let twice = [0x82, 0xa1, b'k', 1, 0xd9, 1, b'k', 2];
    assert_eq!(refusal(&with_bytes("properties", &twice), Format::MessagePack).0, Code::DuplicateKey);
}

#[test]
fn ids_are_text_or_sixteen_bytes_under_any_marker() {
    let uuid = Uuid::from_u128(7);
    let bin8 = [&[0xc4, 16][..], uuid.as_bytes()].concat();
    let bin16 = [&[0xc5, 0, 16][..], uuid.as_bytes()].concat();
    let bin32 = [&[0xc6, 0, 0, 0, 16][..], uuid.as_bytes()].concat();
    let text = [&[0xd9, 36][..], uuid.to_string().as_bytes()].concat();
    for value in [&bin8, &bin16, &bin32, &text] {
        let event = only(&with_bytes("id", value), Format::MessagePack).unwrap();
        assert_eq!(event.id, EventId::from_uuid(uuid));
        let batch = [&[0x82, 0xa8][..], b"batch_id", value, &[0xa6], b"events", &[0x90]].concat();
        assert_eq!(codec::decode(&batch, Format::MessagePack).unwrap().id.unwrap().uuid(), uuid);
    }
    let own = only(&with_bytes("id", &[0xa2, b'o', b'1']), Format::MessagePack).unwrap();
    assert_eq!(own.id.text(), Some("o1"));
    for len in [0_u8, 15, 17] {
        let value = [vec![0xc4, len], vec![1; usize::from(len)]].concat();
        let (code, message) = refusal(&with_bytes("id", &value), Format::MessagePack);
        assert_eq!((code, message.as_str()), (Code::InvalidEvent, "id: an id as binary has 16 bytes"));
    }
    assert_eq!(refusal(&with_bytes("id", &[0xa0]), Format::MessagePack).0, Code::InvalidField);
    assert_eq!(refusal(&with_bytes("id", &[0x07]), Format::MessagePack).1, "id: expected text");
}

#[test]
fn times_are_read_from_every_integer_width_and_from_text() {
    let times: [(&[u8], i64); 14] = [
        (&[0x07], 7),
        (&[0xff], -1),
        (&[0xcc, 0xff], 255),
        (&[0xcd, 0xff, 0xff], 65_535),
        (&[0xce, 0xff, 0xff, 0xff, 0xff], 4_294_967_295),
        (&[0xcf, 0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0], 1_700_000_000_000),
        (&[0xd0, 0x80], -128),
        (&[0xd1, 0x80, 0], -32_768),
        (&[0xd2, 0x80, 0, 0, 0], -2_147_483_648),
        (&[0xd3, 0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0], 1_700_000_000_000),
        (&[0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], -2),
        (b"\xb41970-01-01T00:00:01Z", 1_000),
        (b"\xd9\x141970-01-01T00:00:01Z", 1_000),
        (b"\xda\x00\x141970-01-01T00:00:01Z", 1_000),
    ];
    for (bytes, ms) in times {
        let event = only(&with_bytes("time", bytes), Format::MessagePack).unwrap();
        assert_eq!(event.time.ms(), ms, "{bytes:02x?}");
    }
    let refused: [&[u8]; 8] = [
        &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0],
        &[0xca, 0, 0, 0, 0],
        &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xc3],
        &[0x90],
        b"\xa3now",
        &[0xc4, 1, 0],
    ];
    for bytes in refused {
        assert_eq!(
            refusal(&with_bytes("time", bytes), Format::MessagePack).0,
            Code::InvalidTime,
            "{bytes:02x?}"
        );
    }
}

#[test]
fn a_body_cut_at_any_byte_is_truncated() {
    let whole = json!({ "batch_id": "b", "events": [
        { "name": "a", "id": "x".repeat(40), "time": 1_700_000_000_000_i64, "properties": { "a": [1.5, -70_000, "x".repeat(300)] } },
        { "name": "b" },
    ] });
    for value in [&whole, &whole["events"], &whole["events"][0]] {
        let body = messagepack_body(value);
        for cut in 0..body.len() {
            let error = codec::decode(&body[..cut], Format::MessagePack).unwrap_err();
            assert_eq!(error, DecodeError::Truncated { received: cut });
        }
        assert!(codec::decode(&body, Format::MessagePack).is_ok());
    }
}

#[test]
fn bytes_behind_the_batch_and_reserved_bytes_are_malformed() {
    for value in [json!([]), json!({ "events": [] }), json!({ "name": "a" })] {
        let body = [messagepack_body(&value), vec![0xc0]].concat();
        assert!(malformed(&body, Format::MessagePack).contains("bytes follow"));
    }
    assert!(malformed(&with_property(&[0xc1]), Format::MessagePack).contains("0xc1"));
}

#[test]
fn a_field_twice_and_an_unknown_field_are_refused() {
    let twice =
        [0x92, 0x82, 0xa4, b'n', b'a', b'm', b'e', 0xa1, b'a', 0xa4, b'n', b'a', b'm', b'e', 0xa1, b'b'];
    let body = [&twice[..], &messagepack_body(&json!({ "name": "good" }))].concat();
    let events = codec::decode(&body, Format::MessagePack).unwrap().events;
    assert!(events[0].as_ref().unwrap_err().message.contains("stands twice") && events[1].is_ok());
    let null_first = [&[0x91, 0x82, 0xa4][..], b"user", &[0xc0, 0xa4], b"user", &[0xa1, b'u']].concat();
    assert!(refusal(&null_first, Format::MessagePack).1.contains("stands twice"));
    let (code, message) = refusal(&event_with("nmae", |out| out.push(1)), Format::MessagePack);
    assert_eq!(code, Code::InvalidEvent);
    assert!(message.contains("\"nmae\"") && message.contains("correlation"), "{message}");
    for (field, value) in [("events", &[0x90][..]), ("batch_id", &[0xa1, b'b'])] {
        let mut body = vec![0x83];
        for field in ["events", "batch_id", field] {
            mp::write_str(&mut body, field).unwrap();
            body.extend(if field == "events" { &[0x90][..] } else { &[0xa1, b'b'] });
        }
        assert!(malformed(&body, Format::MessagePack).contains("stands twice"), "{field} {value:?}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_named() {
    for field in ["user", "description", "stream", "correlation"] {
        let (code, message) = refusal(&with_bytes(field, &[0x05]), Format::MessagePack);
        assert_eq!((code, message), (Code::InvalidEvent, format!("{field}: expected text")));
    }
    let (_, message) = refusal(&with_bytes("user", &[0xa1, 0xff]), Format::MessagePack);
    assert_eq!(message, "user: a text is not UTF-8");
    for value in [&[0x90][..], &[0x05], &[0xa2, b'{', b'}']] {
        assert_eq!(refusal(&with_bytes("properties", value), Format::MessagePack).0, Code::InvalidProperties);
    }
}

#[test]
fn depth_without_end_costs_no_stack_and_huge_lengths_no_memory() {
    let deep = vec![0x91; 1_000_000];
    let closed = [&vec![0x91; 100_000][..], &[0xc0]].concat();
    assert_eq!(refusal(&with_property(&closed), Format::MessagePack).0, Code::TooDeep);
    for body in [&deep[..], &with_property(&deep)] {
        assert!(codec::decode(body, Format::MessagePack).is_err());
    }
    for length in [
        &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xc9, 0xff, 0xff, 0xff, 0xff],
    ] {
        let body = with_property(length);
        let received = body.len();
        assert_eq!(
            codec::decode(&body, Format::MessagePack).unwrap_err(),
            DecodeError::Truncated { received }
        );
    }
    assert_eq!(
        codec::decode(&[0xdd, 0xff, 0xff, 0xff, 0xff], Format::MessagePack).unwrap_err(),
        DecodeError::TooManyEvents
    );
}
