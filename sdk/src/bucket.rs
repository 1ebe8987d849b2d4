use std::borrow::Cow;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use eventbucket_protocol as protocol;

use crate::config::Settings;
use crate::durable::Durable;
use crate::error::{CaptureError, ConfigError};
use crate::promise::promise;
use crate::queue::{Captured, Request, Shared};
use crate::report::{Reporting, Waiter};
use crate::testing::Sink;
use crate::transport::Transport;
use crate::{Builder, Event, EventId, Ledger, Props, Report, fork, id, worker};

/// How long `flush()` and `shutdown()` try before they report what is left: a collector that restarts is back by then.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long dropping the last bucket may take: to deliver what is in memory, or to hand it to the spool.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes events and sees to it that each reaches the collector once.
///
/// A bucket is cheap to clone, and its clones are the same bucket. It starts one thread of its own and needs no async
/// runtime. In a forked child it starts afresh on the first use: what the parent had captured stays the parent's.
///
/// Dropping the last clone hands what is left to the spool; without a spool it waits up to a second for delivery.
/// [`shutdown`](Self::shutdown) does the same with a deadline of your choice, and reports.
///
/// ```
/// use eventbucket::{Bucket, event};
///
/// let (bucket, sink) = Bucket::test();
/// bucket.capture(event!("order_paid", user: "u-17", amount: 12.5));
/// assert_eq!(sink.events()[0].name, "order_paid");
/// assert!(bucket.stats().balances());
/// ```
#[derive(Clone)]
pub struct Bucket {
    root: Arc<Root>,
}

struct Root {
    settings: Arc<Settings>,
    transport: Arc<dyn Transport>,
    enabled: AtomicBool,
    first: Handle,
}

/// A queue with its worker, in the process that made them. A forked child finds another generation here, leaves it
/// untouched, for its lock may be held for ever and its worker doesn't exist, and goes on to the next.
struct Handle {
    generation: u64,
    shared: ManuallyDrop<Arc<Shared>>,
    next: OnceLock<Box<Handle>>,
}

impl Bucket {
    /// Begins to set up a bucket: the collector's URL and the project's write key.
    pub fn builder(url: impl Into<String>, key: impl Into<String>) -> Builder {
        Builder::new(url.into(), key.into())
    }

    /// Makes a bucket for tests: nothing leaves the process, its clock is moved by hand, and the [`Sink`] shows what a
    /// collector would have got. [`Builder::build_test`] does the same with settings.
    ///
    /// # Panics
    /// When the operating system gives no thread.
    #[must_use]
    pub fn test() -> (Self, Sink) {
        let built = Self::builder("http://test.invalid", "eb_test").build_test();
        built.expect("the settings are valid and a test can start a thread")
    }

    pub(crate) fn start(
        settings: Settings,
        transport: Arc<dyn Transport>,
        enabled: bool,
    ) -> Result<Self, ConfigError> {
        fork::watch();
        let settings = Arc::new(settings);
        let first = Handle::start(&settings, &transport).map_err(ConfigError::Thread)?;
        Ok(Self { root: Arc::new(Root { settings, transport, enabled: AtomicBool::new(enabled), first }) })
    }

    /// Captures an event and returns its id. Takes well under a microsecond and never blocks, unless
    /// [`Overflow::Block`](crate::Overflow::Block) was chosen. What can't be taken is dropped and counted.
    pub fn capture(&self, event: impl Into<Event>) -> EventId {
        self.take(event.into(), None, true).0
    }

    /// Captures the event that a function builds, and doesn't even call it while the bucket is disabled.
    pub fn capture_with<E: Into<Event>>(&self, build: impl FnOnce() -> E) -> Option<EventId> {
        self.is_enabled().then(|| self.capture(build()))
    }

    /// Captures an event or says why it can't be taken. Never blocks.
    ///
    /// # Errors
    /// When the bucket is disabled, shut down or full, or the event is too large or breaks another limit of the protocol. What
    /// the worker finds out later, such as a repeated id, shows in the ledger alone; so do limits where there is a
    /// [`before_send`](Builder::before_send), which may mend what breaks them.
    pub fn try_capture(&self, event: impl Into<Event>) -> Result<EventId, CaptureError> {
        let (id, taken) = self.take(event.into(), None, false);
        taken.map(|()| id)
    }

    /// Captures an event; the future, or [`Durable::wait`] in blocking code, resolves when it is on disk and would
    /// survive a power cut. Needs a spool. The event is captured even if nobody waits.
    pub fn capture_durable(&self, event: impl Into<Event>) -> Durable {
        let (promise, awaited) = promise();
        let (_, taken) = self.take(event.into(), Some(promise), false);
        Durable::new(taken.map(|()| awaited), self.waiter())
    }

    /// Says who a user is: traits such as name or email, kept with the user.
    pub fn identify(&self, user: impl Into<String>, traits: impl Into<Props>) -> EventId {
        self.capture(Event::new(protocol::IDENTIFY).user(user).props(traits))
    }

    /// Says that another id means the same user, e.g. the one from before signing up.
    pub fn alias(&self, user: impl Into<String>, other: impl AsRef<str>) -> EventId {
        self.capture(Event::new(protocol::ALIAS).user(user).prop("alias", other.as_ref()))
    }

    /// Tries to deliver everything captured so far, for up to 30 s; awaitable on any executor.
    pub fn flush(&self) -> Reporting {
        let deadline = Instant::now().checked_add(FLUSH_TIMEOUT);
        self.ask(|promise, before| Request::Flush { deadline, promise, before })
    }

    /// Tries to deliver everything captured so far, blocking the thread for at most this long. Safe inside any runtime,
    /// though it holds up whatever else the thread would do. In a hook it returns at once.
    pub fn flush_blocking(&self, timeout: Duration) -> Report {
        let deadline = Instant::now().checked_add(timeout);
        self.ask(|promise, before| Request::Flush { deadline, promise, before }).wait(timeout)
    }

    /// Takes no more events and tries to deliver all for up to 30 s. What is left then goes to the spool; without one
    /// it is dropped and counted. Ends all clones of the bucket.
    pub fn shutdown(&self) -> Reporting {
        self.end(FLUSH_TIMEOUT)
    }

    /// Takes no more events and tries to deliver all, blocking the thread for at most this long, and a moment more to
    /// hand what is left to the spool. Ends all clones of the bucket. In a hook it returns at once.
    pub fn shutdown_blocking(&self, timeout: Duration) -> Report {
        self.end(timeout).wait(timeout.saturating_add(DROP_TIMEOUT))
    }

    /// Returns where every event went so far.
    #[must_use]
    pub fn stats(&self) -> Ledger {
        self.shared().ledger()
    }

    /// Switches capturing on or off, e.g. when somebody opts out. What was captured before is still delivered.
    pub fn set_enabled(&self, enabled: bool) {
        self.root.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Says whether capturing is switched on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.root.enabled.load(Ordering::Relaxed)
    }

    /// Makes a layer that captures tracing events.
    #[cfg(feature = "tracing")]
    #[must_use]
    pub fn tracing_layer(&self) -> crate::TracingLayer {
        crate::TracingLayer::new(self.clone())
    }

    fn take(
        &self,
        mut event: Event,
        durable: Option<crate::durable::Kept>,
        may_block: bool,
    ) -> (EventId, Result<(), CaptureError>) {
        let now = self.root.settings.clock.wall();
        let explicit_id = event.id.is_some();
        let id = event.id.get_or_insert_with(|| id::event(now)).clone();
        event.time.get_or_insert(now);
        if !self.is_enabled() {
            return (id, Err(CaptureError::Disabled));
        }
        let shared = self.shared();
        let refused = match Captured::new(event, now.ms(), explicit_id) {
            Ok(captured) => match self.broken_limit(&captured.event) {
                None => return (id, shared.push(Captured { durable, ..captured }, may_block)),
                Some(message) => CaptureError::Invalid(message),
            },
            Err(error) => error,
        };
        shared.refuse(&id, &refused);
        (id, Err(refused))
    }

    /// Says which limit an event breaks, where whoever captured it can be told. A hook may still mend it, so then the worker
    /// looks.
    fn broken_limit(&self, event: &Event) -> Option<String> {
        if self.root.settings.before_send.is_some() {
            return None;
        }
        event.check().err().map(Cow::into_owned)
    }

    fn end(&self, timeout: Duration) -> Reporting {
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + FLUSH_TIMEOUT);
        self.ask(|promise, before| Request::Shutdown { deadline, promise, before })
    }

    fn ask(&self, request: impl FnOnce(crate::report::Kept, Ledger) -> Request) -> Reporting {
        let waiter = self.waiter();
        let (promise, awaited) = promise();
        let before = waiter.ledger();
        waiter.shared().ask(request(promise, before.clone()));
        Reporting::new(awaited, before, waiter)
    }

    fn waiter(&self) -> Waiter {
        Waiter::new(Arc::clone(self.root.handle().shared()))
    }

    pub(crate) fn shared(&self) -> &Shared {
        self.root.handle().shared()
    }

    /// For [`Sink`], which keeps the worker going but not the bucket alive.
    pub(crate) fn waiter_of(&self) -> (Waiter, crate::clock::Clock) {
        (self.waiter(), self.root.settings.clock.clone())
    }
}

impl Root {
    /// The handle of this process, made on the first use after a fork.
    fn handle(&self) -> &Handle {
        let generation = fork::generation();
        let mut handle = &self.first;
        while handle.generation != generation {
            handle = handle.next.get_or_init(|| {
                Box::new(
                    Handle::start(&self.settings, &self.transport)
                        .unwrap_or_else(|_| Handle::closed(&self.settings)),
                )
            });
        }
        handle
    }

    /// The handle of this process, if there is one.
    fn existing_handle(&self) -> Option<&Handle> {
        let generation = fork::generation();
        let mut handle = &self.first;
        while handle.generation != generation {
            handle = handle.next.get()?;
        }
        Some(handle)
    }
}

/// The last clone is gone. Handles of other generations are leaked: they belong to other processes.
impl Drop for Root {
    fn drop(&mut self) {
        let has_spool = self.settings.spool.is_some();
        let Some(handle) = self.existing_handle() else { return };
        let shared = handle.shared();
        let deliver_for = if has_spool { Duration::ZERO } else { DROP_TIMEOUT };
        let (promise, awaited) = promise();
        let deadline = Instant::now() + deliver_for;
        shared.ask(Request::Shutdown { deadline, promise, before: Ledger::default() });
        let waiter = Waiter::new(Arc::clone(shared));
        if !waiter.is_worker() {
            drop(awaited.wait(Some(DROP_TIMEOUT)));
        }
    }
}

impl Handle {
    fn start(settings: &Arc<Settings>, transport: &Arc<dyn Transport>) -> std::io::Result<Self> {
        let handle = Self::new(settings);
        worker::start(Arc::clone(&handle.shared), Arc::clone(settings), Arc::clone(transport))?;
        Ok(handle)
    }

    /// A child that can't start a thread counts its events as dropped.
    fn closed(settings: &Settings) -> Self {
        let handle = Self::new(settings);
        handle.shared.end();
        handle
    }

    fn new(settings: &Settings) -> Self {
        let shared = Arc::new(Shared::new(settings.queue_bytes_max, settings.overflow));
        Self { generation: fork::generation(), shared: ManuallyDrop::new(shared), next: OnceLock::new() }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// Shows the ledger.
impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
