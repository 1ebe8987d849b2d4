use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{DecodeError, id_from_text, time_from_text};
use crate::event::check_size;
use crate::limits::BATCH_EVENTS_MAX;
use crate::{BatchId, Code, Properties, RawBatch, RawEvent, Reason, Timestamp};

pub(super) fn decode(body: &[u8]) -> Result<RawBatch<'_>, DecodeError> {
    let text = utf8(body)?;
    let start = text.trim_start();
    if start.starts_with('[') {
        let List(events) = serde_json::from_str(start).map_err(|error| malformed(&error, body.len()))?;
        return batch(None, &events);
    }
    if !start.starts_with('{') {
        let message = "expected a batch {\"events\": […]}, a list of events or one event".into();
        return Err(DecodeError::Malformed { format: "JSON", message });
    }
    let outer: Outer<'_> = serde_json::from_str(start).map_err(|error| malformed(&error, body.len()))?;
    match outer {
        Outer { events: Some(_), other: Some(field), .. } => {
            let message =
                format!("unknown field {field:?} beside \"events\"; a batch has batch_id and events");
            Err(DecodeError::Malformed { format: "JSON", message: message.into() })
        }
        Outer { id, events: Some(List(events)), .. } => batch(id, &events),
        Outer { .. } => Ok(RawBatch { id: None, events: vec![event(start.trim_end())] }),
    }
}

pub(super) fn decode_lines(body: &[u8]) -> Result<RawBatch<'_>, DecodeError> {
    let mut events = Vec::new();
    for line in utf8(body)?.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if events.len() == BATCH_EVENTS_MAX {
            return Err(DecodeError::TooManyEvents);
        }
        events.push(event(line));
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
    let fields: Fields<'_> =
        serde_json::from_str(json).map_err(|error| Reason::new(Code::InvalidEvent, error.to_string()))?;
    let invalid = |code, message: &'static str| Reason::new(code, message);
    Ok(RawEvent {
        id: match fields.id.as_deref().map(id_from_text) {
            Some(None) => {
                return Err(invalid(Code::InvalidField, "id is empty; leave the field out instead"));
            }
            Some(id) => id,
            None => None,
        },
        time: match fields.time.map(|Time(time)| time) {
            Some(None) => {
                let message = "time must be RFC 3339 (2026-11-21T03:30:00Z) or integer Unix milliseconds";
                return Err(invalid(Code::InvalidTime, message));
            }
            Some(time) => time,
            None => None,
        },
        name: fields.name,
        description: fields.description,
        user: fields.user,
        stream: fields.stream,
        correlation: fields.correlation,
        properties: match fields.properties {
            Some(raw) => Properties::parse(raw.get())?,
            None => Properties::default(),
        },
    })
}

fn utf8(body: &[u8]) -> Result<&str, DecodeError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    std::str::from_utf8(body).map_err(|error| match error.error_len() {
        None => DecodeError::Truncated { received: body.len() },
        Some(_) => {
            let message = format!("byte {} is not UTF-8; JSON is always UTF-8", error.valid_up_to());
            DecodeError::Malformed { format: "JSON", message: message.into() }
        }
    })
}

fn malformed(error: &serde_json::Error, received: usize) -> DecodeError {
    if error.is_eof() {
        return DecodeError::Truncated { received };
    }
    DecodeError::Malformed { format: "JSON", message: error.to_string().into() }
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
    id: Option<BatchId>,
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
                        "batch_id" => outer.id = Some(batch_id(&map.next_value::<Cow<'de, str>>()?)?),
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

fn batch_id<E: Error>(text: &str) -> Result<BatchId, E> {
    match text.len() {
        1..=crate::limits::ID_CHARS_MAX => Ok(BatchId::from_text(text)),
        0 => Err(E::custom("batch_id is empty; leave it out instead")),
        _ => Err(E::custom("batch_id is longer than 200 bytes; use a UUID")),
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
    #[serde(default)]
    time: Option<Time>,
    #[serde(borrow, default)]
    stream: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    correlation: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
}

/// A time that was given: `None` when it can't be read.
struct Time(Option<Timestamp>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("RFC 3339 text or integer Unix milliseconds")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Time, E> {
                Ok(Time(time_from_text(text)))
            }

            fn visit_i64<E: Error>(self, unix_ms: i64) -> Result<Time, E> {
                Ok(Time(Timestamp::from_ms(unix_ms)))
            }

            fn visit_u64<E: Error>(self, unix_ms: u64) -> Result<Time, E> {
                Ok(Time(i64::try_from(unix_ms).ok().and_then(Timestamp::from_ms)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
