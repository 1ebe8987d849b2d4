//! Batches that wait on a disk of this process' own while the broker is away. What is kept here was accepted: it is synced
//! before anybody is told so, and goes only when the broker has confirmed it. A process that dies leaves its file to the
//! next one that looks into the folder.

/// The thread that owns the files.
mod disk;

/// Files that were moved or deleted, written again.
mod rescue;

/// How a batch is written there.
mod record;

/// Whether a folder keeps what is put into it.
mod folder;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use eventbucket::message_spool::{Message, MessageSpool, Trouble};
use eventbucket_protocol::{Timestamp, Verdict};
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::message::{Published, Spooled};
use super::wire::Encoded;
use super::{DrainRate, Error};
use crate::project::ProjectId;
pub(super) use disk::Taken;
use disk::{Disk, Order};
use folder::Home;
pub(super) use record::Unreadable;

/// Where batches wait while the broker is away, and how many.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// A folder that outlives the process and the machine's restart. Several processes may share it.
    pub folder: PathBuf,
    /// Bytes that may wait in it for this process.
    pub bytes_max: u64,
}

/// Bytes on their way to the disk: 48 MiB, as much as may wait for the broker. More are refused with 429.
const COMING_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// How often files of dead processes are looked for: the time their batches wait for nothing, at a few system calls a look.
const LOOK_PERIOD: Duration = Duration::from_secs(3);

/// Room comes back on a full disk when somebody frees some, not by waiting a second.
const DISK_RETRY_AFTER: Duration = Duration::from_secs(30);

/// After how long a spool that failed otherwise is tried again: its file is opened anew at the next look.
const FAILED_RETRY_AFTER: Duration = Duration::from_secs(5);

/// The spool of a process. Clones share it; its files are free for others when the last one is gone.
#[derive(Clone)]
pub(super) struct Spool {
    board: Arc<Board>,
    orders: mpsc::Sender<Order>,
    options: Arc<SpoolOptions>,
    home: Home,
    ended: CancellationToken,
}

/// Finds the shard of a project.
pub(super) type ShardOf = Arc<dyn Fn(ProjectId) -> u16 + Send + Sync>;

/// What is known of the spool without asking its thread.
struct Board {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    kept: Spooled,
    coming: Coming,
    lines: BTreeMap<u16, Line>,
    /// How fast bytes leave.
    drained: DrainRate,
    /// Why nothing can be kept.
    trouble: Option<Arc<str>>,
}

/// Batches of one shard.
#[derive(Default)]
struct Line {
    kept: u64,
    coming: u64,
}

/// What is on its way to the disk.
#[derive(Clone, Copy, Default)]
struct Coming {
    batches: u64,
    bytes: u64,
}

impl State {
    fn set(&mut self, (kept, lines): (Spooled, BTreeMap<u16, u64>)) {
        self.kept = kept;
        self.lines.values_mut().for_each(|line| line.kept = 0);
        lines.into_iter().for_each(|(shard, batches)| self.lines.entry(shard).or_default().kept = batches);
    }
}

impl Board {
    /// The state is consistent between statements, so a panic elsewhere doesn't make it unusable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spool {
    /// Opens the folder, takes over what dead processes left there, and starts the thread that owns the files.
    pub(super) async fn open(options: SpoolOptions, shard_of: ShardOf) -> Result<Self, Error> {
        let folder = options.folder.clone();
        let unusable = {
            let folder = folder.clone();
            move |reason: String| Error::Spool { folder, reason: reason.into() }
        };
        let board = Arc::new(Board { state: Mutex::default(), arrived: Notify::new() });
        let (orders, received) = mpsc::channel();
        let (opened, ended) = (Arc::clone(&board), CancellationToken::new());
        let end = ended.clone().drop_guard();
        let opening = tokio::task::spawn_blocking(move || {
            let (disk, home) = open_files(&folder, opened, shard_of)?;
            let thread = std::thread::Builder::new().name("spool".to_owned());
            // A file that is closed in the middle of nothing is whole, so nobody has to wait for the thread's end.
            let started = thread.spawn(move || {
                let _end = end;
                disk.obey(&received);
            });
            started.map(|_| home).map_err(|error| error.to_string())
        });
        match opening.await {
            Ok(Ok(home)) => Ok(Self { board, orders, options: Arc::new(options), home, ended }),
            Ok(Err(reason)) => Err(unusable(reason)),
            Err(panicked) => Err(unusable(panicked.to_string())),
        }
    }

    /// Says whether anything of a shard waits or is about to: then what comes queues up behind it.
    pub(super) fn holds(&self, shard: u16) -> bool {
        self.board.lock().lines.get(&shard).is_some_and(|line| line.kept + line.coming > 0)
    }

    /// How much waits.
    pub(super) fn kept(&self) -> Spooled {
        self.board.lock().kept
    }

    /// Says whether the thread is there that owns the files.
    pub(super) fn check_alive(&self) -> Result<(), Error> {
        if self.ended.is_cancelled() { Err(dead()) } else { Ok(()) }
    }

    /// Waits until the thread has ended. Cancel-safe.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Says whether a batch that comes now would be kept.
    pub(super) fn serving(&self) -> Result<(), Error> {
        self.check_alive()?;
        let state = self.board.lock();
        match &state.trouble {
            Some(reason) => Err(failed(Arc::clone(reason), FAILED_RETRY_AFTER)),
            None if state.kept.bytes >= self.options.bytes_max => Err(full(Duration::from_secs(1))),
            None => Ok(()),
        }
    }

    /// Keeps a batch behind those of its shard: it is on the disk when this returns. Batches of a shard that come together share a
    /// commit. While the broker is there for others the half is left for when it isn't.
    pub(super) async fn keep(
        &self,
        batch: &Encoded,
        shard: u16,
        broker_is_there: bool,
    ) -> Result<Published, Error> {
        let message = Message { kept_ms: batch.received.ms(), bytes: record::write(batch).into() };
        let bytes_max = self.options.bytes_max / if broker_is_there { 2 } else { 1 };
        self.admit(message.bytes.len() as u64, shard, bytes_max)?;
        let (answer, kept) = oneshot::channel();
        self.orders.send(Order::Keep { shard, message, answer }).map_err(|_| dead())?;
        match kept.await {
            Ok(Ok(())) => Ok(Published { verdicts: vec![Verdict::Accepted; batch.events] }),
            Ok(Err(trouble)) => Err(self.refusal(&trouble)),
            Err(_) => Err(dead()),
        }
    }

    fn admit(&self, bytes: u64, shard: u16, bytes_max: u64) -> Result<(), Error> {
        let mut state = self.board.lock();
        let on_disk = state.kept.bytes + state.coming.bytes;
        if on_disk + bytes > bytes_max {
            let missing = usize::try_from(bytes).unwrap_or(usize::MAX);
            return Err(full(state.drained.time_for(missing, Instant::now())));
        }
        if state.coming.bytes > 0 && state.coming.bytes + bytes > COMING_BYTES_MAX {
            return Err(Error::Full { retry_after: Duration::from_secs(1) });
        }
        state.coming.batches += 1;
        state.coming.bytes += bytes;
        state.lines.entry(shard).or_default().coming += 1;
        Ok(())
    }

    fn refusal(&self, trouble: &Trouble) -> Error {
        let folder = self.options.folder.display();
        match trouble {
            Trouble::DiskFull => {
                let reason = format!("the disk of the spool {folder} is full; free some of it");
                failed(reason.into(), DISK_RETRY_AFTER)
            }
            _ => failed(format!("the spool {folder} failed: {trouble}").into(), FAILED_RETRY_AFTER),
        }
    }

    /// Waits until something of a shard is kept. Cancel-safe.
    pub(super) async fn until_kept(&self, shard: u16) {
        loop {
            let arrived = self.board.arrived.notified();
            if self.board.lock().lines.get(&shard).is_some_and(|line| line.kept > 0) {
                return;
            }
            arrived.await;
        }
    }

    /// Reads the oldest batches of a shard, as many as are worth sending at once. They stay until [`Spool::remove`].
    pub(super) async fn oldest(&self, shard: u16) -> Vec<Taken> {
        let (answer, taken) = oneshot::channel();
        if self.orders.send(Order::Oldest { shard, answer }).is_err() {
            return Vec::new();
        }
        taken.await.unwrap_or_default()
    }

    /// Removes what the broker has confirmed. What a kill leaves of it is sent again, and known by then.
    pub(super) async fn remove(&self, groups: Vec<disk::Place>) {
        let (answer, removed) = oneshot::channel();
        if self.orders.send(Order::Remove { groups, answer }).is_ok() {
            let _ = removed.await;
        }
    }

    /// Takes over what processes leave that die from now on, until cancelled.
    pub(super) async fn look(self) {
        let mut look = tokio::time::interval(LOOK_PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut left_before, mut missing) = (0, false);
        loop {
            look.tick().await;
            let home = self.home.clone();
            // Where the folder was moved from nothing is made.
            let look = move || home.check().and_then(|()| MessageSpool::abandoned(home.path()));
            match tokio::task::spawn_blocking(look).await {
                Ok(Ok((files, found))) => {
                    missing = false;
                    disk::report(&self.options.folder, &files, found, &mut left_before);
                    // Without the thread the files are dropped here, and free again.
                    let _ = self.orders.send(Order::Adopt(files));
                }
                Ok(Err(Trouble::Moved)) => {
                    self.miss(&mut missing);
                    let _ = self.orders.send(Order::Adopt(Vec::new()));
                }
                Ok(Err(error)) => {
                    let folder = self.options.folder.display();
                    tracing::warn!(%error, %folder, "the spool folder can't be read");
                }
                Err(_) => return,
            }
        }
    }

    /// Says once that the folder is gone.
    fn miss(&self, missing: &mut bool) {
        if !std::mem::replace(missing, true) {
            let (batches, folder) = (self.kept().batches, self.options.folder.display());
            tracing::error!(
                batches,
                %folder,
                "the spool folder was moved or deleted: nothing is kept until it is back; what was kept is sent as long as this process lives"
            );
        }
    }

    /// Closes the files and waits for it. What is in them stays.
    pub(super) async fn end(&self) {
        let kept = self.kept();
        if kept.batches > 0 {
            let (batches, folder) = (kept.batches, self.options.folder.display());
            if self.home.check().is_ok() {
                tracing::warn!(batches, %folder, "batches stay in the spool; the next edge on this folder sends them");
            } else {
                tracing::error!(batches, %folder, "batches are in a spool folder that was moved or deleted; move it back for the next edge");
            }
        }
        // One that has ended already is closed.
        let _ = self.orders.send(Order::End);
        self.ended().await;
    }
}

fn open_files(folder: &Path, board: Arc<Board>, shard_of: ShardOf) -> Result<(Disk, Home), String> {
    folder::check_before(folder)?;
    let (files, found) = MessageSpool::abandoned(folder).map_err(|error| error.to_string())?;
    folder::check_after(folder)?;
    disk::report(folder, &files, found, &mut 0);
    let home = Home::of(folder.to_owned());
    let disk = Disk::open(home.clone(), board, shard_of, files).map_err(|error| error.to_string())?;
    Ok((disk, home))
}

/// The thread ends with the collector; before that only by a fault of its own.
fn dead() -> Error {
    failed("the spool's thread has ended; the collector has to be started again".into(), FAILED_RETRY_AFTER)
}

fn full(retry_after: Duration) -> Error {
    failed("the spool holds as much as it may (edge.spool_max); bring the broker back".into(), retry_after)
}

fn failed(reason: Arc<str>, retry_after: Duration) -> Error {
    Error::Unavailable { reason, retry_after }
}

/// When a batch was kept, of what its file says.
fn time(kept_ms: i64) -> Option<Timestamp> {
    Timestamp::from_ms(kept_ms)
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::{BatchId, Event};

    use super::super::message::ValidBatch;
    use super::*;

    /// Far more than any of this takes, far less than anybody waits.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn batch() -> Encoded {
        Encoded::of(&ValidBatch::<Event> {
            project: ProjectId(7),
            batch: BatchId::from_text("b"),
            received: Timestamp::from_ms(1_700_000_000_001).unwrap(),
            skew_ms: None,
            events: Vec::new(),
            undated: Vec::new(),
            refused: Vec::new(),
            part: 0,
            parts: 1,
        })
    }

    #[tokio::test]
    async fn a_thread_that_dies_is_noticed_by_whoever_asks_and_whoever_waits() {
        // The folder of temporary files may be in memory.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let options = SpoolOptions { folder: folder.path().to_owned(), bytes_max: 1 << 30 };
        let dying = Spool::open(options.clone(), Arc::new(|_| panic!("on purpose"))).await.unwrap();
        dying.keep(&batch(), 0, false).await.unwrap();
        dying.serving().unwrap();
        // It looks at whose the file is that another process left.
        let other = Spool::open(options, Arc::new(|_| 0)).await.unwrap();
        other.keep(&batch(), 0, false).await.unwrap();
        other.end().await;
        let looking = tokio::spawn(dying.clone().look());
        tokio::time::timeout(DEADLINE, dying.ended()).await.unwrap();
        assert_eq!(dying.serving().unwrap_err().status(), 503);
        let refused = dying.keep(&batch(), 0, false).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
        looking.abort();
    }
}
