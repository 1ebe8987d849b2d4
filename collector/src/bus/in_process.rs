use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, broadcast, oneshot};

use super::message::{Published, StoredRange, ValidBatch};
use super::rate::DrainRate;
use super::{Delivery, Error, Ticket};

/// How much may wait to be stored. What is being committed counts until it is answered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events: 200,000 take SQLite 3 s at 70,000 events a second, less than a client waits for its answer.
    pub events_max: usize,
    /// Bytes in memory: 64 MiB, four of the largest batches.
    pub bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { events_max: 200_000, bytes_max: 64 * 1024 * 1024 }
    }
}

/// Announced ranges a slow view may lag behind by before it is told to look at the log instead: 1,024 of 24 bytes.
const RANGES_WAITING_MAX: usize = 1024;

#[derive(Clone)]
pub(super) struct InProcess(Arc<Shared>);

struct Shared {
    limits: Limits,
    state: Mutex<State>,
    arrived: Notify,
    ranges: broadcast::Sender<StoredRange>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Delivery>,
    /// Events and bytes accepted and not answered yet.
    events: usize,
    bytes: usize,
    closed: bool,
    consumer_taken: bool,
    committed: DrainRate,
}

impl Shared {
    /// The state is consistent between statements, so a panic elsewhere doesn't make it unusable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InProcess {
    pub(super) fn new(limits: Limits) -> Self {
        let (ranges, _) = broadcast::channel(RANGES_WAITING_MAX);
        Self(Arc::new(Shared { limits, state: Mutex::default(), arrived: Notify::new(), ranges }))
    }

    pub(super) async fn publish(&self, batch: ValidBatch) -> Result<Published, Error> {
        let answer = self.enqueue(batch)?;
        self.0.arrived.notify_one();
        // Storage drops a ticket unanswered only when it was cancelled.
        answer.await.unwrap_or(Err(Error::Closed))
    }

    fn enqueue(&self, batch: ValidBatch) -> Result<oneshot::Receiver<Result<Published, Error>>, Error> {
        let events = batch.events.len();
        let bytes: usize = batch.events.iter().map(eventbucket_protocol::Event::size_bytes).sum();
        let mut state = self.0.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let limits = self.0.limits;
        let over = state.events + events > limits.events_max || state.bytes + bytes > limits.bytes_max;
        // A batch larger than the bounds themselves still gets through when nothing else waits.
        if over && state.bytes > 0 {
            let waiting = state.events;
            return Err(Error::Full { retry_after: state.committed.time_for(waiting, Instant::now()) });
        }
        let (sender, answer) = oneshot::channel();
        state.events += events;
        state.bytes += bytes;
        let place = Place { bus: Arc::clone(&self.0), events, bytes, answer: Some(sender) };
        state.queue.push_back(Delivery { batch, ticket: Ticket::in_process(place) });
        Ok(answer)
    }

    pub(super) fn accepted(&self) -> Option<Taking> {
        let mut state = self.0.lock();
        let first = !std::mem::replace(&mut state.consumer_taken, true);
        drop(state);
        first.then(|| Taking(Arc::clone(&self.0)))
    }

    pub(super) fn announce(&self, ranges: &[StoredRange]) {
        for range in ranges.iter().filter(|range| range.first <= range.last) {
            // Nobody listening is fine: views read the log when they start.
            let _ = self.0.ranges.send(*range);
        }
    }

    pub(super) fn ranges(&self) -> broadcast::Receiver<StoredRange> {
        self.0.ranges.subscribe()
    }

    pub(super) fn close(&self) {
        self.0.lock().closed = true;
        self.0.arrived.notify_one();
    }

    pub(super) fn waiting(&self) -> usize {
        self.0.lock().events
    }
}

/// The receiving end of accepted batches.
pub(crate) struct Taking(Arc<Shared>);

impl Taking {
    /// Waits for batches and takes all that are there, up to `events_max` events and `batches_max` batches but at least
    /// one. `None` when the bus is closed and everything has been taken. Cancel-safe: nothing is taken before it returns.
    pub(crate) async fn next(&mut self, events_max: usize, batches_max: usize) -> Option<Vec<Delivery>> {
        loop {
            {
                let mut state = self.0.lock();
                if !state.queue.is_empty() {
                    return Some(take(&mut state.queue, events_max, batches_max));
                }
                if state.closed {
                    return None;
                }
            }
            self.0.arrived.notified().await;
        }
    }
}

fn take(queue: &mut VecDeque<Delivery>, events_max: usize, batches_max: usize) -> Vec<Delivery> {
    let mut events = 0;
    let fits = |delivery: &&Delivery| {
        events += delivery.batch.events.len();
        events <= events_max
    };
    let count = queue.iter().take(batches_max).take_while(fits).count().max(1);
    queue.drain(..count.min(queue.len())).collect()
}

/// Whoever waits for a batch's verdicts, and the room the batch takes until they are known.
pub(crate) struct Place {
    bus: Arc<Shared>,
    events: usize,
    bytes: usize,
    answer: Option<oneshot::Sender<Result<Published, Error>>>,
}

impl Place {
    /// Tells the publisher what became of the batch.
    pub(crate) fn answer(mut self, outcome: Result<Published, Error>) {
        if outcome.is_ok() {
            self.bus.lock().committed.add(self.events, Instant::now());
        }
        if let Some(answer) = self.answer.take() {
            // A publisher that stopped waiting has the batch stored all the same.
            let _ = answer.send(outcome);
        }
    }
}

/// Gives the room back, answered or not.
impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.bus.lock();
        state.events -= self.events;
        state.bytes -= self.bytes;
    }
}
