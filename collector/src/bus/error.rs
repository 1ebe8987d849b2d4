use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::store;

/// Why a batch wasn't taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More is waiting than the bus holds.
    #[error("more events are waiting to be stored than the collector holds; send again in {} s", .retry_after.as_secs())]
    Full {
        /// When there should be room again, from the speed at which events are being stored.
        retry_after: Duration,
    },
    /// The collector is stopping.
    #[error("the collector is stopping; send again")]
    Closed,
    /// The broker can't be used; nothing is known of the batch.
    #[error("{reason}")]
    Unavailable {
        /// What is wrong with it.
        reason: Arc<str>,
        /// When it should be back.
        retry_after: Duration,
    },
    /// There is no connection to the broker; nothing is known of the batch.
    #[error("{words}")]
    Away {
        /// Which broker, and what is wrong with it: for the log.
        words: Arc<str>,
        /// When it should be back.
        retry_after: Duration,
    },
    /// The folder of the spool can't be used.
    #[error("the spool folder {} can't be used: {reason}; see `edge.spool` in the configuration", .folder.display())]
    Spool {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// Storage failed; nothing is known of the batch.
    #[error("the batch could not be stored: {0}")]
    Storage(#[source] store::Error),
}

impl Error {
    /// The HTTP status that says it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Full { .. } => 429,
            Self::Closed | Self::Unavailable { .. } | Self::Away { .. } | Self::Spool { .. } => 503,
            Self::Storage(error) => error.status(),
        }
    }

    /// After how long the same batch may be taken; `None` when trying again is of no use.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after }
            | Self::Unavailable { retry_after, .. }
            | Self::Away { retry_after, .. } => Some(*retry_after),
            Self::Closed => Some(Duration::from_secs(1)),
            Self::Spool { .. } => None,
            Self::Storage(error) => error.retry(),
        }
    }

    /// Says it to anybody who asks: without the names of servers and folders.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Away { .. } => "RabbitMQ is away; send again".to_owned(),
            Self::Spool { .. } => "the spool can't be used; send again".to_owned(),
            Self::Storage(error) => format!("the batch could not be stored: {}", error.told()),
            _ => self.to_string(),
        }
    }
}
