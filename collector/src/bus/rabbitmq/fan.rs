//! Announcing stored ranges, and hearing of them. All of it may get lost: a range is a hint, and views look at the log
//! once a second.

use std::sync::Arc;

use lapin::options::{BasicPublishOptions, QueuePurgeOptions};
use lapin::{BasicProperties, Connection};
use tokio::sync::{Mutex, mpsc, watch};

use super::ears::Ears;
use super::failure::{self, Ended};
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::message::StoredRange;
use crate::bus::{Error, Hint, Share, wire};

/// Announcements that wait for the broker, and those that wait for a view: 1,024 of at most 256 ranges of 24 bytes.
pub(super) const WAITING_MAX: usize = 1_024;

/// Publishes announced ranges over one connection until it breaks.
pub(super) async fn announce(
    announced: Arc<Mutex<mpsc::Receiver<Vec<StoredRange>>>>,
    connection: Arc<Connection>,
    topology: Topology,
    options: RabbitOptions,
) -> Ended {
    let mut announced = announced.lock().await;
    let publishing = async {
        let channel = connection.create_channel().await?;
        while let Some(ranges) = announced.recv().await {
            for shard in 0..topology.shards {
                let own: Vec<StoredRange> =
                    ranges.iter().copied().filter(|range| topology.shard(range.project) == shard).collect();
                if own.is_empty() {
                    continue;
                }
                let (key, bytes) = (Topology::routing_key(shard), wire::ranges(&own));
                let options = BasicPublishOptions::default();
                let properties = BasicProperties::default();
                channel.basic_publish(topology.stored(), key, options, &bytes, properties).await?;
            }
        }
        Ok(())
    };
    match publishing.await {
        Ok(()) => Ended::Done,
        Err(error) => Ended::of(&options, &error),
    }
}

/// Listens to announced ranges over one connection until it breaks.
pub(super) async fn listen(
    hints: mpsc::Sender<Hint>,
    connection: Arc<Connection>,
    topology: Topology,
    options: RabbitOptions,
    share: watch::Receiver<Share>,
) -> Ended {
    let mut ears = match Ears::open(&connection, &topology, &options).await {
        Ok(ears) => ears,
        Err(ended) => return ended,
    };
    // What was announced while nobody listened here may have gone to another process, or nowhere.
    let _ = hints.try_send(Hint::Missed);
    loop {
        let heard = ears.next().await;
        let share = *share.borrow();
        match ears.sorted(heard, share).await {
            Ok(Some(message)) => match wire::read_ranges(&message.data) {
                Ok(ranges) => ranges.into_iter().for_each(|range| {
                    // A view that lags this far behind looks at the log within a second.
                    let _ = hints.try_send(Hint::Range(range));
                }),
                Err(error) => {
                    tracing::debug!(%error, "an announcement can't be read; the log is looked at instead");
                }
            },
            Ok(None) => {}
            Err(ended) => return ended,
        }
    }
}

/// Empties the queues of ranges.
pub(super) async fn forget(
    connection: &Connection,
    topology: &Topology,
    options: &RabbitOptions,
) -> Result<(), Error> {
    let told = |error: lapin::Error| failure::refusal(options, &error);
    let channel = connection.create_channel().await.map_err(told)?;
    for shard in 0..topology.shards {
        channel
            .queue_purge(topology.stored_queue(shard), QueuePurgeOptions::default())
            .await
            .map_err(told)?;
    }
    // Closing is courtesy: the connection ends with its handle.
    let _ = connection.close(200, "done".into()).await;
    Ok(())
}
