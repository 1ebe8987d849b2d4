use std::borrow::Cow;

use rmp::Marker;
use uuid::Uuid;

use super::{
    DecodeError, batch_id_from_text, check, event_id_from_text, invalid_time, shown,
    unknown_field_beside_events,
};
use crate::event::check_size;
use crate::limits::BATCH_EVENTS_MAX;
use crate::{BatchId, CheckedProperties, Code, EventId, RawBatch, RawEvent, Reason, Timestamp};

pub(super) fn decode(body: &[u8]) -> Result<RawBatch<'_>, DecodeError> {
    let mut reader = Reader { rest: body };
    let batch = match reader.peek() {
        Some(Marker::FixArray(_) | Marker::Array16 | Marker::Array32) => {
            RawBatch { id: None, events: reader.events().map_err(|fault| fault.of_body(body))? }
        }
        Some(Marker::FixMap(_) | Marker::Map16 | Marker::Map32) => outer(&mut reader, body)?,
        Some(_) => {
            return Err(malformed("expected a batch {\"events\": […]}, a list of events or one event"));
        }
        None => return Err(DecodeError::Truncated { received: 0 }),
    };
    if reader.rest.is_empty() { Ok(batch) } else { Err(malformed("bytes follow the batch")) }
}

/// A map is a batch when it has `events`, otherwise a single event.
fn outer<'a>(reader: &mut Reader<'a>, body: &'a [u8]) -> Result<RawBatch<'a>, DecodeError> {
    let start = reader.rest;
    let (mut id, mut events, mut other) = (None, None, None);
    let members = reader.map_len().map_err(|fault| fault.of_body(body))?;
    for _ in 0..members {
        let key = reader.text().map_err(|fault| fault.of_body(body))?;
        match key {
            "events" if events.is_some() => return Err(malformed("events stands twice")),
            "events" => events = Some(reader.events().map_err(|fault| fault.of_body(body))?),
            "batch_id" if id.is_some() => return Err(malformed("batch_id stands twice")),
            "batch_id" => id = Some(batch_id(reader).map_err(|fault| fault.of_body(body))?),
            _ => {
                reader.skip().map_err(|fault| fault.of_body(body))?;
                other.get_or_insert(key);
            }
        }
    }
    match (events, other) {
        (Some(_), Some(field)) => {
            let message = unknown_field_beside_events(field).into();
            Err(DecodeError::Malformed { format: "MessagePack", message })
        }
        (Some(events), None) => Ok(RawBatch { id: id.flatten(), events }),
        (None, _) => {
            let bytes = &start[..start.len() - reader.rest.len()];
            Ok(RawBatch { id: None, events: vec![event(bytes)] })
        }
    }
}

/// The id of a batch; `None` for nil, which stands for a field left out, as it does in events.
fn batch_id(reader: &mut Reader<'_>) -> Result<Option<BatchId>, Fault> {
    if reader.nil() {
        return Ok(None);
    }
    if let Some(uuid) = reader.uuid()? {
        return Ok(Some(BatchId::from_uuid(uuid)));
    }
    batch_id_from_text(reader.text()?).map(Some).map_err(Fault::Type)
}

fn event(bytes: &[u8]) -> Result<RawEvent<'_>, Reason> {
    check_size(bytes.len())?;
    fields(&mut Reader { rest: bytes })
}

/// The fields of an event.
fn fields<'a>(reader: &mut Reader<'a>) -> Result<RawEvent<'a>, Reason> {
    let mut event = RawEvent::default();
    let mut seen = 0_u8;
    for _ in 0..reader.map_len()? {
        let key = reader.text_bytes()?;
        let Some(field) = Field::of(key) else {
            let key = utf8(key)?;
            let message = format!("unknown field {}, expected one of {}", shown(key), FIELDS.join(", "));
            return Err(Reason::new(Code::InvalidEvent, message));
        };
        if seen & (1 << field as u8) != 0 {
            let message = format!("field {:?} stands twice", FIELDS[field as usize]);
            return Err(Reason::new(Code::InvalidEvent, message));
        }
        seen |= 1 << field as u8;
        if !reader.nil() {
            read_field(&mut event, field, reader)?;
        }
    }
    Ok(event)
}

const FIELDS: [&str; 8] =
    ["id", "name", "description", "user", "time", "stream", "correlation", "properties"];

/// The fields of an event, in the order of [`FIELDS`].
#[derive(Clone, Copy)]
enum Field {
    Id,
    Name,
    Description,
    User,
    Time,
    Stream,
    Correlation,
    Properties,
}

impl Field {
    fn of(key: &[u8]) -> Option<Self> {
        Some(match key {
            b"id" => Self::Id,
            b"name" => Self::Name,
            b"description" => Self::Description,
            b"user" => Self::User,
            b"time" => Self::Time,
            b"stream" => Self::Stream,
            b"correlation" => Self::Correlation,
            b"properties" => Self::Properties,
            _ => return None,
        })
    }
}

fn read_field<'a>(event: &mut RawEvent<'a>, field: Field, reader: &mut Reader<'a>) -> Result<(), Reason> {
    let of_field = |fault: Fault| fault.of_field(FIELDS[field as usize]);
    match field {
        Field::Id => event.id = Some(event_id(reader, of_field)?),
        Field::Time => event.time = Some(reader.time()?),
        Field::Properties => event.properties = properties(reader)?,
        Field::Name => event.name = Some(reader.cow().map_err(of_field)?),
        Field::Description => event.description = Some(reader.cow().map_err(of_field)?),
        Field::User => event.user = Some(reader.cow().map_err(of_field)?),
        Field::Stream => event.stream = Some(reader.cow().map_err(of_field)?),
        Field::Correlation => event.correlation = Some(reader.cow().map_err(of_field)?),
    }
    Ok(())
}

fn event_id(reader: &mut Reader<'_>, of_field: impl Fn(Fault) -> Reason) -> Result<EventId, Reason> {
    match reader.uuid().map_err(&of_field)? {
        Some(uuid) => Ok(uuid.into()),
        None => event_id_from_text(reader.text().map_err(of_field)?),
    }
}

/// A map is turned into JSON; a `bin` is JSON text already. More than an event may take isn't looked at.
fn properties<'a>(reader: &mut Reader<'a>) -> Result<CheckedProperties<'a>, Reason> {
    match reader.peek() {
        Some(Marker::Bin8 | Marker::Bin16 | Marker::Bin32) => {
            let not_text =
                |_| Reason::new(Code::InvalidProperties, "properties given as bin must be JSON text");
            let bytes = reader.bin()?;
            check_size(bytes.len())?;
            CheckedProperties::parse(std::str::from_utf8(bytes).map_err(not_text)?)
        }
        _ => {
            let bytes = reader.skip()?;
            check_size(bytes.len())?;
            check::messagepack_object(bytes).map(CheckedProperties::written)
        }
    }
}

fn malformed(message: &'static str) -> DecodeError {
    DecodeError::Malformed { format: "MessagePack", message: message.into() }
}

/// An id, a name and a time: room is made for as many of these as fit into what came, whatever length is claimed.
const EVENT_BYTES_USUAL: usize = 48;

/// What can be wrong with a value; whose fault it is depends on whether it was read in the frame or in an event.
enum Fault {
    Truncated,
    Type(&'static str),
    TooManyEvents,
}

impl Fault {
    fn of_body(self, body: &[u8]) -> DecodeError {
        match self {
            Self::Truncated => DecodeError::Truncated { received: body.len() },
            Self::Type(message) => malformed(message),
            Self::TooManyEvents => DecodeError::TooManyEvents,
        }
    }

    fn of_field(self, field: &str) -> Reason {
        match self {
            Self::Type(message) => Reason::new(Code::InvalidEvent, format!("{field}: {message}")),
            fault => fault.into(),
        }
    }
}

impl From<Fault> for Reason {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Type(message) => Self::new(Code::InvalidEvent, message),
            Fault::Truncated | Fault::TooManyEvents => Self::new(Code::InvalidEvent, "the event breaks off"),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::Type("a text is not UTF-8"))
}

/// Reads values off the front of a body, borrowing from it.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<Marker> {
        self.rest.first().map(|byte| Marker::from_u8(*byte))
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.rest.split_at_checked(bytes).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn marker(&mut self) -> Result<Marker, Fault> {
        Ok(Marker::from_u8(self.take(1)?[0]))
    }

    /// A big-endian length or number of `bytes` bytes.
    fn uint(&mut self, bytes: usize) -> Result<u64, Fault> {
        Ok(self.take(bytes)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, Fault> {
        usize::try_from(self.uint(bytes)?).map_err(|_| Fault::Truncated)
    }

    fn nil(&mut self) -> bool {
        let nil = self.peek() == Some(Marker::Null);
        if nil {
            self.rest = &self.rest[1..];
        }
        nil
    }

    fn map_len(&mut self) -> Result<usize, Fault> {
        match self.marker()? {
            Marker::FixMap(len) => Ok(usize::from(len)),
            Marker::Map16 => self.length(2),
            Marker::Map32 => self.length(4),
            _ => Err(Fault::Type("expected an event as a map with text keys")),
        }
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        utf8(self.text_bytes()?)
    }

    /// A text that may be anything but UTF-8 yet.
    fn text_bytes(&mut self) -> Result<&'a [u8], Fault> {
        let bytes = match self.marker()? {
            Marker::FixStr(len) => usize::from(len),
            Marker::Str8 => self.length(1)?,
            Marker::Str16 => self.length(2)?,
            Marker::Str32 => self.length(4)?,
            _ => return Err(Fault::Type("expected text")),
        };
        self.take(bytes)
    }

    fn cow(&mut self) -> Result<Cow<'a, str>, Fault> {
        self.text().map(Cow::Borrowed)
    }

    fn bin(&mut self) -> Result<&'a [u8], Fault> {
        let bytes = match self.marker()? {
            Marker::Bin8 => self.length(1)?,
            Marker::Bin16 => self.length(2)?,
            Marker::Bin32 => self.length(4)?,
            _ => return Err(Fault::Type("expected binary")),
        };
        self.take(bytes)
    }

    /// An id as 16 raw bytes; `None` when the next value isn't binary, which then is still to be read.
    fn uuid(&mut self) -> Result<Option<Uuid>, Fault> {
        if !matches!(self.peek(), Some(Marker::Bin8 | Marker::Bin16 | Marker::Bin32)) {
            return Ok(None);
        }
        let uuid = Uuid::from_slice(self.bin()?);
        uuid.map(Some).map_err(|_| Fault::Type("an id as binary has 16 bytes"))
    }

    fn time(&mut self) -> Result<Timestamp, Reason> {
        let unix_ms = match self.peek().ok_or(Fault::Truncated)? {
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                return Timestamp::from_rfc3339(self.text()?).ok_or_else(invalid_time);
            }
            Marker::FixPos(value) => self.marker().map(|_| i64::from(value))?,
            Marker::FixNeg(value) => self.marker().map(|_| i64::from(value))?,
            marker => {
                self.marker()?;
                self.integer(marker)?.ok_or_else(invalid_time)?
            }
        };
        Timestamp::from_ms(unix_ms).ok_or_else(invalid_time)
    }

    /// The rest of an integer behind its marker; `None` for other types and for what exceeds `i64`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "as many bytes as read")]
    fn integer(&mut self, marker: Marker) -> Result<Option<i64>, Fault> {
        Ok(match marker {
            Marker::U8 => i64::try_from(self.uint(1)?).ok(),
            Marker::U16 => i64::try_from(self.uint(2)?).ok(),
            Marker::U32 => i64::try_from(self.uint(4)?).ok(),
            Marker::U64 => i64::try_from(self.uint(8)?).ok(),
            Marker::I8 => Some(i64::from(self.uint(1)? as i8)),
            Marker::I16 => Some(i64::from(self.uint(2)? as i16)),
            Marker::I32 => Some(i64::from(self.uint(4)? as i32)),
            Marker::I64 => Some(self.uint(8)? as i64),
            _ => None,
        })
    }

    fn events(&mut self) -> Result<Vec<Result<RawEvent<'a>, Reason>>, Fault> {
        let len = match self.marker()? {
            Marker::FixArray(len) => usize::from(len),
            Marker::Array16 => self.length(2)?,
            Marker::Array32 => self.length(4)?,
            _ => return Err(Fault::Type("events must be a list")),
        };
        if len > BATCH_EVENTS_MAX {
            return Err(Fault::TooManyEvents);
        }
        let mut events = Vec::with_capacity(len.min(self.rest.len() / EVENT_BYTES_USUAL));
        for _ in 0..len {
            events.push(self.event()?);
        }
        Ok(events)
    }

    /// An event within a batch. One that can't be read is stepped over; whether it breaks off shows then.
    fn event(&mut self) -> Result<Result<RawEvent<'a>, Reason>, Fault> {
        let start = self.rest;
        let read = fields(self);
        if read.is_err() {
            self.rest = start;
            self.skip()?;
        }
        Ok(check_size(start.len() - self.rest.len()).and(read))
    }

    /// Steps over one value and returns its bytes. Counts what is open instead of recursing, so depth costs nothing.
    fn skip(&mut self) -> Result<&'a [u8], Fault> {
        let start = self.rest;
        let mut open = 1_u64;
        while open > 0 {
            open -= 1;
            let (payload, children) = self.extent()?;
            self.take(payload)?;
            open = open.saturating_add(children);
        }
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// The bytes that follow the next marker and its length, and the values that follow those.
    fn extent(&mut self) -> Result<(usize, u64), Fault> {
        Ok(match self.marker()? {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixExt2 => (3, 0),
            Marker::FixExt4 => (5, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::FixStr(len) => (usize::from(len), 0),
            Marker::Str8 | Marker::Bin8 => (self.length(1)?, 0),
            Marker::Str16 | Marker::Bin16 => (self.length(2)?, 0),
            Marker::Str32 | Marker::Bin32 => (self.length(4)?, 0),
            Marker::Ext8 => (self.length(1)? + 1, 0),
            Marker::Ext16 => (self.length(2)? + 1, 0),
            Marker::Ext32 => (self.length(4)?.saturating_add(1), 0),
            Marker::FixArray(len) => (0, u64::from(len)),
            Marker::Array16 => (0, self.uint(2)?),
            Marker::Array32 => (0, self.uint(4)?),
            Marker::FixMap(len) => (0, u64::from(len) * 2),
            Marker::Map16 => (0, self.uint(2)? * 2),
            Marker::Map32 => (0, self.uint(4)? * 2),
            Marker::Reserved => return Err(Fault::Type("byte 0xc1 means nothing in MessagePack")),
        })
    }
}
