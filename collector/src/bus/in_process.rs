use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, broadcast, oneshot};

use super::message::{Published, StoredRange, ValidBatch};
use super::{Delivery, Error, Hint};

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

/// How far back the drain rate looks.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// The shortest and longest time a client is told to wait.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

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
        let ticket = Ticket { bus: Arc::clone(&self.0), events, bytes, answer: Some(sender) };
        state.queue.push_back(Delivery { batch, ticket });
        Ok(answer)
    }

    pub(super) fn accepted(&self) -> Option<Accepted> {
        let mut state = self.0.lock();
        let first = !std::mem::replace(&mut state.consumer_taken, true);
        drop(state);
        first.then(|| Accepted(Arc::clone(&self.0)))
    }

    pub(super) fn announce(&self, ranges: &[StoredRange]) {
        for range in ranges.iter().filter(|range| range.first <= range.last) {
            // Nobody listening is fine: views read the log when they start.
            let _ = self.0.ranges.send(*range);
        }
    }

    pub(super) fn ranges(&self) -> RangeReceiver {
        RangeReceiver(self.0.ranges.subscribe())
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
pub struct Accepted(Arc<Shared>);

impl Accepted {
    /// Waits for batches and takes all that are there, up to `events_max` events and `batches_max` batches but at least
    /// one. `None` when the bus is closed and everything has been taken. Cancel-safe: nothing is taken before it returns.
    pub async fn next(&mut self, events_max: usize, batches_max: usize) -> Option<Vec<Delivery>> {
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
pub struct Ticket {
    bus: Arc<Shared>,
    events: usize,
    bytes: usize,
    answer: Option<oneshot::Sender<Result<Published, Error>>>,
}

impl Ticket {
    /// Tells the publisher what became of the batch.
    pub fn answer(mut self, outcome: Result<Published, Error>) {
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
impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.bus.lock();
        state.events -= self.events;
        state.bytes -= self.bytes;
    }
}

/// A view's ear.
pub struct RangeReceiver(broadcast::Receiver<StoredRange>);

impl RangeReceiver {
    /// Waits for the next range; `None` when the bus is gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Hint> {
        match self.0.recv().await {
            Ok(range) => Some(Hint::Range(range)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Hint::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// Takes the next range if one is there.
    pub fn try_recv(&mut self) -> Option<Hint> {
        match self.0.try_recv() {
            Ok(range) => Some(Hint::Range(range)),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Hint::Missed),
            Err(_) => None,
        }
    }
}

/// How fast events were committed over the last seconds.
#[derive(Default)]
struct DrainRate {
    samples: VecDeque<(Instant, usize)>,
    events: usize,
}

/// Samples closer together than this are added up, which bounds them to 50.
const RATE_GRAIN: Duration = Duration::from_millis(100);

impl DrainRate {
    fn add(&mut self, events: usize, now: Instant) {
        self.events += events;
        match self.samples.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < RATE_GRAIN => *sum += events,
            _ => self.samples.push_back((now, events)),
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            self.events -= self.samples.pop_front().map_or(0, |(_, events)| events);
        }
    }

    /// Estimates how long `waiting` events take, in whole seconds, within the bounds.
    fn time_for(&mut self, waiting: usize, now: Instant) -> Duration {
        self.forget(now);
        let (shortest, longest) = RETRY_AFTER;
        let Some((oldest, _)) = self.samples.front() else { return longest };
        let measured = now.duration_since(*oldest).max(RATE_GRAIN);
        #[expect(clippy::cast_precision_loss, reason = "an estimate of seconds")]
        let seconds = waiting as f64 * measured.as_secs_f64() / self.events.max(1) as f64;
        Duration::from_secs_f64(seconds.ceil().min(longest.as_secs_f64())).clamp(shortest, longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_wait_follows_the_speed_of_storing() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        assert_eq!(rate.time_for(1000, start), RETRY_AFTER.1, "nothing was stored lately");
        for second in 0..4 {
            rate.add(1000, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(4);
        assert_eq!(rate.time_for(5000, now), Duration::from_secs(5));
        assert_eq!(rate.time_for(1, now), RETRY_AFTER.0);
        assert_eq!(rate.time_for(1_000_000, now), RETRY_AFTER.1);
    }

    #[test]
    fn samples_are_bounded() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        for ms in 0..20_000 {
            rate.add(1, start + Duration::from_millis(ms));
        }
        assert!(rate.samples.len() <= 52, "{}", rate.samples.len());
        assert!((4900..=5200).contains(&rate.events), "{}", rate.events);
    }
}
