use std::collections::VecDeque;

use eventbucket_protocol::BatchId;

use crate::encoded::EncodedEvent;
use crate::retry::AGE_MAX_MS;
use crate::spool::BatchKey;

/// What an event takes in memory beside its bytes: its handle, and the counts before the shared bytes.
const EVENT_OVERHEAD_BYTES: usize = size_of::<EncodedEvent>() + 16;

/// Attempts before the next batch gets its turn: one lost answer doesn't change the order.
const FAILURES_A_TURN: u32 = 2;

/// 2020-01-01T00:00:00Z: a clock that says less was never set.
const CLOCK_SET_MS: i64 = 1_577_836_800_000;

/// A closed batch that waits for its verdicts.
pub(crate) struct Waiting {
    /// Names it within this process.
    pub(crate) number: u64,
    /// Its place in the order in which batches were begun; parts of a batch keep its.
    pub(crate) order: u64,
    pub(crate) id: BatchId,
    pub(crate) events: usize,
    pub(crate) first_captured_ms: i64,
    /// Not to be sent before this monotonic time.
    pub(crate) not_before_ms: u64,
    /// When it was begun by the monotonic clock; `None` for what an earlier process captured.
    pub(crate) begun_ms: Option<u64>,
    /// How often the collector put off all of it or a part.
    pub(crate) deferrals: u32,
    /// How many attempts came to nothing.
    pub(crate) failures: u32,
    pub(crate) in_flight: bool,
    pub(crate) home: Home,
    /// What it takes in memory.
    pub(crate) memory_bytes: usize,
}

/// Where the events of a closed batch are.
pub(crate) enum Home {
    Memory(Vec<EncodedEvent>),
    Spool(BatchKey),
}

/// A part of a batch that goes on as a batch of its own: its new id, and which events of the old one it holds.
pub(crate) type Part = (BatchId, Vec<usize>);

/// The closed batches, oldest first.
#[derive(Default)]
pub(crate) struct WaitingList {
    list: VecDeque<Waiting>,
}

impl WaitingList {
    /// Puts a batch behind those of its order. Batches close in the order they were begun, but one in memory may close
    /// after a later one in the spool.
    pub(crate) fn insert(&mut self, waiting: Waiting) {
        let at = self.list.partition_point(|other| other.order <= waiting.order);
        self.list.insert(at, waiting);
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Waiting> {
        self.list.iter().find(|waiting| waiting.number == number)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Waiting> {
        self.list.iter_mut().find(|waiting| waiting.number == number)
    }

    pub(crate) fn take(&mut self, number: u64) -> Option<Waiting> {
        let at = self.list.iter().position(|waiting| waiting.number == number)?;
        self.list.remove(at)
    }

    /// The batch that is to be sent next; those in the spool only while it can be read. The oldest goes first, but after two
    /// failures it lets the others go ahead: one batch that a collector chokes on must not hold up the rest.
    pub(crate) fn ready(&self, now_ms: u64, readable: bool) -> Option<&Waiting> {
        let ready = self.list.iter().filter(|waiting| waiting.is_ready(now_ms, readable));
        ready.min_by_key(|waiting| waiting.failures / FAILURES_A_TURN)
    }

    /// When the next batch becomes ready that isn't now.
    pub(crate) fn next_ready_ms(&self, now_ms: u64) -> Option<u64> {
        let put_off = self.list.iter().filter(|waiting| !waiting.in_flight && waiting.not_before_ms > now_ms);
        put_off.map(|waiting| waiting.not_before_ms).min()
    }

    /// The oldest batch of one kind of home that isn't under way.
    pub(crate) fn oldest_idle(&self, in_spool: bool) -> Option<u64> {
        let idle = |waiting: &&Waiting| !waiting.in_flight && waiting.is_spooled() == in_spool;
        self.list.iter().find(idle).map(|waiting| waiting.number)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Says whether a batch of an earlier order still waits.
    pub(crate) fn has_before(&self, order: u64) -> bool {
        self.list.front().is_some_and(|waiting| waiting.order < order)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.list.iter_mut()
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&mut Waiting) -> bool) {
        self.list.retain_mut(keep);
    }

    pub(crate) fn events(&self) -> u64 {
        self.list.iter().map(|waiting| waiting.events as u64).sum()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.list.iter().map(|waiting| waiting.memory_bytes).sum()
    }
}

impl Waiting {
    pub(crate) fn is_spooled(&self) -> bool {
        matches!(self.home, Home::Spool(_))
    }

    /// Says whether it is too old to be sent. The wall clock may jump, as on a board that learns the time after its start: what
    /// this process captured is no older than the monotonic clock says, and nothing is known of the age of what an earlier
    /// process captured before its clock was set.
    pub(crate) fn is_too_old(&self, wall_ms: i64, now_ms: u64) -> bool {
        let by_wall = wall_ms.saturating_sub(self.first_captured_ms) > AGE_MAX_MS;
        let certain = match self.begun_ms {
            Some(begun_ms) => now_ms.saturating_sub(begun_ms) > AGE_MAX_MS.unsigned_abs(),
            None => self.first_captured_ms >= CLOCK_SET_MS,
        };
        by_wall && certain
    }

    fn is_ready(&self, now_ms: u64, readable: bool) -> bool {
        !self.in_flight && self.not_before_ms <= now_ms && (readable || !self.is_spooled())
    }
}

impl Home {
    /// What the events take in memory; in the spool, only what is known about the batch.
    pub(crate) fn memory_bytes(&self) -> usize {
        let events: &[EncodedEvent] = if let Self::Memory(events) = self { events } else { &[] };
        let bytes: usize = events.iter().map(|event| event.bytes.len()).sum();
        size_of::<Waiting>() + memory_bytes(events.len(), bytes)
    }
}

/// What encoded events take in memory.
pub(crate) const fn memory_bytes(events: usize, bytes: usize) -> usize {
    bytes + events * EVENT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    const NOW_MS: i64 = 1_790_000_000_000;

    fn waiting(number: u64, first_captured_ms: i64, begun_ms: Option<u64>) -> Waiting {
        Waiting {
            number,
            order: number,
            id: BatchId::from_text("b"),
            events: 1,
            first_captured_ms,
            not_before_ms: 0,
            begun_ms,
            deferrals: 0,
            failures: 0,
            in_flight: false,
            home: Home::Memory(Vec::new()),
            memory_bytes: 0,
        }
    }

    #[test]
    fn a_clock_that_jumps_gives_nothing_up() {
        let week_ms = AGE_MAX_MS.unsigned_abs();
        let booted_in_1970 = waiting(1, 5_000, Some(5_000));
        assert!(!booted_in_1970.is_too_old(NOW_MS, 60_000), "captured a minute ago, whatever the clock said");
        assert!(booted_in_1970.is_too_old(NOW_MS, 6_000 + week_ms));
        assert!(
            !waiting(2, 5_000, None).is_too_old(NOW_MS, 0),
            "by an earlier process whose clock was not set"
        );
        assert!(waiting(3, NOW_MS - 8 * DAY_MS, None).is_too_old(NOW_MS, 0));
        assert!(!waiting(4, NOW_MS - 6 * DAY_MS, None).is_too_old(NOW_MS, 0));
    }

    #[test]
    fn a_batch_that_fails_lets_the_others_go_ahead_and_comes_back() {
        let mut list = WaitingList::default();
        (1..=3).for_each(|number| list.insert(waiting(number, NOW_MS, None)));
        let mut tried = Vec::new();
        for _ in 0..8 {
            let next = list.ready(0, true).unwrap().number;
            tried.push(next);
            list.get_mut(next).unwrap().failures += 1;
        }
        assert_eq!(tried, [1, 1, 2, 2, 3, 3, 1, 1]);
    }
}
