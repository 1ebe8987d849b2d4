use std::time::Duration;

use crate::cache::{Bound, Left};
use crate::{bus, store};

/// Why a batch has no verdicts.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody was ever given this key.
    #[error("this key is not known here; check that it was copied whole and belongs to this collector")]
    UnknownKey,
    /// The key was replaced.
    #[error("this key was revoked when a new one was made; use the new one")]
    RevokedKey,
    /// What the key may do can't be looked up.
    #[error("the key can't be checked at the moment: {0}")]
    Store(#[source] store::Error),
    /// Nothing can be stored.
    #[error("nothing can be stored at the moment: {0}")]
    Storage(#[source] store::Error),
    /// The project may not send as much.
    #[error("{}", super::admit::words(*.bound, *.retry_after))]
    Limited {
        /// Which limit it is.
        bound: Bound,
        /// When the same batch would be taken.
        retry_after: Duration,
        /// What is left of the limit that is closest to its end.
        left: Option<Left>,
    },
    /// The batch wasn't taken, or nothing is known of it.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// Storage didn't answer for every event.
    #[error("storage gave {verdicts} verdicts for {events} events; send the batch again")]
    VerdictsMissing {
        /// How many events were published.
        events: usize,
        /// How many verdicts came back.
        verdicts: usize,
    },
}

impl Error {
    /// The HTTP status that says it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownKey | Self::RevokedKey => 401,
            Self::Limited { .. } => 429,
            Self::Store(error) | Self::Storage(error) => error.status(),
            Self::Bus(error) => error.status(),
            Self::VerdictsMissing { .. } => 500,
        }
    }

    /// Says it to anybody who asks: without the names of servers.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Store(error) => format!("the key can't be checked at the moment: {}", error.told()),
            Self::Storage(error) => format!("nothing can be stored at the moment: {}", error.told()),
            Self::Bus(error) => error.told(),
            _ => self.to_string(),
        }
    }

    /// After how long the same request may succeed; `None` when trying again is of no use.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after, .. } => Some(*retry_after),
            Self::Store(error) | Self::Storage(error) => error.retry(),
            Self::Bus(error) => error.retry(),
            Self::UnknownKey | Self::RevokedKey | Self::VerdictsMissing { .. } => None,
        }
    }
}
