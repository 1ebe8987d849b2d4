use std::fmt;

use serde::Serialize;

use super::{Backend, Error, Store};
use crate::project::ProjectId;

/// The collector's ledger: what came in and what became of it. Written in the storing transaction, so it can't disagree
/// with the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Events that arrived in batches that were answered.
    pub received: u64,
    /// Those that were new.
    pub stored: u64,
    /// Those that were in the log already.
    pub duplicate: u64,
    /// Those that were kept aside.
    pub quarantined: u64,
    /// Those that were refused for good.
    pub rejected: u64,
}

impl Ledger {
    /// Says whether every event that came in has one verdict.
    #[must_use]
    pub fn balances(&self) -> bool {
        let verdicts = [self.stored, self.duplicate, self.quarantined, self.rejected];
        Some(self.received) == verdicts.into_iter().try_fold(0, u64::checked_add)
    }
}

/// `received 5, stored 3, duplicate 1, quarantined 0, rejected 1`.
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, stored, duplicate, quarantined, rejected } = self;
        write!(f, "received {received}, stored {stored}, duplicate {duplicate}, ")?;
        write!(f, "quarantined {quarantined}, rejected {rejected}")
    }
}

/// Figures that were tampered with stop at the largest number instead of wrapping around.
impl std::ops::AddAssign for Ledger {
    fn add_assign(&mut self, other: Self) {
        self.received = self.received.saturating_add(other.received);
        self.stored = self.stored.saturating_add(other.stored);
        self.duplicate = self.duplicate.saturating_add(other.duplicate);
        self.quarantined = self.quarantined.saturating_add(other.quarantined);
        self.rejected = self.rejected.saturating_add(other.rejected);
    }
}

impl Store {
    /// Adds up the events a project sent since a UTC day began, in days since 1970, whatever became of them: what a quota
    /// that was lost begins with. Reads a row a day.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn received_since(&self, project: ProjectId, day: i64) -> Result<u64, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.received_since(project, day).await,
            Backend::Postgres(postgres) => postgres.received_since(project, day).await,
        }
    }

    /// Forgets what projects sent on days that nobody asks for any more: it needs them for quotas and for comparing a month
    /// with that of the year before. Returns how many rows those were. Several processes may do it at once.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn forget_usage(&self) -> Result<u64, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.forget_usage().await,
            Backend::Postgres(postgres) => postgres.forget_usage().await,
        }
    }
}

/// Days of usage that are kept behind the present one. A quota needs 31; the month of a year ago and 366 days up to now are
/// 397. A project has 401 rows of about 60 B at most: 24 KB, and 240 MB for 10,000 projects.
pub(super) const USAGE_DAYS_MAX: i64 = 400;
