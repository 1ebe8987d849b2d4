use std::fmt;
use std::ops::AddAssign;

use uuid::Uuid;

use crate::error::Fault;

/// Where every event went. A snapshot taken under one lock, so that it balances at any moment.
///
/// `captured + recovered = delivered + rejected + withheld + dropped + pending`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ledger {
    /// Events given to `capture` and its siblings while the bucket was enabled.
    pub captured: u64,
    /// Events found in a spool that an earlier process left behind.
    pub recovered: u64,
    /// Events the collector answered for.
    pub delivered: Delivered,
    /// Events the collector refused for good.
    pub rejected: u64,
    /// Events kept back on purpose.
    pub withheld: Withheld,
    /// Events lost, by reason.
    pub dropped: Dropped,
    /// Events still held: in the queue, in the worker's hands, in the backlog or in the spool. Counted from what is
    /// there, never computed from the other figures.
    pub pending: u64,
    /// How often a panic of the transport or the worker was contained and work resumed.
    pub worker_restarts: u64,
    /// How often `on_error` panicked; it was contained.
    pub on_error_panics: u64,
    /// How often the spool, or a file that another process left in its folder, couldn't be read or written.
    pub spool_failures: u64,
}

/// Events the collector answered for, by verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// In the log.
    pub stored: u64,
    /// Durably queued at the collector, and no more is known. With
    /// [`final_verdicts`](crate::Builder::final_verdicts) they move to `stored`, `duplicate` or `quarantined`.
    pub accepted: u64,
    /// In the log already.
    pub duplicate: u64,
    /// Of the duplicates, those whose id was in the log with other content. The log keeps the first; an id that is made from
    /// less than what tells two events apart shows here.
    pub differs: u64,
    /// Kept aside at the collector.
    pub quarantined: u64,
}

/// Events kept back on purpose, by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Withheld {
    /// Outside the sample.
    pub sampled: u64,
    /// `before_send` returned `None`.
    pub hook: u64,
    /// An explicit id captured before, within the window.
    pub duplicate: u64,
    /// A `once` key captured before, within its time to live.
    pub once: u64,
}

/// Events lost, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// The queue was full.
    pub overflow: u64,
    /// The spool was full and [`Overflow::DropOldest`](crate::Overflow::DropOldest) made room.
    pub spool_full: u64,
    /// The spool's file broke while the events lay in it; it was set aside.
    pub spool_lost: u64,
    /// Not delivered within 7 days.
    pub too_old: u64,
    /// Over the limit of one event, here or at the collector.
    pub too_large: u64,
    /// Against the protocol's limits, or a property that JSON can't hold.
    pub invalid: u64,
    /// `before_send` panicked over it.
    pub hook_panicked: u64,
    /// Lost in a panic of the worker, which was contained and is a fault of the SDK: please report it.
    pub worker_panicked: u64,
    /// Captured after, or left over in memory at, shutdown.
    pub shutdown: u64,
}

impl Delivered {
    /// Adds up all verdicts.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.stored + self.accepted + self.duplicate + self.quarantined
    }
}

impl Delivered {
    /// Moves events that were accepted to what became of them.
    pub(crate) fn finish(&mut self, known: &Self) {
        self.accepted = self.accepted.saturating_sub(known.total());
        self.stored += known.stored;
        self.duplicate += known.duplicate;
        self.differs += known.differs;
        self.quarantined += known.quarantined;
    }

    /// Counts an event that was in the log already.
    pub(crate) fn repeat(&mut self, differs: bool) {
        self.duplicate += 1;
        self.differs += u64::from(differs);
    }
}

impl Withheld {
    /// Adds up all rules.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.sampled + self.hook + self.duplicate + self.once
    }
}

impl Dropped {
    /// Adds up all reasons.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.overflow
            + self.spool_full
            + self.spool_lost
            + self.too_old
            + self.too_large
            + self.invalid
            + self.hook_panicked
            + self.worker_panicked
            + self.shutdown
    }
}

impl Ledger {
    /// Says whether every event is accounted for.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.captured + self.recovered == self.settled() + self.pending
    }

    /// Adds up all events that need no more work.
    #[must_use]
    pub const fn settled(&self) -> u64 {
        self.delivered.total() + self.rejected + self.withheld.total() + self.dropped.total()
    }
}

/// Adds a worker's tally; `pending` is no flow and stays as it is.
impl AddAssign<&Self> for Ledger {
    fn add_assign(&mut self, tally: &Self) {
        let Self { captured, recovered, delivered, rejected, withheld, dropped, .. } = tally;
        self.captured += captured;
        self.recovered += recovered;
        self.delivered.stored += delivered.stored;
        self.delivered.accepted += delivered.accepted;
        self.delivered.duplicate += delivered.duplicate;
        self.delivered.differs += delivered.differs;
        self.delivered.quarantined += delivered.quarantined;
        self.rejected += rejected;
        self.withheld.sampled += withheld.sampled;
        self.withheld.hook += withheld.hook;
        self.withheld.duplicate += withheld.duplicate;
        self.withheld.once += withheld.once;
        self.dropped.overflow += dropped.overflow;
        self.dropped.spool_full += dropped.spool_full;
        self.dropped.spool_lost += dropped.spool_lost;
        self.dropped.too_old += dropped.too_old;
        self.dropped.too_large += dropped.too_large;
        self.dropped.invalid += dropped.invalid;
        self.dropped.hook_panicked += dropped.hook_panicked;
        self.dropped.worker_panicked += dropped.worker_panicked;
        self.dropped.shutdown += dropped.shutdown;
        self.worker_restarts += tally.worker_restarts;
        self.spool_failures += tally.spool_failures;
        self.on_error_panics += tally.on_error_panics;
    }
}

/// What the worker has to say since it last spoke: figures for the ledger and faults for `on_error`.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) ledger: Ledger,
    /// What became of events that were accepted before.
    pub(crate) finals: Vec<Delivered>,
    pub(crate) faults: Vec<Fault>,
    /// Events that were lost before any attempt, whose ids are no longer to be withheld.
    pub(crate) forgotten: Vec<Uuid>,
}

impl Tally {
    /// Notes a fault; the figures are counted by whoever notes it.
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Notes that events were lost.
    pub(crate) fn dropped(&mut self, events: u64, reason: impl Into<String>) {
        self.fault(Fault::Dropped { events, reason: reason.into() });
    }

    /// Notes that the spool can't be used for a while.
    pub(crate) fn spool_failed(&mut self, error: impl fmt::Display) {
        self.spool_file_failed(format!("{error}; new events are held in memory until it works again"));
    }

    /// Notes that something beside the spool in use failed.
    pub(crate) fn spool_file_failed(&mut self, message: String) {
        self.ledger.spool_failures += 1;
        self.fault(Fault::Spool(message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_event_is_noticed() {
        let mut ledger = Ledger { captured: 2, recovered: 1, pending: 2, ..Ledger::default() };
        assert!(!ledger.balances());
        ledger += &Ledger { withheld: Withheld { once: 1, ..Withheld::default() }, ..Ledger::default() };
        assert!(ledger.balances());
        assert_eq!(ledger.settled(), 1);
    }
}
