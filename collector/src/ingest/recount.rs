use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::Offset;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Ingest;
use crate::cache::Used;
use crate::project::ProjectId;
use crate::store::{self, Store};

/// Projects whose quotas wait to be recounted: each once, however often it is asked for.
#[derive(Default)]
pub(super) struct Recounts {
    wanted: Mutex<Wanted>,
    some: Notify,
}

#[derive(Default)]
struct Wanted {
    projects: BTreeSet<ProjectId>,
    last: Option<ProjectId>,
}

impl Recounts {
    pub(super) fn want(&self, project: ProjectId) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).projects.insert(project);
        self.some.notify_one();
    }

    /// Takes the next one, all in turn. Cancel-safe: what is taken is returned at once.
    async fn next(&self) -> ProjectId {
        loop {
            if let Some(project) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return project;
            }
            self.some.notified().await;
        }
    }
}

impl Wanted {
    fn take(&mut self) -> Option<ProjectId> {
        let behind = self.last.map_or(Unbounded, Excluded);
        let next =
            self.projects.range((behind, Unbounded)).next().or_else(|| self.projects.first()).copied()?;
        self.projects.remove(&next);
        self.last = Some(next);
        Some(next)
    }
}

impl Ingest {
    /// Tells the quotas what the ledger knows, for each project that a batch was admitted of when it was due; one at a
    /// time, so that it never takes more than one of the store's connections. Until `cancel`.
    pub async fn recount_quotas(self, cancel: CancellationToken) {
        let recount = async {
            loop {
                let project = self.recounts.next().await;
                match used(&self.store, project).await {
                    // What can't be told now is asked for again within a second.
                    Ok(used) => drop(self.cache.recount_quota(project, used).await),
                    Err(error) => tracing::debug!(%error, "the quota is recounted later"),
                }
            }
        };
        // Cut short, nothing is lost: whoever comes next begins with the ledger.
        tokio::select! {
            () = cancel.cancelled() => {}
            () = recount => {}
        }
    }
}

/// What the ledger has of this day and month, UTC.
async fn used(store: &Store, project: ProjectId) -> Result<Used, store::Error> {
    let now = Timestamp::now();
    let on_day = now.as_second().div_euclid(86_400);
    let first_of_month = on_day + 1 - i64::from(Offset::UTC.to_datetime(now).day());
    let (day, month) =
        (store.received_since(project, on_day).await?, store.received_since(project, first_of_month).await?);
    Ok(Used { on_day, day, month })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_take_turns_and_wait_once() {
        let recounts = Recounts::default();
        let want = |of: &[u32]| of.iter().for_each(|id| recounts.want(ProjectId(*id)));
        let take = || recounts.wanted.lock().unwrap().take().map(|project| project.0);
        want(&[2, 1, 3, 1]);
        assert_eq!(take(), Some(1));
        want(&[1, 2]);
        assert_eq!([take(), take(), take(), take()], [Some(2), Some(3), Some(1), None]);
        want(&[1]);
        assert_eq!(take(), Some(1));
    }
}
