use eventbucket_protocol::BatchId;

use super::Backlog;
use super::waiting::{Home, Part, Waiting};
use crate::config::Overflow;
use crate::encoded::EncodedEvent;
use crate::ledger::Tally;

/// How batches leave: sent, answered, split, given up.
impl Backlog {
    /// Picks the oldest batch that may be sent, giving up those that are too old.
    pub(crate) fn next_ready(&mut self, tally: &mut Tally) -> Option<u64> {
        let wall_ms = self.settings.clock.wall().ms();
        loop {
            let readable = self.disk.spool().is_some();
            let waiting = self.waiting.ready(self.now_ms(), readable)?;
            let number = waiting.number;
            if !waiting.is_too_old(wall_ms, self.now_ms()) {
                return Some(number);
            }
            let events = self.remove(number, tally);
            tally.ledger.dropped.too_old += events;
            tally.dropped(events, "not delivered within 7 days; see why the collector didn't take them");
        }
    }

    /// Reads a batch to send it, and marks it as under way. `None` when the disk fails.
    pub(crate) fn start(&mut self, number: u64, tally: &mut Tally) -> Option<(BatchId, Vec<EncodedEvent>)> {
        let now_ms = self.now_ms();
        let waiting = self.waiting.get_mut(number)?;
        let events = match &waiting.home {
            Home::Memory(events) => events.clone(),
            Home::Spool(key) => match self.disk.spool()?.read(*key) {
                Ok(events) => events,
                Err(error) => {
                    self.disk.failed(error, now_ms, tally);
                    return None;
                }
            },
        };
        waiting.in_flight = true;
        Some((waiting.id, events))
    }

    /// Lets a batch be sent again as it is, after an attempt that came to nothing.
    pub(crate) fn release(&mut self, number: u64) {
        if let Some(waiting) = self.waiting.get_mut(number) {
            waiting.in_flight = false;
            waiting.failures += 1;
        }
    }

    /// Lets every batch be sent again: what was under way is lost from sight.
    pub(crate) fn release_all(&mut self) {
        self.waiting.iter_mut().for_each(|waiting| waiting.in_flight = false);
    }

    /// Removes a batch and returns how many events it held. A disk that fails here brings the batch back later; the
    /// collector knows its events.
    pub(crate) fn remove(&mut self, number: u64, tally: &mut Tally) -> u64 {
        let now_ms = self.now_ms();
        let Some(waiting) = self.waiting.take(number) else { return 0 };
        if let (Home::Spool(key), Some(spool)) = (&waiting.home, self.disk.spool())
            && let Err(error) = spool.remove(*key)
        {
            self.disk.failed(error, now_ms, tally);
        }
        waiting.events as u64
    }

    /// Puts parts in the place of a batch; events in no part are gone. Says whether it could: if not, the batch stays
    /// as it was, to be sent again.
    pub(crate) fn replace(
        &mut self,
        number: u64,
        parts: &[Part],
        wait: Option<u64>,
        tally: &mut Tally,
    ) -> bool {
        let now_ms = self.now_ms();
        let Some(waiting) = self.waiting.get(number) else { return false };
        let keys = match (&waiting.home, self.disk.spool()) {
            (Home::Memory(_), _) => Vec::new(),
            (Home::Spool(key), Some(spool)) => match spool.replace(*key, parts) {
                Ok(keys) => keys,
                Err(error) => {
                    self.disk.failed(error, now_ms, tally);
                    self.release(number);
                    return false;
                }
            },
            (Home::Spool(_), None) => {
                self.release(number);
                return false;
            }
        };
        let Some(old) = self.waiting.take(number) else { return false };
        let mut keys = keys.into_iter();
        for (id, indexes) in parts {
            let home = match (&old.home, keys.next()) {
                (_, Some(key)) => Home::Spool(key),
                (Home::Memory(events), None) => {
                    Home::Memory(indexes.iter().map(|index| events[*index].clone()).collect())
                }
                (Home::Spool(_), None) => unreachable!("the spool returns a key for every part"),
            };
            let number = self.take_number();
            self.waiting.insert(Waiting {
                number,
                order: old.order,
                id: *id,
                events: indexes.len(),
                first_captured_ms: old.first_captured_ms,
                not_before_ms: wait.map_or(0, |wait_ms| now_ms.saturating_add(wait_ms)),
                begun_ms: old.begun_ms,
                deferrals: old.deferrals + u32::from(wait.is_some()),
                failures: 0,
                in_flight: false,
                memory_bytes: home.memory_bytes(),
                home,
            });
        }
        true
    }

    /// Gives up a batch of one event that no collector takes. Where there is a spool, a copy is kept there.
    pub(crate) fn bury(&mut self, number: u64, reason: &str, tally: &mut Tally) {
        let now_ms = self.now_ms();
        if let Some(Waiting { home: Home::Spool(key), .. }) = self.waiting.get(number)
            && let Some(spool) = self.disk.spool()
        {
            let kept = spool
                .read(*key)
                .and_then(|events| events.iter().try_for_each(|event| spool.dead_letter(event, reason)));
            if let Err(error) = kept {
                self.disk.failed(error, now_ms, tally);
            }
        }
        let events = self.remove(number, tally);
        tally.ledger.dropped.too_large += events;
        tally.dropped(events, reason);
    }

    /// Drops the oldest batch of a home to make room; says whether there was one.
    pub(super) fn drop_oldest(&mut self, in_spool: bool, tally: &mut Tally) -> bool {
        let Some(number) = self.waiting.oldest_idle(in_spool) else { return false };
        // What is lost may be captured again under its id.
        match self.waiting.get(number).map(|waiting| &waiting.home) {
            Some(Home::Memory(events)) => tally.forgotten.extend(events.iter().map(|event| event.id)),
            // A spool that can't be read can't be removed from either, which says so.
            Some(Home::Spool(key)) => {
                let ids = self.disk.spool().and_then(|spool| spool.ids(*key).ok());
                tally.forgotten.extend(ids.unwrap_or_default());
            }
            None => {}
        }
        let events = self.remove(number, tally);
        let (count, reason) = if in_spool {
            let reason = "the spool is full; raise spool_bytes_max".to_owned();
            (&mut tally.ledger.dropped.spool_full, reason)
        } else {
            let reason = format!("the queue is full; {}", self.settings.more_room());
            (&mut tally.ledger.dropped.overflow, reason)
        };
        *count += events;
        tally.dropped(events, reason);
        true
    }

    /// Makes room in memory where the oldest events are to go.
    pub(crate) fn shed(&mut self, tally: &mut Tally) {
        while self.settings.overflow == Overflow::DropOldest
            && self.memory_bytes() > self.settings.backlog_bytes_max()
            && self.drop_oldest(false, tally)
        {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::Bucket;

    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

    #[test]
    fn a_board_that_learns_the_time_keeps_its_backlog_until_a_week_has_passed() {
        let settings = Arc::new(Bucket::builder("http://test.invalid", "key").test_settings());
        let clock = settings.clock.clone();
        let mut backlog = Backlog::new(settings);
        let mut tally = Tally::default();
        clock.step_wall(-clock.wall().ms());
        let event = EncodedEvent::new(Uuid::nil(), clock.wall().ms(), vec![0; 8]);
        let _in_memory = backlog.add(&[event], false, &mut tally);
        backlog.close_open(&mut tally);
        clock.step_wall(56 * 365 * DAY_MS);
        assert!(backlog.next_ready(&mut tally).is_some(), "it was captured just now");
        clock.advance(Duration::from_secs(6 * 24 * 3_600));
        assert!(backlog.next_ready(&mut tally).is_some());
        clock.step_wall(-57 * 365 * DAY_MS);
        clock.advance(Duration::from_secs(2 * 24 * 3_600));
        assert!(backlog.next_ready(&mut tally).is_some(), "by the wall it isn't old");
        clock.step_wall(57 * 365 * DAY_MS);
        assert!(backlog.next_ready(&mut tally).is_none());
        assert_eq!(tally.ledger.dropped.too_old, 1);
    }
}
