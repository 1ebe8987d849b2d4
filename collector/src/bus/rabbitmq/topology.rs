//! What stands in the broker. Every process declares all of it before it does anything else, so no message is published
//! before there is a queue for it, whoever starts first.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::options::RabbitOptions;
use crate::project::ProjectId;

/// Deliveries of one message before the broker takes it for poison. A message is given back when a process dies with it or
/// holds it too long, never for the store's sake: ten kills and a day without a store stay far below.
const DELIVERY_LIMIT: i64 = 100;

/// Announced ranges that may wait for views: hints, of which the newest heals what the oldest told.
const RANGES_WAITING_MAX: i64 = 10_000;

/// What the queue is called that says whose batches are here.
pub(super) const STORE_MARKER: &str = "store";

/// The names of everything, and the rules each is declared with.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    prefix: String,
    store: Option<String>,
    pub(super) shards: u16,
    queue_bytes_max: i64,
}

impl Topology {
    pub(super) fn new(options: &RabbitOptions) -> Self {
        let queue_bytes_max = i64::try_from(options.queue_bytes_max).unwrap_or(i64::MAX);
        Self {
            prefix: options.prefix.clone(),
            store: options.store.clone(),
            shards: options.shards.max(1),
            queue_bytes_max,
        }
    }

    /// The shard of a project: Fibonacci hashing spreads numbers that follow each other.
    pub(super) fn shard(&self, project: ProjectId) -> u16 {
        let hash = project.0.wrapping_mul(0x9E37_79B9) >> 16;
        u16::try_from(hash % u32::from(self.shards)).expect("a remainder is below its divisor")
    }

    pub(super) fn accepted(&self) -> ShortString {
        self.named("accepted")
    }

    pub(super) fn accepted_queue(&self, shard: u16) -> ShortString {
        self.named(&format!("accepted.{shard}"))
    }

    pub(super) fn stored(&self) -> ShortString {
        self.named("stored")
    }

    pub(super) fn stored_queue(&self, shard: u16) -> ShortString {
        self.named(&format!("stored.insight.{shard}"))
    }

    pub(super) fn dead(&self) -> ShortString {
        self.named("dead")
    }

    fn named(&self, what: &str) -> ShortString {
        format!("{}.{what}", self.prefix).into()
    }

    pub(super) fn routing_key(shard: u16) -> ShortString {
        shard.to_string().into()
    }

    /// Declares everything. What is there already with other settings is an error of the broker's.
    pub(super) async fn declare(&self, channel: &Channel) -> lapin::Result<()> {
        if let Some(store) = &self.store {
            // Before anything else is made: who is refused leaves nothing.
            self.queue(channel, self.named(STORE_MARKER), self.store_marker(store)).await?;
        }
        for (exchange, kind) in [
            (self.accepted(), ExchangeKind::Direct),
            (self.stored(), ExchangeKind::Direct),
            (self.dead(), ExchangeKind::Fanout),
        ] {
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(exchange, kind, options, FieldTable::default()).await?;
        }
        let dead = self.dead();
        self.queue(channel, dead.clone(), dead_arguments()).await?;
        bind(channel, dead.clone(), dead, "".into()).await?;
        self.queue(channel, self.named("shards"), self.shards_marker()).await?;
        for shard in 0..self.shards {
            let (queue, key) = (self.accepted_queue(shard), Self::routing_key(shard));
            self.queue(channel, queue.clone(), self.accepted_arguments()).await?;
            bind(channel, queue, self.accepted(), key.clone()).await?;
            let queue = self.stored_queue(shard);
            self.queue(channel, queue.clone(), stored_arguments()).await?;
            bind(channel, queue, self.stored(), key).await?;
        }
        Ok(())
    }

    async fn queue(&self, channel: &Channel, name: ShortString, arguments: FieldTable) -> lapin::Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name, options, arguments).await.map(drop)
    }

    /// Accepted batches are promised: nothing may push them out, and what can't be read goes to the dead letters surely.
    fn accepted_arguments(&self) -> FieldTable {
        quorum(&[
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-max-length-bytes", AMQPValue::LongLongInt(self.queue_bytes_max)),
            ("x-overflow", text("reject-publish")),
            ("x-dead-letter-exchange", AMQPValue::LongString(self.dead().as_str().into())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
        ])
    }

    /// Another queue that nobody uses: where its dead letters would go names the store whose batches are here, so that the
    /// broker refuses a process of another. Nothing is ever put into it.
    fn store_marker(&self, store: &str) -> FieldTable {
        quorum(&[
            ("x-dead-letter-exchange", AMQPValue::LongString(self.dead().as_str().into())),
            ("x-dead-letter-routing-key", AMQPValue::LongString(store.into())),
        ])
    }

    /// A queue that nobody uses: its length limit is the number of shards, so that the broker refuses a process that was told
    /// another number, whose messages the others would never see.
    fn shards_marker(&self) -> FieldTable {
        quorum(&[("x-max-length", AMQPValue::LongLongInt(self.shards.into()))])
    }
}

/// Dead letters are looked at and put back as often as anybody likes; RabbitMQ 4 would drop them at the twentieth time.
fn dead_arguments() -> FieldTable {
    quorum(&[("x-delivery-limit", AMQPValue::LongLongInt(i32::MAX.into()))])
}

/// Ranges are hints; a full queue refuses new ones, and the views look at the log.
fn stored_arguments() -> FieldTable {
    quorum(&[
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-max-length", AMQPValue::LongLongInt(RANGES_WAITING_MAX)),
        ("x-overflow", text("reject-publish")),
    ])
}

fn quorum(more: &[(&'static str, AMQPValue)]) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    for (name, value) in more {
        arguments.insert((*name).into(), value.clone());
    }
    arguments
}

fn text(value: &'static str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn bind(
    channel: &Channel,
    queue: ShortString,
    exchange: ShortString,
    key: ShortString,
) -> lapin::Result<()> {
    channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_that_follow_each_other_are_spread_over_all_shards() {
        let topology = Topology { prefix: "t".to_owned(), store: None, shards: 8, queue_bytes_max: 1 };
        let mut counts = [0; 8];
        (1..=800).for_each(|project| counts[usize::from(topology.shard(ProjectId(project)))] += 1);
        assert!(counts.iter().all(|count| (80..=120).contains(count)), "{counts:?}");
    }
}
