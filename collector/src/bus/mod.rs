//! What stages send each other, and how it travels: batches from ingest to storage, ranges from storage to the views.

/// The messages.
pub mod message;

/// The bus within one process.
mod in_process;

/// The bus on RabbitMQ.
mod rabbitmq;

/// How what waits is written for other processes.
mod wire;

/// What waits on a disk while the broker is away.
mod spool;

/// Who takes from which shards.
mod share;

/// How soon there is room again.
mod rate;

/// Why a batch wasn't taken.
mod error;

use std::future::pending;
use std::sync::Arc;

use eventbucket_protocol::CheckedEvent;
use tokio::sync::{broadcast, mpsc};

pub use error::Error;
pub use in_process::Limits;
use message::{Published, Spooled, StoredRange, ValidBatch};
pub use rabbitmq::{DeadLetter, DeadLetters, RabbitOptions};
use rate::DrainRate;
pub use share::{Share, Work};
pub use spool::SpoolOptions;
use wire::Encoded;

/// What waits in a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusFacts {
    /// Messages with accepted batches; `None` where no collector was yet.
    pub batches: Option<u64>,
    /// Messages that nobody could process.
    pub dead_letters: Option<u64>,
}

/// The bus, whatever carries it. Clones share it.
#[derive(Clone)]
pub struct Bus(Backend);

#[derive(Clone)]
enum Backend {
    InProcess(in_process::InProcess),
    RabbitMq(rabbitmq::RabbitMq),
}

/// A batch in the form in which its bus carries it.
pub struct Packed(Form);

enum Form {
    InProcess(in_process::InProcess, ValidBatch),
    RabbitMq(rabbitmq::RabbitMq, Encoded),
}

impl Packed {
    /// Hands the batch over to storage, as [`Bus::publish`] does.
    ///
    /// # Errors
    /// Then the batch is not known to be stored: send it again.
    pub async fn publish(self) -> Result<Published, Error> {
        match self.0 {
            Form::InProcess(bus, batch) => bus.publish(batch).await,
            Form::RabbitMq(bus, batch) => bus.publish(batch).await,
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

/// A receiving end of accepted batches.
pub struct Accepted(Taking);

enum Taking {
    InProcess(in_process::Taking),
    RabbitMq(rabbitmq::Taking),
}

impl Accepted {
    /// Waits for batches and takes all that are there, up to `events_max` events and `batches_max` batches but at least
    /// one. `None` when the bus is closed and everything has been taken. Cancel-safe: nothing is taken before it returns.
    pub async fn next(&mut self, events_max: usize, batches_max: usize) -> Option<Vec<Delivery>> {
        match &mut self.0 {
            Taking::InProcess(taking) => taking.next(events_max, batches_max).await,
            Taking::RabbitMq(taking) => taking.next(events_max, batches_max).await,
        }
    }
}

/// Whoever waits for a batch's verdicts: its publisher, or the broker that keeps it until it is stored.
pub struct Ticket(Waiting);

enum Waiting {
    InProcess(in_process::Place),
    Durable(Arc<rabbitmq::Taken>),
}

impl Ticket {
    fn in_process(place: in_process::Place) -> Self {
        Self(Waiting::InProcess(place))
    }

    fn durable(taken: Arc<rabbitmq::Taken>) -> Self {
        Self(Waiting::Durable(taken))
    }

    /// Says whether the batch may have been given out before, or was put back by a person: what was done with it then may be
    /// half done.
    #[must_use]
    pub fn comes_again(&self) -> bool {
        match &self.0 {
            Waiting::InProcess(_) => false,
            Waiting::Durable(taken) => taken.comes_again(),
        }
    }

    /// Says what became of the batch. One that was not stored comes again from a durable bus.
    pub fn answer(self, outcome: Result<Published, Error>) {
        match self.0 {
            Waiting::InProcess(place) => place.answer(outcome),
            Waiting::Durable(taken) => taken.answered(outcome.is_ok()),
        }
    }
}

/// A view's ear.
pub struct RangeReceiver(Ear);

enum Ear {
    InProcess(broadcast::Receiver<StoredRange>),
    RabbitMq(mpsc::Receiver<Hint>),
}

impl RangeReceiver {
    /// Waits for the next range; `None` when the bus is gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Hint> {
        match &mut self.0 {
            Ear::InProcess(ranges) => match ranges.recv().await {
                Ok(range) => Some(Hint::Range(range)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some(Hint::Missed),
                Err(broadcast::error::RecvError::Closed) => None,
            },
            Ear::RabbitMq(hints) => hints.recv().await,
        }
    }

    /// Takes the next range if one is there.
    pub fn try_recv(&mut self) -> Option<Hint> {
        match &mut self.0 {
            Ear::InProcess(ranges) => match ranges.try_recv() {
                Ok(range) => Some(Hint::Range(range)),
                Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Hint::Missed),
                Err(_) => None,
            },
            Ear::RabbitMq(hints) => hints.try_recv().ok(),
        }
    }
}

impl Bus {
    /// Connects to a RabbitMQ and declares what the bus needs there.
    ///
    /// # Errors
    /// When it can't be reached or used; afterwards connections come back by themselves.
    pub async fn rabbitmq(options: RabbitOptions) -> Result<Self, Error> {
        Ok(Self(Backend::RabbitMq(rabbitmq::RabbitMq::start(options).await?)))
    }

    /// Looks at a RabbitMQ, declaring nothing.
    ///
    /// # Errors
    /// When it can't be reached or used now.
    pub async fn look(options: &RabbitOptions) -> Result<BusFacts, Error> {
        rabbitmq::look::look(options).await
    }

    /// Makes a bus within this process, bounded by `limits`.
    #[must_use]
    pub fn in_process(limits: Limits) -> Self {
        Self(Backend::InProcess(in_process::InProcess::new(limits)))
    }

    /// Brings a batch into the form in which the bus carries it, straight from the body: for a broker no text of an event is
    /// copied in between. Long work for a large batch.
    #[must_use]
    pub fn pack(&self, batch: ValidBatch<CheckedEvent<'_>>) -> Packed {
        Packed(match &self.0 {
            Backend::InProcess(bus) => Form::InProcess(bus.clone(), batch.into_owned()),
            Backend::RabbitMq(bus) => Form::RabbitMq(bus.clone(), Encoded::of(&batch)),
        })
    }

    /// Hands a batch over to storage. In process this resolves when the batch is committed and the verdicts are final.
    /// A caller that stops waiting leaves the batch on its way.
    ///
    /// # Errors
    /// Then the batch is not known to be stored: send it again.
    pub async fn publish(&self, batch: ValidBatch) -> Result<Published, Error> {
        match &self.0 {
            Backend::InProcess(bus) => bus.publish(batch).await,
            Backend::RabbitMq(bus) => bus.publish(Encoded::of(&batch)).await,
        }
    }

    /// Takes the receiving ends of accepted batches, one for each writer. They are there once: the second call gets none.
    #[must_use]
    pub fn accepted(&self) -> Vec<Accepted> {
        match &self.0 {
            Backend::InProcess(bus) => {
                bus.accepted().map(|taking| Accepted(Taking::InProcess(taking))).into_iter().collect()
            }
            Backend::RabbitMq(bus) => {
                bus.accepted().into_iter().map(|taking| Accepted(Taking::RabbitMq(taking))).collect()
            }
        }
    }

    /// Says which part of the shards is this process's, of as many as there are. It leaves the others to whoever waits for
    /// them, after finishing what it has taken.
    pub fn set_share(&self, work: Work, share: Share) {
        match &self.0 {
            Backend::InProcess(_) => {}
            Backend::RabbitMq(bus) => bus.set_share(work, share),
        }
    }

    /// Says whether what was accepted outlives this process: then a batch that can't be stored yet is held until it can,
    /// and nobody is told to send it again.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        match &self.0 {
            Backend::InProcess(_) => false,
            Backend::RabbitMq(_) => true,
        }
    }

    /// Tells the views what was stored. A hint that may get lost: the log is the proof.
    pub fn announce(&self, ranges: &[StoredRange]) {
        match &self.0 {
            Backend::InProcess(bus) => bus.announce(ranges),
            Backend::RabbitMq(bus) => bus.announce(ranges),
        }
    }

    /// Throws away every announcement that waits at the broker, as a loss of its queue would.
    ///
    /// # Errors
    /// When the broker can't be used.
    pub async fn forget_ranges(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::InProcess(_) => Ok(()),
            Backend::RabbitMq(bus) => bus.forget_ranges().await,
        }
    }

    /// Listens to what is announced from now on.
    #[must_use]
    pub fn ranges(&self) -> RangeReceiver {
        match &self.0 {
            Backend::InProcess(bus) => RangeReceiver(Ear::InProcess(bus.ranges())),
            Backend::RabbitMq(bus) => RangeReceiver(Ear::RabbitMq(bus.ranges())),
        }
    }

    /// Takes no more batches. What was accepted is still delivered; then the receiving end ends.
    pub fn close(&self) {
        match &self.0 {
            Backend::InProcess(bus) => bus.close(),
            Backend::RabbitMq(bus) => bus.close(),
        }
    }

    /// Waits until this process takes no more batches from its broker; for ever without one. Cancel-safe.
    pub async fn closed(&self) {
        match &self.0 {
            Backend::InProcess(_) => pending().await,
            Backend::RabbitMq(bus) => bus.closed().await,
        }
    }

    /// Closes and waits until a broker knows which of the batches it gave out are stored, so that none of them comes again, and
    /// until the files of the spool are free for others.
    pub async fn finish(&self) {
        match &self.0 {
            Backend::InProcess(bus) => bus.close(),
            Backend::RabbitMq(bus) => bus.finish().await,
        }
    }

    /// How many events are waiting to be stored in this process: none with a broker, which keeps them itself.
    #[must_use]
    pub fn waiting(&self) -> usize {
        match &self.0 {
            Backend::InProcess(bus) => bus.waiting(),
            Backend::RabbitMq(_) => 0,
        }
    }

    /// How much waits on this process' own disk until the broker is back; `None` without a spool.
    #[must_use]
    pub fn spooled(&self) -> Option<Spooled> {
        match &self.0 {
            Backend::InProcess(_) => None,
            Backend::RabbitMq(bus) => bus.spooled(),
        }
    }

    /// Says whether batches are being taken right now: what readiness is made of.
    ///
    /// # Errors
    /// What is wrong with the broker.
    pub fn serving(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::InProcess(_) => Ok(()),
            Backend::RabbitMq(bus) => bus.serving(),
        }
    }

    /// Waits until something of the bus in this process ends by itself that shouldn't: then it has to be started again.
    /// Cancel-safe: it only looks.
    pub async fn broken(&self) {
        match &self.0 {
            Backend::InProcess(_) => pending().await,
            Backend::RabbitMq(bus) => bus.broken().await,
        }
    }

    /// Puts a batch that can't be stored for its own sake to the dead letters, where there are any.
    ///
    /// # Errors
    /// When the broker doesn't take it.
    pub async fn bury(&self, batch: &ValidBatch, reason: &str) -> Result<(), Error> {
        match &self.0 {
            Backend::InProcess(_) => Ok(()),
            Backend::RabbitMq(bus) => bus.bury(batch, reason).await,
        }
    }

    /// Takes hold of the messages that nobody could process.
    ///
    /// # Errors
    /// When the broker can't be used.
    pub async fn dead_letters(&self) -> Result<Option<DeadLetters>, Error> {
        match &self.0 {
            Backend::InProcess(_) => Ok(None),
            Backend::RabbitMq(bus) => bus.dead_letters().await.map(Some),
        }
    }
}
