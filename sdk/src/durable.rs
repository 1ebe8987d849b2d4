use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::EventId;
use crate::error::CaptureError;
use crate::promise::{Awaited, Promise, TimedOut};
use crate::report::Waiter;

type Outcome = Result<EventId, CaptureError>;

pub(crate) type Kept = Promise<Outcome>;

/// A durable capture under way: resolves with the event's id once it is on disk. Awaitable on any executor.
#[must_use = "await it or call wait(), to know that the event is on disk"]
pub struct Durable {
    awaited: Result<Awaited<Outcome>, CaptureError>,
    waiter: Waiter,
}

impl Durable {
    pub(crate) fn new(awaited: Result<Awaited<Outcome>, CaptureError>, waiter: Waiter) -> Self {
        Self { awaited, waiter }
    }

    /// Blocks the thread until the event is on disk, for at most this long.
    ///
    /// # Errors
    /// When the event wasn't taken, or isn't on disk: there is no spool, it failed, or the time is over. In the last
    /// three cases the event is held in memory and still delivered if the process lives.
    pub fn wait(self, timeout: Duration) -> Outcome {
        let timeout = if self.waiter.is_worker() { Duration::ZERO } else { timeout };
        match self.awaited?.wait(Some(timeout)) {
            Ok(outcome) => outcome.unwrap_or(Err(GIVEN_UP)),
            Err(TimedOut) => {
                Err(CaptureError::NotDurable(format!("not on disk after {} ms", timeout.as_millis())))
            }
        }
    }
}

/// Whoever held the promise dropped it without a word, as a panic does.
const GIVEN_UP: CaptureError = CaptureError::Panicked;

impl Future for Durable {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        match &mut self.awaited {
            Ok(awaited) => {
                let outcome = ready!(Pin::new(awaited).poll(context));
                Poll::Ready(outcome.unwrap_or(Err(GIVEN_UP)))
            }
            Err(error) => Poll::Ready(Err(error.clone())),
        }
    }
}
