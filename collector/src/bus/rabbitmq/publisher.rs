//! Publishing with confirms, everything over one connection.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};

use super::failure::{Ended, away, unavailable};
use super::link;
use super::options::RabbitOptions;
use super::outbox::{Outbox, Waiting};
use super::topology::Topology;
use crate::bus::{Error, wire};

/// How often it is looked whether a connection that nobody uses still stands, so that the next batch finds one that does.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// Sends what is in the outbox over one connection until it breaks. Who still waits then is told by whoever keeps the
/// connection, when the broker is known to be away.
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
    match send_all(&outbox, &connection, &channel, &topology, &options).await {
        Ok(never) => match never {},
        Err(Broken::Connection(error)) => Ended::of(&options, &error),
        Err(Broken::Lost) => Ended::Broke(format!("the connection to RabbitMQ at {} was lost", options.url)),
        Err(Broken::Returned) => Ended::queue_gone(),
        Err(Broken::Late) => {
            Ended::Broke(format!("RabbitMQ at {} does not confirm what it was sent", options.url))
        }
    }
}

/// Why a connection is given up.
enum Broken {
    Connection(lapin::Error),
    /// It ended while nobody used it.
    Lost,
    /// No confirm came, and no answer to anything else: the broker hangs, and not one of its queues alone.
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
            let messages: Vec<&[u8]> = batches.iter().flat_map(Waiting::messages).collect();
            let message = wire::merged(&messages);
            let key = Topology::routing_key(shard);
            // Those of a message that can't be sent hear it with everybody else, when the outbox is told.
            let confirm =
                publish(channel, (topology.accepted(), key), &message, FieldTable::default()).await?;
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
                outbox.settle(shard, batches, &outcome);
                match outcome {
                    Err(Unconfirmed::Broken(error)) => return Err(error.into()),
                    Err(Unconfirmed::Returned) => return Err(Broken::Returned),
                    Err(Unconfirmed::Late) if !works(connection, options).await => return Err(Broken::Late),
                    Ok(()) | Err(Unconfirmed::Full | Unconfirmed::Late) => {}
                }
            }
        }
    }
}

/// Asks the broker for something that no queue has a part in: then a confirm that didn't come is that queue's matter, and the
/// others' messages go on.
async fn works(connection: &Connection, options: &RabbitOptions) -> bool {
    let asking = async { connection.create_channel().await?.close(200, "it works".into()).await };
    link::answered(options, asking).await.is_ok()
}

pub(super) async fn publish(
    channel: &Channel,
    (exchange, key): (ShortString, ShortString),
    message: &[u8],
    headers: FieldTable,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish(exchange, key, options, message, properties().with_headers(headers)).await
}

/// On disk before the confirm.
fn properties() -> BasicProperties {
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
            Self::Broken(error) => away(&error.to_string()),
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
