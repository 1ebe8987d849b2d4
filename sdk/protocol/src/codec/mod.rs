//! MessagePack, JSON and NDJSON.
//!
//! Three shapes of body are read in both formats: a batch `{"batch_id": …, "events": […]}`, a bare list of events, and
//! a single event. NDJSON is one event a line. In MessagePack, ids may be 16 raw bytes, and properties either a map
//! or the text of a JSON object as `bin`, which is what the SDK sends because it is carried on unread.

/// The walk that checks properties, and turns MessagePack into JSON on the way.
pub(crate) mod check;

/// The look that plain properties pass without the walk.
pub(crate) mod plain;

/// The keys of one object, to find the one that stands twice.
mod seen;

/// JSON and NDJSON bodies.
mod json;

/// MessagePack bodies.
mod messagepack;

/// Events to MessagePack.
pub mod encode;

use std::borrow::Cow;
use std::fmt;

use crate::limits::{BATCH_EVENTS_MAX, ID_CHARS_MAX};
use crate::{BatchId, Code, EventId, RawBatch, Reason};

/// The formats of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/x-ndjson`
    Ndjson,
    /// `application/msgpack`
    MessagePack,
}

impl Format {
    /// The media type the SDK sends.
    pub const MESSAGEPACK: &str = "application/msgpack";

    /// Reads a `Content-Type` value; parameters such as a charset are ignored.
    #[must_use]
    pub fn from_content_type(value: &str) -> Option<Self> {
        let media_type = value.split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "application/json" => Some(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Ndjson),
            Self::MESSAGEPACK | "application/x-msgpack" | "application/vnd.msgpack" => {
                Some(Self::MessagePack)
            }
            _ => None,
        }
    }
}

/// Why a body as a whole can't be cut into events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The body breaks off.
    #[error("the body ends in the middle of a value; {received} bytes arrived")]
    Truncated {
        /// How many bytes there were.
        received: usize,
    },
    /// The body isn't what its content type says.
    #[error("the body can't be read as {format}: {message}")]
    Malformed {
        /// The format in words.
        format: &'static str,
        /// What the parser met, and where.
        message: Cow<'static, str>,
    },
    /// More events than one batch takes.
    #[error("the batch holds more than {BATCH_EVENTS_MAX} events; send them in smaller batches")]
    TooManyEvents,
}

/// Cuts a body into its events.
///
/// # Errors
/// When the outer shape can't be read. What is wrong with a single event is kept in its place instead.
pub fn decode(body: &[u8], format: Format) -> Result<RawBatch<'_>, DecodeError> {
    match format {
        Format::Json => json::decode(body),
        Format::Ndjson => json::decode_lines(body),
        Format::MessagePack => messagepack::decode(body),
    }
}

/// An event's id as its client wrote it; its length is checked with the other fields.
fn event_id_from_text(text: &str) -> Result<EventId, Reason> {
    if text.is_empty() {
        return Err(Reason::new(Code::InvalidField, "id is empty; leave the field out instead"));
    }
    Ok(EventId::from_text(text))
}

/// A batch's id as its client wrote it.
fn batch_id_from_text(text: &str) -> Result<BatchId, &'static str> {
    if text.is_empty() {
        return Err("batch_id is empty; leave it out instead");
    }
    if text.len() > ID_CHARS_MAX && text.chars().count() > ID_CHARS_MAX {
        return Err("batch_id is longer than 200 characters; use a UUID");
    }
    Ok(BatchId::from_text(text))
}

fn invalid_time() -> Reason {
    let message = "time must be RFC 3339 (2026-11-21T03:30:00Z) or integer Unix milliseconds, from 0001-01-01 to \
                   9999-12-30T22:00:00Z";
    Reason::new(Code::InvalidTime, message)
}

fn unknown_field_beside_events(field: &str) -> String {
    format!("unknown field {} beside \"events\"; a batch has batch_id and events", shown(field))
}

/// Characters of a client's text that an answer repeats: enough to find the place. Without a limit a few bytes, compressed,
/// would ask for an answer of megabytes.
const SHOWN_CHARS_MAX: usize = 60;

/// Characters of a parser's message that an answer repeats: those it writes itself have 200 at most.
const MESSAGE_CHARS_MAX: usize = 300;

/// A client's text in quotes, as far as an answer repeats it.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A parser's message, as far as an answer repeats it: it may hold any text of the client.
fn told(error: &impl fmt::Display) -> String {
    let mut message = error.to_string();
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message
}
