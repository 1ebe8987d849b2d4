use std::collections::{BTreeMap, BTreeSet};

use eventbucket_protocol::{Code, Event, Reason, Timestamp, Verdict};

use super::{Backend, Condition, Error, Store};
use crate::bus::message::StoredRange;
use crate::project::ProjectId;

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
#[derive(Clone, Debug, Default)]
pub struct Dropped {
    /// Segments of the log.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Identities, which outlive their events by seven days.
    pub identities: u64,
    /// Projects whose old events stay because their counts couldn't be sealed, and why not.
    pub kept: BTreeMap<ProjectId, Error>,
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

/// Names in one question: each is a walk of its own over its index.
pub const NAMES_MAX: usize = 8;

/// Which events to read: those that meet all of this.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only of one of these names, at most [`NAMES_MAX`]; all when there is none.
    pub names: BTreeSet<String>,
    /// Only this user.
    pub user: Option<String>,
    /// Only at or after this (corrected) time.
    pub from: Option<Timestamp>,
    /// Only before this (corrected) time.
    pub to: Option<Timestamp>,
    /// Only behind this position.
    pub after: u64,
    /// Only in front of this position.
    pub before: Option<u64>,
    /// Only with these properties.
    pub conditions: Vec<Condition>,
}

impl EventFilter {
    /// Says whether the log is read in vain in places, because no index leads to just these events.
    #[must_use]
    pub fn is_sieve(&self) -> bool {
        let names_of_user = self.user.is_some() && !self.names.is_empty();
        names_of_user || self.is_timed() || !self.conditions.is_empty()
    }

    pub(super) fn is_timed(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    /// The times asked for in milliseconds: from, inclusive, and to, exclusive.
    pub(super) fn times(&self) -> (i64, i64) {
        (self.from.map_or(i64::MIN, Timestamp::ms), self.to.map_or(i64::MAX, Timestamp::ms))
    }

    /// The first and the last position that a page in this order may hold, in a log whose positions end at `max`.
    pub(super) fn span(&self, order: EventOrder, max: u64) -> Option<(u64, u64)> {
        let (after, before) = match order {
            EventOrder::ByPosition { after } => (after.max(self.after), self.before),
            EventOrder::NewestFirst { before } => (self.after, self.before.into_iter().chain(before).min()),
        };
        let first = after.saturating_add(1);
        let last = before.map_or(max, |before| before.saturating_sub(1).min(max));
        (first <= last).then_some((first, last))
    }
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

impl EventOrder {
    pub(super) fn is_newest_first(self) -> bool {
        matches!(self, Self::NewestFirst { .. })
    }
}

/// A page of events and where the next begins.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// The events in the order asked for. There may be none although there is a next page: looking for them is bounded.
    pub events: Vec<StoredEvent>,
    /// The position to continue from, through which everything was looked at; `None` when the end was reached.
    pub next: Option<u64>,
    /// When the event arrived that was looked at last.
    pub looked_to: Option<Timestamp>,
}
