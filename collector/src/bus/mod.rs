//! What stages send each other, and how it travels: batches from ingest to storage, ranges from storage to the views.

/// The messages.
pub mod message;

/// The bus within one process.
mod in_process;

use std::time::Duration;

pub use in_process::{Accepted, Limits, RangeReceiver, Ticket};
use message::{Published, StoredRange, ValidBatch};

use crate::store;

/// The bus, whatever carries it. Clones share it.
#[derive(Clone)]
pub struct Bus(Backend);

#[derive(Clone)]
enum Backend {
    InProcess(in_process::InProcess),
}

/// Why a batch wasn't taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More is waiting than the bus holds.
    #[error("more events are waiting to be stored than the collector holds; send again in {} s", .retry_after.as_secs())]
    Full {
        /// When there should be room again, from the speed at which events are being stored.
        retry_after: Duration,
    },
    /// The collector is stopping.
    #[error("the collector is stopping; send again")]
    Closed,
    /// Storage failed; nothing is known of the batch.
    #[error("the batch could not be stored: {0}")]
    Storage(#[source] store::Error),
}

impl Error {
    /// The HTTP status that says it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Full { .. } => 429,
            Self::Closed => 503,
            Self::Storage(error) => error.status(),
        }
    }

    /// After how long the same batch may be taken; `None` when trying again is of no use.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after } => Some(*retry_after),
            Self::Closed => Some(Duration::from_secs(1)),
            Self::Storage(error) => error.retry(),
        }
    }
}

/// An accepted batch on its way to storage.
pub struct Delivery {
    /// The batch.
    pub batch: ValidBatch,
    /// Who waits for its verdicts.
    pub ticket: Ticket,
}

/// What a view is told: a range, or that it may have missed some and should look at the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Positions were stored.
    Range(StoredRange),
    /// The receiver was too slow and ranges were dropped.
    Missed,
}

impl Bus {
    /// Makes a bus within this process, bounded by `limits`.
    #[must_use]
    pub fn in_process(limits: Limits) -> Self {
        Self(Backend::InProcess(in_process::InProcess::new(limits)))
    }

    /// Hands a batch over to storage. In process this resolves when the batch is committed and the verdicts are final.
    /// A caller that stops waiting leaves the batch on its way.
    ///
    /// # Errors
    /// Then the batch is not known to be stored: send it again.
    pub async fn publish(&self, batch: ValidBatch) -> Result<Published, Error> {
        match &self.0 {
            Backend::InProcess(bus) => bus.publish(batch).await,
        }
    }

    /// Takes the receiving end of accepted batches; there is one, so the second call gets `None`.
    #[must_use]
    pub fn accepted(&self) -> Option<Accepted> {
        match &self.0 {
            Backend::InProcess(bus) => bus.accepted(),
        }
    }

    /// Tells the views what was stored. A hint that may get lost: the log is the proof.
    pub fn announce(&self, ranges: &[StoredRange]) {
        match &self.0 {
            Backend::InProcess(bus) => bus.announce(ranges),
        }
    }

    /// Listens to what is announced from now on.
    #[must_use]
    pub fn ranges(&self) -> RangeReceiver {
        match &self.0 {
            Backend::InProcess(bus) => bus.ranges(),
        }
    }

    /// Takes no more batches. What was accepted is still delivered; then the receiving end ends.
    pub fn close(&self) {
        match &self.0 {
            Backend::InProcess(bus) => bus.close(),
        }
    }

    /// How many events are waiting to be stored.
    #[must_use]
    pub fn waiting(&self) -> usize {
        match &self.0 {
            Backend::InProcess(bus) => bus.waiting(),
        }
    }
}
