//! The bus on RabbitMQ: what is accepted waits in the broker's quorum queues, in any number of processes' reach.

/// Where the broker is, and what shapes the queues.
mod options;

/// What stands in the broker.
mod topology;

/// What goes wrong.
mod failure;

/// Connections that come back.
mod link;

/// What the broker looks like from outside.
pub(super) mod look;

/// What waits to be published.
mod outbox;

/// Publishing batches.
mod publisher;

/// The way of a batch to the broker.
mod sender;

/// The way out of the spool.
mod drain;

/// Taking batches.
mod consumer;

/// What consumers bring, and shards that are left to others.
mod handover;

/// The channels they come over.
mod lines;

/// Ranges, announced and heard.
mod fan;

/// The queues they are heard from.
mod ears;

/// Messages that nobody could process.
mod dead;

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::message::{Published, Spooled, StoredRange, ValidBatch};
use super::spool::Spool;
use super::wire::Encoded;
use super::{Error, Hint, Share, Work};
pub(super) use consumer::{Taken, Taking};
pub use dead::{DeadLetter, DeadLetters};
use failure::NoConnection;
use link::Link;
pub use options::RabbitOptions;
use outbox::Outbox;
use sender::Sender;
use topology::Topology;

/// RabbitMQ, shared by clones; the last one ends its tasks.
#[derive(Clone)]
pub(super) struct RabbitMq(Arc<Shared>);

struct Shared {
    options: RabbitOptions,
    topology: Topology,
    sender: Sender,
    /// Where batches wait while the broker is away.
    spool: Option<Spool>,
    announcing: OnceLock<mpsc::Sender<Vec<StoredRange>>>,
    taken: AtomicBool,
    /// Which shards are this process's, of batches and of ranges.
    share: watch::Sender<Share>,
    ranges_share: watch::Sender<Share>,
    /// No batch is taken in any more, here and by the writers.
    closing: CancellationToken,
    cancel: CancellationToken,
    /// Those of the writers end by themselves after `closing`.
    writers: TaskTracker,
    others: TaskTracker,
    /// Cancelled when a task ends that shouldn't.
    failed: CancellationToken,
    _tasks: DropGuard,
}

/// How long acknowledging what is stored may take at the end, and closing the spool. What isn't acknowledged comes again and
/// is a duplicate; what is in the spool is there in any case.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts what empties a spool and fills it with what dead processes left, noticed when any of it ends.
fn attend(
    spool: &Spool,
    sender: &Sender,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    failed: &CancellationToken,
) {
    let reading = Arc::new(Semaphore::new(drain::READING_MAX));
    let drain = |shard| {
        let (spool, sender, reading) = (spool.clone(), sender.clone(), Arc::clone(&reading));
        async move { drain::drain(spool, sender, shard, &reading).await }.boxed()
    };
    let drains = (0..sender.topology.shards).map(drain);
    for keeping in drains.chain([spool.clone().look().boxed()]) {
        let (cancel, failed) = (cancel.clone(), failed.clone().drop_guard());
        tasks.spawn(async move {
            if cancel.run_until_cancelled_owned(keeping).await.is_none() {
                failed.disarm();
            }
        });
    }
}

impl RabbitMq {
    /// Connects and declares everything. With a spool it can begin while the broker is away.
    pub(super) async fn start(options: RabbitOptions) -> Result<Self, Error> {
        let topology = Topology::new(&options);
        let spool = match &options.spool {
            Some(spool) => {
                let topology = topology.clone();
                let shard = Arc::new(move |project| topology.shard(project));
                Some(Spool::open(spool.clone(), shard).await?)
            }
            None => None,
        };
        // The first connection tells whether the configuration is right; afterwards they come back by themselves.
        let first = match link::connect(&options, "publish").await {
            Ok(connection) => Some(connection),
            Err(NoConnection::Away(reason)) if spool.is_some() => {
                tracing::warn!(reason, "the broker is away; batches wait in the spool");
                None
            }
            Err(why) => return Err(why.error()),
        };
        let (cancel, failed) = (CancellationToken::new(), CancellationToken::new());
        let others = TaskTracker::new();
        let outbox = Arc::new(Outbox::new(topology.shards));
        let told: link::Told = Box::new({
            let outbox = Arc::clone(&outbox);
            move |standing| match standing {
                Ok(()) => outbox.open(),
                Err(error) => outbox.fail_all(&error),
            }
        });
        let link = Link {
            options: options.clone(),
            purpose: "publish",
            cancel: cancel.clone(),
            first,
            failed: failed.clone(),
            told,
        };
        let publishing = link.keep(&others, {
            let (outbox, topology, options) = (Arc::clone(&outbox), topology.clone(), options.clone());
            move |connection| {
                publisher::serve(Arc::clone(&outbox), connection, topology.clone(), options.clone())
            }
        });
        let dead = Arc::new(dead::DeadLetterBox::new(&options));
        let sender =
            Sender { outbox, topology: topology.clone(), options: options.clone(), publishing, dead };
        if let Some(spool) = &spool {
            attend(spool, &sender, &others, &cancel, &failed);
        }
        Ok(Self(Arc::new(Shared {
            options,
            topology,
            sender,
            spool,
            announcing: OnceLock::new(),
            taken: AtomicBool::new(false),
            share: watch::Sender::new(Share::default()),
            ranges_share: watch::Sender::new(Share::default()),
            closing: CancellationToken::new(),
            writers: TaskTracker::new(),
            others,
            failed,
            _tasks: cancel.clone().drop_guard(),
            cancel,
        })))
    }

    fn link(&self, purpose: &'static str) -> Link {
        Link {
            options: self.0.options.clone(),
            purpose,
            cancel: self.0.cancel.clone(),
            first: None,
            failed: self.0.failed.clone(),
            told: Box::new(|_| {}),
        }
    }

    /// With a spool batches are taken also while the broker is away.
    pub(super) fn serving(&self) -> Result<(), Error> {
        if self.0.failed.is_cancelled() {
            return Err(failure::unavailable(
                "a task of the bus ended by itself; the collector has to be started again",
            ));
        }
        if let Some(spool) = &self.0.spool {
            spool.check_alive()?;
        }
        match (self.0.sender.serving(), &self.0.spool) {
            (Err(_), Some(spool)) => spool.serving(),
            (serving, _) => serving,
        }
    }

    /// Waits until something ends by itself that shouldn't. Cancel-safe.
    pub(super) async fn broken(&self) {
        let spool = async {
            match &self.0.spool {
                Some(spool) => spool.ended().await,
                None => pending().await,
            }
        };
        // Both are cancel-safe: tokens.
        tokio::select! {
            () = self.0.failed.cancelled() => {}
            () = spool => {}
        }
    }

    pub(super) fn spooled(&self) -> Option<Spooled> {
        self.0.spool.as_ref().map(Spool::kept)
    }

    pub(super) async fn publish(&self, batch: Encoded) -> Result<Published, Error> {
        if self.0.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        let Some(spool) = &self.0.spool else { return self.0.sender.send(&batch).await };
        // While anything of its shard waits there, what comes queues up behind it: a project's batches stay in order.
        let shard = self.0.topology.shard(batch.project);
        if spool.holds(shard) {
            // A full queue is storage being behind: its clients wait, the disk is kept for when the broker is away.
            self.0.sender.check_room(shard)?;
        } else {
            match self.0.sender.send(&batch).await {
                Err(Error::Unavailable { .. } | Error::Away { .. }) => {}
                answered => return answered,
            }
        }
        spool.keep(&batch, shard, self.0.sender.serving().is_ok()).await
    }

    /// Starts taking, with one receiving end a writer; the shards are dealt out among them.
    pub(super) fn accepted(&self) -> Vec<Taking> {
        if self.0.taken.swap(true, Ordering::AcqRel) {
            return Vec::new();
        }
        let (topology, options) = (self.0.topology.clone(), self.0.options.clone());
        self.link("dead letters").keep(&self.0.others, move |connection| {
            dead::watch(connection, topology.clone(), options.clone())
        });
        let writers = self.0.options.writers.clamp(1, self.0.topology.shards.into());
        (0..writers).map(|writer| self.taking(writer, writers)).collect()
    }

    fn taking(&self, writer: usize, writers: usize) -> Taking {
        let shards: Vec<u16> =
            (0..self.0.topology.shards).filter(|shard| usize::from(*shard) % writers == writer).collect();
        let (source, deliveries) = consumer::Source::new(self.0.share.subscribe());
        let source = Arc::new(Mutex::new(source));
        let (topology, options) = (self.0.topology.clone(), self.0.options.clone());
        let closing = self.0.closing.clone();
        self.link("storage").keep(&self.0.writers, {
            let closing = closing.clone();
            move |connection| {
                let (source, topology, options) = (Arc::clone(&source), topology.clone(), options.clone());
                let (shards, closing) = (shards.clone(), closing.clone());
                async move {
                    let mut source = source.lock().await;
                    source.serve(&connection, &topology, &shards, &options, &closing).await
                }
            }
        });
        Taking::new(deliveries, closing)
    }

    pub(super) fn set_share(&self, work: Work, share: Share) {
        match work {
            Work::Batches => self.0.share.send_replace(share),
            Work::Ranges => self.0.ranges_share.send_replace(share),
        };
    }

    pub(super) fn announce(&self, ranges: &[StoredRange]) {
        let new: Vec<StoredRange> =
            ranges.iter().copied().filter(|range| range.first <= range.last).collect();
        if new.is_empty() {
            return;
        }
        // What finds no room is lost: the views look at the log.
        let _ = self.0.announcing.get_or_init(|| self.announcer()).try_send(new);
    }

    fn announcer(&self) -> mpsc::Sender<Vec<StoredRange>> {
        let (sender, announced) = mpsc::channel(fan::WAITING_MAX);
        let announced = Arc::new(Mutex::new(announced));
        let (topology, options) = (self.0.topology.clone(), self.0.options.clone());
        self.link("announce").keep(&self.0.others, move |connection| {
            fan::announce(Arc::clone(&announced), connection, topology.clone(), options.clone())
        });
        sender
    }

    pub(super) fn ranges(&self) -> mpsc::Receiver<Hint> {
        let (hints, receiver) = mpsc::channel(fan::WAITING_MAX);
        let (topology, options) = (self.0.topology.clone(), self.0.options.clone());
        let share = self.0.ranges_share.subscribe();
        self.link("insight").keep(&self.0.others, move |connection| {
            fan::listen(hints.clone(), connection, topology.clone(), options.clone(), share.clone())
        });
        receiver
    }

    pub(super) async fn forget_ranges(&self) -> Result<(), Error> {
        let connection = link::connect(&self.0.options, "forget ranges").await;
        let connection = connection.map_err(|why| why.error())?;
        fan::forget(&connection, &self.0.topology, &self.0.options).await
    }

    pub(super) fn close(&self) {
        self.0.closing.cancel();
    }

    pub(super) async fn closed(&self) {
        self.0.closing.cancelled().await;
    }

    /// Waits until the broker knows what was stored, after [`RabbitMq::close`] and the last answer.
    pub(super) async fn finish(&self) {
        self.close();
        self.0.writers.close();
        if tokio::time::timeout(FINISH_TIMEOUT, self.0.writers.wait()).await.is_err() {
            tracing::warn!("the broker was not told in time what is stored; it delivers some batches again");
        }
        if let Some(spool) = &self.0.spool
            && tokio::time::timeout(FINISH_TIMEOUT, spool.end()).await.is_err()
        {
            tracing::warn!(
                "the disk of the spool does not answer; the next edge on its folder takes over what is there"
            );
        }
    }

    pub(super) async fn bury(&self, batch: &ValidBatch, reason: &str) -> Result<(), Error> {
        self.0.sender.dead.bury(&dead::messages(batch), reason).await
    }

    pub(super) async fn dead_letters(&self) -> Result<DeadLetters, Error> {
        DeadLetters::open(&self.0.options).await
    }
}
