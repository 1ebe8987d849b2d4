//! From the spool to the broker, a shard at a time: confirmed before it is removed, and no message before the one in front of
//! it is confirmed, so that a queue at its limit, which refuses one and takes the next, changes no order.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::outbox::Parcel;
use super::sender::Sender;
use crate::bus::spool::{Spool, Taken, Unreadable};
use crate::bus::wire::{Encoded, HEAD_BYTES, MESSAGE_BYTES_MAX};
use crate::bus::{Error, message::ValidBatch};

/// The pause before what the broker didn't take is sent again: a connection that is away comes back within 2 s.
const PAUSE: Duration = Duration::from_millis(250);

/// The pause before a queue that was full is tried with one message: at most 1 MiB/s that is refused.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Shards that are sent from at once: each takes 4 MiB as it was read and as much as it is sent, 64 MiB in all.
pub(super) const READING_MAX: usize = 8;

/// What of the first file of a shard is confirmed already, so that it isn't sent again when what follows is refused.
#[derive(Default)]
struct Confirmed {
    file: u64,
    items: usize,
}

/// What is sent next: part of a batch, or something for the dead letters.
enum Item {
    Part(u16, Bytes),
    Unreadable(Unreadable),
}

/// Sends what is in the spool for a shard whenever its queue is there, the oldest first, until it is cancelled: then what is
/// under way stays in the spool and comes to the broker once more.
pub(super) async fn drain(spool: Spool, sender: Sender, shard: u16, reading: &Semaphore) {
    let mut confirmed = Confirmed::default();
    loop {
        spool.until_kept(shard).await;
        let sent = match sender.check(shard) {
            Ok(()) => send_oldest(&spool, &sender, shard, reading, &mut confirmed).await,
            away => away,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, shard, "the spool waits for the broker");
            let full = matches!(error, Error::Full { .. });
            tokio::time::sleep(if full { FULL_PAUSE } else { PAUSE }).await;
        }
    }
}

async fn send_oldest(
    spool: &Spool,
    sender: &Sender,
    shard: u16,
    reading: &Semaphore,
    confirmed: &mut Confirmed,
) -> Result<(), Error> {
    let _turn = reading.acquire().await.expect("nobody closes it");
    let taken = spool.oldest(shard).await;
    let Some(file) = taken.first().map(|first| first.place.file) else {
        // It was full of files that failed; they come back.
        tokio::time::sleep(PAUSE).await;
        return Ok(());
    };
    if confirmed.file != file {
        *confirmed = Confirmed { file, items: 0 };
    }
    let (mut places, mut items) = (Vec::with_capacity(taken.len()), Vec::new());
    for Taken { place, batches } in taken {
        batches.into_iter().for_each(|batch| items.extend(items_of(sender, batch)));
        places.push((place, items.len()));
    }
    let sent = send(sender, items, &mut confirmed.items).await;
    let done = confirmed.items;
    let gone: Vec<_> = places.into_iter().take_while(|(_, end)| *end <= done).collect();
    confirmed.items -= gone.last().map_or(0, |(_, end)| *end);
    spool.remove(gone.into_iter().map(|(place, _)| place).collect()).await;
    sent
}

fn items_of(sender: &Sender, batch: Result<ValidBatch, Unreadable>) -> Vec<Item> {
    match batch {
        Ok(batch) => {
            let shard = sender.topology.shard(batch.project);
            Encoded::of(&batch).messages.into_iter().map(|part| Item::Part(shard, part)).collect()
        }
        Err(unreadable) => vec![Item::Unreadable(unreadable)],
    }
}

/// Sends what isn't confirmed yet, as much in a message as fits, and counts what is.
async fn send(sender: &Sender, items: Vec<Item>, confirmed: &mut usize) -> Result<(), Error> {
    let mut items = items.into_iter().skip(*confirmed).peekable();
    while let Some(item) = items.next() {
        match item {
            Item::Unreadable(Unreadable { message, reason }) => {
                tracing::error!(reason, "a batch in the spool can't be read and goes to the dead letters");
                sender.dead.bury(&[message], &reason).await?;
                *confirmed += 1;
            }
            Item::Part(shard, part) => {
                let (mut bytes, mut parcel) = (HEAD_BYTES + part.len(), Parcel::from([part]));
                let more = |item: &Item, bytes: usize| matches!(item, Item::Part(to, part) if *to == shard && bytes + part.len() <= MESSAGE_BYTES_MAX);
                while let Some(Item::Part(_, part)) = items.next_if(|item| more(item, bytes)) {
                    bytes += part.len();
                    parcel.push(part);
                }
                let count = parcel.len();
                sender.send_parcels(shard, vec![parcel]).await?;
                *confirmed += count;
            }
        }
    }
    Ok(())
}
