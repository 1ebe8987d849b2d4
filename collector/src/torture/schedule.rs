//! What happens in one schedule, as a function of its seed alone: when clients send how much, and which fault strikes when.

use std::fmt;
use std::ops::RangeInclusive;

use super::fault::Fault;

/// Processes of each role.
pub(super) const PROCESSES_A_ROLE: usize = 2;

/// Applications that send.
pub(super) const CLIENTS: usize = 2;

/// Faults of one schedule: two to four seconds with the pauses between them.
const STEPS: (u64, u64) = (4, 10);

/// The pause before a fault: from the middle of what the last one broke to well after it was mended.
const PAUSE_MS: (u64, u64) = (0, 600);

/// Events that a client captures between two faults.
const EVENTS: (u64, u64) = (0, 160);

/// In every so many-th schedule the log ages: so many times a segment begins, and somewhere behind it what is old is dropped.
const AGEING_EVERY: u64 = 2;
const AGEINGS: (u64, u64) = (1, 3);

/// In every so many-th schedule PostgreSQL is put back to an earlier state.
const RESTORE_EVERY: u64 = 4;

/// A role of the collector, as far as its processes are struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Edge,
    Storage,
    Insight,
}

/// One process of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) role: Role,
    pub(super) number: usize,
}

/// A server that the collector stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    Postgres,
    RabbitMq,
    Redis,
}

/// Connections that can be cut or held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Those of the clients to one edge.
    Clients(usize),
    /// Those of one process to one server.
    Server(Place, Server),
    /// Those of every process to one server.
    Everyone(Server),
}

/// What may be done to the servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowed {
    /// Which can be killed.
    pub(super) kills: Vec<Server>,
    /// Whether old events may be dropped.
    pub(super) drops: bool,
    /// Whether PostgreSQL can be put back.
    pub(super) restores: bool,
}

/// A fault, what the clients capture before it, and how long it is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) pause_ms: u64,
    pub(super) events: [u64; CLIENTS],
    pub(super) fault: Fault,
}

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) steps: Vec<Step>,
    /// Whether the announcements of the very last events are lost, so that nothing tells the views of them but the log.
    pub(super) last_unannounced: bool,
}

impl Role {
    pub(super) const ALL: [Self; 3] = [Self::Edge, Self::Storage, Self::Insight];

    /// What such a process is told with `--roles`.
    pub(super) fn roles(self) -> &'static str {
        match self {
            Self::Edge => "edge,query",
            Self::Storage => "storage",
            Self::Insight => "insight,notify",
        }
    }
}

impl Server {
    pub(super) const ALL: [Self; 3] = [Self::Postgres, Self::RabbitMq, Self::Redis];
}

impl Place {
    pub(super) fn of(role: Role) -> impl Iterator<Item = Self> {
        (0..PROCESSES_A_ROLE).map(move |number| Self { role, number })
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        Role::ALL.into_iter().flat_map(Self::of)
    }
}

impl Schedule {
    /// Draws a schedule. What isn't allowed is replaced: the other faults stay as they are.
    pub(super) fn draw(seed: u64, allowed: &Allowed) -> Self {
        let mut random = Random(seed);
        let mut steps: Vec<Step> =
            (0..random.between(STEPS)).map(|_| Step::draw(&mut random, Fault::draw)).collect();
        let last_unannounced = random.below(2) == 0;
        if random.below(AGEING_EVERY) == 0 {
            for _ in 0..random.between(AGEINGS) {
                let places = 0..=steps.len();
                let begun = insert(&mut steps, places, &mut random, |_| Fault::NextSegment);
                let places = begun + 1..=steps.len();
                insert(&mut steps, places, &mut random, Fault::draw_drop);
            }
        }
        if random.below(RESTORE_EVERY) == 0 {
            // What is captured behind it is there to be undone.
            let places = 0..=steps.len() / 2;
            insert(&mut steps, places, &mut random, Fault::draw_restore);
        }
        for step in &mut steps {
            step.fault = step.fault.where_allowed(allowed);
        }
        Self { seed, steps, last_unannounced }
    }

    /// Says whether PostgreSQL is put back in it.
    pub(super) fn restores(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.fault, Fault::Restore(_)))
    }

    /// Says whether old events are dropped in it.
    pub(super) fn drops(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.fault, Fault::DropOld { .. }))
    }
}

/// Puts a step to one of some places, and says which.
fn insert(
    steps: &mut Vec<Step>,
    places: RangeInclusive<usize>,
    random: &mut Random,
    fault: impl FnOnce(&mut Random) -> Fault,
) -> usize {
    let place = places.start() + random.place(places.end() - places.start() + 1);
    let step = Step::draw(random, fault);
    steps.insert(place, step);
    place
}

impl Step {
    fn draw(random: &mut Random, fault: impl FnOnce(&mut Random) -> Fault) -> Self {
        let pause_ms = random.between(PAUSE_MS);
        let events = std::array::from_fn(|_| random.between(EVENTS));
        Self { pause_ms, events, fault: fault(random) }
    }
}

impl Place {
    pub(super) fn draw(random: &mut Random) -> Self {
        let role = Role::ALL[random.place(Role::ALL.len())];
        Self { role, number: random.place(PROCESSES_A_ROLE) }
    }
}

impl Link {
    pub(super) fn draw(random: &mut Random) -> Self {
        let server = Server::ALL[random.place(Server::ALL.len())];
        match random.below(10) {
            0..4 => Self::Clients(random.place(PROCESSES_A_ROLE)),
            4..8 => Self::Server(Place::draw(random), server),
            _ => Self::Everyone(server),
        }
    }
}

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): every seed, also of neighbours, begins a sequence of its own.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number from the first through the second.
    pub(super) fn between(&mut self, (first, last): (u64, u64)) -> u64 {
        first + self.below(last - first + 1)
    }

    /// A place among so many.
    pub(super) fn place(&mut self, places: usize) -> usize {
        usize::try_from(self.below(places as u64)).expect("it is below a usize")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge => "edge",
            Self::Storage => "storage",
            Self::Insight => "insight",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.number + 1)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
        })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clients(edge) => write!(f, "clients → edge-{}", edge + 1),
            Self::Server(place, server) => write!(f, "{place} → {server}"),
            Self::Everyone(server) => write!(f, "all → {server}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn everything() -> Allowed {
        Allowed { kills: Server::ALL.to_vec(), drops: true, restores: true }
    }

    #[test]
    fn a_seed_replays_and_its_neighbour_differs() {
        let draw = |seed| Schedule::draw(seed, &everything());
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7).steps, draw(8).steps);
    }

    #[test]
    fn what_is_allowed_changes_no_other_fault() {
        for seed in 0..200 {
            let (with, without) =
                (Schedule::draw(seed, &everything()), Schedule::draw(seed, &Allowed::default()));
            assert_eq!(with.steps.len(), without.steps.len());
            for (with, without) in with.steps.iter().zip(&without.steps) {
                let expected = match with.fault {
                    Fault::KillServer(server, _) => Fault::Cut(Link::Everyone(server)),
                    Fault::DropOld { .. } | Fault::Restore(_) => Fault::Cut(Link::Everyone(Server::Postgres)),
                    other => other,
                };
                assert_eq!(without.fault, expected);
                assert_eq!(without.events, with.events);
            }
        }
    }

    #[test]
    fn a_few_hundred_schedules_hold_every_kind_of_fault() {
        let kinds: BTreeSet<String> = (0..300)
            .flat_map(|seed| Schedule::draw(seed, &everything()).steps)
            .map(|step| step.fault.kind())
            .collect();
        assert_eq!(kinds.len(), 17, "{kinds:?}");
    }

    #[test]
    fn a_drop_comes_after_the_segment_that_it_needs() {
        for seed in 0..200 {
            let kinds: Vec<String> =
                Schedule::draw(seed, &everything()).steps.iter().map(|step| step.fault.kind()).collect();
            let first = |kind| kinds.iter().position(|other| other == kind);
            assert!(first("begin a segment") <= first("drop old events"), "{kinds:?}");
        }
    }
}
