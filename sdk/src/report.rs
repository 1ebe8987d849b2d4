use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::Ledger;
use crate::promise::{Awaited, Promise};
use crate::queue::Shared;

/// What a flush or shutdown came to. Its own figures count what happened between the call and its end; `ledger` counts from
/// the making of the bucket, whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "events may still be pending; look at still_pending, or say `let _ =`"]
#[non_exhaustive]
pub struct Report {
    /// Events the collector answered for meanwhile.
    pub delivered: u64,
    /// Events the collector refused for good meanwhile.
    pub rejected: u64,
    /// Events lost meanwhile.
    pub dropped: u64,
    /// Events still held, in memory or in the spool, those captured meanwhile included.
    pub still_pending: u64,
    /// Whether the deadline passed before everything captured until then was answered for.
    pub timed_out: bool,
    /// The ledger at the end.
    pub ledger: Ledger,
}

pub(crate) type Kept = Promise<Report>;

impl Report {
    pub(crate) fn new(before: &Ledger, ledger: Ledger, timed_out: bool) -> Self {
        Self {
            delivered: ledger.delivered.total().saturating_sub(before.delivered.total()),
            rejected: ledger.rejected.saturating_sub(before.rejected),
            dropped: ledger.dropped.total().saturating_sub(before.dropped.total()),
            still_pending: ledger.pending,
            timed_out,
            ledger,
        }
    }
}

/// A flush or shutdown under way; yields its [`Report`]. It goes on even if nobody waits for it.
#[must_use = "await it, to learn what is still pending"]
pub struct Reporting {
    awaited: Awaited<Report>,
    before: Ledger,
    waiter: Waiter,
}

impl Reporting {
    pub(crate) fn new(awaited: Awaited<Report>, before: Ledger, waiter: Waiter) -> Self {
        Self { awaited, before, waiter }
    }

    pub(crate) fn wait(self, timeout: Duration) -> Report {
        // The worker can't wait for itself.
        let timeout = if self.waiter.is_worker() { Duration::ZERO } else { timeout };
        match self.awaited.wait(Some(timeout)) {
            Ok(Some(report)) => report,
            Ok(None) => self.without_worker(),
            Err(_) => Report::new(&self.before, self.waiter.ledger(), true),
        }
    }

    /// The bucket was shut down before: whatever there is to say is in the ledger.
    fn without_worker(&self) -> Report {
        Report::new(&self.before, self.waiter.ledger(), false)
    }
}

impl Future for Reporting {
    type Output = Report;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Report> {
        let report = std::task::ready!(Pin::new(&mut self.awaited).poll(context));
        Poll::Ready(report.unwrap_or_else(|| self.without_worker()))
    }
}

/// What somebody who waits for the worker needs of it.
#[derive(Clone)]
pub(crate) struct Waiter(Arc<Shared>);

impl Waiter {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.0.ledger()
    }

    /// Says whether this is the worker's own thread, in a hook or a transport.
    pub(crate) fn is_worker(&self) -> bool {
        self.0.worker.get() == Some(&std::thread::current().id())
    }
}
