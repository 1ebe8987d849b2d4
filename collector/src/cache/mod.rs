//! What can be lost at any moment: grants of keys, live counters. Everything here is rebuilt from the store.

/// The cache within one process.
mod memory;

use std::collections::BTreeMap;

use crate::project::{KeyHash, ProjectId, Standing};
use crate::store::{Applied, CountTotals};

/// Names a project may have before its live counters are no longer kept: 100,000 names of 100 B are 10 MB. Counts then
/// come from the store.
pub const COUNTER_NAMES_MAX: usize = 100_000;

/// The cache, whatever stands behind it. Clones share it.
#[derive(Clone)]
pub struct Cache(Backend);

#[derive(Clone)]
enum Backend {
    Memory(memory::Memory),
}

/// The live count of every name of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The generation of the counts they follow.
    pub generation: u64,
    /// The last position they contain.
    pub applied_to: u64,
    /// How many events of each name.
    pub per_name: BTreeMap<String, u64>,
}

impl Cache {
    /// Makes a cache within this process.
    #[must_use]
    pub fn memory() -> Self {
        Self(Backend::Memory(memory::Memory::new()))
    }

    /// Recalls what the store said of a key, unknown ones included: a flood of wrong keys asks it no more than once a second.
    /// Entries live for one second, so that a revoked key stops working within one.
    pub async fn standing(&self, hash: &KeyHash) -> Option<Standing> {
        match &self.0 {
            Backend::Memory(memory) => memory.standing(hash),
        }
    }

    /// Remembers what the store said of a key.
    pub async fn remember(&self, hash: KeyHash, standing: Standing) {
        match &self.0 {
            Backend::Memory(memory) => memory.remember(hash, standing),
        }
    }

    /// Forgets every key at once, after one was made or revoked here.
    pub async fn forget_keys(&self) {
        match &self.0 {
            Backend::Memory(memory) => memory.forget_keys(),
        }
    }

    /// Adds exactly what was added to the stored counts. `false` when it doesn't follow on what is here: then nothing was
    /// added and the counters are to be reset from the store.
    pub async fn count_up(&self, project: ProjectId, applied: &Applied) -> bool {
        match &self.0 {
            Backend::Memory(memory) => memory.count_up(project, applied),
        }
    }

    /// Recalls the live counters; `None` when there are none, or more names than are kept.
    pub async fn counters(&self, project: ProjectId) -> Option<Counters> {
        match &self.0 {
            Backend::Memory(memory) => memory.counters(project),
        }
    }

    /// Recalls the generation and `applied_to` of the live counters alone.
    pub async fn counters_state(&self, project: ProjectId) -> Option<(u64, u64)> {
        match &self.0 {
            Backend::Memory(memory) => memory.counters_state(project),
        }
    }

    /// Replaces the live counters by what the store holds.
    pub async fn reset(&self, project: ProjectId, totals: CountTotals) {
        match &self.0 {
            Backend::Memory(memory) => memory.reset(project, totals),
        }
    }
}
