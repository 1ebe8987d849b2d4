//! Taking accepted batches off the broker. What is taken stays the broker's until it is stored: a process that dies, or
//! holds it too long, gives it back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::Connection;
use lapin::message::Delivery as Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::dead;
use super::failure::Ended;
use super::lines::Lines;
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::{self, Delivery, Share, wire};

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

/// A message that was stored, by the channel it came over and its tag there.
struct Ack {
    channel: u64,
    tag: u64,
}

/// The batches of one message; when all are stored the broker may forget it.
pub(crate) struct Taken {
    intake: Arc<Intake>,
    channel: u64,
    tag: u64,
    comes_again: bool,
    /// Batches without an answer, and whether all answers so far were good.
    open: Mutex<(usize, bool)>,
}

impl Taken {
    pub(crate) fn comes_again(&self) -> bool {
        self.comes_again
    }

    /// Notes that one of its batches was answered.
    pub(crate) fn answered(&self, stored: bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 = open.0.saturating_sub(1);
        open.1 &= stored;
        if *open == (0, true) {
            // The task that acknowledges is gone only when the connection is: then the message comes again.
            let _ = self.intake.acks.send(Ack { channel: self.channel, tag: self.tag });
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
    share: watch::Receiver<Share>,
    /// The number of the next channel: none is given twice, so that a late answer is never taken for another's.
    next_channel: u64,
}

impl Source {
    pub(super) fn new(share: watch::Receiver<Share>) -> (Self, mpsc::UnboundedReceiver<Delivery>) {
        let (deliveries, receiver) = mpsc::unbounded_channel();
        let (acks, done) = mpsc::unbounded_channel();
        let intake = Intake { deliveries, acks, held: AtomicUsize::new(0), none_held: Notify::new() };
        (Self { intake: Arc::new(intake), acks: done, share, next_channel: 0 }, receiver)
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
        let mut lines = match Lines::open(connection, topology, options, shards, self.next_channel).await {
            Ok(lines) => lines,
            Err(ended) => return ended,
        };
        let taken = self.take_all(&mut lines, connection, options, closing).await;
        self.next_channel = lines.next_number();
        match taken {
            Ok(()) => self.finish(lines).await,
            Err(ended) => ended,
        }
    }

    async fn take_all(
        &mut self,
        lines: &mut Lines<'_>,
        connection: &Connection,
        options: &RabbitOptions,
        closing: &CancellationToken,
    ) -> Result<(), Ended> {
        let mut look = tokio::time::interval(HELD_PERIOD);
        loop {
            // All are cancel-safe: a stream keeps what it has, so do a channel, a token and an interval.
            tokio::select! {
                brought = lines.next() => {
                    let share = *self.share.borrow();
                    if let Some((channel, message)) = lines.sorted(brought, share).await? {
                        self.take(lines, channel, message).await?;
                    }
                }
                Some(ack) = self.acks.recv() => self.acknowledge(lines, &ack).await?,
                () = closing.cancelled() => return Ok(()),
                _ = look.tick() => {
                    if lines.held_since().is_some_and(|since| since.elapsed() > options.hold_max) {
                        let why = "batches were held too long; the broker keeps them until the store is back";
                        return Err(Ended::Broke(why.to_owned()));
                    }
                    if !connection.status().connected() {
                        return Err(Ended::Broke("the connection was lost".to_owned()));
                    }
                }
            }
        }
    }

    /// Takes nothing more, waits until everything that was taken is answered, and has the broker know of it. Until then the
    /// shards are nobody else's, so that their order is kept; what comes meanwhile goes back.
    async fn finish(&mut self, mut lines: Lines<'_>) -> Ended {
        loop {
            // Both are cancel-safe: a channel keeps what it has, and the count is looked at again.
            tokio::select! {
                biased;
                Some(ack) = self.acks.recv() => if let Err(ended) = self.acknowledge(&mut lines, &ack).await {
                    return ended;
                },
                // An answer is sent before its message counts as held no more, so none is behind this.
                () = self.intake.until_none_held() => break,
            }
        }
        while let Ok(ack) = self.acks.try_recv() {
            if let Err(ended) = self.acknowledge(&mut lines, &ack).await {
                return ended;
            }
        }
        match lines.close().await {
            Ok(()) => Ended::Done,
            Err(ended) => ended,
        }
    }

    async fn acknowledge(&self, lines: &mut Lines<'_>, ack: &Ack) -> Result<(), Ended> {
        let share = *self.share.borrow();
        lines.acknowledge(ack.channel, ack.tag, share).await
    }

    /// Hands the batches of a message on; one that can't be read goes to the dead letters.
    async fn take(&self, lines: &mut Lines<'_>, channel: u64, message: Message) -> Result<(), Ended> {
        let tag = message.delivery_tag;
        let comes_again = message.redelivered || dead::is_replay(&message.properties);
        let batches = match wire::read_message(&message.data) {
            Ok(batches) if !batches.is_empty() => batches,
            Ok(_) => return self.acknowledge(lines, &Ack { channel, tag }).await,
            Err(error) => {
                tracing::error!(%error, bytes = message.data.len(), "a message goes to the dead letters");
                return lines.reject(channel, tag).await;
            }
        };
        self.intake.held.fetch_add(1, Ordering::AcqRel);
        lines.hold(channel, tag);
        let open = Mutex::new((batches.len(), true));
        let intake = Arc::clone(&self.intake);
        let taken = Arc::new(Taken { intake, channel, tag, comes_again, open });
        for batch in batches {
            let ticket = bus::Ticket::durable(Arc::clone(&taken));
            // A writer that is gone needs nothing; the message comes again elsewhere.
            let _ = self.intake.deliveries.send(Delivery { batch, ticket });
        }
        Ok(())
    }
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
