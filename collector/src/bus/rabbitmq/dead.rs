//! Messages that nobody could process: they wait in a queue of their own until a person replays or discards them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::Timestamp;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::failure::{Ended, away, refusal, unavailable};
use super::link;
use super::options::RabbitOptions;
use super::publisher;
use super::topology::Topology;
use crate::bus::message::ValidBatch;
use crate::bus::{Error, wire};

const REASON_HEADER: &str = "eventbucket-reason";
/// Where RabbitMQ says why it moved a message here.
const BROKERS_REASON_HEADER: &str = "x-first-death-reason";
const TIME_HEADER: &str = "eventbucket-time-ms";

/// Marks what a person put back into the way of the accepted: what of it still can't be stored comes back here.
const REPLAY_HEADER: &str = "eventbucket-replay";

/// Says whether a message was put back by a person.
pub(super) fn is_replay(properties: &BasicProperties) -> bool {
    properties.headers().as_ref().is_some_and(|headers| headers.contains_key(REPLAY_HEADER))
}

/// A message that nobody could process.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The beginning of its content's hash: it stays while others come and go.
    pub id: String,
    /// Why it is here.
    pub reason: String,
    /// When it came here, as far as it is known.
    pub time: Option<Timestamp>,
    /// The projects it is about, when it can be read.
    pub projects: Vec<u32>,
    /// How many events it holds, when it can be read.
    pub events: Option<usize>,
    /// The batches in it, when it can be read.
    pub batches: Vec<ValidBatch>,
    hash: Hash,
    tag: u64,
    message: Vec<u8>,
}

/// SHA-256 of a letter's content.
type Hash = [u8; 32];

/// Bytes of the hash in an id: of the 10,000 letters of a walk two share their 48 bits in one case of 5 million.
const ID_BYTES: usize = 6;

impl DeadLetter {
    /// Its bytes as they came.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.message
    }
}

/// A walk over the queue from its oldest message on, one message in memory at a time. What it has come by is hidden from
/// others until it is closed or dropped: then what was neither replayed nor discarded is back in its place.
pub struct DeadLetters {
    connection: Connection,
    channel: Channel,
    topology: Topology,
    options: RabbitOptions,
    /// How many to come by still: those that were there when it began, so that what is put back meanwhile isn't met again.
    left: Option<u32>,
    /// Hashes of those it came by and left: a message that was buried twice over is one letter.
    known: HashSet<Hash>,
    last_tag: Option<u64>,
}

/// Messages one walk comes by: 10,000 of the usual 137 KiB pass in some 10 s, and their hashes take 320 KiB. What lies behind
/// is seen when these are gone.
const WALK_MESSAGES_MAX: u32 = 10_000;

impl DeadLetters {
    pub(super) async fn open(options: &RabbitOptions) -> Result<Self, Error> {
        let connection = link::connect(options, "dead letters").await.map_err(|why| why.error())?;
        let opening = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        };
        let channel = answered(options, opening).await?;
        let (topology, options) = (Topology::new(options), options.clone());
        Ok(Self { connection, channel, topology, options, left: None, known: HashSet::new(), last_tag: None })
    }

    /// Takes hold of the next letter, the oldest first; `None` at the end.
    ///
    /// # Errors
    /// When the broker can't be used.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, Error> {
        while self.left != Some(0) {
            let get = self.channel.basic_get(self.topology.dead(), BasicGetOptions::default());
            let Some(got) = answered(&self.options, get).await? else { break };
            let left = self.left.unwrap_or((got.message_count + 1).min(WALK_MESSAGES_MAX));
            self.left = Some(left - 1);
            let (tag, message) = (got.delivery.delivery_tag, got.delivery.data);
            let hash = Sha256::digest(&message).into();
            if self.known.insert(hash) {
                self.last_tag = Some(tag);
                let headers = got.delivery.properties.headers().clone().unwrap_or_default();
                return Ok(Some(letter(tag, &headers, hash, message)));
            }
            self.acknowledge(tag).await?;
        }
        Ok(None)
    }

    /// Puts a message back into the way of the accepted, confirmed before it is taken off here. What is stored already is
    /// a duplicate then, so a replay that is cut short may be done again.
    ///
    /// # Errors
    /// When it can't be read, or the broker doesn't take it; it is still here then.
    pub async fn replay(&mut self, letter: &DeadLetter) -> Result<(), Error> {
        let batches = wire::read_message(&letter.message).map_err(|error| unavailable(&error.to_string()))?;
        for batch in &batches {
            for message in wire::encode_batch(batch) {
                let key = Topology::routing_key(self.topology.shard(batch.project));
                let mut headers = FieldTable::default();
                headers.insert(REPLAY_HEADER.into(), AMQPValue::Boolean(true));
                publish(&self.channel, &self.options, (self.topology.accepted(), key), &message, headers)
                    .await?;
            }
        }
        self.discard(letter).await
    }

    /// Throws a message away.
    ///
    /// # Errors
    /// When the broker can't be told.
    pub async fn discard(&mut self, letter: &DeadLetter) -> Result<(), Error> {
        // What is met again behind it came back from a replay, of this walk or another.
        self.known.remove(&letter.hash);
        self.acknowledge(letter.tag).await
    }

    async fn acknowledge(&self, tag: u64) -> Result<(), Error> {
        answered(&self.options, self.channel.basic_ack(tag, BasicAckOptions::default())).await
    }

    /// Puts back what is left, and ends.
    pub async fn close(self) {
        let back = async {
            if let Some(last) = self.last_tag {
                let all = BasicNackOptions { multiple: true, requeue: true };
                self.channel.basic_nack(last, all).await?;
            }
            // Answered when the broker has put them back.
            self.channel.close(200, "done".into()).await
        };
        // Closing gives back what a lost message did not.
        let _ = answered(&self.options, back).await;
        link::close(&self.connection).await;
    }
}

async fn answered<T>(
    options: &RabbitOptions,
    asking: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    match link::answered(options, asking).await {
        Ok(answer) => Ok(answer),
        Err(Ended::Broke(reason)) => Err(away(&reason)),
        Err(Ended::Done) => Err(Error::Closed),
    }
}

fn letter(tag: u64, headers: &FieldTable, hash: Hash, message: Vec<u8>) -> DeadLetter {
    let read = wire::read_message(&message);
    let header = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        Some(AMQPValue::ShortString(text)) => Some(text.as_str().to_owned()),
        _ => None,
    };
    let reason = match (header(REASON_HEADER), header(BROKERS_REASON_HEADER).as_deref(), &read) {
        (Some(reason), _, _) => reason,
        (_, _, Err(error)) => error.to_string(),
        (_, Some("delivery_limit"), Ok(_)) => "it was delivered again and again and never stored".to_owned(),
        (_, _, Ok(_)) => "another version could not read it; this one can: replay it".to_owned(),
    };
    let time = match headers.inner().get(TIME_HEADER) {
        Some(AMQPValue::LongLongInt(ms)) => Timestamp::from_ms(*ms),
        _ => None,
    };
    let readable = read.is_ok();
    let id = hash.iter().take(ID_BYTES).map(|byte| format!("{byte:02x}")).collect();
    let batches = read.unwrap_or_default();
    let mut projects: Vec<u32> = batches.iter().map(|batch| batch.project.0).collect();
    projects.sort_unstable();
    projects.dedup();
    let events = readable.then(|| batches.iter().map(|batch| batch.events.len()).sum());
    DeadLetter { id, reason, time, projects, events, batches, hash, tag, message }
}

/// How often it is looked how many there are: they come by the day rather than by the second.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// Keeps the figure of how many there are, as long as the connection stands.
pub(super) async fn watch(connection: Arc<Connection>, topology: Topology, options: RabbitOptions) -> Ended {
    let channel = match link::answered(&options, connection.create_channel()).await {
        Ok(channel) => channel,
        Err(ended) => return ended,
    };
    loop {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let look = channel.queue_declare(topology.dead(), passive, FieldTable::default());
        match link::answered(&options, look).await {
            Ok(queue) => metrics::gauge!(FIGURE).set(queue.message_count()),
            Err(ended) => return ended,
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// The name of that figure.
const FIGURE: &str = "eventbucket_dead_letters";

/// Writes a batch that can't be stored as messages.
pub(super) fn messages(batch: &ValidBatch) -> Vec<Vec<u8>> {
    wire::encode_batch(batch)
}

/// The way to the dead letters: one connection, made for the first and kept for the next, since a project that is gone sends
/// its whole backlog there.
pub(super) struct DeadLetterBox {
    options: RabbitOptions,
    topology: Topology,
    kept: Mutex<Option<(Connection, Channel)>>,
}

impl DeadLetterBox {
    pub(super) fn new(options: &RabbitOptions) -> Self {
        Self { options: options.clone(), topology: Topology::new(options), kept: Mutex::default() }
    }

    /// Puts messages that nobody can process to the dead letters, with the reason.
    pub(super) async fn bury(&self, messages: &[Vec<u8>], reason: &str) -> Result<(), Error> {
        let mut kept = self.kept.lock().await;
        let stands = |(connection, channel): &(Connection, Channel)| {
            connection.status().connected() && channel.status().connected()
        };
        let way = match kept.take().filter(stands) {
            Some(way) => way,
            None => self.open().await?,
        };
        // One that failed isn't used again.
        put(&way.1, &self.topology, &self.options, messages, reason).await?;
        *kept = Some(way);
        Ok(())
    }

    async fn open(&self) -> Result<(Connection, Channel), Error> {
        let connection = link::connect(&self.options, "bury").await.map_err(|why| why.error())?;
        let told = |error: lapin::Error| refusal(&self.options, &error);
        let channel = connection.create_channel().await.map_err(told)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(told)?;
        Ok((connection, channel))
    }
}

async fn put(
    channel: &Channel,
    topology: &Topology,
    options: &RabbitOptions,
    messages: &[Vec<u8>],
    reason: &str,
) -> Result<(), Error> {
    let mut headers = FieldTable::default();
    headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
    let now = Timestamp::from_system(std::time::SystemTime::now());
    headers.insert(TIME_HEADER.into(), AMQPValue::LongLongInt(now.ms()));
    for message in messages {
        publish(channel, options, (topology.dead(), "".into()), message, headers.clone()).await?;
    }
    Ok(())
}

/// Publishes one message and waits for its confirm.
async fn publish(
    channel: &Channel,
    options: &RabbitOptions,
    way: (ShortString, ShortString),
    message: &[u8],
    headers: FieldTable,
) -> Result<(), Error> {
    let told = |error: lapin::Error| refusal(options, &error);
    let confirm = publisher::publish(channel, way, message, headers).await.map_err(told)?;
    publisher::wait(confirm, options.confirm_timeout).await.map_err(|unconfirmed| unconfirmed.error())
}
