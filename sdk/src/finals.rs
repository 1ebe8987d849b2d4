use std::collections::VecDeque;
use std::time::Duration;

use eventbucket_protocol::{BatchId, Reply, Verdict};

use crate::ledger::Delivered;
use crate::transport::{Answer, SendError};

/// Batches whose final verdicts are asked for: 10,000 of 40 bytes. Of more, the oldest stay `accepted`.
const BATCHES_MAX: usize = 10_000;

/// The pause after an answer that wasn't final: from 100 ms doubling to 30 s, as long as a collector may take to store what
/// waits in its queue.
const PAUSE_MS: (u64, u64) = (100, 30_000);

/// How long a collector is asked to wait with its answer: most are final within.
pub(crate) const WAIT: Duration = Duration::from_secs(10);

/// A batch that was accepted: durably queued, and whether its events were new isn't known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    number: u64,
    pub(crate) batch: BatchId,
    pub(crate) endpoint: String,
    /// How many events it holds, and how many of them were accepted.
    events: usize,
    accepted: u64,
}

/// What a question came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Final {
    /// What became of the accepted.
    Known(Delivered),
    /// Nobody will ever say; they stay accepted.
    Never,
    /// Ask again.
    Later,
}

/// The batches whose final verdicts are still to be asked for, the oldest first. One question is under way at a time.
#[derive(Debug, Default)]
pub(crate) struct Finals {
    open: VecDeque<Open>,
    next_number: u64,
    asking: Option<Open>,
    not_before_ms: u64,
    pauses: u32,
}

impl Finals {
    /// Notes a batch of which so many events were accepted.
    pub(crate) fn add(&mut self, batch: BatchId, endpoint: String, events: usize, accepted: u64) {
        if self.open.len() >= BATCHES_MAX {
            self.open.pop_front();
        }
        self.open.push_back(Open { number: self.next_number, batch, endpoint, events, accepted });
        self.next_number += 1;
    }

    /// The number that the next batch will get: all that are open now lie before it.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    pub(crate) fn has_before(&self, number: u64) -> bool {
        self.asking.iter().chain(self.open.front()).any(|open| open.number < number)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.asking.is_none() && self.open.is_empty()
    }

    /// Takes the next batch to ask for, if one may be asked for now.
    pub(crate) fn start(&mut self, now_ms: u64) -> Option<Open> {
        if self.asking.is_some() || now_ms < self.not_before_ms {
            return None;
        }
        self.asking = Some(self.open.pop_front()?);
        self.asking.clone()
    }

    /// When a batch may be asked for next.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        (self.asking.is_none() && !self.open.is_empty()).then_some(self.not_before_ms)
    }

    /// Forgets the pause: somebody waits.
    pub(crate) fn hurry(&mut self) {
        self.not_before_ms = 0;
        self.pauses = 0;
    }

    /// Ends the question under way; returns what is known now of events that were accepted.
    pub(crate) fn settle(&mut self, outcome: &Result<Answer, SendError>, now_ms: u64) -> Option<Delivered> {
        let open = self.asking.take()?;
        match judge(outcome, open.events, open.accepted) {
            Final::Known(delivered) => {
                self.pauses = 0;
                return Some(delivered);
            }
            Final::Never => self.pauses = 0,
            Final::Later => {
                let (shortest, longest) = PAUSE_MS;
                self.not_before_ms = now_ms + (shortest << self.pauses.min(16)).min(longest);
                self.pauses += 1;
                self.open.push_front(open);
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

fn judge(outcome: &Result<Answer, SendError>, events: usize, accepted: u64) -> Final {
    let Ok(answer) = outcome else { return Final::Later };
    match answer.status {
        200 => known(&answer.body, events, accepted),
        // Who can't be asked never will say; 404 means not stored yet.
        405 | 501 => Final::Never,
        _ => Final::Later,
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
            .for_each(|i| finals.add(BatchId::from_text(&i.to_string()), "http://c".to_owned(), 2, 2));
        finals
    }

    #[test]
    fn an_accepted_batch_is_asked_for_until_it_is_final() {
        let mut finals = finals(1);
        assert!(finals.has_before(finals.next_number()));
        let pending = Ok(Answer::new(202));
        for (now_ms, next_ms) in [(0, 100), (100, 300), (300, 700)] {
            finals.start(now_ms).unwrap();
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
    fn an_answer_that_does_not_fit_leaves_the_events_accepted() {
        for outcome in [answer(200, &[Verdict::Stored, Verdict::Retry]), Ok(Answer::new(405))] {
            let mut finals = finals(1);
            finals.start(0).unwrap();
            assert_eq!(finals.settle(&outcome, 0), None);
            assert!(finals.is_empty(), "{outcome:?}");
        }
    }

    #[test]
    fn what_failed_or_was_broken_off_is_asked_again() {
        let mut finals = finals(2);
        finals.start(0).unwrap();
        assert_eq!(finals.settle(&Err(SendError::Timeout), 0), None);
        finals.hurry();
        let first = finals.start(0).unwrap();
        finals.broken_off();
        assert_eq!(finals.start(0), Some(first));
    }

    #[test]
    fn of_too_many_the_oldest_stay_accepted() {
        let mut finals = finals(BATCHES_MAX + 1);
        assert_eq!(finals.start(0).unwrap().batch, BatchId::from_text("1"));
    }
}
