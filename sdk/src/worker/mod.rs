/// Flushes, shutdown, and other things asked.
mod requests;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use self::requests::{End, Flush};
use crate::EventId;
use crate::backlog::Backlog;
use crate::config::{Overflow, Settings};
use crate::delivery::Delivery;
use crate::encoded::EncodedEvent;
use crate::error::{CaptureError, Fault, panic_message};
use crate::fork::{self, Working};
use crate::intake::Intake;
use crate::ledger::Tally;
use crate::promise::Promise;
use crate::queue::{Captured, Shared};
use crate::transport::Transport;

/// How long captures may gather before the worker looks: with a commit to the spool (a few ms) well within the 50 ms
/// that are promised, and 50 wake-ups a second at most.
const LINGER_MS: u64 = 20;
/// Events taken from the hands in one go, before answers and requests are looked at: a few ms of work.
const SLICE_EVENTS: usize = 1_000;
/// After the worker panicked: doubled each time in a row, so that a fault that comes back at once can't spin.
const RESTART_MIN: Duration = Duration::from_millis(10);
const RESTART_DOUBLINGS_MAX: u32 = 10;
/// Work without a panic after which the next one counts as the first: the longest pause, 10 ms doubled ten times, is
/// 10.24 s, and this is six of it.
const RESTART_FORGOTTEN: Duration = Duration::from_secs(60);

/// The name of the worker's thread.
pub(crate) const THREAD_NAME: &str = "eventbucket";

type Promised = Promise<Result<EventId, CaptureError>>;

/// Starts the worker's thread.
pub(crate) fn start(
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    transport: Arc<dyn Transport>,
) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(THREAD_NAME.to_owned());
    // Counted before there is a thread, so that no fork falls between.
    let working = Working::begin();
    thread.spawn(move || {
        // Whatever happens, nobody waits for a worker that is gone.
        let _working = working;
        let ending = Ending(Arc::clone(&shared));
        shared.worker.get_or_init(|| std::thread::current().id());
        match runtime() {
            Ok(runtime) => run(&runtime, &mut Worker::new(shared, settings, transport)),
            Err(error) => {
                settings.tell(&Fault::Panicked { who: "worker", message: error.to_string() });
            }
        }
        drop(ending);
    })?;
    Ok(())
}

struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(fork::rest)
        .on_thread_unpark(fork::work)
        .build()
}

/// Runs the worker until it was shut down. A panic is contained: its state outlives it, and work goes on.
fn run(runtime: &Runtime, worker: &mut Worker) {
    let mut panics = 0;
    let mut resumed = Instant::now();
    while let Err(panic) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(worker.work()))) {
        let worked = resumed.elapsed();
        let _runtime = runtime.enter();
        worker.recover(panic_message(&*panic));
        runtime.block_on(tokio::time::sleep(restart_pause(&mut panics, worked)));
        resumed = Instant::now();
    }
}

/// Counts a panic after so much work, and says how long to wait before going on.
fn restart_pause(panics: &mut u32, worked: Duration) -> Duration {
    if worked > RESTART_FORGOTTEN {
        *panics = 0;
    }
    let pause = RESTART_MIN * 2_u32.pow((*panics).min(RESTART_DOUBLINGS_MAX));
    *panics = panics.saturating_add(1);
    pause
}

/// Everything behind the queue, on one thread.
struct Worker {
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    /// Taken from the queue and not yet looked at.
    hands: VecDeque<Captured>,
    hands_bytes: usize,
    intake: Intake,
    backlog: Backlog,
    delivery: Delivery,
    /// What isn't yet told to the ledger.
    tally: Tally,
    /// What isn't yet told to those who wait for a durable capture.
    answers: Vec<(Promised, Result<EventId, CaptureError>)>,
    /// When the queue is looked at next, while captures may gather.
    drain_ms: Option<u64>,
    flushes: Vec<Flush>,
    settles: Vec<Promise<()>>,
    ending: Option<End>,
}

impl Worker {
    fn new(shared: Arc<Shared>, settings: Arc<Settings>, transport: Arc<dyn Transport>) -> Self {
        Self {
            intake: Intake::new(Arc::clone(&settings)),
            backlog: Backlog::new(Arc::clone(&settings)),
            delivery: Delivery::new(Arc::clone(&settings), transport),
            shared,
            settings,
            hands: VecDeque::new(),
            hands_bytes: 0,
            tally: Tally::default(),
            answers: Vec::new(),
            drain_ms: None,
            flushes: Vec::new(),
            settles: Vec::new(),
            ending: None,
        }
    }

    /// The whole path of an event from the queue to its verdict, over and over.
    async fn work(&mut self) {
        loop {
            let urgent = self.take_requests();
            self.backlog.tend(&mut self.tally);
            if self.may_drain(urgent) {
                self.drain().await;
            }
            let batch_due_ms = self.backlog.close_due(self.delivery.endpoints.any_healthy(), &mut self.tally);
            self.delivery.dispatch(&mut self.backlog, &mut self.tally);
            self.delivery.ask();
            self.delivery.discover(&self.backlog);
            self.publish();
            self.answer_flushes();
            if self.is_ending() {
                return self.end();
            }
            self.rest(batch_due_ms).await;
        }
    }

    /// A test's clock stands still, so nothing waits for it.
    fn linger_ms(&self) -> u64 {
        if self.settings.clock.is_test() { 0 } else { LINGER_MS }
    }

    /// Unless the oldest are to make room, a full backlog leaves events in the queue, where captures feel it.
    fn has_room(&self) -> bool {
        self.settings.overflow == Overflow::DropOldest
            || self.backlog.memory_bytes() < self.settings.backlog_bytes_max()
    }

    fn may_drain(&self, urgent: bool) -> bool {
        let due = self.drain_ms.is_some_and(|drain_ms| drain_ms <= self.now_ms());
        !self.hands.is_empty() || ((due || urgent) && self.has_room())
    }

    /// Empties the queue into batches.
    async fn drain(&mut self) {
        if self.hands.is_empty() {
            // What is kept for the next swap stays small after a burst.
            self.hands.shrink_to(SLICE_EVENTS);
            self.hands_bytes = self.shared.take(&mut self.hands);
        }
        self.drain_ms =
            Some(self.linger_ms()).filter(|linger_ms| *linger_ms > 0).map(|ms| self.now_ms() + ms);
        while !self.hands.is_empty() {
            self.take_slice();
            self.backlog.shed(&mut self.tally);
            self.publish();
            tokio::task::yield_now().await;
        }
        if self.is_hurried() {
            self.backlog.close_open(&mut self.tally);
            let before_order = self.backlog.next_order();
            for flush in &mut self.flushes {
                flush.before_order.get_or_insert(before_order);
            }
        }
    }

    fn take_slice(&mut self) {
        let mut events: Vec<EncodedEvent> = Vec::with_capacity(self.hands.len().min(SLICE_EVENTS));
        let mut durable: Vec<(Promised, EventId)> = Vec::new();
        while events.len() < SLICE_EVENTS
            && let Some(mut captured) = self.hands.pop_front()
        {
            self.hands_bytes -= captured.bytes;
            let promise = captured.durable.take();
            let id = promise.as_ref().and_then(|_| captured.event.id.clone());
            let taken = self.intake.take(captured, &mut self.tally);
            match (taken, promise.zip(id)) {
                (Ok(event), waiting) => {
                    events.push(event);
                    durable.extend(waiting);
                }
                (Err(error), Some((promise, _))) => self.answers.push((promise, Err(error))),
                (Err(_), None) => {}
            }
        }
        let durability = self.backlog.add(&events, !durable.is_empty(), &mut self.tally);
        for (promise, id) in durable {
            let outcome = durability.clone().map(|()| id).map_err(CaptureError::NotDurable);
            self.answers.push((promise, outcome));
        }
    }

    /// Tells the ledger, then whoever waits and `on_error`: they find in the ledger what they are told.
    fn publish(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        self.intake.release(&tally.forgotten);
        let held_events = self.hands.len() as u64 + self.backlog.events();
        self.shared.publish(&tally, held_events, self.hands_bytes + self.backlog.memory_bytes());
        self.answers.drain(..).for_each(|(promise, outcome)| promise.keep(outcome));
        let panics = tally.faults.iter().filter(|fault| !self.settings.tell(fault)).count();
        // Told with the next figures: it is the telling itself that failed.
        self.tally.ledger.on_error_panics += panics as u64;
    }

    /// Waits until there is something to do.
    async fn rest(&mut self, batch_due_ms: Option<u64>) {
        let now_ms = self.now_ms();
        let probe_ms = self.delivery.endpoints.next_probe_ms(now_ms);
        // Events the backlog has no room for are looked at again when an answer makes room.
        let drain_ms = self.drain_ms.filter(|_| self.has_room());
        let final_ms = self.delivery.finals.next_ms();
        let discovery_ms = self.delivery.next_discovery_ms(&self.backlog);
        let next_ms = [batch_due_ms, probe_ms, self.backlog.next_ms(), drain_ms, final_ms, discovery_ms];
        let next_ms = next_ms.into_iter().flatten().min();
        if drain_ms.is_none() && !self.shared.may_sleep() && self.has_room() {
            return;
        }
        if !self.settles.is_empty()
            && self.delivery.is_idle()
            && next_ms.is_none_or(|next_ms| next_ms > now_ms)
        {
            self.settles.drain(..).for_each(|promise| promise.keep(()));
        }
        let deadline = self.flushes.iter().filter_map(|flush| flush.deadline);
        let deadline = deadline.chain(self.ending.as_ref().map(|ending| ending.deadline)).min();
        let (shared, clock) = (Arc::clone(&self.shared), self.settings.clock.clone());
        // All four are safe to drop: a notification stays until it is taken, sleeping has no effect, and a finished
        // attempt stays in its set.
        let finished = {
            let mut woken = pin!(shared.wake.notified());
            let mut timer = pin!(clock.sleep_until(next_ms));
            let mut late = pin!(sleep_until(deadline));
            let mut finished = pin!(self.delivery.finished());
            poll_fn(|context| match finished.as_mut().poll(context) {
                Poll::Ready(finished) => Poll::Ready(Some(finished)),
                Poll::Pending => {
                    let woken = woken.as_mut().poll(context).is_ready();
                    let timer = timer.as_mut().poll(context).is_ready();
                    let late = late.as_mut().poll(context).is_ready();
                    if woken || timer || late { Poll::Ready(None) } else { Poll::Pending }
                }
            })
            .await
        };
        if let Some(finished) = finished {
            self.delivery.settle(finished, &mut self.backlog, &mut self.tally);
        }
    }

    /// After a panic: what was under way is sent again, and what the panic took with it is counted.
    fn recover(&mut self, message: String) {
        self.delivery.break_off(&mut self.backlog);
        // Held by the last word, minus what is still here, minus what was counted since: lost in the panic.
        self.hands_bytes = self.hands.iter().map(|captured| captured.bytes).sum();
        let here = self.hands.len() as u64 + self.backlog.events();
        let settled = self.tally.ledger.settled();
        let recovered = self.tally.ledger.recovered;
        let lost = (self.shared.held_events() + recovered).saturating_sub(here + settled);
        self.tally.ledger.dropped.worker_panicked += lost;
        self.tally.ledger.worker_restarts += 1;
        self.tally.fault(Fault::Panicked { who: "worker", message });
        self.publish();
    }

    fn now_ms(&self) -> u64 {
        self.settings.clock.monotonic_ms()
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Request;
    use crate::{Bucket, Event};

    /// A worker over an in-process collector, run by the test's own hand.
    fn worker() -> Worker {
        let settings = Bucket::builder("http://test.invalid", "key").test_settings();
        let shared = Arc::new(Shared::new(settings.queue_bytes_max, settings.overflow));
        Worker::new(shared, Arc::new(settings), Arc::<crate::testing::Record>::default())
    }

    fn capture(worker: &Worker, name: &'static str) {
        let now = worker.settings.clock.wall();
        let mut event = Event::new(name);
        event.id = Some(crate::id::event(now));
        event.time = Some(now);
        worker.shared.push(Captured::new(event, now.ms(), false).unwrap(), false).unwrap();
    }

    #[test]
    fn pauses_after_panics_grow_and_are_forgotten_after_long_work() {
        let mut panics = 0;
        let mut pause_ms = |worked_s| restart_pause(&mut panics, Duration::from_secs(worked_s)).as_millis();
        assert_eq!([pause_ms(0), pause_ms(0), pause_ms(60)], [10, 20, 40]);
        assert_eq!((0..20).map(|_| pause_ms(0)).max(), Some(10_240));
        assert_eq!([pause_ms(61), pause_ms(0)], [10, 20]);
    }

    #[test]
    fn after_a_panic_the_worker_counts_what_it_took_and_delivers_the_rest() {
        let runtime = runtime().unwrap();
        let mut worker = worker();
        for name in ["lost", "kept", "kept too"] {
            capture(&worker, name);
        }
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            worker.hands_bytes = worker.shared.take(&mut worker.hands);
            worker.hands.pop_front();
            panic!("in the middle of the work");
        }));
        {
            let _runtime = runtime.enter();
            worker.recover(panic_message(&*panicked.unwrap_err()));
        }
        let ledger = worker.shared.ledger();
        assert_eq!((ledger.dropped.worker_panicked, ledger.pending, ledger.worker_restarts), (1, 2, 1));
        assert!(ledger.balances());
        let (promise, awaited) = crate::promise::promise();
        let deadline = Instant::now() + Duration::from_secs(60);
        worker.shared.ask(Request::Shutdown { deadline, promise, before: ledger });
        run(&runtime, &mut worker);
        let report = awaited.wait(Some(Duration::ZERO)).unwrap().unwrap();
        assert_eq!((report.delivered, report.still_pending), (2, 0));
        assert!(report.ledger.balances());
    }
}
