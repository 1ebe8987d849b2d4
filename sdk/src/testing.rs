use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eventbucket_protocol::codec::{self, Format};
use eventbucket_protocol::{self as protocol, EventId, Reply, Timestamp, Verdict};

use crate::Bucket;
use crate::clock::Clock;
use crate::promise::promise;
use crate::queue::Request;
use crate::report::Waiter;
use crate::transport::{Answer, Attempt, SendError, Sending, Transport};

/// How long a test may wait for the worker to do what can be done at once.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Shows what a test's bucket sent, and decides how the collector answers. Made by [`Bucket::test`].
///
/// ```
/// use std::time::Duration;
///
/// let (bucket, sink) = eventbucket::Bucket::test();
/// sink.fail_next(503);
/// bucket.capture("order_paid");
/// assert_eq!(sink.events().len(), 0);
/// sink.advance(Duration::from_secs(1)); // retried by now
/// assert_eq!(sink.events().len(), 1);
/// ```
pub struct Sink {
    waiter: Waiter,
    clock: Clock,
    record: Arc<Record>,
}

/// The transport of a test's bucket.
#[derive(Default)]
pub(crate) struct Record {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attempts: Vec<Attempt>,
    events: Vec<protocol::Event>,
    script: VecDeque<Result<Answer, SendError>>,
}

impl Sink {
    pub(crate) fn new(bucket: &Bucket, record: Arc<Record>) -> Self {
        let (waiter, clock) = bucket.waiter_of();
        Self { waiter, clock, record }
    }

    /// Waits until everything captured was sent as far as the clock allows, and returns the events that the collector
    /// took, each once, in the order they came.
    #[must_use]
    pub fn events(&self) -> Vec<protocol::Event> {
        self.settle();
        self.record.lock().events.clone()
    }

    /// Waits likewise and returns every attempt, successful or not.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.settle();
        self.record.lock().attempts.clone()
    }

    /// Lets the next attempt get this status. Calls queue up.
    pub fn fail_next(&self, status: u16) {
        self.answer_next(Answer::new(status));
    }

    /// Lets the next attempt get this answer, whatever it holds. Calls queue up.
    pub fn answer_next(&self, answer: Answer) {
        self.record.lock().script.push_back(Ok(answer));
    }

    /// Lets the next attempt get no answer. Calls queue up.
    pub fn break_next(&self, error: SendError) {
        self.record.lock().script.push_back(Err(error));
    }

    /// Moves the bucket's clock, and waits until everything was done that became due.
    pub fn advance(&self, by: Duration) {
        self.settle();
        self.clock.advance(by);
        self.settle();
    }

    /// Returns the time of the bucket's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// Waits until there is nothing more to do at this time.
    ///
    /// # Panics
    /// When the worker hasn't got there after a minute.
    pub fn settle(&self) {
        let (promise, awaited) = promise();
        self.waiter.shared().ask(Request::Settle(promise));
        // `None` means that the bucket was shut down: then everything is done.
        awaited.wait(Some(SETTLE_TIMEOUT)).expect("the worker does what it can within a minute");
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Record {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        Box::pin(async move {
            let mut state = self.lock();
            state.attempts.push(attempt.clone());
            match state.script.pop_front() {
                Some(scripted) => scripted,
                None => Ok(state.take(attempt)),
            }
        })
    }
}

impl State {
    /// Does what a collector does: an event whose id it knows is a duplicate.
    fn take(&mut self, attempt: &Attempt) -> Answer {
        let Ok(batch) = codec::decode(&attempt.body, Format::MessagePack) else { return Answer::new(400) };
        let now = Timestamp::from_ms(attempt.sent_at_ms).expect("the worker's clock gave a time");
        let verdicts = batch.events.into_iter().map(|raw| {
            let complete = raw.and_then(|raw| raw.complete(|| EventId::from_text("made here"), now));
            match complete {
                Err(reason) => Verdict::Rejected(reason),
                Ok(event) => match self.events.iter().find(|known| known.id == event.id) {
                    Some(known) => Verdict::Duplicate { differs: *known != event },
                    None => {
                        self.events.push(event);
                        Verdict::Stored
                    }
                },
            }
        });
        let reply = Reply::new(attempt.batch_id, verdicts.collect());
        Answer::new(200).with_body(serde_json::to_vec(&reply).expect("a reply can be written as JSON"))
    }
}
