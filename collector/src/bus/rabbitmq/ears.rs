//! The queues that announced ranges are heard from. Each has one consumer at a time, and the first to come would have them all:
//! so a process leaves a queue of another's share to whoever waits for it, as it does with batches.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::failure::Ended;
use super::handover::{Brought, Handovers, brought};
use super::link;
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::Share;

/// The consumers of one connection, one a queue.
pub(super) struct Ears<'a> {
    channel: Channel,
    topology: &'a Topology,
    options: &'a RabbitOptions,
    /// The shard of each consumer that wasn't cancelled.
    open: BTreeMap<u64, u16>,
    messages: SelectAll<BoxStream<'static, Brought>>,
    next_number: u64,
    handovers: Handovers,
}

impl<'a> Ears<'a> {
    pub(super) async fn open(
        connection: &Connection,
        topology: &'a Topology,
        options: &'a RabbitOptions,
    ) -> Result<Self, Ended> {
        let channel = link::answered(options, connection.create_channel()).await?;
        let (open, messages, handovers) = (BTreeMap::new(), SelectAll::new(), Handovers::default());
        let mut ears = Self { channel, topology, options, open, messages, next_number: 0, handovers };
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
        self.messages.push(brought(number, consumer));
        self.open.insert(number, shard);
        Ok(())
    }

    /// Waits for what is heard next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Brought> {
        self.messages.next().await
    }

    /// Returns what was heard, when it is a message. One of a shard that others should have makes this process stand at the end
    /// of the line of that queue's consumers; what it has been given already is heard all the same.
    pub(super) async fn sorted(
        &mut self,
        heard: Option<Brought>,
        share: Share,
    ) -> Result<Option<Message>, Ended> {
        let (number, message) = heard.ok_or_else(Ended::queue_gone)?;
        let shard = self.open.get(&number).copied();
        let Some(message) = message else {
            return if shard.is_some() { Err(Ended::queue_gone()) } else { Ok(None) };
        };
        let message = message.map_err(|error| Ended::of(self.options, &error))?;
        if let Some(shard) = shard.filter(|shard| !share.has(*shard, self.topology.shards)) {
            self.leave(number, shard, share).await?;
        }
        Ok(Some(message))
    }

    async fn leave(&mut self, number: u64, shard: u16, share: Share) -> Result<(), Ended> {
        if self.handovers.too_soon(shard, share) {
            return Ok(());
        }
        self.handovers.note(shard, share);
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
