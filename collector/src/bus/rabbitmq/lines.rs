//! The channels over which one writer's shards come, one each: closing it gives everything back to the queue in order and lets
//! the next consumer begin, in one step. A cancelled consumer would leave what it holds behind while the next already works.

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use lapin::message::Delivery as Message;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::failure::Ended;
use super::handover::{Brought, Handovers, brought};
use super::link;
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::Share;

/// Messages of one shard that a writer holds: two transactions of 2,000 events in batches of 500, so that the next is
/// there when one commits. 8 of them, of 137 KiB each, in 4 shards take 4 MiB; of the largest, 32 MiB.
const PREFETCH_MAX: u16 = 8;

/// Messages of all its shards that a writer holds: 64 MiB of the largest. The broker counts messages only, so with many shards
/// it is fewer of each, down to one: 128 MiB for 128 shards, as two writers have of the 256 there may be.
const HELD_MAX: u16 = 64;

/// Messages that a writer holds of each of its shards.
fn prefetch(shards: usize) -> u16 {
    let each = u16::try_from(usize::from(HELD_MAX) / shards.max(1)).unwrap_or(PREFETCH_MAX);
    each.clamp(1, PREFETCH_MAX)
}

/// The open channels of a writer.
pub(super) struct Lines<'a> {
    connection: &'a Connection,
    topology: &'a Topology,
    options: &'a RabbitOptions,
    prefetch: u16,
    open: BTreeMap<u64, Line>,
    messages: SelectAll<BoxStream<'static, Brought>>,
    next_number: u64,
    handovers: Handovers,
}

/// A shard's channel.
struct Line {
    shard: u16,
    channel: Channel,
    /// What was given to the writer and isn't acknowledged, by tag, with the time.
    held: BTreeMap<u64, Instant>,
    /// It is about to be closed: what still comes is left to the next consumer.
    leaving: bool,
}

impl<'a> Lines<'a> {
    /// Opens a channel for each shard. `first_number` is above those of all channels before.
    pub(super) async fn open(
        connection: &'a Connection,
        topology: &'a Topology,
        options: &'a RabbitOptions,
        shards: &[u16],
        first_number: u64,
    ) -> Result<Self, Ended> {
        let mut lines = Self {
            connection,
            topology,
            options,
            prefetch: prefetch(shards.len()),
            open: BTreeMap::new(),
            messages: SelectAll::new(),
            next_number: first_number,
            handovers: Handovers::default(),
        };
        for shard in shards {
            lines.add(*shard).await?;
        }
        Ok(lines)
    }

    /// The number of the next channel that is opened.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    async fn add(&mut self, shard: u16) -> Result<(), Ended> {
        let queue = self.topology.accepted_queue(shard);
        let opening = async {
            let channel = self.connection.create_channel().await?;
            channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
            let (tag, options) = (format!("storage-{shard}").into(), BasicConsumeOptions::default());
            let consumer = channel.basic_consume(queue, tag, options, FieldTable::default()).await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = link::answered(self.options, opening).await?;
        let number = self.next_number;
        self.next_number += 1;
        self.messages.push(brought(number, consumer));
        self.open.insert(number, Line { shard, channel, held: BTreeMap::new(), leaving: false });
        Ok(())
    }

    /// Waits for what a channel brings next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Brought> {
        self.messages.next().await
    }

    /// Returns what a channel brought, when it is a message for the writer. One of a shard that others should have makes the
    /// channel leave: then it takes no more, and goes when it holds nothing.
    pub(super) async fn sorted(
        &mut self,
        brought: Option<Brought>,
        share: Share,
    ) -> Result<Option<(u64, Message)>, Ended> {
        let (number, message) = brought.ok_or_else(Ended::queue_gone)?;
        // Closed here: what it still brings is the broker's again.
        let Some(line) = self.open.get_mut(&number) else { return Ok(None) };
        let message =
            message.ok_or_else(Ended::queue_gone)?.map_err(|error| Ended::of(self.options, &error))?;
        let wanted = share.has(line.shard, self.topology.shards);
        line.leaving |= !wanted && !self.handovers.too_soon(line.shard, share);
        if line.leaving {
            self.leave_if_done(number, share).await?;
            return Ok(None);
        }
        Ok(Some((number, message)))
    }

    /// Notes that a message went to the writer.
    pub(super) fn hold(&mut self, number: u64, tag: u64) {
        if let Some(line) = self.open.get_mut(&number) {
            line.held.insert(tag, Instant::now());
        }
    }

    /// Acknowledges a message, if the channel that gave out its tag is still open. When it was the last that a leaving channel
    /// held, its shard is handed over.
    pub(super) async fn acknowledge(&mut self, number: u64, tag: u64, share: Share) -> Result<(), Ended> {
        let Some(line) = self.open.get_mut(&number) else { return Ok(()) };
        line.held.remove(&tag);
        let acked = line.channel.basic_ack(tag, BasicAckOptions::default()).await;
        acked.map_err(|error| Ended::of(self.options, &error))?;
        self.leave_if_done(number, share).await
    }

    /// Gives a message to the dead letters.
    pub(super) async fn reject(&mut self, number: u64, tag: u64) -> Result<(), Ended> {
        let Some(line) = self.open.get(&number) else { return Ok(()) };
        let rejected = line.channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await;
        rejected.map_err(|error| Ended::of(self.options, &error))
    }

    /// Closes the channel of a shard that others should have, once everything that was taken from it is stored and
    /// acknowledged, and stands at the end of the queue's line of consumers again.
    async fn leave_if_done(&mut self, number: u64, share: Share) -> Result<(), Ended> {
        if !self.open.get(&number).is_some_and(|line| line.leaving && line.held.is_empty()) {
            return Ok(());
        }
        let Some(line) = self.open.remove(&number) else { return Ok(()) };
        link::answered(self.options, line.channel.close(200, "handed over".into())).await?;
        tracing::debug!(shard = line.shard, "a shard was handed over to another process");
        self.handovers.note(line.shard, share);
        self.add(line.shard).await
    }

    /// Since when the message has been held that was taken first of those in the writer's hands.
    pub(super) fn held_since(&self) -> Option<Instant> {
        // Tags rise with time, so the first of each channel is its oldest.
        self.open.values().filter_map(|line| line.held.values().next().copied()).min()
    }

    /// Closes every channel: what isn't acknowledged goes back, in order. It ends at the first that isn't answered: ending the
    /// connection gives back the rest.
    pub(super) async fn close(self) -> Result<(), Ended> {
        for line in self.open.into_values() {
            link::answered(self.options, line.channel.close(200, "done".into())).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_holds_no_more_with_more_shards() {
        let held = |shards: usize| shards * usize::from(prefetch(shards));
        assert_eq!([1, 4, 8].map(held), [8, 32, 64]);
        assert!((8..=64).all(|shards| (33..=64).contains(&held(shards))));
        assert_eq!(prefetch(128), 1, "one of each is the least");
    }
}
