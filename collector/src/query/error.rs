use std::time::Duration;

use crate::{bus, store};

/// Why a question has no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter has a value that can't be used.
    #[error("{name}: {message}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What is wrong with it and what it takes.
        message: String,
    },
    /// A cursor that was not given out here, or lies beyond the log.
    #[error("{0}")]
    Cursor(String),
    /// What was asked about isn't there yet.
    #[error("the {what} go through position {reached}, not yet through {wanted}; ask again")]
    Behind {
        /// What hasn't come that far.
        what: &'static str,
        /// How far it has come.
        reached: u64,
        /// How far it was wanted.
        wanted: u64,
    },
    /// There is no such thing in this project.
    #[error("{0}")]
    NotFound(String),
    /// The broker can't tell.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The store can't tell.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// When to ask again for what hadn't come far enough: views follow within a moment, once they can.
const BEHIND_RETRY_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// Says that a position is of another log.
    pub(super) fn beyond(position: u64, head: u64) -> Self {
        Self::Cursor(format!(
            "position {position} lies beyond the end of the log ({head}), which may have been restored; begin again"
        ))
    }

    /// The HTTP status that says it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Parameter { .. } | Self::Cursor(_) => 400,
            Self::Behind { .. } => 503,
            Self::NotFound(_) => 404,
            Self::Bus(error) => error.status(),
            Self::Store(error) => error.status(),
        }
    }

    /// Says it to anybody who asks: without the names of servers.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Bus(error) => error.told(),
            Self::Store(error) => error.told(),
            _ => self.to_string(),
        }
    }

    /// Says whether it names damage in what the asker's own project holds, which who asks may know.
    #[must_use]
    pub fn names_damage(&self) -> bool {
        matches!(self, Self::Store(store::Error::Unreadable { .. } | store::Error::CountsMissing(_)))
    }

    /// Says whether it is about how much is asked at once.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        matches!(self, Self::Store(store::Error::Crowded))
    }

    /// After how long the same question may have an answer; `None` when asking again is of no use.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::Bus(error) => error.retry(),
            Self::Store(error) => error.retry(),
            Self::Behind { .. } => Some(BEHIND_RETRY_AFTER),
            _ => None,
        }
    }
}
