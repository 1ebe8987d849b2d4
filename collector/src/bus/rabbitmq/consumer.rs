//! Taking accepted batches off the broker. What is taken stays the broker's until it is stored: a process that dies, or
//! holds it too long, gives it back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::ready;
use futures_util::stream::{self, StreamExt, select_all};
use lapin::message::Delivery as Message;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::link::{self, Ended};
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::{self, Delivery, wire};

/// Messages of one shard that a writer holds: two transactions of 2,000 events in batches of 500, so that the next is
/// there when one commits. 8 of them, of 137 KiB each, in 4 shards take 4 MiB; of the largest, 32 MiB.
const PREFETCH: u16 = 8;

/// How often it is looked whether something is held too long.
const HELD_PERIOD: Duration = Duration::from_secs(1);

/// What is between the broker and one writer, over all connections.
pub(super) struct Intake {
    deliveries: mpsc::UnboundedSender<Delivery>,
    acks: mpsc::UnboundedSender<Ack>,
    /// Messages taken and not answered yet.
    held: AtomicUsize,
    none_held: Notify,
}

/// A message that was stored, by the connection it came over and its tag there.
struct Ack {
    connection: u64,
    tag: u64,
}

/// The batches of one message; when all are stored the broker may forget it.
pub(crate) struct Taken {
    intake: Arc<Intake>,
    connection: u64,
    tag: u64,
    /// Batches without an answer, and whether all answers so far were good.
    open: Mutex<(usize, bool)>,
}

impl Taken {
    /// Notes that one of its batches was answered.
    pub(crate) fn answered(&self, stored: bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 = open.0.saturating_sub(1);
        open.1 &= stored;
        if *open == (0, true) {
            // The task that acknowledges is gone only when the connection is: then the message comes again.
            let _ = self.intake.acks.send(Ack { connection: self.connection, tag: self.tag });
        }
    }
}

/// Answered or given up, it is held no more.
impl Drop for Taken {
    fn drop(&mut self) {
        if self.intake.held.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.intake.none_held.notify_one();
        }
    }
}

impl Intake {
    async fn until_none_held(&self) {
        while self.held.load(Ordering::Acquire) > 0 {
            self.none_held.notified().await;
        }
    }
}

/// What one writer's task keeps between connections.
pub(super) struct Source {
    intake: Arc<Intake>,
    acks: mpsc::UnboundedReceiver<Ack>,
    connections: u64,
}

impl Source {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Delivery>) {
        let (deliveries, receiver) = mpsc::unbounded_channel();
        let (acks, done) = mpsc::unbounded_channel();
        let intake = Intake { deliveries, acks, held: AtomicUsize::new(0), none_held: Notify::new() };
        (Self { intake: Arc::new(intake), acks: done, connections: 0 }, receiver)
    }

    /// Takes from the shards over one connection until it breaks or the bus is closed.
    pub(super) async fn serve(
        &mut self,
        connection: &Connection,
        topology: &Topology,
        shards: &[u16],
        options: &RabbitOptions,
        closing: &CancellationToken,
    ) -> Ended {
        // What an earlier connection brought comes again over this one: it is taken when the writer is done with the first
        // copy, so that a store that is away fills no memory.
        tokio::select! {
            biased;
            () = closing.cancelled() => return Ended::Done,
            () = self.intake.until_none_held() => {}
        }
        self.connections += 1;
        match self.take_all(connection, topology, shards, options, closing).await {
            Ok(ended) | Err(ended) => ended,
        }
    }

    async fn take_all(
        &mut self,
        connection: &Connection,
        topology: &Topology,
        shards: &[u16],
        options: &RabbitOptions,
        closing: &CancellationToken,
    ) -> Result<Ended, Ended> {
        let starting = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let mut consumers = Vec::with_capacity(shards.len());
            for shard in shards {
                let (queue, tag) = (topology.accepted_queue(*shard), consumer_tag(*shard));
                let consuming = BasicConsumeOptions::default();
                let consumer = channel.basic_consume(queue, tag, consuming, FieldTable::default()).await?;
                // One that ends because its queue is gone must be noticed: nobody would take from that shard.
                consumers.push(consumer.map(Some).chain(stream::once(ready(None))));
            }
            Ok((channel, consumers))
        };
        let (channel, consumers) = link::answered(options, starting).await?;
        let broke = |error: lapin::Error| Ended::Broke(link::words(options, &error));
        let mut messages = select_all(consumers);
        let mut held: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut look = tokio::time::interval(HELD_PERIOD);
        loop {
            // All are cancel-safe: a stream keeps what it has, so do a channel, a token and an interval.
            tokio::select! {
                message = messages.next() => {
                    let Some(Some(message)) = message else {
                        return Ok(Ended::Broke("a queue is gone; everything is declared again".to_owned()));
                    };
                    let message = message.map_err(broke)?;
                    if let Some(tag) = self.take(&channel, message).await.map_err(broke)? {
                        held.insert(tag, Instant::now());
                    }
                }
                Some(ack) = self.acks.recv() => {
                    if ack.connection == self.connections {
                        held.remove(&ack.tag);
                    }
                    self.acknowledge(&channel, &ack).await.map_err(broke)?;
                }
                () = closing.cancelled() => break,
                _ = look.tick() => {
                    if held.values().next().is_some_and(|since| since.elapsed() > options.hold_max) {
                        let why = "batches were held too long; the broker keeps them until the store is back";
                        return Ok(Ended::Broke(why.to_owned()));
                    }
                    if !connection.status().connected() {
                        return Ok(Ended::Broke("the connection was lost".to_owned()));
                    }
                }
            }
        }
        // The consumers are cancelled by name before they are dropped; what they still bring is given back with the channel.
        self.finish(&channel, shards).await.map_err(broke)?;
        drop(messages);
        Ok(Ended::Done)
    }

    /// Takes nothing more, waits until everything that was taken is answered, and has the broker know of it.
    async fn finish(&mut self, channel: &Channel, shards: &[u16]) -> lapin::Result<()> {
        for shard in shards {
            channel.basic_cancel(consumer_tag(*shard), BasicCancelOptions::default()).await?;
        }
        loop {
            // Both are cancel-safe: a channel keeps what it has, and the count is looked at again.
            tokio::select! {
                biased;
                Some(ack) = self.acks.recv() => self.acknowledge(channel, &ack).await?,
                // An answer is sent before its message counts as held no more, so none is behind this.
                () = self.intake.until_none_held() => break,
            }
        }
        while let Ok(ack) = self.acks.try_recv() {
            self.acknowledge(channel, &ack).await?;
        }
        channel.close(200, "done".into()).await
    }

    /// A tag means something only to the connection that gave it out.
    async fn acknowledge(&self, channel: &Channel, ack: &Ack) -> lapin::Result<()> {
        if ack.connection == self.connections {
            channel.basic_ack(ack.tag, BasicAckOptions::default()).await?;
        }
        Ok(())
    }

    /// Hands the batches of a message on; one that can't be read goes to the dead letters.
    async fn take(&self, channel: &Channel, message: Message) -> lapin::Result<Option<u64>> {
        let tag = message.delivery_tag;
        let batches = match wire::read_message(&message.data) {
            Ok(batches) if !batches.is_empty() => batches,
            Ok(_) => {
                channel.basic_ack(tag, BasicAckOptions::default()).await?;
                return Ok(None);
            }
            Err(error) => {
                tracing::error!(%error, bytes = message.data.len(), "a message goes to the dead letters");
                channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await?;
                return Ok(None);
            }
        };
        self.intake.held.fetch_add(1, Ordering::AcqRel);
        let open = Mutex::new((batches.len(), true));
        let taken = Taken { intake: Arc::clone(&self.intake), connection: self.connections, tag, open };
        let taken = Arc::new(taken);
        for batch in batches {
            let ticket = bus::Ticket::durable(Arc::clone(&taken));
            // A writer that is gone needs nothing; the message comes again elsewhere.
            let _ = self.intake.deliveries.send(Delivery { batch, ticket });
        }
        Ok(Some(tag))
    }
}

fn consumer_tag(shard: u16) -> ShortString {
    format!("storage-{shard}").into()
}

/// The receiving end of one writer.
pub(crate) struct Taking {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// One that did not fit any more the last time.
    put_back: Option<Delivery>,
    closing: CancellationToken,
}

impl Taking {
    pub(super) fn new(deliveries: mpsc::UnboundedReceiver<Delivery>, closing: CancellationToken) -> Self {
        Self { deliveries, put_back: None, closing }
    }

    /// Waits for batches and takes all that are there, within the bounds but at least one; `None` when the bus is closed
    /// and everything was taken. Cancel-safe: nothing is taken before it returns.
    pub(crate) async fn next(&mut self, events_max: usize, batches_max: usize) -> Option<Vec<Delivery>> {
        let first = match self.put_back.take() {
            Some(first) => first,
            None => tokio::select! {
                first = self.deliveries.recv() => first?,
                () = self.closing.cancelled() => self.deliveries.try_recv().ok()?,
            },
        };
        let mut events = first.batch.events.len();
        let mut taken = vec![first];
        while taken.len() < batches_max {
            let Ok(next) = self.deliveries.try_recv() else { break };
            events += next.batch.events.len();
            if events > events_max {
                self.put_back = Some(next);
                break;
            }
            taken.push(next);
        }
        Some(taken)
    }
}
