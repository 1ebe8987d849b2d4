use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use eventbucket_protocol::EventId;
use eventbucket_protocol::limits::EVENT_BYTES_MAX;
use tokio::sync::Notify;

use crate::config::Overflow;
use crate::error::{CaptureError, Fault, invalid_words};
use crate::ledger::Tally;
use crate::promise::Promise;
use crate::{Event, Ledger, Report};

/// Slots made before the first capture: 20 ms, the worker's rest between two looks, at 50,000 events/s.
const SLOTS_TYPICAL: usize = 1_024;

/// Refused events that wait to be told of one by one: 1,000 of some 200 B. A loop that captures nothing but these must not
/// fill the memory; the rest is told of by number.
const TOLD_MAX: usize = 1_000;

/// An event as it was captured: id and time are set.
pub(crate) struct Captured {
    pub(crate) event: Event,
    /// When it was captured; its own time may be another.
    pub(crate) captured_ms: i64,
    /// Whether the application chose the id, so that it may come twice.
    pub(crate) explicit_id: bool,
    /// Who waits for it to be on disk.
    pub(crate) durable: Option<Promise<Result<EventId, CaptureError>>>,
    /// What it takes in the queue.
    pub(crate) bytes: usize,
}

impl Captured {
    /// Measures the event and checks it against the limit of one event.
    pub(crate) fn new(event: Event, captured_ms: i64, explicit_id: bool) -> Result<Self, CaptureError> {
        // Beyond twice the limit it can't shrink below it by encoding, so it needn't even take room in the queue.
        let bytes = event.text_bytes();
        if bytes > 2 * EVENT_BYTES_MAX {
            return Err(CaptureError::TooLarge { bytes, bytes_max: EVENT_BYTES_MAX });
        }
        let bytes = event.heap_bytes() + size_of::<Self>();
        Ok(Self { event, captured_ms, explicit_id, durable: None, bytes })
    }
}

/// What the worker is asked.
pub(crate) enum Request {
    /// Deliver what was captured so far.
    Flush { deadline: Option<Instant>, promise: Promise<Report>, before: Ledger },
    /// The same, then end. What isn't delivered by the deadline goes to the spool, or is dropped.
    Shutdown { deadline: Instant, promise: Promise<Report>, before: Ledger },
    /// Tell `on_error`.
    Tell(Fault),
    /// Say when there is nothing left to do at this time.
    Settle(Promise<()>),
}

/// What the application's threads and the worker share. One lock holds queue and ledger, so that a snapshot of the
/// ledger balances.
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// Told when room is made; captures that block wait here.
    room: Condvar,
    /// Wakes the worker.
    pub(crate) wake: Notify,
    pub(crate) worker: OnceLock<ThreadId>,
    queue_bytes_max: usize,
    overflow: Overflow,
}

struct Inner {
    events: VecDeque<Captured>,
    bytes: usize,
    /// Events and bytes the worker holds in memory or on disk, as it last said.
    held_events: u64,
    held_bytes: usize,
    ledger: Ledger,
    /// Events dropped for want of room since the last look.
    overflowed: u64,
    requests: Vec<Request>,
    /// Events refused that were too many to be told of one by one.
    untold: u64,
    /// The worker waits without a time limit: the next capture has to wake it.
    sleeping: bool,
    /// The worker was told not to linger.
    urgent: bool,
    /// No more captures.
    closed: bool,
    /// No more requests: there is no worker any more.
    ended: bool,
}

/// What the worker finds at a look.
pub(crate) struct Look {
    pub(crate) requests: Vec<Request>,
    pub(crate) has_events: bool,
    pub(crate) urgent: bool,
    pub(crate) overflowed: u64,
    pub(crate) untold: u64,
}

impl Shared {
    pub(crate) fn new(queue_bytes_max: usize, overflow: Overflow) -> Self {
        let inner = Inner {
            events: VecDeque::with_capacity(SLOTS_TYPICAL),
            bytes: 0,
            held_events: 0,
            held_bytes: 0,
            ledger: Ledger::default(),
            overflowed: 0,
            requests: Vec::new(),
            untold: 0,
            sleeping: false,
            urgent: false,
            closed: false,
            ended: false,
        };
        Self {
            inner: Mutex::new(inner),
            room: Condvar::new(),
            wake: Notify::new(),
            worker: OnceLock::new(),
            queue_bytes_max,
            overflow,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while the lock is held; if it did, every figure would still be whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event. `may_block` says whether the overflow rule may make the caller wait.
    pub(crate) fn push(&self, captured: Captured, may_block: bool) -> Result<(), CaptureError> {
        let mut inner = self.lock();
        if inner.closed || !self.has_room(&inner, captured.bytes) {
            inner = self.make_room(inner, captured.bytes, may_block)?;
        }
        let durable = captured.durable.is_some();
        inner.ledger.captured += 1;
        inner.bytes += captured.bytes;
        inner.events.push_back(captured);
        let crowded = inner.bytes > self.queue_bytes_max / 8;
        let wake = inner.sleeping || ((durable || crowded) && !inner.urgent);
        if wake {
            inner.sleeping = false;
            inner.urgent |= durable || crowded;
            drop(inner);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Counts an event that breaks a limit, and tells of it.
    pub(crate) fn refuse(&self, id: &EventId, error: &CaptureError) {
        let mut inner = self.lock();
        inner.ledger.captured += 1;
        let dropped = &mut inner.ledger.dropped;
        let reason = match error {
            CaptureError::Invalid(message) => {
                dropped.invalid += 1;
                invalid_words(id, message)
            }
            _ => {
                dropped.too_large += 1;
                error.to_string()
            }
        };
        if inner.requests.len() >= TOLD_MAX {
            inner.untold += 1;
            return;
        }
        drop(inner);
        self.ask(Request::Tell(Fault::Dropped { events: 1, reason }));
    }

    fn has_room(&self, inner: &Inner, bytes: usize) -> bool {
        inner.bytes + inner.held_bytes + bytes <= self.queue_bytes_max
    }

    /// The way off the hot path: what to do when the queue is full or closed. The lock comes back with room made.
    #[cold]
    fn make_room<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        bytes: usize,
        may_block: bool,
    ) -> Result<MutexGuard<'a, Inner>, CaptureError> {
        match self.overflow {
            Overflow::DropOldest if !inner.closed => {
                // Where what the worker holds alone leaves no room, shedding what waits would help nobody.
                while !self.has_room(&inner, bytes)
                    && inner.held_bytes + bytes <= self.queue_bytes_max
                    && let Some(oldest) = inner.events.pop_front()
                {
                    inner.bytes -= oldest.bytes;
                    inner.ledger.dropped.overflow += 1;
                    inner.overflowed += 1;
                    // Wakes somebody's future, who must be able to capture at once.
                    if let Some(promise) = oldest.durable {
                        drop(inner);
                        promise.keep(Err(CaptureError::QueueFull));
                        inner = self.lock();
                    }
                }
            }
            Overflow::Block(timeout)
                if may_block && self.worker.get() != Some(&std::thread::current().id()) =>
            {
                let deadline = Instant::now().checked_add(timeout);
                while !inner.closed && !self.has_room(&inner, bytes) {
                    inner.urgent = true;
                    self.wake.notify_one();
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    inner = match left {
                        Some(left) if left.is_zero() => break,
                        Some(left) => {
                            self.room.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                        }
                        None => self.room.wait(inner).unwrap_or_else(PoisonError::into_inner),
                    };
                }
            }
            _ => {}
        }
        if inner.closed {
            inner.ledger.captured += 1;
            inner.ledger.dropped.shutdown += 1;
            return Err(CaptureError::Closed);
        }
        if !self.has_room(&inner, bytes) {
            inner.ledger.captured += 1;
            inner.ledger.dropped.overflow += 1;
            inner.overflowed += 1;
            return Err(CaptureError::QueueFull);
        }
        Ok(inner)
    }

    /// Asks the worker. When there is none any more, the promise is given up.
    pub(crate) fn ask(&self, request: Request) {
        let mut inner = self.lock();
        if matches!(request, Request::Shutdown { .. }) {
            inner.closed = true;
            self.room.notify_all();
        }
        if !inner.ended {
            inner.requests.push(request);
            inner.sleeping = false;
            inner.urgent = true;
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// Returns the ledger of this moment.
    pub(crate) fn ledger(&self) -> Ledger {
        let inner = self.lock();
        let pending = inner.events.len() as u64 + inner.held_events;
        Ledger { pending, ..inner.ledger.clone() }
    }

    /// Worker: looks what is there.
    pub(crate) fn look(&self) -> Look {
        let mut inner = self.lock();
        Look {
            requests: std::mem::take(&mut inner.requests),
            has_events: !inner.events.is_empty(),
            urgent: std::mem::take(&mut inner.urgent),
            overflowed: std::mem::take(&mut inner.overflowed),
            untold: std::mem::take(&mut inner.untold),
        }
    }

    /// Worker: takes all events into empty hands, and says how many bytes they are. They count as held from here on.
    pub(crate) fn take(&self, hands: &mut VecDeque<Captured>) -> usize {
        let mut inner = self.lock();
        std::mem::swap(&mut inner.events, hands);
        let bytes = std::mem::take(&mut inner.bytes);
        inner.held_events += hands.len() as u64;
        inner.held_bytes += bytes;
        bytes
    }

    /// Worker: says what became of events and what it still holds, in one step.
    pub(crate) fn publish(&self, tally: &Tally, held_events: u64, held_bytes: usize) {
        let mut inner = self.lock();
        inner.ledger += &tally.ledger;
        tally.finals.iter().for_each(|known| inner.ledger.delivered.finish(known));
        inner.held_events = held_events;
        let room_made = held_bytes < inner.held_bytes;
        inner.held_bytes = held_bytes;
        drop(inner);
        if room_made {
            self.room.notify_all();
        }
    }

    /// Worker: how many events it held by the last word.
    pub(crate) fn held_events(&self) -> u64 {
        self.lock().held_events
    }

    /// Worker: goes to sleep unless something is there; says whether it may.
    pub(crate) fn may_sleep(&self) -> bool {
        let mut inner = self.lock();
        inner.sleeping = inner.events.is_empty() && inner.requests.is_empty() && !inner.urgent;
        inner.sleeping
    }

    /// Worker: says that there is none any more. Whoever still asks gets no answer and doesn't wait.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.ended = true;
        let lost = inner.events.len() as u64;
        inner.ledger.dropped.shutdown += lost;
        inner.bytes = 0;
        let events = std::mem::take(&mut inner.events);
        let requests = std::mem::take(&mut inner.requests);
        drop(inner);
        self.room.notify_all();
        // Outside the lock: both wake somebody.
        drop((events, requests));
    }
}
