//! The queues that announced ranges are heard from. Each has one consumer at a time, and the first to come would have them all:
//! so a process leaves a queue of another's share to whoever waits for it, as it does with batches.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::ready;
use futures_util::stream::{self, BoxStream, SelectAll};
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::link::{self, Ended};
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::Share;

/// The pause before a queue that came back is left again, from 5 s doubling to 80 s: whoever should have it isn't listening.
const LEAVING_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(80));

/// What a consumer brings: nothing when it ended.
type Heard = (u64, Option<lapin::Result<Message>>);

/// The consumers of one connection, one a queue.
pub(super) struct Ears<'a> {
    channel: Channel,
    topology: &'a Topology,
    options: &'a RabbitOptions,
    /// The shard of each consumer that wasn't cancelled.
    open: BTreeMap<u64, u16>,
    messages: SelectAll<BoxStream<'static, Heard>>,
    next_number: u64,
    left: BTreeMap<u16, Left>,
}

/// When a queue was left, for which share.
struct Left {
    again: Instant,
    pause: Duration,
    share: Share,
}

impl<'a> Ears<'a> {
    pub(super) async fn open(
        connection: &Connection,
        topology: &'a Topology,
        options: &'a RabbitOptions,
    ) -> Result<Self, Ended> {
        let channel = link::answered(options, connection.create_channel()).await?;
        let (open, left) = (BTreeMap::new(), BTreeMap::new());
        let mut ears =
            Self { channel, topology, options, open, messages: SelectAll::new(), next_number: 0, left };
        for shard in 0..topology.shards {
            ears.add(shard).await?;
        }
        Ok(ears)
    }

    async fn add(&mut self, shard: u16) -> Result<(), Ended> {
        let number = self.next_number;
        self.next_number += 1;
        let (queue, tag) = (self.topology.stored_queue(shard), tag(number));
        // A range is a hint: nothing is lost with one that was given out and not heard.
        let consuming = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = self.channel.basic_consume(queue, tag, consuming, FieldTable::default());
        let consumer = link::answered(self.options, consuming).await?;
        // One that ends because its queue is gone must be noticed: everything is declared again.
        let heard = consumer.map(Some).chain(stream::once(ready(None)));
        self.messages.push(heard.map(move |message| (number, message)).boxed());
        self.open.insert(number, shard);
        Ok(())
    }

    /// Waits for what is heard next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        self.messages.next().await
    }

    /// Returns what was heard, when it is a message. One of a shard that others should have makes this process stand at the end
    /// of the line of that queue's consumers; what it has been given already is heard all the same.
    pub(super) async fn sorted(
        &mut self,
        heard: Option<Heard>,
        share: Share,
    ) -> Result<Option<Message>, Ended> {
        let gone = || Ended::Broke("a queue is gone; everything is declared again".to_owned());
        let (number, message) = heard.ok_or_else(gone)?;
        let shard = self.open.get(&number).copied();
        let Some(message) = message else { return if shard.is_some() { Err(gone()) } else { Ok(None) } };
        let message = message.map_err(|error| Ended::Broke(link::words(self.options, &error)))?;
        if let Some(shard) = shard.filter(|shard| !share.has(*shard, self.topology.shards)) {
            self.leave(number, shard, share).await?;
        }
        Ok(Some(message))
    }

    async fn leave(&mut self, number: u64, shard: u16, share: Share) -> Result<(), Ended> {
        let (first, longest) = LEAVING_PAUSE;
        let before = self.left.get(&shard).filter(|before| before.share == share);
        if before.is_some_and(|before| Instant::now() < before.again) {
            return Ok(());
        }
        let pause = before.map_or(first, |before| (before.pause * 2).min(longest));
        self.left.insert(shard, Left { again: Instant::now() + pause, pause, share });
        self.open.remove(&number);
        let cancelling = self.channel.basic_cancel(tag(number), BasicCancelOptions::default());
        link::answered(self.options, cancelling).await?;
        tracing::debug!(shard, "the announcements of a shard are left to another process");
        self.add(shard).await
    }
}

fn tag(number: u64) -> lapin::types::ShortString {
    format!("insight-{number}").into()
}
