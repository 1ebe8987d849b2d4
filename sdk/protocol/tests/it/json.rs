use eventbucket_protocol::Code;
use eventbucket_protocol::codec::{self, DecodeError, Format};
use serde_json::json;

use crate::written::{malformed, only, refusal};

fn code(json: &str) -> Code {
    refusal(json.as_bytes(), Format::Json).0
}

fn with(field: &str) -> String {
    format!("{{\"name\":\"ping\",{field}}}")
}

#[test]
fn a_body_cut_at_any_byte_is_truncated() {
    let whole = json!({ "batch_id": "b–1", "events": [
        { "name": "a\"ü", "time": -1.5e300, "properties": { "on": true, "off": false, "n": null, "l": [1, "\u{1F600}"] } },
    ] });
    for body in [whole.to_string(), whole["events"].to_string(), whole["events"][0].to_string()] {
        for cut in 0..body.len() {
            let error = codec::decode(&body.as_bytes()[..cut], Format::Json).unwrap_err();
            assert_eq!(error, DecodeError::Truncated { received: cut }, "{}", &body);
        }
        assert!(codec::decode(body.as_bytes(), Format::Json).is_ok());
    }
}

#[test]
fn bytes_behind_the_batch_are_malformed() {
    for body in ["[]x", "{\"name\":\"a\"}{\"name\":\"b\"}", "{\"events\":[]},", "[]\u{a0}", "\u{a0}[]"] {
        malformed(body.as_bytes(), Format::Json);
    }
    assert!(codec::decode(b"\xef\xbb\xbf \t\r\n[] \t\r\n", Format::Json).is_ok());
}

#[test]
fn bytes_that_are_not_utf8_are_named_with_their_place() {
    let message = malformed(b"\xef\xbb\xbf[{\"name\":\"\xff\"}]", Format::Json);
    assert!(message.contains("byte 13 is not UTF-8"), "{message}");
}

#[test]
fn a_field_twice_is_refused_on_every_level() {
    assert_eq!(code(r#"{"name":"a","name":"b"}"#), Code::InvalidEvent);
    assert_eq!(code(r#"{"name":"a","user":null,"user":"b"}"#), Code::InvalidEvent);
    assert_eq!(code(&with(r#""properties":{"a":1,"a":1}"#)), Code::DuplicateKey);
    assert_eq!(code(&with(r#""properties":{"l":[{"a":1,"\u0061":1}]}"#)), Code::DuplicateKey);
    for body in [r#"{"events":[],"events":[]}"#, r#"{"batch_id":"a","batch_id":"b","events":[]}"#] {
        assert!(malformed(body.as_bytes(), Format::Json).contains("duplicate field"));
    }
}

#[test]
fn an_unknown_field_is_named_with_the_known_ones() {
    let (code, message) = refusal(with("\"nmae\":1").as_bytes(), Format::Json);
    assert_eq!(code, Code::InvalidEvent);
    assert!(message.contains("`nmae`") && message.contains("`correlation`"), "{message}");
}

#[test]
fn times_are_rfc3339_or_integer_milliseconds() {
    for (time, ms) in [
        ("0", 0),
        ("-1", -1),
        ("1700000000000", 1_700_000_000_000),
        ("\"2013-01-01T05:15:00-05:00\"", 1_357_035_300_000),
        ("\"2013-01-01T10:15:00.5Z\"", 1_357_035_300_500),
        ("\"2013-01-01\\u005410:15:00Z\"", 1_357_035_300_000),
    ] {
        let event = only(with(&format!("\"time\":{time}")).as_bytes(), Format::Json).unwrap();
        assert_eq!(event.time.ms(), ms, "{time}");
    }
    for time in [
        "1.5",
        "1e3",
        "true",
        "[1]",
        "{}",
        "\"\"",
        "\"yesterday\"",
        "\"2013-01-01\"",
        "\"2013-01-01T10:15:00\"",
        "9223372036854775807",
        "99999999999999999999",
        "\"\\ud800\"",
    ] {
        assert_eq!(code(&with(&format!("\"time\":{time}"))), Code::InvalidTime, "{time}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_refused() {
    for field in ["\"id\":17", "\"user\":17", "\"description\":[]", "\"stream\":{}", "\"correlation\":true"] {
        assert_eq!(code(&with(field)), Code::InvalidEvent, "{field}");
    }
    for properties in ["[]", "1", "\"{}\"", "true"] {
        assert_eq!(code(&with(&format!("\"properties\":{properties}"))), Code::InvalidProperties);
    }
    assert_eq!(code(&with("\"id\":\"\"")), Code::InvalidField);
    assert_eq!(code("{\"name\":\"\\ud800\"}"), Code::InvalidEvent);
}

#[test]
fn what_json_or_a_database_cannot_hold_is_refused() {
    for value in ["NaN", "Infinity"] {
        malformed(with(&format!("\"properties\":{{\"a\":{value}}}")).as_bytes(), Format::Json);
    }
    for value in ["1e999", "\"\\u0000\"", "\"\\udc00\""] {
        assert_eq!(
            code(&with(&format!("\"properties\":{{\"a\":{value}}}"))),
            Code::InvalidProperties,
            "{value}"
        );
    }
    assert_eq!(code(&with("\"user\":\"a\\u0000\"")), Code::InvalidField);
}

#[test]
fn brackets_without_end_cost_no_stack() {
    let deep = "[".repeat(1_000_000);
    for body in [deep.clone(), format!("{{\"events\":{deep}"), with(&format!("\"properties\":{deep}"))] {
        assert!(codec::decode(body.as_bytes(), Format::Json).is_err());
    }
    let closed = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(code(&with(&format!("\"properties\":{{\"a\":{closed}}}"))), Code::TooDeep);
    assert_eq!(code(&with(&format!("\"time\":{closed}"))), Code::InvalidTime);
    assert_eq!(code(&with(&format!("\"user\":{closed}"))), Code::InvalidEvent);
}
