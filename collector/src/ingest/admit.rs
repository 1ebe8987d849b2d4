use std::time::Duration;

use super::{Error, Ingest, Prepared};
use crate::cache::{Bound, Left, Taken};
use crate::project::{OwnLimits, ProjectId};

/// What a project may still send after a batch, where it is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The limit that is closest to its end.
    pub closest: Option<Left>,
    /// How many events were taken out of the limits, and how.
    taken: Option<(u64, Taken)>,
}

impl Ingest {
    /// Takes the events of a batch out of its project's limits, all of them or none. What the project has of its `own`
    /// stands in place of what holds for all.
    ///
    /// # Errors
    /// [`Error::Limited`] with when to send again; where there are limits, what is wrong with the bus.
    pub async fn admit(&self, own: OwnLimits, prepared: &Prepared) -> Result<Admitted, Error> {
        let limits = self.limits.for_project(own);
        if limits.none() {
            return Ok(Admitted { closest: None, taken: None });
        }
        // What can't be published would be taken only to be given back.
        self.bus.serving()?;
        let project = prepared.project;
        let events = (prepared.events + prepared.refused.len()) as u64;
        let taken = self.cache.take(project, events, &limits).await;
        if taken.recount {
            self.recounts.want(project);
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
