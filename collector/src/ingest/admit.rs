use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{Error, Ingest, Valid};
use crate::cache::{Bound, Left, Taken, Used};
use crate::project::ProjectId;
use crate::store::{self, Store};

/// What a project may still send after a batch, where it is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The limit that is closest to its end.
    pub closest: Option<Left>,
    /// How many events were taken out of the limits, and how.
    taken: Option<(u64, Taken)>,
}

impl Ingest {
    /// Takes the events of a batch out of the project's limits, all of them or none.
    ///
    /// # Errors
    /// [`Error::Limited`] with when to send again; where there are limits, what is wrong with the bus.
    pub async fn admit(&self, project: ProjectId, valid: &Valid) -> Result<Admitted, Error> {
        if self.limits.none() {
            return Ok(Admitted { closest: None, taken: None });
        }
        // What can't be published would be taken only to be given back.
        self.bus.serving()?;
        let events = (valid.batch.events.len() + valid.refused.len()) as u64;
        let taken = self.cache.take(project, events, &self.limits).await;
        if taken.recount {
            self.recount(project);
        }
        let closest = closest(&taken);
        match taken.refused {
            None => Ok(Admitted { closest, taken: Some((events, taken)) }),
            Some(bound) => Err(Error::Limited { bound, retry_after: taken.retry_after, left: closest }),
        }
    }

    /// Gives back what a batch had taken that went no further: sent again, it is taken again.
    pub(super) async fn give_back(&self, project: ProjectId, admitted: &Admitted) {
        if let Some((events, taken)) = &admitted.taken {
            self.cache.give_back(project, *events, taken).await;
        }
    }

    /// Reads from the ledger what a project has sent in this day and month, while its batch goes on.
    fn recount(&self, project: ProjectId) {
        let (store, cache) = (self.store.clone(), self.cache.clone());
        tokio::spawn(async move {
            match used(&store, project).await {
                Ok(used) => drop(cache.recount_quota(project, used).await),
                Err(error) => tracing::debug!(%error, "the quota is recounted later"),
            }
        });
    }
}

/// What the ledger has of this day and month, UTC.
async fn used(store: &Store, project: ProjectId) -> Result<Used, store::Error> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let since = async |day: Date| {
        let midnight = TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0)).map_or(0, Timestamp::as_millisecond);
        store.received_since(project, midnight).await
    };
    Ok(Used { day: since(today).await?, month: since(today.first_of_month()).await? })
}

/// The limit of which the smallest share is left.
fn closest(taken: &Taken) -> Option<Left> {
    let share = |left: &Left| (u128::from(left.remaining) << 64) / u128::from(left.limit.max(1));
    [taken.rate, taken.day, taken.month].into_iter().flatten().min_by_key(share)
}

/// What a sender is told.
pub(super) fn words(bound: Bound, retry_after: Duration) -> String {
    let seconds = retry_after.as_secs_f64().ceil();
    match bound {
        Bound::Rate => {
            format!("the project sends more events a second than it may; send again in {seconds} s")
        }
        Bound::Day => format!("the project has sent its events of the day; send again in {seconds} s"),
        Bound::Month => format!("the project has sent its events of the month; send again in {seconds} s"),
    }
}
