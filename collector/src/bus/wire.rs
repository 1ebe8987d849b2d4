//! How batches and ranges travel between processes: a byte that names the version, then MessagePack arrays. Ids are 16 raw
//! bytes, times milliseconds, properties the JSON text that the edge took. What comes is held to the same limits as at the
//! edge: the broker is a door, too.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use eventbucket_protocol::limits::BATCH_EVENTS_MAX;
use eventbucket_protocol::{
    BatchId, CheckedEvent, Code, Event, EventId, Properties, Reason, Texts, Timestamp,
};
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
pub(super) struct EventForm<'a> {
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

/// A batch as its messages, each of which holds nothing but one part of it.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) project: ProjectId,
    pub(super) received: Timestamp,
    /// How many events are in it.
    pub(super) events: usize,
    pub(super) messages: Vec<Bytes>,
}

impl Encoded {
    pub(super) fn of<E: Carried>(batch: &ValidBatch<E>) -> Self {
        let messages = encode_batch(batch).into_iter().map(Bytes::from).collect();
        Self { project: batch.project, received: batch.received, events: batch.events.len(), messages }
    }
}

/// An event that can be written, wherever its texts are.
pub(super) trait Carried {
    fn form(&self) -> EventForm<'_>;
}

impl Carried for Event {
    fn form(&self) -> EventForm<'_> {
        EventForm::of(&self.id, self.time, self.texts(), self.properties.as_json())
    }
}

impl Carried for CheckedEvent<'_> {
    fn form(&self) -> EventForm<'_> {
        EventForm::of(&self.id, self.time, self.texts(), self.properties.as_json())
    }
}

impl<'a> EventForm<'a> {
    fn of(id: &EventId, time: Timestamp, texts: Texts<'a>, properties: &'a str) -> Self {
        Self {
            id: id.uuid(),
            id_text: texts.id,
            name: texts.name,
            time_ms: time.ms(),
            user: texts.user,
            properties,
            description: texts.description,
            stream: texts.stream,
            correlation: texts.correlation,
        }
    }

    /// What it takes at most.
    fn bytes_max(&self) -> usize {
        let rare = [self.id_text, self.description, self.stream, self.correlation];
        let rare: usize = rare.iter().flatten().map(|text| text.len()).sum();
        EVENT_OVERHEAD_BYTES + self.name.len() + self.user.map_or(0, str::len) + self.properties.len() + rare
    }
}

/// Writes a batch as one or more messages, each of which holds nothing but one part of it.
pub(super) fn encode_batch<E: Carried>(batch: &ValidBatch<E>) -> Vec<Vec<u8>> {
    let whole = encode_part(batch, 0..batch.events.len(), 0, 1);
    if whole.len() + HEAD_BYTES <= MESSAGE_BYTES_MAX {
        return vec![whole];
    }
    let cuts = cuts(batch);
    let parts = u16::try_from(cuts.len()).expect("16 MiB make 64 parts at most");
    let ranges = cuts.into_iter().zip(0..);
    ranges.map(|(events, part)| encode_part(batch, events, part, parts)).collect()
}

/// What an event takes beside its texts, at most: its id, its time, and the heads of ten values.
const EVENT_OVERHEAD_BYTES: usize = 80;

/// What a batch takes beside its events, as long as nothing was refused.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// Where to cut a batch so that each part stays below the bound. The refused all travel with the first: 10,000 of them take
/// 300 KiB.
fn cuts<E: Carried>(batch: &ValidBatch<E>) -> Vec<std::ops::Range<usize>> {
    const PART_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
    let (mut cuts, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (place, event) in batch.events.iter().enumerate() {
        let size = event.form().bytes_max();
        if bytes + size > PART_BYTES_MAX && place > first {
            cuts.push(first..place);
            (first, bytes) = (place, 0);
        }
        bytes += size;
    }
    cuts.push(first..batch.events.len());
    cuts
}

fn encode_part<E: Carried>(
    batch: &ValidBatch<E>,
    places: std::ops::Range<usize>,
    part: u16,
    parts: u16,
) -> Vec<u8> {
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
    let room = events.iter().map(|event| event.form().bytes_max()).sum::<usize>();
    let mut message = Vec::with_capacity(BATCH_OVERHEAD_BYTES + room);
    message.extend_from_slice(&LONE_HEAD);
    rmp_serde::encode::write(&mut message, &form).expect("numbers and texts are always MessagePack");
    message
}

/// Events that are written one after the other.
struct Written<'a, E>(&'a [E]);

impl<E: Carried> Serialize for Written<'_, E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Carried::form))
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
mod tests;
