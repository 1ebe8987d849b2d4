use std::collections::VecDeque;
use std::time::Duration;

use eventbucket_protocol::{BatchId, Reply, Verdict};

use crate::ledger::Delivered;
use crate::transport::{Answer, SendError};

/// Batches whose final verdicts are asked for: 10,000 of 40 bytes. Of more, the oldest stay `accepted`.
const BATCHES_MAX: usize = 10_000;

/// The pause before a batch whose verdicts weren't final is asked for again, and before anything is asked of a collector that
/// couldn't answer: from 100 ms doubling to 30 s, as long as a collector may take to store what waits in its queue.
const PAUSE_MS: (u64, u64) = (100, 30_000);

/// How long a collector is asked to wait with its first answer: most are final within.
const WAIT: Duration = Duration::from_secs(10);

/// How long a batch is asked for: a day, in which a store that was away is back and has caught up. What is unknown then, like
/// a batch that lies among the dead letters unread, stays `accepted`.
const ASKED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A batch that was accepted: durably queued, and whether its events were new isn't known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    number: u64,
    pub(crate) batch: BatchId,
    pub(crate) endpoint: String,
    /// How many events it holds, and how many of them were accepted.
    events: usize,
    accepted: u64,
    /// When it was accepted.
    since_ms: u64,
    /// When to ask for it next, after so many answers that weren't final.
    not_before_ms: u64,
    pauses: u32,
}

/// What a question came to.
#[derive(Debug, PartialEq, Eq)]
enum Final {
    /// What became of the accepted.
    Known(Delivered),
    /// Nobody will ever say; they stay accepted.
    Never,
    /// It isn't known yet.
    Later,
    /// The collector can't say anything at the moment.
    Away,
}

/// The batches whose final verdicts are still to be asked for. One question is under way at a time; a batch that isn't
/// final stands behind the others and holds up none of them.
#[derive(Debug, Default)]
pub(crate) struct Finals {
    open: VecDeque<Open>,
    next_number: u64,
    asking: Option<Open>,
    /// When anything may be asked, after so many questions that nobody answered.
    not_before_ms: u64,
    pauses: u32,
}

impl Finals {
    /// Notes a batch of which so many events were accepted.
    pub(crate) fn add(
        &mut self,
        batch: BatchId,
        endpoint: String,
        (events, accepted): (usize, u64),
        now_ms: u64,
    ) {
        if self.open.len() >= BATCHES_MAX {
            self.open.pop_front();
        }
        let (number, since_ms) = (self.next_number, now_ms);
        let (not_before_ms, pauses) = (0, 0);
        self.open.push_back(Open {
            number,
            batch,
            endpoint,
            events,
            accepted,
            since_ms,
            not_before_ms,
            pauses,
        });
        self.next_number += 1;
    }

    /// The number that the next batch will get: all that are open now lie before it.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    pub(crate) fn has_before(&self, number: u64) -> bool {
        self.asking.iter().chain(&self.open).any(|open| open.number < number)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.asking.is_none() && self.open.is_empty()
    }

    /// Takes the next batch to ask for, if one may be asked for now, and how long the collector may wait with its answer: one
    /// that wasn't final within that is asked for in passing, so that it costs the others no time.
    pub(crate) fn start(&mut self, now_ms: u64) -> Option<(Open, Duration)> {
        if self.asking.is_some() || now_ms < self.not_before_ms {
            return None;
        }
        let due = self.open.iter().position(|open| open.not_before_ms <= now_ms)?;
        let open = self.open.remove(due)?;
        let wait = if open.pauses == 0 || self.open.is_empty() { WAIT } else { Duration::ZERO };
        self.asking = Some(open.clone());
        Some((open, wait))
    }

    /// When a batch may be asked for next.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        if self.asking.is_some() {
            return None;
        }
        let first_due_ms = self.open.iter().map(|open| open.not_before_ms).min()?;
        Some(first_due_ms.max(self.not_before_ms))
    }

    /// Forgets the pauses: somebody waits.
    pub(crate) fn hurry(&mut self) {
        (self.not_before_ms, self.pauses) = (0, 0);
        self.open.iter_mut().for_each(|open| open.not_before_ms = 0);
    }

    /// Ends the question under way; returns what is known now of events that were accepted.
    pub(crate) fn settle(&mut self, outcome: &Result<Answer, SendError>, now_ms: u64) -> Option<Delivered> {
        let mut open = self.asking.take()?;
        let found = judge(outcome, open.events, open.accepted);
        if found == Final::Away {
            self.not_before_ms = now_ms + pause_ms(self.pauses);
            self.pauses += 1;
        } else {
            self.pauses = 0;
        }
        match found {
            Final::Known(delivered) => return Some(delivered),
            Final::Never => {}
            Final::Later | Final::Away => {
                let asked_ms = now_ms.saturating_sub(open.since_ms);
                if u128::from(asked_ms) < ASKED_MAX.as_millis() {
                    open.not_before_ms = now_ms + pause_ms(open.pauses);
                    open.pauses += 1;
                    self.open.push_back(open);
                }
            }
        }
        None
    }

    /// The question under way was broken off.
    pub(crate) fn broken_off(&mut self) {
        if let Some(open) = self.asking.take() {
            self.open.push_front(open);
        }
    }
}

fn pause_ms(pauses: u32) -> u64 {
    let (shortest, longest) = PAUSE_MS;
    (shortest << pauses.min(16)).min(longest)
}

fn judge(outcome: &Result<Answer, SendError>, events: usize, accepted: u64) -> Final {
    let Ok(answer) = outcome else { return Final::Away };
    match answer.status {
        200 => known(&answer.body, events, accepted),
        // Who can't be asked never will say.
        405 | 501 => Final::Never,
        // 404: nothing of it is stored yet. 202: not all of it.
        404 | 200..=299 => Final::Later,
        _ => Final::Away,
    }
}

fn known(body: &[u8], events: usize, accepted: u64) -> Final {
    let reply = serde_json::from_slice::<Reply>(body).ok();
    let verdicts = reply.and_then(|reply| reply.into_verdicts(events).ok());
    let Some(verdicts) = verdicts else { return Final::Later };
    let mut delivered = Delivered::default();
    for verdict in verdicts {
        match verdict {
            Verdict::Stored => delivered.stored += 1,
            Verdict::Duplicate { differs } => delivered.repeat(differs),
            Verdict::Quarantined(_) => delivered.quarantined += 1,
            _ => {}
        }
    }
    // An answer about another number of events than were accepted says nothing sure about these.
    if delivered.total() == accepted { Final::Known(delivered) } else { Final::Never }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, verdicts: &[Verdict]) -> Result<Answer, SendError> {
        let reply = Reply::new(BatchId::from_text("b"), verdicts.to_vec());
        Ok(Answer::new(status).with_body(serde_json::to_vec(&reply).unwrap()))
    }

    fn finals(batches: usize) -> Finals {
        let mut finals = Finals::default();
        (0..batches)
            .for_each(|i| finals.add(BatchId::from_text(&i.to_string()), "http://c".to_owned(), (2, 2), 0));
        finals
    }

    /// What a question for a batch is answered, as a collector would on which one is never known.
    fn ask(finals: &mut Finals, lost: &BatchId, now_ms: u64) -> Option<(BatchId, Duration)> {
        let (open, wait) = finals.start(now_ms)?;
        let outcome = if open.batch == *lost {
            Ok(Answer::new(404))
        } else {
            answer(200, &[Verdict::Stored, Verdict::Stored])
        };
        let known = finals.settle(&outcome, now_ms);
        assert_eq!(known.is_some(), open.batch != *lost);
        Some((open.batch, wait))
    }

    #[test]
    fn an_accepted_batch_is_asked_for_until_it_is_final() {
        let mut finals = finals(1);
        assert!(finals.has_before(finals.next_number()));
        let pending = Ok(Answer::new(202));
        for (now_ms, next_ms) in [(0, 100), (100, 300), (300, 700)] {
            assert_eq!(finals.start(now_ms).unwrap().1, WAIT);
            assert_eq!(finals.start(now_ms), None, "one question at a time");
            assert_eq!(finals.settle(&pending, now_ms), None);
            assert_eq!(finals.next_ms(), Some(next_ms));
        }
        finals.start(700).unwrap();
        let duplicate = Verdict::Duplicate { differs: false };
        let known = finals.settle(&answer(200, &[Verdict::Stored, duplicate]), 700).unwrap();
        assert_eq!((known.stored, known.duplicate), (1, 1));
        assert!(finals.is_empty());
    }

    #[test]
    fn a_batch_that_is_never_known_holds_up_no_other_and_is_given_up() {
        let mut finals = finals(3);
        let lost = BatchId::from_text("0");
        let asked: Vec<_> = (0..3).map(|_| ask(&mut finals, &lost, 0).unwrap()).collect();
        let id = |number: u32| BatchId::from_text(&number.to_string());
        assert_eq!(asked, [0, 1, 2].map(|number| (id(number), WAIT)));
        assert!(finals.has_before(1), "the first is still open");
        // What comes later is known at once, and the lost one costs it no wait.
        finals.add(id(3), "http://c".to_owned(), (2, 2), 100);
        assert_eq!(ask(&mut finals, &lost, 100), Some((id(0), Duration::ZERO)));
        assert_eq!(ask(&mut finals, &lost, 100), Some((id(3), WAIT)));
        let mut now_ms = 100;
        while let Some(next_ms) = finals.next_ms() {
            now_ms = next_ms;
            ask(&mut finals, &lost, now_ms);
        }
        let day_ms = 24 * 60 * 60 * 1_000;
        assert!((day_ms..day_ms + PAUSE_MS.1).contains(&now_ms), "given up after {now_ms} ms");
        assert!(finals.is_empty());
    }

    #[test]
    fn an_answer_that_does_not_fit_leaves_the_events_accepted() {
        for outcome in [answer(200, &[Verdict::Stored, Verdict::Retry]), Ok(Answer::new(405))] {
            let mut finals = finals(1);
            finals.start(0).unwrap();
            assert_eq!(finals.settle(&outcome, 0), None);
            assert!(finals.is_empty(), "{outcome:?}");
        }
    }

    #[test]
    fn a_collector_that_cannot_answer_is_asked_nothing_for_a_while() {
        for outcome in [Err(SendError::Timeout), Ok(Answer::new(503)), Ok(Answer::new(401))] {
            let mut finals = finals(2);
            finals.start(0).unwrap();
            assert_eq!(finals.settle(&outcome, 0), None);
            assert_eq!((finals.start(99), finals.next_ms()), (None, Some(100)));
            let (second, _) = finals.start(100).unwrap();
            assert_eq!(second.batch, BatchId::from_text("1"), "the one that failed stands behind the others");
            assert_eq!(finals.settle(&outcome, 100), None);
            assert_eq!(finals.next_ms(), Some(300), "twice as long");
        }
    }

    #[test]
    fn what_was_broken_off_is_asked_again_and_who_waits_needs_no_patience() {
        let mut finals = finals(2);
        finals.start(0).unwrap();
        assert_eq!(finals.settle(&Err(SendError::Timeout), 0), None);
        finals.hurry();
        let next = finals.start(0).unwrap();
        finals.broken_off();
        assert_eq!(finals.start(0), Some(next));
    }

    #[test]
    fn of_too_many_the_oldest_stay_accepted() {
        let mut finals = finals(BATCHES_MAX + 1);
        assert_eq!(finals.start(0).unwrap().0.batch, BatchId::from_text("1"));
    }
}
