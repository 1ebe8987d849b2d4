//! Buses on a RabbitMQ, and a connection of the test's own to look behind them.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{Accepted, Bus, Delivery, RabbitOptions};
use eventbucket_collector::config::ServerUrl;
use eventbucket_collector::project::ProjectId;
use eventbucket_protocol::{BatchId, Event};
use eventbucket_servers::RabbitMq;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

use crate::harness::DEADLINE;
use crate::store_fixture;

/// The broker that all tests share which don't hurt it; each has queues of its own.
pub(crate) fn shared() -> &'static RabbitMq {
    // Dead letters that found no queue are tried again after a second, not after three minutes.
    const IMPATIENT: &str = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 1000}]}].";
    static SHARED: LazyLock<RabbitMq> = LazyLock::new(|| RabbitMq::start_with(&[], IMPATIENT).unwrap());
    &SHARED
}

/// A broker that a test breaks.
pub(crate) async fn own() -> RabbitMq {
    tokio::task::spawn_blocking(|| RabbitMq::start().unwrap()).await.unwrap()
}

/// Does something to a broker that takes a while.
pub(crate) async fn broken(
    mut server: RabbitMq,
    breaking: impl FnOnce(&mut RabbitMq) -> std::io::Result<()> + Send + 'static,
) -> RabbitMq {
    let broken = tokio::task::spawn_blocking(move || {
        breaking(&mut server).unwrap();
        server
    });
    broken.await.unwrap()
}

/// Declares the queues and ends the broker in order: RabbitMQ 3.10 never finds the leader of a queue again that it made
/// seconds before it was killed.
pub(crate) async fn settled(server: RabbitMq, options: &RabbitOptions) -> RabbitMq {
    drop(bus(options).await);
    broken(server, |server| {
        server.stop()?;
        server.restart()
    })
    .await
}

/// An address of the broker with this password.
pub(crate) fn address(server: &RabbitMq, password: &str) -> String {
    server.url().replace(":guest@", &format!(":{password}@"))
}

pub(crate) fn url(text: &str) -> ServerUrl {
    ServerUrl::parse(text, &["amqp"]).unwrap()
}

/// What the broker says of its queues: name, and what it was declared with.
pub(crate) fn queues(server: &RabbitMq) -> Vec<(String, String)> {
    let text =
        server.control(&["list_queues", "name", "durable", "arguments", "--no-table-headers"]).unwrap();
    let queue = |line: &str| line.split_once('\t').map(|(name, rest)| (name.to_owned(), rest.to_owned()));
    text.lines().filter_map(queue).collect()
}

/// Options with a prefix that nobody else has: a collector of the test's own on a shared broker.
pub(crate) fn options(server: &RabbitMq) -> RabbitOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    RabbitOptions { prefix, shards: 2, ..RabbitOptions::new(url(&server.url())) }
}

pub(crate) async fn bus(options: &RabbitOptions) -> Bus {
    Bus::rabbitmq(options.clone()).await.unwrap()
}

/// A batch of one event, both named by a number.
pub(crate) fn numbered(project: u32, number: usize) -> ValidBatch {
    batch_of(project, number, vec![store_fixture::event(&format!("event-{number}"), "numbered")])
}

pub(crate) fn batch_of(project: u32, number: usize, events: Vec<Event>) -> ValidBatch {
    let batch = BatchId::from_text(&format!("batch-{number}"));
    ValidBatch { batch, ..store_fixture::batch(ProjectId(project), events) }
}

/// The number of a batch made by [`numbered`].
pub(crate) fn number(delivery: &Delivery) -> usize {
    let text = delivery.batch.events[0].id.text().unwrap();
    text.strip_prefix("event-").unwrap().parse().unwrap()
}

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("in vain: {what}"),
    }
}

/// Waits until something is true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    soon(what, async {
        while !holds().await {
            look.tick().await;
        }
    })
    .await;
}

/// Takes at least `count` deliveries from a process's receiving ends and leaves them unanswered.
pub(crate) async fn take(accepted: &mut [Accepted], count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    soon("batches are delivered", async {
        while taken.len() < count {
            let next = accepted.iter_mut().map(|end| end.next(10_000, 256).boxed());
            let (deliveries, _, _) = futures_util::future::select_all(next).await;
            taken.extend(deliveries.expect("the bus is open"));
        }
    })
    .await;
    taken
}

/// Tells the bus that these were stored.
pub(crate) fn stored(deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        let verdicts = vec![eventbucket_protocol::Verdict::Stored; delivery.batch.events.len()];
        delivery.ticket.answer(Ok(eventbucket_collector::bus::message::Published { verdicts }));
    }
}

/// Takes and stores batches made by [`numbered`] until there are at least `count`, and says which came: a process holds only
/// some messages of a queue unanswered.
pub(crate) async fn take_and_store(accepted: &mut [Accepted], count: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let deliveries = take(accepted, 1).await;
        numbers.extend(deliveries.iter().map(number));
        stored(deliveries);
    }
    numbers
}

/// A connection of the test's own.
pub(crate) struct Direct {
    connection: Connection,
    prefix: String,
}

impl Direct {
    pub(crate) async fn to(server: &RabbitMq, options: &RabbitOptions) -> Self {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&server.url(), properties).await.unwrap();
        Self { connection, prefix: options.prefix.clone() }
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    pub(crate) fn named(&self, name: &str) -> lapin::types::ShortString {
        format!("{}.{name}", self.prefix).into()
    }

    /// Messages ready in a queue, and its consumers; `None` when there is no such queue.
    pub(crate) async fn look(&self, queue: &str) -> Option<(u32, u32)> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await;
        let queue = channel.queue_declare(self.named(queue), passive, FieldTable::default()).await.ok()?;
        let _ = channel.close(200, "looked".into()).await;
        Some((queue.message_count(), queue.consumer_count()))
    }

    /// Messages ready in all queues of accepted batches.
    pub(crate) async fn accepted(&self) -> u32 {
        let mut sum = 0;
        for shard in 0..2 {
            sum += self.look(&format!("accepted.{shard}")).await.map_or(0, |(ready, _)| ready);
        }
        sum
    }

    /// Takes the messages that are in the queues of accepted batches off them.
    pub(crate) async fn drain(&self) -> Vec<Message> {
        let (channel, mut drained) = (self.channel().await, Vec::new());
        for shard in 0..2 {
            let queue = format!("accepted.{shard}");
            let ready = self.look(&queue).await.unwrap().0 as usize;
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let consuming =
                channel.basic_consume(self.named(&queue), "drain".into(), options, FieldTable::default());
            let messages = consuming.await.unwrap().take(ready).map(Result::unwrap).collect::<Vec<_>>();
            drained.extend(soon("the messages", messages).await);
            channel.basic_cancel("drain".into(), BasicCancelOptions::default()).await.unwrap();
        }
        drained
    }
}
