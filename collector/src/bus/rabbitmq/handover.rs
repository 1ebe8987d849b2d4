//! What the consumers of one process have in common: what they bring, and how often a shard is left to another process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::ready;
use futures_util::stream::{self, BoxStream};
use lapin::Consumer;
use lapin::message::Delivery as Message;

use crate::bus::Share;

/// What a consumer brings, with its number: nothing when it ended.
pub(super) type Brought = (u64, Option<lapin::Result<Message>>);

/// What a consumer brings, and that it ended: one whose queue is gone must be noticed, for nobody would take from it.
pub(super) fn brought(number: u64, consumer: Consumer) -> BoxStream<'static, Brought> {
    let messages = consumer.map(Some).chain(stream::once(ready(None)));
    messages.map(move |message| (number, message)).boxed()
}

/// The pause before a shard that came back is handed over again, from 5 s doubling to 80 s: whoever should have it isn't
/// taking yet. A handover of batches spends one of the 100 deliveries of the up to 8 messages that are on their way; in the
/// pause they are stored here.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(80));

/// The shards that were handed over.
#[derive(Default)]
pub(super) struct Handovers(BTreeMap<u16, HandedOver>);

/// When a shard was handed over, for which share.
struct HandedOver {
    again: Instant,
    pause: Duration,
    share: Share,
}

impl Handovers {
    fn before(&self, shard: u16, share: Share) -> Option<&HandedOver> {
        self.0.get(&shard).filter(|before| before.share == share)
    }

    /// Says whether a shard came back so soon that it is kept for a while.
    pub(super) fn too_soon(&self, shard: u16, share: Share) -> bool {
        self.before(shard, share).is_some_and(|before| Instant::now() < before.again)
    }

    /// Notes that a shard was handed over.
    pub(super) fn note(&mut self, shard: u16, share: Share) {
        let (first, longest) = PAUSE;
        let pause = self.before(shard, share).map_or(first, |before| (before.pause * 2).min(longest));
        self.0.insert(shard, HandedOver { again: Instant::now() + pause, pause, share });
    }
}
