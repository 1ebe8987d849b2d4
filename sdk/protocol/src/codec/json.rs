use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    DecodeError, batch_id_from_text, event_id_from_text, invalid_time, told, unknown_field_beside_events,
};
use crate::event::check_size;
use crate::limits::BATCH_EVENTS_MAX;
use crate::{BatchId, CheckedProperties, Code, RawBatch, RawEvent, Reason, Timestamp};

/// What JSON calls whitespace ([RFC 8259 §2](https://www.rfc-editor.org/rfc/rfc8259#section-2)); less than Unicode does.
const WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

pub(super) fn decode(body: &[u8]) -> Result<RawBatch<'_>, DecodeError> {
    let text = utf8(body)?.trim_matches(WHITESPACE);
    match text.as_bytes().first() {
        Some(b'[') => {
            let List(events) =
                serde_json::from_str(text).map_err(|error| malformed(&error, text, body.len()))?;
            batch(None, &events)
        }
        Some(b'{') => outer(text, body.len()),
        Some(_) => {
            let message = "expected a batch {\"events\": […]}, a list of events or one event".into();
            Err(DecodeError::Malformed { format: "JSON", message })
        }
        None => Err(DecodeError::Truncated { received: body.len() }),
    }
}

/// An object is a batch when it has `events`, otherwise a single event.
fn outer(text: &str, received: usize) -> Result<RawBatch<'_>, DecodeError> {
    match serde_json::from_str(text).map_err(|error| malformed(&error, text, received))? {
        Outer { events: Some(_), other: Some(field), .. } => {
            let message = unknown_field_beside_events(&field).into();
            Err(DecodeError::Malformed { format: "JSON", message })
        }
        Outer { id, events: Some(List(events)), .. } => batch(id.flatten(), &events),
        Outer { .. } => Ok(RawBatch { id: None, events: vec![event(text)] }),
    }
}

/// Each line stands alone, so even bytes that aren't UTF-8 cost only their own line.
pub(super) fn decode_lines(body: &[u8]) -> Result<RawBatch<'_>, DecodeError> {
    let mut events = Vec::new();
    let lines = without_bom(body).split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    for line in lines.filter(|line| !line.is_empty()) {
        if events.len() == BATCH_EVENTS_MAX {
            return Err(DecodeError::TooManyEvents);
        }
        let not_utf8 = |_| Reason::new(Code::InvalidEvent, "the line is not UTF-8; JSON is always UTF-8");
        events.push(std::str::from_utf8(line).map_err(not_utf8).and_then(event));
    }
    Ok(RawBatch { id: None, events })
}

fn batch<'a>(id: Option<BatchId>, events: &[&'a RawValue]) -> Result<RawBatch<'a>, DecodeError> {
    if events.len() > BATCH_EVENTS_MAX {
        return Err(DecodeError::TooManyEvents);
    }
    Ok(RawBatch { id, events: events.iter().map(|raw| event(raw.get())).collect() })
}

fn event(json: &str) -> Result<RawEvent<'_>, Reason> {
    check_size(json.len())?;
    // Derived structs can also be read from a list of their values in order, which nobody means.
    if !json.starts_with('{') {
        return Err(Reason::new(Code::InvalidEvent, "expected an event as an object, {\"name\": …}"));
    }
    let fields: Fields<'_> =
        serde_json::from_str(json).map_err(|error| Reason::new(Code::InvalidEvent, told(&error)))?;
    Ok(RawEvent {
        id: fields.id.as_deref().map(event_id_from_text).transpose()?,
        name: fields.name,
        description: fields.description,
        user: fields.user,
        time: fields.time.map(time).transpose()?,
        stream: fields.stream,
        correlation: fields.correlation,
        properties: fields
            .properties
            .map_or_else(|| Ok(CheckedProperties::default()), |raw| CheckedProperties::parse(raw.get()))?,
    })
}

/// A time is text or an integer; whatever else it is, the answer is the same.
fn time(raw: &RawValue) -> Result<Timestamp, Reason> {
    let text: Cow<'_, str> = match raw.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => plain.into(),
        Some(_) => serde_json::from_str::<String>(raw.get()).map_err(|_| invalid_time())?.into(),
        None => {
            let unix_ms = raw.get().parse().ok();
            return unix_ms.and_then(Timestamp::from_ms).ok_or_else(invalid_time);
        }
    };
    Timestamp::from_rfc3339(&text).ok_or_else(invalid_time)
}

fn without_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

fn utf8(body: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(without_bom(body)).map_err(|error| match error.error_len() {
        None => DecodeError::Truncated { received: body.len() },
        Some(_) => {
            let at = body.len() - without_bom(body).len() + error.valid_up_to();
            let message = format!("byte {at} is not UTF-8; JSON is always UTF-8");
            DecodeError::Malformed { format: "JSON", message: message.into() }
        }
    })
}

fn malformed(error: &serde_json::Error, text: &str, received: usize) -> DecodeError {
    if error.is_eof() || cut_in_a_number(error, text) {
        return DecodeError::Truncated { received };
    }
    DecodeError::Malformed { format: "JSON", message: told(error).into() }
}

/// A number cut behind its sign, point or exponent is the one end that serde_json calls invalid instead.
fn cut_in_a_number(error: &serde_json::Error, text: &str) -> bool {
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    text.ends_with(['-', '+', '.', 'e', 'E'])
        && error.column() >= last_line.len()
        && error.line() == text.lines().count()
}

/// The events of a body as unread slices of it.
struct List<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for List<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = List<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<'de>, A::Error> {
                let mut events = Vec::new();
                // One over the limit is enough to know; the rest is only skipped.
                while events.len() <= BATCH_EVENTS_MAX {
                    match list.next_element()? {
                        Some(event) => events.push(event),
                        None => return Ok(List(events)),
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(List(events))
            }
        }

        deserializer.deserialize_seq(Elements)
    }
}

/// The outermost object: a batch when it has `events`, otherwise a single event that is read again as such.
#[derive(Default)]
struct Outer<'a> {
    /// `Some(None)` when it was given as null, which stands for a field left out.
    id: Option<Option<BatchId>>,
    events: Option<List<'a>>,
    other: Option<Cow<'a, str>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Outer<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Outer<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a batch or an event")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outer<'de>, A::Error> {
                let mut outer = Outer::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match &*key {
                        "events" if outer.events.is_some() => {
                            return Err(A::Error::duplicate_field("events"));
                        }
                        "events" => outer.events = Some(map.next_value()?),
                        "batch_id" if outer.id.is_some() => {
                            return Err(A::Error::duplicate_field("batch_id"));
                        }
                        "batch_id" => {
                            let text: Option<Cow<'de, str>> = map.next_value()?;
                            let id = text.as_deref().map(batch_id_from_text).transpose();
                            outer.id = Some(id.map_err(A::Error::custom)?);
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            outer.other.get_or_insert(key);
                        }
                    }
                }
                Ok(outer)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    description: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    time: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    correlation: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
}
