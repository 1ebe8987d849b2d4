use std::time::Duration;

use eventbucket_protocol::BatchId;
use tokio::time::{Instant, sleep};

use super::{Error, Reader};
use crate::project::ProjectId;
use crate::store::BatchRecord;

/// How long a question may wait for the final verdicts, in seconds: less than the minute after which proxies give up.
pub const WAIT_S_MAX: u64 = 30;

/// How often the store is asked while somebody waits: from 20 ms, the time an idle collector takes, doubling to 500 ms.
const LOOK_PERIOD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

impl Reader {
    /// Finds out what became of a batch, waiting for it up to `wait`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing of it is stored.
    pub async fn batch(&self, project: ProjectId, id: &str, wait: Duration) -> Result<BatchRecord, Error> {
        let batch = BatchId::from_text(id);
        let end = Instant::now() + wait;
        let (mut period, longest) = LOOK_PERIOD;
        loop {
            let found = self.store.batch(project, batch).await?;
            let left = end.saturating_duration_since(Instant::now());
            match found {
                Some(found @ BatchRecord::Final(_)) => return Ok(found),
                Some(pending) if left.is_zero() => return Ok(pending),
                None if left.is_zero() => {
                    let what = format!(
                        "nothing of batch {batch} is stored: it is on its way, or was never sent here"
                    );
                    return Err(Error::NotFound(what));
                }
                _ => sleep(period.min(left)).await,
            }
            period = (period * 2).min(longest);
        }
    }
}
