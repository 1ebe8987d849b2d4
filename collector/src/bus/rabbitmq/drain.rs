//! From the spool to the broker, by the way every batch goes: confirmed before it is removed.

use std::time::Duration;

use super::sender::{Confirms, Sender};
use crate::bus::Error;
use crate::bus::message::ValidBatch;
use crate::bus::spool::{Spool, Taken, Unreadable};

/// The pause before what the broker didn't take is sent again: a connection that is away comes back within 2 s.
const PAUSE: Duration = Duration::from_millis(250);

/// Sends what is in the spool whenever the broker is there, the oldest first, until it is cancelled: then what is under way
/// stays in the spool and comes to the broker once more.
pub(super) async fn drain(spool: Spool, sender: Sender) {
    loop {
        spool.until_kept().await;
        let sent = match sender.serving() {
            Ok(()) => send_oldest(&spool, &sender).await,
            away => away,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the spool waits for the broker");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn send_oldest(spool: &Spool, sender: &Sender) -> Result<(), Error> {
    let taken = spool.oldest().await;
    if taken.is_empty() {
        // It was full of files that failed; they come back.
        tokio::time::sleep(PAUSE).await;
    }
    // All stand in line before the first is waited for: one round trip serves them all, and they stay in order.
    let (mut sent, mut failed) = (Vec::with_capacity(taken.len()), None);
    for Taken { place, batches } in taken {
        match stand_in_line(sender, batches).await {
            Ok(confirms) => sent.push((place, confirms)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let mut places = Vec::with_capacity(sent.len());
    for (place, confirms) in sent {
        match sender.confirmed(confirms).await {
            Ok(()) => places.push(place),
            Err(error) => failed = Some(error),
        }
    }
    spool.remove(places).await;
    failed.map_or(Ok(()), Err)
}

async fn stand_in_line(
    sender: &Sender,
    batches: Vec<Result<ValidBatch, Unreadable>>,
) -> Result<Confirms, Error> {
    let mut confirms = Vec::new();
    for batch in batches {
        match batch {
            Ok(batch) => confirms.extend(sender.push(&batch)?),
            Err(Unreadable { message, reason }) => {
                tracing::error!(reason, "a batch in the spool can't be read and goes to the dead letters");
                sender.bury(&message, &reason).await?;
            }
        }
    }
    Ok(confirms)
}
