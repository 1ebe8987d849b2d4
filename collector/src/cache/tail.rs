use bytes::Bytes;
use tokio::sync::broadcast;

use crate::project::ProjectId;

/// Messages a slow follower may fall behind before it misses some: 1,024 of 2 KB (five events) are 2 MB, held once for
/// all followers.
pub(super) const TAIL_WAITING_MAX: usize = 1_024;

/// The largest message that is fanned out: at 1,024 waiting this bounds a process to 256 MiB in the worst case, and Redis
/// cuts a subscriber off at 32 MB. Followers of a larger one read the log.
pub const TAIL_BYTES_MAX: usize = 256 * 1024;

/// What a follower of the live tail gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// What was published, in order.
    Message {
        /// Whose it is.
        project: ProjectId,
        /// As it was given to [`super::Cache::publish_tail`].
        bytes: Bytes,
    },
    /// Something may be missing before what comes next: read the log.
    Missed,
}

/// Follows the live tail of all projects.
pub struct TailReceiver(pub(super) broadcast::Receiver<Tail>);

impl TailReceiver {
    /// Waits for the next message; `None` when the cache was dropped. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Tail> {
        match self.0.recv().await {
            Ok(tail) => Some(tail),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Tail::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Fans out within this process.
#[derive(Clone)]
pub(super) struct TailFan(broadcast::Sender<Tail>);

impl TailFan {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(TAIL_WAITING_MAX))
    }

    pub(super) fn send(&self, tail: Tail) {
        // Nobody following is not an error.
        let _ = self.0.send(tail);
    }

    pub(super) fn subscribe(&self) -> TailReceiver {
        TailReceiver(self.0.subscribe())
    }
}
