use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::project::{KeyHash, ProjectId, Standing};
use crate::store::{Applied, CountTotals};

use super::{COUNTER_NAMES_MAX, Counters};

/// How long an answer about a key is believed.
const KEY_TTL: Duration = Duration::from_secs(1);

/// Keys remembered, unknown ones included: 10,000 of about 150 B are 1.5 MB.
const KEYS_MAX: u64 = 10_000;

#[derive(Clone)]
pub(super) struct Memory {
    standings: moka::sync::Cache<KeyHash, Standing>,
    counters: Arc<Mutex<HashMap<ProjectId, Live>>>,
}

struct Live {
    counters: Counters,
    /// Whether every name is there; otherwise only the state is followed.
    complete: bool,
}

impl Memory {
    pub(super) fn new() -> Self {
        let standings = moka::sync::Cache::builder().max_capacity(KEYS_MAX).time_to_live(KEY_TTL).build();
        Self { standings, counters: Arc::default() }
    }

    pub(super) fn standing(&self, hash: &KeyHash) -> Option<Standing> {
        self.standings.get(hash)
    }

    pub(super) fn remember(&self, hash: KeyHash, standing: Standing) {
        self.standings.insert(hash, standing);
    }

    pub(super) fn forget_keys(&self) {
        self.standings.invalidate_all();
    }

    /// Held for the time of one range; a panic while adding leaves counters that the next reset mends.
    fn lock(&self) -> MutexGuard<'_, HashMap<ProjectId, Live>> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count_up(&self, project: ProjectId, applied: &Applied) -> bool {
        let mut all = self.lock();
        let Some(live) = all.get_mut(&project) else { return false };
        let counters = &mut live.counters;
        if counters.generation != applied.generation || counters.applied_to != applied.from {
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

    pub(super) fn counters(&self, project: ProjectId) -> Option<Counters> {
        self.lock().get(&project).filter(|live| live.complete).map(|live| live.counters.clone())
    }

    pub(super) fn counters_state(&self, project: ProjectId) -> Option<(u64, u64)> {
        self.lock().get(&project).map(|live| (live.counters.generation, live.counters.applied_to))
    }

    pub(super) fn reset(&self, project: ProjectId, totals: CountTotals) {
        let CountTotals { state, per_name, complete } = totals;
        let counters = Counters { generation: state.generation, applied_to: state.applied_to, per_name };
        self.lock().insert(project, Live { counters, complete });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ViewState;

    const SHOP: ProjectId = ProjectId(1);

    fn memory() -> Memory {
        let memory = Memory::new();
        let state = ViewState { generation: 2, applied_to: 10 };
        let per_name = BTreeMap::from([("a".to_owned(), 10)]);
        memory.reset(SHOP, CountTotals { state, per_name, complete: true });
        memory
    }

    fn applied(generation: u64, from: u64, through: u64) -> Applied {
        Applied { generation, from, through, per_name: vec![("a".to_owned(), through - from)] }
    }

    #[test]
    fn only_what_follows_on_is_added() {
        let memory = memory();
        for other in [applied(2, 9, 12), applied(2, 11, 12), applied(1, 10, 12), applied(3, 10, 12)] {
            assert!(!memory.count_up(SHOP, &other), "{other:?}");
        }
        assert!(!memory.count_up(ProjectId(2), &applied(2, 10, 12)), "nothing is known of that project");
        assert_eq!(memory.counters(SHOP).unwrap().per_name["a"], 10);
        assert!(memory.count_up(SHOP, &applied(2, 10, 12)));
        let counters = memory.counters(SHOP).unwrap();
        assert_eq!((counters.applied_to, counters.per_name["a"]), (12, 12));
    }

    #[test]
    fn more_names_than_are_kept_leave_the_state_alone() {
        let memory = memory();
        let names = (0..=COUNTER_NAMES_MAX).map(|i| (format!("n{i}"), 1)).collect();
        assert!(memory.count_up(SHOP, &Applied { generation: 2, from: 10, through: 11, per_name: names }));
        assert_eq!(memory.counters(SHOP), None);
        assert_eq!(memory.counters_state(SHOP), Some((2, 11)));
        assert!(memory.count_up(SHOP, &applied(2, 11, 12)));
        assert_eq!((memory.counters(SHOP), memory.counters_state(SHOP)), (None, Some((2, 12))));
    }
}
