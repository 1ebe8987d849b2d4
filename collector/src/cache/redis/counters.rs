use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::Redis;
use crate::cache::counters::{COUNTER_NAMES_MAX, Counters, CountersState};
use crate::project::ProjectId;
use crate::store::{Applied, CountTotals};

/// Fields that say what the counters follow; those of names begin with `=`.
const STATE: [&str; 3] = ["epoch", "generation", "applied_to"];

/// States asked for in one question: requests wait behind it for the millisecond it takes.
const STATES_AT_ONCE: usize = 500;

impl Redis {
    fn counters_name(&self, project: ProjectId) -> String {
        self.0.of_project(project, "counters")
    }

    pub(in crate::cache) async fn count_up(
        &self,
        project: ProjectId,
        epoch: Uuid,
        applied: &Applied,
    ) -> Option<bool> {
        let mut call = self.0.scripts.count_up.prepare_invoke();
        call.key(self.counters_name(project)).arg(epoch.simple().to_string());
        call.arg(applied.generation).arg(applied.from).arg(applied.through).arg(COUNTER_NAMES_MAX);
        for (name, count) in &applied.per_name {
            call.arg(name).arg(*count);
        }
        self.0.bulk.ask(async |mut connection| call.invoke_async(&mut connection).await).await
    }

    pub(in crate::cache) async fn counters(&self, project: ProjectId) -> Option<Counters> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.counters_name(project));
        let fields: HashMap<String, String> = self.0.bulk.command(command).await?;
        if fields.get("complete")? != "1" {
            return None;
        }
        let state = state(STATE.map(|name| fields.get(name).cloned()))?;
        let mut per_name = BTreeMap::new();
        for (field, count) in &fields {
            if let Some(name) = field.strip_prefix('=') {
                per_name.insert(name.to_owned(), count.parse().ok()?);
            }
        }
        let CountersState { epoch, generation, applied_to } = state;
        Some(Counters { epoch, generation, applied_to, per_name })
    }

    pub(in crate::cache) async fn counters_states(
        &self,
        projects: &[ProjectId],
    ) -> Option<Vec<Option<CountersState>>> {
        let mut states = Vec::with_capacity(projects.len());
        for some in projects.chunks(STATES_AT_ONCE) {
            let mut questions = redis::pipe();
            for project in some {
                questions.cmd("HMGET").arg(self.counters_name(*project)).arg(&STATE[..]);
            }
            let asking = async |mut connection| questions.query_async(&mut connection).await;
            let fields: Vec<[Option<String>; 3]> = self.0.asks.ask(asking).await?;
            states.extend(fields.into_iter().map(state));
        }
        Some(states)
    }

    pub(in crate::cache) async fn reset(
        &self,
        project: ProjectId,
        epoch: Uuid,
        totals: &CountTotals,
    ) -> Option<bool> {
        let mut call = self.0.scripts.reset.prepare_invoke();
        call.key(self.counters_name(project)).arg(epoch.simple().to_string());
        call.arg(totals.state.generation).arg(totals.state.applied_to).arg(u8::from(totals.complete));
        for (name, count) in &totals.per_name {
            call.arg(name).arg(*count);
        }
        self.0.bulk.ask(async |mut connection| call.invoke_async(&mut connection).await).await
    }
}

fn state([epoch, generation, applied_to]: [Option<String>; 3]) -> Option<CountersState> {
    Some(CountersState {
        epoch: epoch?.parse().ok()?,
        generation: generation?.parse().ok()?,
        applied_to: applied_to?.parse().ok()?,
    })
}
