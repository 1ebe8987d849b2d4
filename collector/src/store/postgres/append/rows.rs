//! Rows of the log in Postgres's binary COPY format, 64 KiB at a time.
//! <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>

use bytes::{BufMut, Bytes, BytesMut};
use eventbucket_protocol::{Event, Verdict};

use crate::bus::message::ValidBatch;
use crate::store::Appended;
use crate::store::postgres::{int, project_number};

/// The columns in the order in which they are written.
pub(super) const COLUMNS: &str = "project, segment, position, time_ms, received_ms, skew_ms, id, id_text, name, user_id, \
                                  stream, correlation, description, properties";

/// Number of [`COLUMNS`].
const COLUMNS_COUNT: i16 = 14;

/// Bytes handed to the connection at once: few enough to keep memory flat, enough to make few messages.
const PIECE_BYTES: usize = 64 * 1024;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Encodes the stored events of an append; each piece goes to `send` as soon as it is full.
pub(super) struct Rows {
    segment: i32,
    piece: BytesMut,
}

impl Rows {
    pub(super) fn new(segment: i32) -> Self {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
        piece.put_slice(HEADER);
        Self { segment, piece }
    }

    /// Adds a row; returns a piece when one is full.
    pub(super) fn add(&mut self, batch: &ValidBatch, place: usize, position: u64) -> Option<Bytes> {
        let event: &Event = &batch.events[place];
        let piece = &mut self.piece;
        piece.put_i16(COLUMNS_COUNT);
        put_i32(piece, project_number(batch.project));
        put_i32(piece, self.segment);
        put_i64(piece, Some(int(position)));
        put_i64(piece, Some(event.time.ms()));
        put_i64(piece, Some(batch.received.ms()));
        put_i64(piece, batch.skew_ms_at(place));
        piece.put_i32(16);
        piece.put_slice(event.id.uuid().as_bytes());
        put_text(piece, event.id.text());
        put_text(piece, Some(&event.name));
        put_text(piece, event.user.as_deref());
        put_text(piece, event.stream.as_deref());
        put_text(piece, event.correlation.as_deref());
        put_text(piece, event.description.as_deref());
        put_text(piece, Some(event.properties.as_json()));
        (piece.len() >= PIECE_BYTES).then(|| piece.split().freeze())
    }

    /// Ends the rows.
    pub(super) fn end(mut self) -> Bytes {
        self.piece.put_i16(-1);
        self.piece.freeze()
    }
}

/// The places of a batch that were stored, with the positions they got.
pub(super) fn stored(appended: &Appended) -> impl Iterator<Item = (usize, u64)> {
    let stored = |(place, verdict): (usize, &Verdict)| (*verdict == Verdict::Stored).then_some(place);
    appended.verdicts.iter().enumerate().filter_map(stored).zip(appended.range.first..)
}

fn put_i32(piece: &mut BytesMut, value: i32) {
    piece.put_i32(4);
    piece.put_i32(value);
}

fn put_i64(piece: &mut BytesMut, value: Option<i64>) {
    match value {
        Some(value) => {
            piece.put_i32(8);
            piece.put_i64(value);
        }
        None => piece.put_i32(-1),
    }
}

fn put_text(piece: &mut BytesMut, value: Option<&str>) {
    match value {
        Some(value) => {
            piece.put_i32(i32::try_from(value.len()).expect("an event has at most 256 KiB"));
            piece.put_slice(value.as_bytes());
        }
        None => piece.put_i32(-1),
    }
}
