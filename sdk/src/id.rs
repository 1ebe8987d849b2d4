use std::cell::Cell;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::time::SystemTime;

use eventbucket_protocol::{BatchId, EventId, Timestamp};
use fastrand::Rng;

use crate::fork;

/// The random state of one thread: two independent generators give the 74 random bits of a UUIDv7 without a system
/// call. Seeded by the operating system once a thread, and again in a forked child, which would repeat its parent.
#[derive(Clone, Copy)]
struct Seeds {
    generation: u64,
    pair: [u64; 2],
}

/// No process reaches this generation by forking.
const UNSEEDED: u64 = u64::MAX;

thread_local! {
    // Cell has no destructor, so ids can still be made while the thread's other locals are torn down.
    static SEEDS: Cell<Seeds> = const { Cell::new(Seeds { generation: UNSEEDED, pair: [0; 2] }) };
}

/// Makes an event id for a time.
pub(crate) fn event(time: Timestamp) -> EventId {
    EventId::v7(unix_ms(time), &random())
}

/// Makes a batch id for a time.
pub(crate) fn batch(time: Timestamp) -> BatchId {
    BatchId::v7(unix_ms(time), &random())
}

/// Draws random bits for a delay.
pub(crate) fn random_u64() -> u64 {
    let [low, _] = draw();
    low
}

fn unix_ms(time: Timestamp) -> u64 {
    // Before 1970 there is no UUIDv7 time; 0 keeps such ids unique by their random bits.
    u64::try_from(time.ms()).unwrap_or(0)
}

fn random() -> [u8; 10] {
    let [first, second] = draw();
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes()[6..]);
    bytes
}

fn draw() -> [u64; 2] {
    SEEDS.with(|cell| {
        let mut seeds = cell.get();
        let generation = fork::generation();
        if seeds.generation != generation {
            seeds = Seeds { generation, pair: seed_pair() };
        }
        let drawn = seeds.pair.map(|seed| {
            let mut rng = Rng::with_seed(seed);
            (rng.u64(..), rng.get_seed())
        });
        seeds.pair = drawn.map(|(_, seed)| seed);
        cell.set(seeds);
        drawn.map(|(value, _)| value)
    })
}

fn seed_pair() -> [u64; 2] {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_ok() {
        let (low, high) = bytes.split_at(8);
        return [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("half of 16 bytes is 8")));
    }
    // Without the device: the keys of std's hash maps, which the system draws, told apart by process and time.
    let state = RandomState::new();
    let now = SystemTime::now();
    [0, 1].map(|half: u8| state.hash_one((half, std::process::id(), now)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_carry_their_time_and_differ_across_threads() {
        let time = Timestamp::from_ms(1_700_000_000_000).unwrap();
        let made: Vec<Vec<EventId>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..10_000).map(|_| event(time)).collect())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let all: HashSet<_> = made.iter().flatten().map(EventId::uuid).collect();
        assert_eq!(all.len(), 40_000);
        assert!(all.iter().all(|id| id.get_version_num() == 7));
        assert!(all.iter().all(|id| id.as_bytes()[..6] == 1_700_000_000_000_u64.to_be_bytes()[2..]));
    }
}
