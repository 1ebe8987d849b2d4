//! One signal to stop, and the order in which stages end. The order itself stands in [`crate::app::Running::stop`]:
//! intake, bus, storage, insight, store.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{self, SignalKind};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Listens to what asks a process to end. From its making on neither signal kills the process by itself.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

/// A signal that asks a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// From `kill`, service managers and container runtimes.
    Terminate,
    /// Ctrl-C on a terminal.
    Interrupt,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system refuses, which it does only out of resources.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal. Cancel-safe: a signal that nobody awaited is kept for the next call.
    pub async fn next(&mut self) -> Signal {
        // Both are cancel-safe by tokio's documentation of `Signal::recv`.
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Tasks of one stage, which end together.
#[derive(Debug)]
pub struct Stage {
    name: &'static str,
    tasks: TaskTracker,
    cancel: CancellationToken,
    any_ended: CancellationToken,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its tasks came to their end by themselves.
    Finished,
    /// The deadline passed and they were cancelled.
    Cancelled,
}

impl Stage {
    /// Makes a stage whose tasks are cancelled with `parent` at the latest.
    #[must_use]
    pub fn new(name: &'static str, parent: &CancellationToken) -> Self {
        let (tasks, any_ended) = (TaskTracker::new(), CancellationToken::new());
        Self { name, tasks, cancel: parent.child_token(), any_ended }
    }

    /// Returns the token that tells the stage's tasks to end at once.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Starts a task of the stage.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) {
        // Let go of by a panic, too.
        let ended = self.any_ended.clone().drop_guard();
        self.tasks.spawn(async move {
            let _ended = ended;
            task.await
        });
    }

    /// Waits until one of the stage's tasks has ended, for a stage that should be running; for ever when it has none.
    pub async fn any_ended(&self) {
        self.any_ended.cancelled().await;
    }

    /// Tells the stage's tasks to end at once, and waits for it.
    pub async fn cancel(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Closes the stage: waits for its tasks until the deadline, then cancels them and waits for that.
    pub async fn finish(&self, within: Duration) -> Ended {
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_ok() {
            return Ended::Finished;
        }
        tracing::warn!(stage = self.name, ?within, "a stage did not end in time and is cancelled");
        self.cancel.cancel();
        self.tasks.wait().await;
        Ended::Cancelled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt as _;
    use rustix::process::{Signal as Sent, getpid, kill_process};

    use super::*;

    /// Far more than a signal or a task needs, far less than anybody waits.
    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn both_signals_arrive_and_none_is_lost_while_nobody_waits() {
        let mut signals = Signals::listen().unwrap();
        kill_process(getpid(), Sent::TERM).unwrap();
        let first = tokio::time::timeout(DEADLINE, signals.next()).await.unwrap();
        assert_eq!((first, first.to_string().as_str()), (Signal::Terminate, "SIGTERM"));
        kill_process(getpid(), Sent::INT).unwrap();
        let second = tokio::time::timeout(DEADLINE, signals.next()).await.unwrap();
        assert_eq!((second, second.to_string().as_str()), (Signal::Interrupt, "SIGINT"));
    }

    #[tokio::test]
    async fn a_stage_that_ends_by_itself_is_waited_for() {
        let root = CancellationToken::new();
        let stage = Stage::new("short", &root);
        let done = Arc::new(AtomicBool::new(false));
        let task_done = Arc::clone(&done);
        stage.spawn(async move {
            tokio::task::yield_now().await;
            task_done.store(true, Ordering::SeqCst);
        });
        assert_eq!(stage.finish(DEADLINE).await, Ended::Finished);
        assert!(done.load(Ordering::SeqCst));
        assert!(!stage.token().is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_panics_is_noticed_though_others_of_its_stage_go_on() {
        let root = CancellationToken::new();
        let (stage, idle) = (Stage::new("broken", &root), Stage::new("idle", &root));
        let (token, die) = (stage.token(), CancellationToken::new());
        stage.spawn(async move { token.cancelled().await });
        stage.spawn({
            let die = die.clone();
            async move {
                die.cancelled().await;
                panic!("on purpose");
            }
        });
        assert!(stage.any_ended().now_or_never().is_none());
        die.cancel();
        tokio::time::timeout(DEADLINE, stage.any_ended()).await.unwrap();
        assert!(idle.any_ended().now_or_never().is_none(), "it has nothing to do");
        stage.cancel().await;
    }

    #[tokio::test]
    async fn a_stage_that_does_not_end_is_cancelled_at_the_deadline_without_its_siblings() {
        let root = CancellationToken::new();
        let (stuck, sibling) = (Stage::new("stuck", &root), Stage::new("sibling", &root));
        let token = stuck.token();
        stuck.spawn(async move { token.cancelled().await });
        assert_eq!(stuck.finish(Duration::from_millis(1)).await, Ended::Cancelled);
        assert!(!sibling.token().is_cancelled());
        root.cancel();
        assert!(sibling.token().is_cancelled());
    }
}
