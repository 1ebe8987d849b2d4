use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::project::ProjectId;
use crate::store::{Applied, CountTotals};

/// Names a project may have before its live counters are no longer kept: 100,000 names of 100 B are 10 MB. Counts then
/// come from the store.
pub const COUNTER_NAMES_MAX: usize = 100_000;

/// The cache can't be asked now, or didn't answer in time. That says nothing of what it holds: counters that can't be asked
/// for are not lost ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cache can't be asked now; it connects again by itself")]
pub struct Away;

/// The live count of every name of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The epoch of the log they follow.
    pub epoch: Uuid,
    /// The generation of the counts they follow.
    pub generation: u64,
    /// The last position they contain.
    pub applied_to: u64,
    /// How many events of each name.
    pub per_name: BTreeMap<String, u64>,
}

impl Counters {
    /// What they follow, and how far.
    #[must_use]
    pub fn state(&self) -> CountersState {
        CountersState { epoch: self.epoch, generation: self.generation, applied_to: self.applied_to }
    }
}

/// What the live counters of a project follow, and how far. The counts are a function of these three alone, so counters
/// that come back older are right again as soon as they have caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountersState {
    /// The epoch of the log.
    pub epoch: Uuid,
    /// The generation of the counts.
    pub generation: u64,
    /// The last position they contain.
    pub applied_to: u64,
}

impl CountersState {
    /// Says whether counters in this state may take the place of `other`: within a generation they never go back, and a
    /// generation never either. Epochs have no order: the caller's is the log's.
    pub(super) fn may_replace(&self, other: &Self) -> bool {
        self.epoch != other.epoch
            || (self.generation, self.applied_to) >= (other.generation, other.applied_to)
    }
}

/// Live counters within this process.
#[derive(Clone, Default)]
pub(super) struct LiveCounters(Arc<Mutex<HashMap<ProjectId, Live>>>);

#[cfg_attr(test, derive(Clone))]
struct Live {
    counters: Counters,
    /// Whether every name is there; otherwise only the state is followed.
    complete: bool,
}

impl LiveCounters {
    /// Held for the time of one range; a panic while adding leaves counters that the next reset mends.
    fn lock(&self) -> MutexGuard<'_, HashMap<ProjectId, Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count_up(&self, project: ProjectId, epoch: Uuid, applied: &Applied) -> bool {
        let mut all = self.lock();
        let Some(live) = all.get_mut(&project) else { return false };
        let counters = &mut live.counters;
        let follows = CountersState { epoch, generation: applied.generation, applied_to: applied.from };
        if counters.state() != follows {
            return false;
        }
        counters.applied_to = applied.through;
        if live.complete {
            for (name, count) in &applied.per_name {
                match counters.per_name.get_mut(name) {
                    Some(sum) => *sum += count,
                    None => drop(counters.per_name.insert(name.clone(), *count)),
                }
            }
            if counters.per_name.len() > COUNTER_NAMES_MAX {
                live.complete = false;
                counters.per_name = BTreeMap::new();
            }
        }
        true
    }

    pub(super) fn all(&self, project: ProjectId) -> Option<Counters> {
        self.lock().get(&project).filter(|live| live.complete).map(|live| live.counters.clone())
    }

    pub(super) fn state(&self, project: ProjectId) -> Option<CountersState> {
        self.lock().get(&project).map(|live| live.counters.state())
    }

    pub(super) fn reset(&self, project: ProjectId, epoch: Uuid, totals: CountTotals) -> bool {
        let CountTotals { state, per_name, complete } = totals;
        let counters =
            Counters { epoch, generation: state.generation, applied_to: state.applied_to, per_name };
        let mut all = self.lock();
        if all.get(&project).is_some_and(|live| !counters.state().may_replace(&live.counters.state())) {
            return false;
        }
        all.insert(project, Live { counters, complete });
        true
    }
}

/// Counters at rest, as a simulation puts them back.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct KeptCounters(HashMap<ProjectId, Live>);

#[cfg(test)]
impl LiveCounters {
    pub(super) fn keep(&self) -> KeptCounters {
        KeptCounters(self.lock().clone())
    }

    pub(super) fn restore(&self, kept: &KeptCounters) {
        self.lock().clone_from(&kept.0);
    }
}
