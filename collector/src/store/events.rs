use eventbucket_protocol::{Event, Timestamp, Verdict};

use crate::bus::message::StoredRange;

/// What an append did with one batch.
#[derive(Clone, Debug)]
pub struct Appended {
    /// One verdict an event, in the batch's order.
    pub verdicts: Vec<Verdict>,
    /// The positions the new ones got.
    pub range: StoredRange,
}

/// An event of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Its place in its project's log: 1, 2, 3, …
    pub position: u64,
    /// When its batch arrived.
    pub received: Timestamp,
    /// What to add to its own time to get ours; stored beside it, never over it.
    pub skew_ms: Option<i64>,
    /// The event as its sender meant it.
    pub event: Event,
}

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only this name.
    pub name: Option<String>,
    /// Only this user.
    pub user: Option<String>,
    /// Only at or after this (corrected) time.
    pub from: Option<Timestamp>,
    /// Only before this (corrected) time.
    pub to: Option<Timestamp>,
}

/// In which order to read, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOrder {
    /// Newest first: positions below this one, or from the head.
    NewestFirst {
        /// Exclusive upper bound.
        before: Option<u64>,
    },
    /// In log order: positions above this one; 0 for the beginning.
    ByPosition {
        /// Exclusive lower bound.
        after: u64,
    },
}

/// A page of events and where the next begins.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// The events in the order asked for.
    pub events: Vec<StoredEvent>,
    /// The position to continue from, `None` when the end was reached.
    pub next: Option<u64>,
}
