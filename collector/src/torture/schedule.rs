//! What happens in one schedule, as a function of its seed alone: when clients send how much, and which fault strikes when.

use std::fmt;

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

/// How long a process is paused, or a connection holds back what passes.
const HOLD_MS: (u64, u64) = (200, 3_000);

/// How long PostgreSQL is held up for an insight worker to be in the middle of counting: what is captured now is stored and
/// announced within 100 ms.
const COUNTING_MS: (u64, u64) = (150, 400);

/// How long Redis then is: the other insight worker looks once a second, and is to have looked twice.
const LATE_MS: (u64, u64) = (2_200, 2_800);

/// Wipes of Redis in a row, 30 ms apart: 20 of them last as long as what is captured meanwhile is being counted.
const WIPES: (u64, u64) = (1, 20);

/// How long a server stays down.
const DOWN_MS: (u64, u64) = (100, 2_500);

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

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// `kill -9`; the process is started again at once.
    Kill(Place),
    /// SIGSTOP, and SIGCONT after so long.
    Pause(Place, u64),
    /// Connections break.
    Cut(Link),
    /// Connections pass nothing for so long.
    Stall(Link, u64),
    /// A batch is sent again to an edge, same id and same bytes, while others are on their way.
    Resend {
        /// Which edge.
        edge: usize,
        /// Which of the batches sent so far, modulo their number.
        which: u64,
        /// How often.
        times: u64,
    },
    /// The broker delivers a batch once more.
    Redeliver {
        /// As for a resend.
        which: u64,
    },
    /// Every announcement that waits is lost.
    PurgeRanges,
    /// What an insight worker has counted is told to Redis long after it is stored: Redis is held up for so long while the
    /// worker is counting, which takes a moment of holding up PostgreSQL first. The other one mends the counters meanwhile.
    TellLate {
        /// Which insight worker.
        insight: usize,
        /// How long PostgreSQL is held up, for something to be there to count.
        wait_ms: u64,
        /// How long Redis is.
        hold_ms: u64,
    },
    /// Redis forgets everything of ours, so many times while it is being written to.
    WipeCache(u64),
    /// `kill -9` of a server, which is down for so long.
    KillServer(Server, u64),
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
    /// Draws a schedule. A server that can't be killed has its connections cut instead: the other faults stay as they are.
    pub(super) fn draw(seed: u64, killable: &[Server]) -> Self {
        let mut random = Random(seed);
        let steps = (0..random.between(STEPS)).map(|_| Step::draw(&mut random, killable)).collect();
        let last_unannounced = random.below(2) == 0;
        Self { seed, steps, last_unannounced }
    }
}

impl Step {
    fn draw(random: &mut Random, killable: &[Server]) -> Self {
        let pause_ms = random.between(PAUSE_MS);
        let events = std::array::from_fn(|_| random.between(EVENTS));
        let fault = match Fault::draw(random) {
            Fault::KillServer(server, _) if !killable.contains(&server) => Fault::Cut(Link::Everyone(server)),
            drawn => drawn,
        };
        Self { pause_ms, events, fault }
    }
}

impl Fault {
    /// Of 100 faults: 28 kills, 12 pauses, 13 cuts, 8 stalls, 10 resends, 8 redeliveries, 5 purges, 6 times late for Redis, 5
    /// wipes, 5 kills of a server, of which every fifth is RabbitMQ's: it takes 5 to 30 s to come back.
    fn draw(random: &mut Random) -> Self {
        match random.below(100) {
            0..28 => Self::Kill(Place::draw(random)),
            28..40 => Self::Pause(Place::draw(random), random.between(HOLD_MS)),
            40..53 => Self::Cut(Link::draw(random)),
            53..61 => Self::Stall(Link::draw(random), random.between(HOLD_MS)),
            61..71 => {
                let edge = random.place(PROCESSES_A_ROLE);
                Self::Resend { edge, which: random.next(), times: random.between((1, 3)) }
            }
            71..79 => Self::Redeliver { which: random.next() },
            79..84 => Self::PurgeRanges,
            84..90 => Self::TellLate {
                insight: random.place(PROCESSES_A_ROLE),
                wait_ms: random.between(COUNTING_MS),
                hold_ms: random.between(LATE_MS),
            },
            90..95 => Self::WipeCache(random.between(WIPES)),
            _ => {
                let server = match random.below(5) {
                    0 | 1 => Server::Postgres,
                    2 | 3 => Server::Redis,
                    _ => Server::RabbitMq,
                };
                Self::KillServer(server, random.between(DOWN_MS))
            }
        }
    }

    /// The kind of fault, for the figures at the end.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Kill(place) => format!("kill {}", place.role),
            Self::Pause(..) => "pause".to_owned(),
            Self::Cut(_) => "cut".to_owned(),
            Self::Stall(..) => "stall".to_owned(),
            Self::Resend { .. } => "resend".to_owned(),
            Self::Redeliver { .. } => "redeliver".to_owned(),
            Self::PurgeRanges => "purge announcements".to_owned(),
            Self::TellLate { .. } => "tell redis late".to_owned(),
            Self::WipeCache(_) => "wipe redis".to_owned(),
            Self::KillServer(server, _) => format!("kill {server}"),
        }
    }
}

impl Place {
    fn draw(random: &mut Random) -> Self {
        let role = Role::ALL[random.place(Role::ALL.len())];
        Self { role, number: random.place(PROCESSES_A_ROLE) }
    }
}

impl Link {
    fn draw(random: &mut Random) -> Self {
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

    fn place(&mut self, places: usize) -> usize {
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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(place) => write!(f, "kill -9 {place}"),
            Self::Pause(place, ms) => write!(f, "pause {place} for {ms} ms"),
            Self::Cut(link) => write!(f, "cut {link}"),
            Self::Stall(link, ms) => write!(f, "stall {link} for {ms} ms"),
            Self::Resend { edge, times, .. } => write!(f, "resend a batch {times}× to edge-{}", edge + 1),
            Self::Redeliver { .. } => f.write_str("deliver a batch once more"),
            Self::PurgeRanges => f.write_str("lose the announcements"),
            Self::TellLate { insight, hold_ms, .. } => {
                write!(f, "tell redis {hold_ms} ms late what insight-{} counts", insight + 1)
            }
            Self::WipeCache(times) => write!(f, "wipe redis {times}×"),
            Self::KillServer(server, ms) => write!(f, "kill -9 {server} for {ms} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_replays_and_its_neighbour_differs() {
        let draw = |seed| Schedule::draw(seed, &Server::ALL);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7).steps, draw(8).steps);
    }

    #[test]
    fn what_can_be_killed_changes_no_other_fault() {
        for seed in 0..200 {
            let (with, without) = (Schedule::draw(seed, &Server::ALL), Schedule::draw(seed, &[]));
            assert_eq!(with.steps.len(), without.steps.len());
            for (with, without) in with.steps.iter().zip(&without.steps) {
                let expected = match with.fault {
                    Fault::KillServer(server, _) => Fault::Cut(Link::Everyone(server)),
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
            .flat_map(|seed| Schedule::draw(seed, &Server::ALL).steps)
            .map(|step| step.fault.kind())
            .collect();
        assert_eq!(kinds.len(), 14, "{kinds:?}");
    }
}
