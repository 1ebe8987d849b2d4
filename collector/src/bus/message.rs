//! What stages send each other.

use eventbucket_protocol::{BatchId, Event, Timestamp, Verdict};

use crate::project::ProjectId;

/// A batch that ingest has authenticated, decoded and validated: what storage appends.
#[derive(Clone, Debug)]
pub struct ValidBatch {
    /// The project the key belongs to.
    pub project: ProjectId,
    /// The id the client gave, or one made on arrival.
    pub batch: BatchId,
    /// When the body was complete.
    pub received: Timestamp,
    /// What to add to the sender's times to get ours, when its clock is off by more than the network explains.
    pub skew_ms: Option<i64>,
    /// The events that passed, in the order of the body.
    pub events: Vec<Event>,
    /// How many events of the body were refused before they came here; part of the ledger.
    pub rejected: u32,
}

/// What became of a [`ValidBatch`]: one verdict an event in it, in order.
#[derive(Clone, Debug)]
pub struct Published {
    /// Final on an embedded bus; `accepted` on one that only queues.
    pub verdicts: Vec<Verdict>,
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
