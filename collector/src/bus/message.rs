//! What stages send each other.

use eventbucket_protocol::{BatchId, CheckedEvent, Code, Event, Timestamp, Verdict};

use crate::project::ProjectId;

/// A batch that ingest has authenticated, decoded and validated: what storage appends. Within the edge its events may still
/// have their texts in the body.
#[derive(Clone, Debug)]
pub struct ValidBatch<E = Event> {
    /// The project the key belongs to.
    pub project: ProjectId,
    /// The id the client gave, or one made on arrival.
    pub batch: BatchId,
    /// When the body was complete.
    pub received: Timestamp,
    /// What to add to the sender's times to get ours, when its clock is off by more than the network explains.
    pub skew_ms: Option<i64>,
    /// The events that passed, in the order of the body.
    pub events: Vec<E>,
    /// Which of `events`, by place and in order, came without a time: theirs is `received`, by our clock.
    pub undated: Vec<usize>,
    /// What of the body was refused before it came here, in the order of its places; part of the ledger.
    pub refused: Vec<Refused>,
    /// Which part of the batch this is, from 0: one that is too large for one message travels in several, the first of
    /// which carries `refused`.
    pub part: u16,
    /// How many parts there are.
    pub parts: u16,
}

/// An event that was refused before it had a chance to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its place in the body, from 0.
    pub place: u32,
    /// Why.
    pub code: Code,
}

impl<E> ValidBatch<E> {
    /// How many events of the body were refused, for the ledger.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.refused.len() as u64
    }

    /// Says whether the sender gave the time of the event at a place.
    #[must_use]
    pub fn is_dated(&self, place: usize) -> bool {
        self.undated.binary_search(&place).is_err()
    }

    /// What to add to the time of the event at a place: a sender's clock can be wrong only about times it gave.
    #[must_use]
    pub fn skew_ms_at(&self, place: usize) -> Option<i64> {
        self.skew_ms.filter(|_| self.is_dated(place))
    }
}

impl ValidBatch {
    /// The batch with the events at these places alone, which must be in order; what was refused of the body stays behind.
    #[must_use]
    pub fn only(&self, places: &[usize]) -> Self {
        let events = places.iter().map(|place| self.events[*place].clone()).collect();
        let undated = (0..places.len()).filter(|place| !self.is_dated(places[*place])).collect();
        Self {
            project: self.project,
            batch: self.batch,
            received: self.received,
            skew_ms: self.skew_ms,
            events,
            undated,
            refused: Vec::new(),
            part: self.part,
            parts: self.parts,
        }
    }
}

impl ValidBatch<CheckedEvent<'_>> {
    /// Lets go of the body.
    #[must_use]
    pub fn into_owned(self) -> ValidBatch {
        ValidBatch {
            project: self.project,
            batch: self.batch,
            received: self.received,
            skew_ms: self.skew_ms,
            events: self.events.into_iter().map(CheckedEvent::into_owned).collect(),
            undated: self.undated,
            refused: self.refused,
            part: self.part,
            parts: self.parts,
        }
    }
}

/// What became of a [`ValidBatch`]: one verdict an event in it, in order.
#[derive(Clone, Debug)]
pub struct Published {
    /// Final on an embedded bus; `accepted` on one that only queues.
    pub verdicts: Vec<Verdict>,
}

/// Batches that were accepted and wait on an edge's own disk until the broker is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spooled {
    /// How many.
    pub batches: u64,
    /// What they take.
    pub bytes: u64,
    /// When the oldest of them was received.
    pub oldest: Option<Timestamp>,
}

/// Consecutive positions that one batch got in a project's log: the unit of fan-out. A hint: the log is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRange {
    /// The project.
    pub project: ProjectId,
    /// The first position.
    pub first: u64,
    /// The last position; `first - 1` when nothing was new.
    pub last: u64,
}

impl StoredRange {
    /// What followers of the live tail are told: that the log goes this far.
    #[must_use]
    pub fn announcement(&self) -> [u8; 8] {
        self.last.to_le_bytes()
    }
}

/// Reads an announcement; `None` for one that a newer version wrote.
#[must_use]
pub fn position_announced(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}
