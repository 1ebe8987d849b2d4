use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt as _;

use super::sending::projects;
use super::world::{World, is_poison};
use crate::insight::Sketch;
use crate::project::ProjectId;
use crate::store::{Ledger, StoredEvent};

fn hold(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}

/// Counts of the first so many events, by name.
fn recount(events: &[StoredEvent], through: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for event in events.iter().filter(|event| event.position <= through) {
        *counts.entry(event.event.name.clone()).or_default() += 1;
    }
    counts
}

/// Sketches of the users of the first so many events, by name and how many hours from when. A sketch depends on its users
/// alone, so however the log was cut into steps, the bytes are these.
fn recount_users(events: &[StoredEvent], through: u64) -> BTreeMap<(String, i16, i64), Vec<u8>> {
    const HOUR_MS: i64 = 3_600_000;
    let mut sketches: BTreeMap<_, Sketch> = BTreeMap::new();
    for stored in events.iter().filter(|event| event.position <= through) {
        let Some(user) = &stored.event.user else { continue };
        let time_ms = stored.event.time.ms();
        for hours in [0_i16, 1, 24] {
            let length_ms = i64::from(hours) * HOUR_MS;
            let start_ms = if hours == 0 { 0 } else { time_ms - time_ms.rem_euclid(length_ms) };
            let cell = (stored.event.name.clone(), hours, start_ms);
            sketches.entry(cell).or_default().insert(user.as_bytes());
        }
    }
    sketches.into_iter().map(|(cell, sketch)| (cell, sketch.to_bytes())).collect()
}

/// Whatever the counters and the rollups say they contain, they contain: at any moment.
pub(super) fn counters(world: &World) -> Result<(), String> {
    projects().try_for_each(|project| counters_of(world, project))
}

fn counters_of(world: &World, project: ProjectId) -> Result<(), String> {
    const HOUR_MS: i64 = 3_600_000;
    let found = world.log.contents(project).map_err(|error| error.to_string())?;
    let mut rollup: BTreeMap<(String, i64), u64> = BTreeMap::new();
    for event in found.events.iter().filter(|event| event.position <= found.state.applied_to) {
        let time_ms = event.event.time.ms();
        *rollup.entry((event.event.name.clone(), time_ms - time_ms.rem_euclid(HOUR_MS))).or_default() += 1;
    }
    hold(rollup == found.rollup, || {
        format!("project {project}: the rollup at {:?} is {:?}, not {rollup:?}", found.state, found.rollup)
    })?;
    let users = recount_users(&found.events, found.state.applied_to);
    hold(users == found.users, || {
        let differ = |cell: &&(String, i16, i64)| users.get(*cell) != found.users.get(*cell);
        let cells: Vec<_> = users.keys().chain(found.users.keys()).filter(differ).collect();
        format!("project {project}: the users at {:?} differ in {cells:?}", found.state)
    })?;
    let counters = world.cache.counters(project).now_or_never().flatten();
    let Some(counters) = counters.filter(|counters| counters.epoch == world.log.epoch()) else {
        return Ok(());
    };
    hold(counters.applied_to <= found.head, || {
        format!("project {project}: the counters are at {} of {}", counters.applied_to, found.head)
    })?;
    let due = recount(&found.events, counters.applied_to);
    hold(counters.per_name == due, || {
        format!("project {project}: the counters are {counters:?}, not {due:?}")
    })
}

/// Everything, when all is at rest.
pub(super) fn everything(world: &World) -> Result<(), String> {
    projects().try_for_each(|project| log(world, project))?;
    counters(world)?;
    dead_letters(world)
}

fn log(world: &World, project: ProjectId) -> Result<(), String> {
    let found = world.log.contents(project).map_err(|error| error.to_string())?;
    let mut ids = BTreeSet::new();
    for (event, due) in found.events.iter().zip(1..) {
        hold(event.position == due, || format!("position {} stands where {due} is due", event.position))?;
        let id = event.event.id.uuid();
        hold(ids.insert(id), || format!("event {id} is stored twice"))?;
        let sent = world.clients.sent.get(&(project, id));
        hold(sent == Some(&event.event), || format!("{:?} was sent as {sent:?}", event.event))?;
    }
    hold(found.head == found.events.len() as u64, || {
        format!("the head is {} of {} events", found.head, found.events.len())
    })?;
    let (mut sum, mut last) = (Ledger::default(), 0);
    for (first, to, ledger) in &found.ranges {
        let fits = *first == last + 1 && to + 1 == first + ledger.stored && ledger.balances();
        hold(fits, || format!("range {first} to {to} with {ledger:?} follows {last}"))?;
        (sum, last) = (
            {
                sum += *ledger;
                sum
            },
            *to,
        );
    }
    hold(sum == found.ledger && sum.stored == found.head, || {
        format!("the ledger says {:?}, the ranges {sum:?}", found.ledger)
    })?;
    hold(found.state.applied_to == found.head, || {
        format!("project {project}: the counts are at {} of {}", found.state.applied_to, found.head)
    })?;
    let live = world.cache.counters(project).now_or_never().flatten();
    let state = live.as_ref().map(crate::cache::Counters::state);
    let current = state.is_some_and(|state| {
        (state.epoch, state.generation, state.applied_to)
            == (world.log.epoch(), found.state.generation, found.head)
    });
    hold(current, || {
        format!("project {project}: the counters are at {state:?}, the view at {:?}", found.state)
    })
}

/// What a client was confirmed is in the log; what can't be there is in the dead letters, and nothing else is.
fn dead_letters(world: &World) -> Result<(), String> {
    for (project, id) in &world.clients.owed {
        let poison = world.clients.sent.get(&(*project, *id)).is_some_and(is_poison);
        let (stored, dead) = (world.log.holds(*project, *id), world.dead.contains(&(*project, *id)));
        // Where a whole batch is refused, what was sound of it waits beside its culprit for somebody to replay it.
        let kept = if poison { dead && !stored } else { stored || dead && !world.quarantines };
        hold(kept, || {
            format!("event {id} of project {project}: stored {stored}, dead {dead}, poison {poison}")
        })?;
    }
    let sound = world.dead.iter().find(|key| !world.clients.sent.get(key).is_some_and(is_poison));
    hold(!world.quarantines || sound.is_none(), || format!("{sound:?} is among the dead letters"))
}
