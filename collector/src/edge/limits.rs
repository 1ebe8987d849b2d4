use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::limits::BATCH_DECODED_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Cause, Refusal};

/// Bytes of bodies in memory at once, as they came and decompressed: 48 MiB. That is 2 of the largest bombs side by
/// side (2 × (4 + 16) MiB = 40 MiB), or 160 connections with the SDK's batches of 0.3 MiB each. Decoded, events take 1.5
/// times their bytes more, so that is 120 of the 192 MiB that a collector under load may take. What doesn't fit is
/// answered 503 and comes again.
const BODIES_BYTES_MAX: usize = 48 * 1024 * 1024;

/// When to come again after a full house: a body lives for milliseconds, a second is the shortest wait HTTP can say.
const BODIES_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Up to here a body is decoded on the connection's own thread: 32 KiB take about 0.1 ms, as long as handing the body
/// to another thread and back costs when both cores are busy.
pub(super) const DECODE_INLINE_BYTES_MAX: usize = 32 * 1024;

/// What is read and thrown away of a refused body, so that the client can finish sending and sees the answer instead of
/// a reset: twice the largest body.
pub(super) const DISCARD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// For how long it is read.
pub(super) const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// A small JSON document such as a new project's name: 16 KiB.
pub(super) const DOCUMENT_BYTES_MAX: usize = 16 * 1024;

/// The budgets all requests share.
pub(super) struct Limits {
    bodies: Arc<Semaphore>,
    decoding: Semaphore,
    /// One audit or rebuild at a time: each reads a whole log.
    pub(super) long_work: Semaphore,
    /// One walk over the dead letters at a time.
    pub(super) dead_letters: Semaphore,
}

impl Limits {
    pub(super) fn new(decoding_max: usize) -> Self {
        const { assert!(BODIES_BYTES_MAX > BATCH_DECODED_BYTES_MAX) };
        Self {
            bodies: Arc::new(Semaphore::new(BODIES_BYTES_MAX)),
            decoding: Semaphore::new(decoding_max.max(1)),
            long_work: Semaphore::new(1),
            dead_letters: Semaphore::new(1),
        }
    }

    /// Starts an account of body bytes.
    pub(super) fn draw(&self) -> Drawn {
        Drawn { from: Arc::clone(&self.bodies), held: None }
    }

    /// Waits for a place among the bodies in decoding.
    pub(super) async fn decoding(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.decoding.acquire().await.expect("the semaphore is never closed")
    }
}

/// Bytes drawn from the budget for bodies; given back when dropped.
pub(super) struct Drawn {
    from: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Drawn {
    /// Draws as bytes arrive, never for what a header merely announces: a slow client holds what it sent and no more.
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), Refusal> {
        let count = u32::try_from(bytes).expect("chunks are far below 4 GiB");
        match (Arc::clone(&self.from).try_acquire_many_owned(count), &mut self.held) {
            (Ok(more), Some(held)) => held.merge(more),
            (Ok(more), held) => *held = Some(more),
            (Err(_), _) => {
                let detail = "too many large bodies arrive at once; send this batch again";
                return Err(Refusal::new(Cause::Crowded, detail).retry_after(BODIES_RETRY_AFTER));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_and_recovers() {
        let limits = Limits::new(1);
        let (mut first, mut second) = (limits.draw(), limits.draw());
        first.add(BODIES_BYTES_MAX - 1).unwrap();
        second.add(1).unwrap();
        let refusal = second.add(1).unwrap_err();
        let problem = refusal.problem();
        assert_eq!((problem.status, problem.code.as_str(), refusal.retry_after_s()), (503, "busy", Some(1)));
        drop(first);
        second.add(BODIES_BYTES_MAX - 1).unwrap();
    }
}
