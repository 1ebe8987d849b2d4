use eventbucket_protocol::BatchId;

use crate::encoded::EncodedEvent;
use crate::spool::BatchKey;

/// How long a batch may stay open while no collector answers: an hour is 1/168 of the age limit of its events.
pub(crate) const OUTAGE_AGE_MAX_MS: u64 = 60 * 60 * 1_000;

/// The frame around the events of a batch: two keys, an id and a count take 41 bytes.
pub(crate) const FRAME_BYTES: usize = 64;

/// The batch that still grows, in memory or in the spool as a whole.
pub(crate) struct Open {
    pub(crate) id: BatchId,
    /// Its place in the order in which batches were begun.
    pub(crate) order: u64,
    pub(crate) home: OpenHome,
    pub(crate) events: usize,
    /// What its body will take.
    pub(crate) bytes: usize,
    pub(crate) first_captured_ms: i64,
    /// When its first event came, by the monotonic clock.
    pub(crate) opened_ms: u64,
}

pub(crate) enum OpenHome {
    Memory(Vec<EncodedEvent>),
    Spool(BatchKey),
}

/// When a batch is full or due. Knows no clock and holds nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batcher {
    pub(crate) events_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) age_ms: u64,
}

impl Batcher {
    /// Counts how many of the next events still fit. An event over the bound by itself gets a batch of its own.
    pub(crate) fn fitting(&self, open_events: usize, open_bytes: usize, next: &[EncodedEvent]) -> usize {
        let (mut events, mut bytes) = (open_events, open_bytes);
        next.iter()
            .take_while(|event| {
                events += 1;
                bytes += event.bytes.len();
                events <= self.events_max && (bytes <= self.bytes_max || events == 1)
            })
            .count()
    }

    pub(crate) fn is_full(&self, open: &Open) -> bool {
        open.events >= self.events_max || open.bytes >= self.bytes_max
    }

    /// Says when the batch is to be closed whatever it holds.
    pub(crate) fn due_ms(&self, open: &Open, any_healthy: bool) -> u64 {
        let age_ms = if any_healthy { self.age_ms } else { self.age_ms.max(OUTAGE_AGE_MAX_MS) };
        open.opened_ms.saturating_add(age_ms)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn events(sizes: &[usize]) -> Vec<EncodedEvent> {
        sizes.iter().map(|size| EncodedEvent::new(Uuid::nil(), 0, vec![0; *size])).collect()
    }

    #[test]
    fn a_batch_closes_by_count_or_bytes() {
        let batcher = Batcher { events_max: 3, bytes_max: 100, age_ms: 10 };
        assert_eq!(batcher.fitting(0, 0, &events(&[10; 5])), 3);
        assert_eq!(batcher.fitting(2, 20, &events(&[10; 5])), 1);
        assert_eq!(batcher.fitting(0, 0, &events(&[60, 40, 1])), 2);
        assert_eq!(batcher.fitting(1, 90, &events(&[11])), 0);
    }

    #[test]
    fn an_event_over_the_bound_goes_alone() {
        let batcher = Batcher { events_max: 3, bytes_max: 100, age_ms: 10 };
        assert_eq!(batcher.fitting(0, 0, &events(&[150, 10])), 1);
        assert_eq!(batcher.fitting(1, 10, &events(&[150])), 0);
    }
}
