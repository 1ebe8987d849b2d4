//! Publishing with confirms. Batches that come while others of their shard are on their way share the next message, so
//! single events cost the broker no message each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};
use tokio::sync::{Notify, oneshot};

use super::link::{self, Ended};
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::wire::{self, HEAD_BYTES, MESSAGE_BYTES_MAX};
use crate::bus::{DrainRate, Error};

/// Bytes that wait for a confirm or to be sent: 48 MiB, a quarter of what an edge may take. More are refused with 429.
const WAITING_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Messages of one shard under way while little waits: the second is filled while the first is confirmed.
const UNDER_WAY_SMALL: usize = 2;

/// From here on a message is worth sending at once: at 64 KiB the cost of a message is a hundredth of its bytes' (2 µs of
/// 116 per event).
const WORTH_SENDING_BYTES: usize = 64 * 1024;

/// Messages of one shard under way at most.
const UNDER_WAY_MAX: usize = 32;

/// How often it is looked whether a connection that nobody uses still stands, so that the next batch finds one that does.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

type Answer = oneshot::Sender<Result<(), Error>>;

/// An encoded batch, or part of one, and who waits for its confirm.
struct Waiting {
    bytes: Vec<u8>,
    answer: Answer,
}

#[derive(Default)]
struct Shard {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    under_way: usize,
}

/// What publishers and the task that sends share.
pub(super) struct Outbox {
    state: Mutex<State>,
    arrived: Notify,
}

struct State {
    shards: Vec<Shard>,
    /// Bytes waiting and under way.
    bytes: usize,
    /// How fast they are confirmed.
    confirmed: DrainRate,
}

impl Outbox {
    pub(super) fn new(shards: u16) -> Self {
        let shards = (0..shards).map(|_| Shard::default()).collect();
        let state = State { shards, bytes: 0, confirmed: DrainRate::default() };
        Self { state: Mutex::new(state), arrived: Notify::new() }
    }

    /// The state is consistent between statements, so a panic elsewhere doesn't make it unusable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the parts of a batch into a shard's line; each answer comes with its confirm.
    pub(super) fn push(
        &self,
        shard: u16,
        parts: Vec<Vec<u8>>,
    ) -> Result<Vec<oneshot::Receiver<Result<(), Error>>>, Error> {
        let bytes: usize = parts.iter().map(Vec::len).sum();
        let mut state = self.lock();
        if state.bytes > 0 && state.bytes + bytes > WAITING_BYTES_MAX {
            let waiting = state.bytes;
            return Err(Error::Full { retry_after: state.confirmed.time_for(waiting, Instant::now()) });
        }
        state.bytes += bytes;
        let line = &mut state.shards[usize::from(shard)];
        line.waiting_bytes += bytes;
        let mut answers = Vec::with_capacity(parts.len());
        for bytes in parts {
            let (answer, receiver) = oneshot::channel();
            line.waiting.push_back(Waiting { bytes, answer });
            answers.push(receiver);
        }
        drop(state);
        self.arrived.notify_one();
        Ok(answers)
    }

    /// Takes the next message that should be sent now.
    fn next(&self) -> Option<(u16, Vec<Waiting>)> {
        let mut state = self.lock();
        let ready = |shard: &Shard| {
            let worth = shard.waiting_bytes >= WORTH_SENDING_BYTES && shard.under_way < UNDER_WAY_MAX;
            !shard.waiting.is_empty() && (worth || shard.under_way < UNDER_WAY_SMALL)
        };
        let (number, shard) = (0..).zip(&mut state.shards).find(|(_, shard)| ready(shard))?;
        let mut bytes = HEAD_BYTES;
        let mut batches = Vec::new();
        while let Some(next) = shard.waiting.front() {
            bytes += next.bytes.len();
            if bytes > MESSAGE_BYTES_MAX && !batches.is_empty() {
                break;
            }
            shard.waiting_bytes -= next.bytes.len();
            batches.extend(shard.waiting.pop_front());
        }
        shard.under_way += 1;
        Some((number, batches))
    }

    /// Answers everybody whose batches shared a message.
    fn settle(&self, shard: u16, batches: Vec<Waiting>, outcome: &Result<(), Error>) {
        let bytes: usize = batches.iter().map(|waiting| waiting.bytes.len()).sum();
        {
            let mut state = self.lock();
            state.bytes -= bytes;
            state.shards[usize::from(shard)].under_way -= 1;
            if outcome.is_ok() {
                state.confirmed.add(bytes, Instant::now());
            }
        }
        for waiting in batches {
            // A publisher that stopped waiting has its batch on the broker all the same.
            let _ = waiting.answer.send(outcome.clone());
        }
    }

    /// Tells everybody who still waits that the broker went away.
    pub(super) fn fail_all(&self, error: &Error) {
        let mut failed = Vec::new();
        {
            let mut state = self.lock();
            for shard in &mut state.shards {
                failed.extend(shard.waiting.drain(..));
                shard.waiting_bytes = 0;
                shard.under_way = 0;
            }
            state.bytes = 0;
        }
        for waiting in failed {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }
}

/// Sends what is in the outbox over one connection until it breaks. Everybody who still waits then is told.
pub(super) async fn serve(
    outbox: Arc<Outbox>,
    connection: Arc<Connection>,
    topology: Topology,
    options: RabbitOptions,
) -> Ended {
    let opening = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    };
    let channel = match link::answered(&options, opening).await {
        Ok(channel) => channel,
        Err(ended) => return ended,
    };
    let broke = match send_all(&outbox, &connection, &channel, &topology, &options).await {
        Ok(never) => match never {},
        Err(Broken::Connection(error)) => link::words(&options, &error),
        Err(Broken::Lost) => format!("the connection to RabbitMQ at {} was lost", options.url),
        Err(Broken::Returned) => "a queue is gone; everything is declared again".to_owned(),
        Err(Broken::Late) => format!("RabbitMQ at {} does not confirm what it was sent", options.url),
    };
    outbox.fail_all(&unavailable(&broke));
    Ended::Broke(broke)
}

/// Why a connection is given up.
enum Broken {
    Connection(lapin::Error),
    /// It ended while nobody used it.
    Lost,
    /// No confirm came: what a hanging broker doesn't take would fill this process's memory.
    Late,
    /// A message came back because there is no queue for it: what makes a connection declares the queues.
    Returned,
}

impl From<lapin::Error> for Broken {
    fn from(error: lapin::Error) -> Self {
        Self::Connection(error)
    }
}

async fn send_all(
    outbox: &Outbox,
    connection: &Connection,
    channel: &Channel,
    topology: &Topology,
    options: &RabbitOptions,
) -> Result<std::convert::Infallible, Broken> {
    let mut confirms = FuturesUnordered::new();
    let mut look = tokio::time::interval(LOOK_PERIOD);
    loop {
        while let Some((shard, batches)) = outbox.next() {
            let message = wire::message(batches.iter().map(|waiting| &waiting.bytes[..]));
            let key = Topology::routing_key(shard);
            // Those of a message that can't be sent hear it with everybody else, when the outbox is told.
            let confirm = publish(channel, topology.accepted(), key, message).await?;
            confirms.push(confirmed(confirm, options.confirm_timeout, shard, batches));
        }
        // All are cancel-safe: a notification stays, a confirm stays in its set, a tick is skipped.
        tokio::select! {
            () = outbox.arrived.notified() => {}
            _ = look.tick() => {
                if !connection.status().connected() {
                    return Err(Broken::Lost);
                }
            }
            Some((shard, batches, outcome)) = confirms.next() => {
                outbox.settle(shard, batches, &outcome.as_ref().copied().map_err(Unconfirmed::error));
                match outcome {
                    Err(Unconfirmed::Broken(error)) => return Err(error.into()),
                    Err(Unconfirmed::Returned) => return Err(Broken::Returned),
                    Err(Unconfirmed::Late) => return Err(Broken::Late),
                    Ok(()) | Err(Unconfirmed::Full) => {}
                }
            }
        }
    }
}

pub(super) async fn publish(
    channel: &Channel,
    exchange: ShortString,
    key: ShortString,
    message: Vec<u8>,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish(exchange, key, options, &message, properties()).await
}

/// On disk before the confirm.
pub(super) fn properties() -> BasicProperties {
    const PERSISTENT: u8 = 2;
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

/// Why a message isn't confirmed.
#[derive(Debug)]
pub(super) enum Unconfirmed {
    Full,
    Returned,
    Late,
    Broken(lapin::Error),
}

impl Unconfirmed {
    pub(super) fn error(&self) -> Error {
        match self {
            Self::Full => unavailable("RabbitMQ's queue is full, because storage is behind"),
            Self::Returned => unavailable("RabbitMQ has no queue for the batch; it is declared again"),
            Self::Late => unavailable("RabbitMQ did not confirm in time"),
            Self::Broken(error) => unavailable(&error.to_string()),
        }
    }
}

async fn confirmed(
    confirm: PublisherConfirm,
    within: Duration,
    shard: u16,
    batches: Vec<Waiting>,
) -> (u16, Vec<Waiting>, Result<(), Unconfirmed>) {
    (shard, batches, wait(confirm, within).await)
}

/// Waits for a confirm. It is safe only when nothing was returned: a message without a queue is acknowledged too.
pub(super) async fn wait(confirm: PublisherConfirm, within: Duration) -> Result<(), Unconfirmed> {
    match tokio::time::timeout(within, confirm).await {
        Err(_) => Err(Unconfirmed::Late),
        Ok(Err(error)) => Err(Unconfirmed::Broken(error)),
        Ok(Ok(Confirmation::Ack(None))) => Ok(()),
        Ok(Ok(Confirmation::Ack(Some(_)))) => Err(Unconfirmed::Returned),
        Ok(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => Err(Unconfirmed::Full),
    }
}

/// How long a client waits after a message was refused or lost: the queue drains, or the connection is back.
const RETRY_AFTER: Duration = Duration::from_secs(2);

pub(super) fn unavailable(reason: &str) -> Error {
    Error::Unavailable { reason: reason.into(), retry_after: RETRY_AFTER }
}
