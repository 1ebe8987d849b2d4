use eventbucket_protocol::{Code, Event, Reason, Timestamp, Verdict};

use super::{Backend, Store};
use crate::bus::message::StoredRange;

/// Events in one transaction on SQLite, over all appends that wait: where its speed levels off (146,000 rows a second
/// against 73,000 at 1,000).
pub const TRANSACTION_EVENTS_MAX: usize = 10_000;

/// The same on Postgres: two writers of 2,000 rows keep two cores busy; larger ones hold the heads longer and gain nothing.
const POSTGRES_TRANSACTION_EVENTS_MAX: usize = 2_000;

impl Store {
    /// How many events one transaction should take, over all batches that wait.
    #[must_use]
    pub fn transaction_events_max(&self) -> usize {
        match &self.0 {
            Backend::Sqlite(_) => TRANSACTION_EVENTS_MAX,
            Backend::Postgres(_) => POSTGRES_TRANSACTION_EVENTS_MAX,
        }
    }
}

/// Batches in one transaction, and jobs of the writer: bounds how long the first of them waits for the last. With 64
/// connections sending single events four rounds fit.
pub const TRANSACTION_BATCHES_MAX: usize = 256;

/// A page of events that has grown to this many bytes ends early, whatever its limit: 4 MiB, so that a thousand of the
/// largest events come as many pages and never as 256 MiB. At least one event is on every page.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What an append did with one batch.
#[derive(Clone, Debug)]
pub struct Appended {
    /// One verdict an event, in the batch's order.
    pub verdicts: Vec<Verdict>,
    /// The positions the new ones got.
    pub range: StoredRange,
    /// The places of events that an earlier append put into quarantine, and why they are refused: duplicates here, so that
    /// they are counted once.
    pub aside: Vec<(usize, Reason)>,
}

/// Why an event is in quarantine, in the database's words.
pub(super) fn refusal(what: &str) -> Reason {
    Reason::new(Code::InvalidEvent, format!("the database refuses it: {what}"))
}

/// What was removed because of its age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Segments of the log.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Identities, which outlive their events by seven days.
    pub identities: u64,
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
