use std::time::Instant;

use super::Worker;
use crate::promise::Promise;
use crate::queue::Request;
use crate::{Ledger, Report};

pub(super) struct Flush {
    /// Done when every batch before this one is answered; `None` until the queue was emptied for it.
    pub(super) before_order: Option<u64>,
    /// And when the final verdicts of every accepted batch before this one are known; `None` until all are answered.
    pub(super) before_final: Option<u64>,
    pub(super) deadline: Option<Instant>,
    pub(super) promise: Promise<Report>,
    pub(super) before: Ledger,
}

pub(super) struct End {
    pub(super) deadline: Instant,
    pub(super) waiting: Vec<(Promise<Report>, Ledger)>,
}

/// What is asked of the worker, and how it ends.
impl Worker {
    /// Notes what is asked; says whether the queue is to be looked at without lingering.
    pub(super) fn take_requests(&mut self) -> bool {
        let look = self.shared.look();
        for request in look.requests {
            match request {
                Request::Flush { deadline, promise, before } => {
                    self.delivery.endpoints.hurry();
                    self.delivery.finals.hurry();
                    self.flushes.push(Flush {
                        before_order: None,
                        before_final: None,
                        deadline,
                        promise,
                        before,
                    });
                }
                Request::Tell(fault) => self.tally.fault(fault),
                Request::Settle(promise) => self.settles.push(promise),
                Request::Shutdown { deadline, promise, before } => {
                    self.delivery.endpoints.hurry();
                    self.delivery.finals.hurry();
                    let ending = self.ending.get_or_insert(End { deadline, waiting: Vec::new() });
                    ending.deadline = ending.deadline.min(deadline);
                    ending.waiting.push((promise, before));
                }
            }
        }
        if look.overflowed > 0 {
            let cause = format!("the queue was full; {}", self.settings.more_room());
            self.tally.dropped(look.overflowed, cause);
        }
        if look.untold > 0 {
            self.tally.dropped(look.untold, "they break limits of the protocol, like those told of before");
        }
        let now_ms = self.now_ms();
        if !look.has_events {
            // Nothing came for a whole while: the worker may sleep until the next capture wakes it.
            self.drain_ms = self.drain_ms.filter(|drain_ms| now_ms < *drain_ms);
        } else if self.drain_ms.is_none() {
            self.drain_ms = Some(now_ms + self.linger_ms());
        }
        look.urgent || self.is_hurried()
    }

    pub(super) fn is_hurried(&self) -> bool {
        let asked = self.flushes.iter().any(|flush| flush.before_order.is_none());
        asked || !self.settles.is_empty() || self.ending.is_some()
    }

    pub(super) fn answer_flushes(&mut self) {
        let now = Instant::now();
        for mut flush in std::mem::take(&mut self.flushes) {
            let late = flush.deadline.is_some_and(|deadline| deadline <= now);
            let timed_out = flush.before_order.is_none_or(|order| self.backlog.has_before(order));
            let finals = &self.delivery.finals;
            if !timed_out {
                flush.before_final.get_or_insert(finals.next_number());
            }
            let is_final = flush.before_final.is_some_and(|number| !finals.has_before(number));
            if late || (!timed_out && is_final) {
                flush.promise.keep(Report::new(&flush.before, self.shared.ledger(), timed_out));
            } else {
                self.flushes.push(flush);
            }
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        let is_done = |ending: &End| {
            let done = self.hands.is_empty() && self.backlog.is_empty() && self.delivery.finals.is_empty();
            done || Instant::now() >= ending.deadline
        };
        // The queue was emptied just before, unless the backlog had no room for it.
        self.ending.as_ref().is_some_and(is_done)
    }

    /// Hands what is left to the spool, or drops it, and reports.
    pub(super) fn end(&mut self) {
        self.delivery.break_off(&mut self.backlog);
        while !self.hands.is_empty() {
            self.take_slice();
        }
        self.hands_bytes = self.shared.take(&mut self.hands);
        while !self.hands.is_empty() {
            self.take_slice();
        }
        self.backlog.close_open(&mut self.tally);
        self.backlog.hurry_disk();
        self.backlog.tend(&mut self.tally);
        let left = self.backlog.drop_memory();
        if left > 0 {
            self.tally.ledger.dropped.shutdown += left;
            let remedy =
                if self.settings.spool.is_some() { "and room in the spool" } else { "or add a spool" };
            let cause = format!(
                "still in memory at shutdown, of which some may have arrived; allow it more time, {remedy}"
            );
            self.tally.dropped(left, cause);
        }
        self.publish();
        self.backlog.close_disk();
        let ledger = self.shared.ledger();
        for flush in self.flushes.drain(..) {
            flush.promise.keep(Report::new(&flush.before, ledger.clone(), ledger.pending > 0));
        }
        for (promise, before) in self.ending.take().into_iter().flat_map(|ending| ending.waiting) {
            let timed_out = ledger.pending > 0 || left > 0;
            promise.keep(Report::new(&before, ledger.clone(), timed_out));
        }
    }
}
