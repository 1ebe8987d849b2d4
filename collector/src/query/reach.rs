use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Error, Reader};
use crate::project::ProjectId;

/// How long a question waits for what it is about to come far enough. Counts follow the log within a tenth of a second when all is
/// well; who waits longer had better hear of it, and ask again.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often is looked meanwhile: from 10 ms, doubling to 200 ms, so that a hundred who wait ask 500 times a second.
const LOOK_PERIOD: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

impl Reader {
    /// Waits until the log goes through a position, for at most five seconds.
    ///
    /// # Errors
    /// [`Error::Behind`] when it doesn't by then.
    pub async fn log_reaches(&self, project: ProjectId, wanted: u64) -> Result<(), Error> {
        let mut patience = Patience::new("events", wanted);
        while patience.is_needed(self.store.head(project).await?).await? {}
        Ok(())
    }

    /// Waits until the counts go through a position, for at most five seconds.
    ///
    /// # Errors
    /// [`Error::Behind`] when they don't by then.
    pub async fn counts_reach(&self, project: ProjectId, wanted: u64) -> Result<(), Error> {
        let mut patience = Patience::new("counts", wanted);
        while patience.is_needed(self.store.view_state(project).await?.applied_to).await? {}
        Ok(())
    }
}

/// Waiting between looks.
struct Patience {
    what: &'static str,
    wanted: u64,
    end: Instant,
    period: Duration,
}

impl Patience {
    fn new(what: &'static str, wanted: u64) -> Self {
        Self { what, wanted, end: Instant::now() + PATIENCE, period: LOOK_PERIOD.0 }
    }

    /// Waits until it is time for the next look; `false` when none is needed.
    async fn is_needed(&mut self, reached: u64) -> Result<bool, Error> {
        let left = self.end.saturating_duration_since(Instant::now());
        if reached >= self.wanted {
            return Ok(false);
        }
        if left.is_zero() {
            return Err(Error::Behind { what: self.what, reached, wanted: self.wanted });
        }
        sleep(self.period.min(left)).await;
        self.period = (self.period * 2).min(LOOK_PERIOD.1);
        Ok(true)
    }
}
