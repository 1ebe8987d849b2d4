use std::sync::Arc;

use uuid::Uuid;

/// One event in its encoding, with what the SDK needs to know about it without decoding it again.
///
/// The bytes are frozen when the event leaves the queue: every attempt, also one after a restart, sends the same ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EncodedEvent {
    /// The identity of the event.
    pub(crate) id: Uuid,
    /// When it was captured, in Unix milliseconds; ages are counted from here.
    pub(crate) captured_ms: i64,
    /// The event as [`eventbucket_protocol::codec::encode::event`] writes it. Shared, so that a body, the backlog and
    /// the spool can name it without copying.
    pub(crate) bytes: Arc<[u8]>,
}

impl EncodedEvent {
    /// Freezes an event.
    pub(crate) fn new(id: Uuid, captured_ms: i64, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self { id, captured_ms, bytes: bytes.into() }
    }
}
