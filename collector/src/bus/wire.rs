//! How batches and ranges travel between processes: a byte that names the version, then MessagePack arrays. Ids are 16 raw
//! bytes, times milliseconds, properties the JSON text that the edge took. What comes is held to the same limits as at the
//! edge: the broker is a door, too.

use std::borrow::Cow;
use std::fmt;

use eventbucket_protocol::limits::BATCH_EVENTS_MAX;
use eventbucket_protocol::{BatchId, Code, Event, EventId, Properties, Reason, Timestamp};
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::message::{Refused, StoredRange, ValidBatch};
use crate::project::ProjectId;

/// The version that is written. A reader takes this one and the one before it, so that processes can be replaced one by one:
/// first all readers, then the writers.
pub(super) const VERSION: u8 = 1;

/// The oldest version that is read.
pub(super) const VERSION_MIN: u8 = 1;

/// A message at most: what RabbitMQ handles without splitting it into many frames' worth of memory in every process on the
/// way. 1 MiB is four of the largest events, or 3,800 usual ones.
pub(super) const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// What stands before the batches: the version, and the head of an array of up to 2^32 of them.
pub(super) const HEAD_BYTES: usize = 1 + 5;

/// What stands before a batch that is alone in its message: the version, and the head of an array of one.
const LONE_HEAD: [u8; 2] = [VERSION, 0x91];

/// Why a message can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// It is empty.
    #[error("the message is empty")]
    Empty,
    /// A newer process wrote it.
    #[error(
        "the message has format version {found}, and this collector reads {VERSION_MIN} to {VERSION}; start a newer one and replay the message"
    )]
    Version {
        /// What it says.
        found: u8,
    },
    /// It isn't what its version says.
    #[error("the message can't be read: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct BatchForm<E> {
    project: u32,
    batch: Uuid,
    part: u16,
    parts: u16,
    received_ms: i64,
    skew_ms: Option<i64>,
    undated: Vec<u32>,
    refused: Vec<(u32, Code)>,
    events: E,
}

#[derive(Serialize, Deserialize)]
struct EventForm<'a> {
    id: Uuid,
    id_text: Option<&'a str>,
    name: &'a str,
    time_ms: i64,
    user: Option<&'a str>,
    properties: &'a str,
    description: Option<&'a str>,
    stream: Option<&'a str>,
    correlation: Option<&'a str>,
}

/// Writes a batch as one or more messages, each of which holds nothing but one part of it.
pub(super) fn encode_batch(batch: &ValidBatch) -> Vec<Vec<u8>> {
    let whole = encode_part(batch, 0..batch.events.len(), 0, 1);
    if whole.len() + HEAD_BYTES <= MESSAGE_BYTES_MAX {
        return vec![whole];
    }
    let cuts = cuts(batch);
    let parts = u16::try_from(cuts.len()).expect("16 MiB make 64 parts at most");
    let ranges = cuts.into_iter().zip(0..);
    ranges.map(|(events, part)| encode_part(batch, events, part, parts)).collect()
}

/// Writes a batch as one message, however large.
pub(super) fn encode_whole(batch: &ValidBatch) -> Vec<u8> {
    encode_part(batch, 0..batch.events.len(), 0, 1)
}

/// What an event takes beside its texts, at most: its id, its time, and the heads of ten values.
const EVENT_OVERHEAD_BYTES: usize = 80;

/// Where to cut a batch so that each part stays below the bound. The refused all travel with the first: 10,000 of them take
/// 300 KiB.
fn cuts(batch: &ValidBatch) -> Vec<std::ops::Range<usize>> {
    const PART_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
    let (mut cuts, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (place, event) in batch.events.iter().enumerate() {
        let size = event.size_bytes() + EVENT_OVERHEAD_BYTES;
        if bytes + size > PART_BYTES_MAX && place > first {
            cuts.push(first..place);
            (first, bytes) = (place, 0);
        }
        bytes += size;
    }
    cuts.push(first..batch.events.len());
    cuts
}

fn encode_part(batch: &ValidBatch, places: std::ops::Range<usize>, part: u16, parts: u16) -> Vec<u8> {
    let place = |place: usize| u32::try_from(place).expect("a batch holds at most 10,000 events");
    let undated = batch.undated.iter().filter(|undated| places.contains(undated));
    let refused = if part == 0 { &batch.refused[..] } else { &[] };
    let events = &batch.events[places.clone()];
    let form = BatchForm {
        project: batch.project.0,
        batch: batch.batch.uuid(),
        part: batch.part + part,
        parts: batch.parts.max(parts),
        received_ms: batch.received.ms(),
        skew_ms: batch.skew_ms,
        undated: undated.map(|undated| place(undated - places.start)).collect(),
        refused: refused.iter().map(|refused| (refused.place, refused.code)).collect(),
        events: Written(events),
    };
    // Room for all of it at once: growing would copy every byte once more.
    let room = BATCH_OVERHEAD_BYTES + events.iter().map(Event::size_bytes).sum::<usize>();
    let mut message = Vec::with_capacity(room);
    message.extend_from_slice(&LONE_HEAD);
    rmp_serde::encode::write(&mut message, &form).expect("numbers and texts are always MessagePack");
    message
}

/// What a batch takes beside its events, as long as nothing was refused.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// Events that are written one after the other.
struct Written<'a>(&'a [Event]);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(event_form))
    }
}

fn event_form(event: &Event) -> EventForm<'_> {
    EventForm {
        id: event.id.uuid(),
        id_text: event.id.text(),
        name: &event.name,
        time_ms: event.time.ms(),
        user: event.user.as_deref(),
        properties: event.properties.as_json(),
        description: event.description.as_deref(),
        stream: event.stream.as_deref(),
        correlation: event.correlation.as_deref(),
    }
}

/// Makes one message of several, each of which holds one batch. One that is alone is sent as it is.
pub(super) fn merged<'a>(messages: &[&'a [u8]]) -> Cow<'a, [u8]> {
    if let [alone] = messages {
        return Cow::Borrowed(alone);
    }
    let batches = messages.iter().map(|message| &message[LONE_HEAD.len()..]);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + batches.clone().map(<[u8]>::len).sum::<usize>());
    bytes.push(VERSION);
    let count = u32::try_from(messages.len()).expect("a message holds at most a million batches");
    rmp::encode::write_array_len(&mut bytes, count).expect("a Vec takes every write");
    batches.for_each(|batch| bytes.extend_from_slice(batch));
    Cow::Owned(bytes)
}

/// Reads the batches of a message.
pub(super) fn read_message(bytes: &[u8]) -> Result<Vec<ValidBatch>, WireError> {
    let forms: Vec<BatchForm<Read>> = read(bytes)?;
    forms.into_iter().map(batch).collect()
}

/// Events that were read, each held to the limits.
struct Read(Vec<Event>);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Events;

        impl<'de> Visitor<'de> for Events {
            type Value = Read;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Read, A::Error> {
                // A length that is only claimed makes room for no more than an edge takes.
                let mut events = Vec::with_capacity(list.size_hint().unwrap_or(0).min(BATCH_EVENTS_MAX));
                while let Some(form) = list.next_element()? {
                    let read = event(form);
                    events.push(
                        read.map_err(|what| {
                            A::Error::custom(format_args!("event {}: {what}", events.len()))
                        })?,
                    );
                }
                Ok(Read(events))
            }
        }

        deserializer.deserialize_seq(Events)
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, WireError> {
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if !(VERSION_MIN..=VERSION).contains(version) {
        return Err(WireError::Version { found: *version });
    }
    rmp_serde::from_slice(body).map_err(|error| WireError::Malformed(error.to_string()))
}

fn batch(form: BatchForm<Read>) -> Result<ValidBatch, WireError> {
    let malformed = |what: String| Err(WireError::Malformed(what));
    let Read(events) = form.events;
    let refused = form.refused.into_iter().map(|(place, code)| Refused { place, code }).collect();
    let received = time(form.received_ms)?;
    let sent = form.skew_ms.map(|skew_ms| form.received_ms.checked_sub(skew_ms).and_then(Timestamp::from_ms));
    if sent == Some(None) {
        return malformed(format!(
            "no batch of {} ms was sent {:?} ms before",
            form.received_ms, form.skew_ms
        ));
    }
    if form.part >= form.parts {
        return malformed(format!("there is no part {} of {}", form.part, form.parts));
    }
    if let Some(place) = form.undated.iter().find(|place| **place as usize >= events.len()) {
        return malformed(format!("there is no event at {place} without a time"));
    }
    Ok(ValidBatch {
        project: ProjectId(form.project),
        batch: BatchId::from_uuid(form.batch),
        received,
        skew_ms: form.skew_ms,
        undated: form.undated.iter().map(|place| *place as usize).collect(),
        events,
        refused,
        part: form.part,
        parts: form.parts,
    })
}

/// Whoever may write to the broker may write anything, and a row that can't be read would spoil the whole project.
fn event(form: EventForm<'_>) -> Result<Event, Cow<'static, str>> {
    let broken = |reason: Reason| reason.message;
    if form.id_text.is_some_and(|text| EventId::from_text(text).uuid() != form.id) {
        return Err("its id isn't that of its text".into());
    }
    let event = Event {
        id: EventId::from_parts(form.id, form.id_text.map(str::to_owned)),
        name: form.name.to_owned(),
        description: form.description.map(str::to_owned),
        user: form.user.map(str::to_owned),
        time: Timestamp::from_ms(form.time_ms).ok_or_else(|| no_time(form.time_ms))?,
        stream: form.stream.map(str::to_owned),
        correlation: form.correlation.map(str::to_owned),
        properties: Properties::parse(form.properties).map_err(broken)?,
    };
    event.check().map_err(broken)?;
    Ok(event)
}

fn no_time(unix_ms: i64) -> String {
    format!("{unix_ms} ms is no time")
}

fn time(unix_ms: i64) -> Result<Timestamp, WireError> {
    Timestamp::from_ms(unix_ms).ok_or_else(|| WireError::Malformed(no_time(unix_ms)))
}

/// Writes announced ranges.
pub(super) fn ranges(ranges: &[StoredRange]) -> Vec<u8> {
    let forms: Vec<(u32, u64, u64)> = ranges.iter().map(|r| (r.project.0, r.first, r.last)).collect();
    let mut bytes = vec![VERSION];
    bytes.extend(rmp_serde::to_vec(&forms).expect("numbers are always MessagePack"));
    bytes
}

/// Reads announced ranges.
pub(super) fn read_ranges(bytes: &[u8]) -> Result<Vec<StoredRange>, WireError> {
    let forms: Vec<(u32, u64, u64)> = read(bytes)?;
    let range = |(project, first, last)| StoredRange { project: ProjectId(project), first, last };
    Ok(forms.into_iter().map(range).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(number: u128, properties: &str) -> Event {
        Event {
            id: EventId::from_uuid(Uuid::from_u128(number)),
            name: "order_paid".to_owned(),
            description: None,
            user: Some("ada".to_owned()),
            time: Timestamp::from_ms(1_700_000_000_000).unwrap(),
            stream: None,
            correlation: Some("c".to_owned()),
            properties: Properties::parse(properties).unwrap(),
        }
    }

    fn batch(events: Vec<Event>) -> ValidBatch {
        ValidBatch {
            project: ProjectId(7),
            batch: BatchId::from_uuid(Uuid::from_u128(9)),
            received: Timestamp::from_ms(1_700_000_000_001).unwrap(),
            skew_ms: Some(-70_000),
            undated: (0..events.len()).filter(|place| place % 3 == 1).collect(),
            events,
            refused: vec![Refused { place: 4, code: Code::TooDeep }],
            part: 0,
            parts: 1,
        }
    }

    fn sent(batch: &ValidBatch) -> Vec<ValidBatch> {
        let read = |bytes: Vec<u8>| {
            assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{} bytes", bytes.len());
            read_message(&bytes).unwrap()
        };
        encode_batch(batch).into_iter().flat_map(read).collect()
    }

    #[test]
    fn a_batch_comes_back_as_it_was() {
        let text = Event { id: EventId::from_text("order-17"), ..event(1, "{}") };
        let whole = batch(vec![event(1, r#"{"a":[1,2.5,"x"]}"#), text, event(3, "{}")]);
        let back = sent(&whole);
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].events, whole.events);
        assert_eq!(
            (back[0].project, back[0].batch, back[0].received),
            (whole.project, whole.batch, whole.received)
        );
        assert_eq!(
            (back[0].skew_ms, &back[0].undated, &back[0].refused),
            (whole.skew_ms, &whole.undated, &whole.refused)
        );
    }

    #[test]
    fn batches_that_share_a_message_come_back_one_by_one() {
        let batches: Vec<ValidBatch> = (0..20).map(|number| batch(vec![event(number, "{}")])).collect();
        let messages: Vec<Vec<u8>> = batches.iter().map(encode_whole).collect();
        for count in [1, 2, 20] {
            let some: Vec<&[u8]> = messages[..count].iter().map(Vec::as_slice).collect();
            let back = read_message(&merged(&some)).unwrap();
            assert_eq!(format!("{back:?}"), format!("{:?}", &batches[..count]));
        }
    }

    #[test]
    fn the_largest_batch_travels_in_parts_that_fit() {
        let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(200 * 1024));
        let whole = batch((0..80).map(|number| event(number, &large)).collect());
        let parts = sent(&whole);
        assert!(parts.len() > 15, "{} parts", parts.len());
        let numbers: Vec<u16> = parts.iter().map(|part| part.part).collect();
        assert_eq!(numbers, (0..parts[0].parts).collect::<Vec<_>>());
        let refused: Vec<usize> = parts.iter().map(|part| part.refused.len()).collect();
        assert_eq!((refused[0], refused.iter().sum::<usize>()), (1, 1), "they are counted once");
        let mut place = 0;
        for part in &parts {
            for own in 0..part.events.len() {
                assert_eq!(part.is_dated(own), whole.is_dated(place));
                place += 1;
            }
        }
        assert_eq!(parts.into_iter().flat_map(|part| part.events).collect::<Vec<_>>(), whole.events);
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let mut bytes = encode_whole(&batch(vec![]));
        bytes[0] = VERSION + 1;
        assert!(matches!(read_message(&bytes), Err(WireError::Version { found }) if found == VERSION + 1));
        assert!(matches!(read_message(&[]), Err(WireError::Empty)));
        assert!(matches!(read_message(&[VERSION, 0xc1]), Err(WireError::Malformed(_))));
    }

    #[test]
    fn what_no_edge_would_have_sent_is_malformed() {
        type Forge = fn(&mut BatchForm<Vec<EventForm<'_>>>);
        let forgeries: [(&str, Forge); 8] = [
            ("ms before", |form| form.skew_ms = Some(i64::MAX)),
            ("ms before", |form| form.skew_ms = Some(i64::MIN)),
            ("is no time", |form| form.events[1].time_ms = i64::MAX),
            ("no part 1 of 1", |form| form.part = 1),
            ("no event at 2", |form| form.undated = vec![2]),
            ("event 1: its id", |form| form.events[1].id_text = Some("another")),
            ("event 1: ", |form| form.events[1].name = ""),
            ("event 1: ", |form| form.events[1].properties = "{not json"),
        ];
        let whole = batch(vec![event(1, "{}"), event(2, "{}")]);
        for (expected, forge) in forgeries {
            let encoded = encode_whole(&whole);
            let mut form: BatchForm<Vec<EventForm<'_>>> =
                rmp_serde::from_slice(&encoded[LONE_HEAD.len()..]).unwrap();
            forge(&mut form);
            let forged = [&LONE_HEAD[..], &rmp_serde::to_vec(&form).unwrap()].concat();
            let error = read_message(&forged).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn ranges_come_back() {
        let all = [StoredRange { project: ProjectId(1), first: 5, last: 9 }];
        assert_eq!(read_ranges(&ranges(&all)).unwrap(), all);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_message(&bytes);
            let _ = read_ranges(&bytes);
            let mut known = vec![VERSION];
            known.extend(bytes);
            let _ = read_message(&known);
            let _ = read_ranges(&known);
        }
    }
}
