//! What workers ask of store, bus and cache. It is a seam for one purpose: a simulation answers the same questions, late, twice
//! or never, and so runs the same decisions.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::bus::message::{Published, StoredRange, ValidBatch};
use crate::bus::{self, Bus, Ticket};
use crate::cache::{Away, Cache, CountersState};
use crate::project::ProjectId;
use crate::store::{Appended, Applied, CountTotals, Error, Store, ViewProgress, ViewState};

/// The log and the views beside it.
pub(super) trait Log {
    fn epoch(&self) -> Uuid;
    async fn append_each(&self, batches: Arc<[ValidBatch]>) -> Vec<Result<Appended, Error>>;
    async fn quarantine(&self, batch: &ValidBatch, what: &str) -> Result<Appended, Error>;
    async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error>;
    async fn went_back(&self, project: ProjectId, epoch: Uuid, seen: ViewState) -> Result<bool, Error>;
    async fn apply_counts(&self, project: ProjectId, through: u64) -> Result<Applied, Error>;
    async fn count_totals(&self, project: ProjectId, names_max: usize) -> Result<CountTotals, Error>;
}

/// The live counters, and the readers of the live tail.
pub(super) trait Live {
    async fn counters_states(&self, projects: &[ProjectId]) -> Result<Vec<Option<CountersState>>, Away>;
    async fn count_up(&self, project: ProjectId, epoch: Uuid, applied: &Applied) -> Result<bool, Away>;
    async fn reset(&self, project: ProjectId, epoch: Uuid, totals: CountTotals) -> Result<bool, Away>;
    fn publish_tail(&self, project: ProjectId, bytes: &[u8]) -> bool;
}

/// Where batches come from and ranges go to.
pub(super) trait Source {
    type Ticket: Answer;
    fn is_durable(&self) -> bool;
    async fn bury(&self, batch: &ValidBatch, reason: &str) -> Result<(), bus::Error>;
    fn announce(&self, ranges: &[StoredRange]);
    /// Lets time pass before what is held is tried again. `false` when the bus is closed: then whoever brought it keeps it.
    async fn hold(&self, pause: Duration) -> bool;
}

/// Who is told what became of a batch.
pub(super) trait Answer {
    fn comes_again(&self) -> bool;
    fn answer(self, outcome: Result<Published, bus::Error>);
}

impl Log for Store {
    fn epoch(&self) -> Uuid {
        self.epoch()
    }

    async fn append_each(&self, batches: Arc<[ValidBatch]>) -> Vec<Result<Appended, Error>> {
        self.append_each(batches).await
    }

    async fn quarantine(&self, batch: &ValidBatch, what: &str) -> Result<Appended, Error> {
        self.quarantine(batch, what).await
    }

    async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        self.view_progress().await
    }

    async fn went_back(&self, project: ProjectId, epoch: Uuid, seen: ViewState) -> Result<bool, Error> {
        self.went_back(project, epoch, seen).await
    }

    async fn apply_counts(&self, project: ProjectId, through: u64) -> Result<Applied, Error> {
        self.apply_counts(project, through).await
    }

    async fn count_totals(&self, project: ProjectId, names_max: usize) -> Result<CountTotals, Error> {
        self.count_totals(project, names_max).await
    }
}

impl Live for Cache {
    async fn counters_states(&self, projects: &[ProjectId]) -> Result<Vec<Option<CountersState>>, Away> {
        self.counters_states(projects).await
    }

    async fn count_up(&self, project: ProjectId, epoch: Uuid, applied: &Applied) -> Result<bool, Away> {
        self.count_up(project, epoch, applied).await
    }

    async fn reset(&self, project: ProjectId, epoch: Uuid, totals: CountTotals) -> Result<bool, Away> {
        self.reset(project, epoch, totals).await
    }

    fn publish_tail(&self, project: ProjectId, bytes: &[u8]) -> bool {
        self.publish_tail(project, bytes)
    }
}

impl Source for Bus {
    type Ticket = Ticket;

    fn is_durable(&self) -> bool {
        self.is_durable()
    }

    async fn bury(&self, batch: &ValidBatch, reason: &str) -> Result<(), bus::Error> {
        self.bury(batch, reason).await
    }

    fn announce(&self, ranges: &[StoredRange]) {
        self.announce(ranges);
    }

    async fn hold(&self, pause: Duration) -> bool {
        // Both are cancel-safe: a token and a timer.
        tokio::select! {
            biased;
            () = self.closed() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

impl Answer for Ticket {
    fn comes_again(&self) -> bool {
        self.comes_again()
    }

    fn answer(self, outcome: Result<Published, bus::Error>) {
        self.answer(outcome);
    }
}
