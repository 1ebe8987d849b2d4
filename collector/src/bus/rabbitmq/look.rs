use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use super::link;
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::{BusFacts, Error};

/// Connects, asks how much waits and goes, declaring nothing.
pub(in crate::bus) async fn look(options: &RabbitOptions) -> Result<BusFacts, Error> {
    let connection = link::reach(options, "doctor").await.map_err(|no| no.error())?;
    let topology = Topology::new(options);
    let dead_letters = waiting(&connection, topology.dead()).await;
    let mut batches = None;
    for shard in 0..topology.shards {
        match waiting(&connection, topology.accepted_queue(shard)).await {
            Some(more) => batches = Some(batches.unwrap_or(0) + more),
            // Whoever never started here has none of them.
            None => break,
        }
    }
    link::close(&connection).await;
    Ok(BusFacts { batches, dead_letters })
}

/// How many messages wait in a queue; `None` where there is none. A broker ends the channel that asks for one that isn't there.
async fn waiting(connection: &Connection, queue: ShortString) -> Option<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let looking = async {
        let channel = connection.create_channel().await?;
        channel.queue_declare(queue, passive, FieldTable::default()).await
    };
    let found = tokio::time::timeout(link::ANSWER_TIMEOUT, looking).await.ok()?.ok()?;
    Some(found.message_count().into())
}
