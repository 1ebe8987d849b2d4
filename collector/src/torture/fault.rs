//! What can go wrong, and how often each of it does.

use std::fmt;

use super::schedule::{Allowed, Link, PROCESSES_A_ROLE, Place, Random, Server};

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

/// After how long a drop is cut: all of it takes some 100 ms.
const DROP_CUT_MS: (u64, u64) = (1, 150);

/// How long after more was stored PostgreSQL goes back: some of what is under way is stored by then, or all.
const BACK_MS: (u64, u64) = (0, 1_500);

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
    /// The next segment of the log begins, however young and small the open one is.
    NextSegment,
    /// Everything but the open segment is dropped; the connections of whoever does it are cut after so long.
    DropOld {
        /// How long it may work.
        cut_ms: Option<u64>,
    },
    /// PostgreSQL is put back to what it holds now, so long after more was stored, which is gone then.
    Restore(u64),
}

impl Fault {
    /// Of 100 faults: 28 kills, 12 pauses, 13 cuts, 8 stalls, 10 resends, 8 redeliveries, 5 purges, 6 times late for Redis, 5
    /// wipes, 5 kills of a server, of which every fifth is RabbitMQ's: it takes 5 to 30 s to come back.
    pub(super) fn draw(random: &mut Random) -> Self {
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

    /// Draws a drop: every second is cut.
    pub(super) fn draw_drop(random: &mut Random) -> Self {
        let cut = random.below(2) == 0;
        let cut_ms = random.between(DROP_CUT_MS);
        Self::DropOld { cut_ms: cut.then_some(cut_ms) }
    }

    /// Draws when PostgreSQL is put back.
    pub(super) fn draw_restore(random: &mut Random) -> Self {
        Self::Restore(random.between(BACK_MS))
    }

    /// What strikes instead where it may not: everyone's connections to the same server break.
    pub(super) fn where_allowed(self, allowed: &Allowed) -> Self {
        match self {
            Self::KillServer(server, _) if !allowed.kills.contains(&server) => {
                Self::Cut(Link::Everyone(server))
            }
            Self::DropOld { .. } if !allowed.drops => Self::Cut(Link::Everyone(Server::Postgres)),
            Self::Restore(_) if !allowed.restores => Self::Cut(Link::Everyone(Server::Postgres)),
            other => other,
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
            Self::NextSegment => "begin a segment".to_owned(),
            Self::DropOld { .. } => "drop old events".to_owned(),
            Self::Restore(_) => "restore postgres".to_owned(),
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
            Self::NextSegment => f.write_str("begin the next segment"),
            Self::DropOld { cut_ms: None } => f.write_str("drop old events"),
            Self::DropOld { cut_ms: Some(ms) } => write!(f, "drop old events, cut after {ms} ms"),
            Self::Restore(ms) => write!(f, "put postgres back {ms} ms after more was stored"),
        }
    }
}
