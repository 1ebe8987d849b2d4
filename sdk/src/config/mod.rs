/// Whether what was given can work.
mod check;

pub(crate) use check::{is_loopback, plain_url, url as check_url};

use std::borrow::Cow;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EVENT_BYTES_MAX};

use crate::bucket::Bucket;
use crate::clock::{Clock, ms};
use crate::error::{ConfigError, Fault};
use crate::testing::Sink;
use crate::transport::{Compression, Transport};
use crate::{Event, Props};

/// Memory for everything not yet delivered or on disk: 8 MiB, about 20,000 events of 0.4 KiB.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The least that still holds one event of any size beside a full backlog (three quarters): 4 × 256 KiB, twice over.
const QUEUE_BYTES_LEAST: usize = 8 * EVENT_BYTES_MAX;
/// The least that a spool's file takes with an event in it: 8 pages of 4 KiB.
const SPOOL_BYTES_LEAST: usize = 32 * 1024;
/// On disk: 64 MiB, about 160,000 events of 0.4 KiB.
const SPOOL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// One commit at the collector; its speed gains little beyond.
const BATCH_EVENTS: usize = 1_000;
/// 1 MiB: 1,000 events of twice the usual size, and four of them under way fit a modest uplink.
const BATCH_BYTES: usize = 1024 * 1024;
/// How long the first event of a batch waits for company.
const BATCH_AGE: Duration = Duration::from_secs(1);
/// Ids remembered to withhold repeats: 8,192 × 64 B = 0.5 MiB.
pub(crate) const DEDUP_IDS: usize = 8_192;
const DEDUP_TTL: Duration = Duration::from_secs(10 * 60);

type BeforeSend = Arc<dyn Fn(Event) -> Option<Event> + Send + Sync>;
type OnError = Arc<dyn Fn(&Fault) + Send + Sync>;

/// What happens to an event that finds the queue full. Each loss is counted as `dropped.overflow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// The new event is dropped.
    #[default]
    DropNewest,
    /// The oldest events make room, also those in the spool when that is full.
    DropOldest,
    /// `capture` waits this long for room, then drops the new event. `try_capture` never waits, nor does a hook.
    Block(Duration),
}

/// Sets up a [`Bucket`]; made by [`Bucket::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until .build()"]
pub struct Builder {
    settings: Settings,
    transport: Option<Arc<dyn Transport>>,
    enabled: bool,
    #[cfg(feature = "http")]
    http: Http,
    context_fault: Option<String>,
}

#[cfg(feature = "http")]
#[derive(Clone, Default)]
struct Http {
    proxy: Option<String>,
    roots_pem: Vec<Vec<u8>>,
}

/// What the worker goes by.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) endpoints: Vec<String>,
    pub(crate) discover: bool,
    pub(crate) key: String,
    pub(crate) spool: Option<PathBuf>,
    pub(crate) spool_bytes_max: u64,
    pub(crate) queue_bytes_max: usize,
    pub(crate) batch_events_max: usize,
    pub(crate) batch_bytes_max: usize,
    pub(crate) batch_age_max: Duration,
    pub(crate) overflow: Overflow,
    pub(crate) context: Props,
    pub(crate) before_send: Option<BeforeSend>,
    pub(crate) sample: f64,
    pub(crate) dedup_ids_max: usize,
    pub(crate) dedup_ttl: Duration,
    pub(crate) compression: Compression,
    pub(crate) final_verdicts: bool,
    pub(crate) on_error: Option<OnError>,
    pub(crate) clock: Clock,
}

impl Settings {
    /// Tells `on_error`; says whether it came through without a panic, which must not stop the worker.
    pub(crate) fn tell(&self, fault: &Fault) -> bool {
        let Some(on_error) = &self.on_error else { return true };
        catch_unwind(AssertUnwindSafe(|| on_error(fault))).is_ok()
    }

    /// What to do where events found no room in memory.
    pub(crate) fn more_room(&self) -> &'static str {
        match self.spool {
            // A spool that takes none has been told of as a fault of its own.
            Some(_) => {
                "raise queue_bytes_max, or capture more slowly: the disk takes them later than they come"
            }
            None => "raise queue_bytes_max or add a spool",
        }
    }

    /// The memory that encoded events may take: the rest is for the queue.
    pub(crate) fn backlog_bytes_max(&self) -> usize {
        self.queue_bytes_max / 4 * 3
    }

    /// How old the open batch may get, in milliseconds.
    pub(crate) fn batch_age_ms(&self) -> u64 {
        ms(self.batch_age_max)
    }
}

impl Builder {
    pub(crate) fn new(url: String, key: String) -> Self {
        let settings = Settings {
            endpoints: vec![url],
            discover: false,
            key,
            spool: None,
            spool_bytes_max: SPOOL_BYTES_MAX,
            queue_bytes_max: QUEUE_BYTES_MAX,
            batch_events_max: BATCH_EVENTS,
            batch_bytes_max: BATCH_BYTES,
            batch_age_max: BATCH_AGE,
            overflow: Overflow::default(),
            context: Props::new(),
            before_send: None,
            sample: 1.0,
            dedup_ids_max: DEDUP_IDS,
            dedup_ttl: DEDUP_TTL,
            compression: Compression::default(),
            final_verdicts: false,
            on_error: None,
            clock: Clock::system(),
        };
        Self {
            settings,
            transport: None,
            enabled: true,
            #[cfg(feature = "http")]
            http: Http::default(),
            context_fault: None,
        }
    }

    /// Adds a collector. Batches go to all in turn; one that fails is left out until it answers again.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.settings.endpoints.push(url.into());
        self
    }

    /// Learns the collector's other processes from those given, and sends to all in turn. Asked is `GET /v1/nodes`, with the first
    /// events, then every 2.5 to 5 minutes and soon after a failure, while there is something to send. Those given always
    /// stay; one that is no longer named is left. The key goes to learned URLs too, so none is taken that is weaker than
    /// those given (http where any is https). An answer that can't be used changes nothing and is told to `on_error`
    /// once. Off unless told otherwise: behind a balancer the processes' own addresses are of no use.
    pub fn discover(mut self, discover: bool) -> Self {
        self.settings.discover = discover;
        self
    }

    /// Keeps events in a folder until they are delivered: what was captured survives the process, SIGKILL included,
    /// from 50 ms after its capture, and the next process with the same folder delivers it. Processes may share one.
    #[cfg(feature = "spool")]
    pub fn spool(mut self, folder: impl Into<PathBuf>) -> Self {
        self.settings.spool = Some(folder.into());
        self
    }

    /// Bounds the spool; 64 MiB unless told otherwise.
    #[cfg(feature = "spool")]
    pub fn spool_bytes_max(mut self, bytes: u64) -> Self {
        self.settings.spool_bytes_max = bytes;
        self
    }

    /// Bounds the memory for events that are neither delivered nor on disk; 8 MiB unless told otherwise, at least 2 MiB.
    pub fn queue_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.queue_bytes_max = bytes;
        self
    }

    /// Closes a batch at this many events; 1,000 unless told otherwise, at most 10,000.
    pub fn batch_events_max(mut self, events: usize) -> Self {
        self.settings.batch_events_max = events;
        self
    }

    /// Closes a batch at this many bytes before compression; 1 MiB unless told otherwise, at most 4 MiB.
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes_max = bytes;
        self
    }

    /// Closes a batch when its first event is this old; 1 s unless told otherwise. While no collector answers, batches
    /// stay open longer, up to an hour, so that an outage doesn't leave thousands of small ones.
    pub fn batch_age_max(mut self, age: Duration) -> Self {
        self.settings.batch_age_max = age;
        self
    }

    /// Chooses what happens when the queue is full; the newest event is dropped unless told otherwise.
    pub fn on_overflow(mut self, overflow: Overflow) -> Self {
        self.settings.overflow = overflow;
        self
    }

    /// Adds properties to every event that doesn't carry them itself: `[("service", "billing")]` or `props! {…}`.
    pub fn context(mut self, props: impl Into<Props>) -> Self {
        let mut context = props.into();
        self.context_fault = self.context_fault.or_else(|| context.check().err().map(Cow::into_owned));
        context.merge_missing(&self.settings.context);
        self.settings.context = context;
        self
    }

    /// Lets a function change or (by `None`) withhold each event, on the worker's thread, before it is encoded. Id and
    /// time stay as they were captured. If it panics, the event is dropped and counted.
    pub fn before_send(mut self, hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        self.settings.before_send = Some(Arc::new(hook));
        self
    }

    /// Keeps this share of users, 0 to 1, with all their events; events without a user are drawn by their id.
    pub fn sample(mut self, rate: f64) -> Self {
        self.settings.sample = rate;
        self
    }

    /// Withholds an explicit id captured again within a time, remembering the newest `ids_max`; 8,192 ids and 10 minutes
    /// unless told otherwise. The collector knows ids for longer; this only saves the way there.
    pub fn dedup_window(mut self, ids_max: usize, ttl: Duration) -> Self {
        self.settings.dedup_ids_max = ids_max;
        self.settings.dedup_ttl = ttl;
        self
    }

    /// Starts switched off; [`Bucket::set_enabled`] switches on.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Brings an own way to the collector. Proxy and certificates are its own business then.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Goes through a proxy: `http://proxy.example.org:3128`. Without it the system's settings are used.
    #[cfg(feature = "http")]
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.http.proxy = Some(url.into());
        self
    }

    /// Trusts the certificates of a PEM text beside those of the system.
    #[cfg(feature = "http")]
    pub fn root_certificate_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.http.roots_pem.push(pem.into());
        self
    }

    /// Chooses how bodies are compressed.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.settings.compression = compression;
        self
    }

    /// Asks a collector that queues events what became of them in the end: `accepted` in the ledger turns into `stored`,
    /// `duplicate` or `quarantined`. A flush and a shutdown then wait for it too, up to their deadline. Off unless told
    /// otherwise: accepted events are safe, and asking costs a request per batch. What nobody knows within a day of asking
    /// stays `accepted`.
    pub fn final_verdicts(mut self, ask: bool) -> Self {
        self.settings.final_verdicts = ask;
        self
    }

    /// Lets a function know what goes wrong, on the worker's thread.
    pub fn on_error(mut self, hook: impl Fn(&Fault) + Send + Sync + 'static) -> Self {
        self.settings.on_error = Some(Arc::new(hook));
        self
    }

    /// Checks the settings and starts the worker's thread.
    ///
    /// No connection is made: a collector that is down now doesn't keep the application from starting.
    ///
    /// # Errors
    /// The first setting that can't work, with what to do about it.
    pub fn build(self) -> Result<Bucket, ConfigError> {
        self.check()?;
        let transport = match &self.transport {
            Some(transport) => Arc::clone(transport),
            None => self.own_transport()?,
        };
        Bucket::start(self.settings, transport, self.enabled)
    }

    /// Builds a bucket for tests with these settings: nothing leaves the process, and its clock is moved by hand.
    ///
    /// # Errors
    /// The first setting that can't work, with what to do about it.
    pub fn build_test(mut self) -> Result<(Bucket, Sink), ConfigError> {
        self.check()?;
        self.set_test();
        let transport = Arc::default();
        let bucket =
            Bucket::start(self.settings, Arc::clone(&transport) as Arc<dyn Transport>, self.enabled)?;
        let sink = Sink::new(&bucket, transport);
        Ok((bucket, sink))
    }

    fn set_test(&mut self) {
        self.settings.clock = Clock::test();
        self.settings.compression = Compression::None;
    }

    /// The settings of [`Self::build_test`], for tests of the stages themselves.
    #[cfg(test)]
    pub(crate) fn test_settings(mut self) -> Settings {
        self.set_test();
        self.settings
    }

    #[cfg(feature = "http")]
    fn own_transport(&self) -> Result<Arc<dyn Transport>, ConfigError> {
        let mut builder = crate::transport::HttpTransport::builder();
        if let Some(url) = &self.http.proxy {
            builder = builder.proxy(url);
        }
        for pem in &self.http.roots_pem {
            builder = builder.root_certificate_pem(pem.clone());
        }
        let transport = builder.build().map_err(|error| ConfigError::Transport(Box::new(error)))?;
        Ok(Arc::new(transport))
    }

    #[cfg(not(feature = "http"))]
    fn own_transport(&self) -> Result<Arc<dyn Transport>, ConfigError> {
        Err(ConfigError::NoTransport)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let settings = &self.settings;
        settings.endpoints.iter().try_for_each(|url| check::url(url))?;
        check::key(&settings.key)?;
        check::limit("batch_events_max", settings.batch_events_max, 1, BATCH_EVENTS_MAX)?;
        check::limit("batch_bytes_max", settings.batch_bytes_max, 1, BATCH_BYTES_MAX)?;
        check::limit("queue_bytes_max", settings.queue_bytes_max, QUEUE_BYTES_LEAST, usize::MAX)?;
        let spool_bytes_max = usize::try_from(settings.spool_bytes_max).unwrap_or(usize::MAX);
        check::limit("spool_bytes_max", spool_bytes_max, SPOOL_BYTES_LEAST, usize::MAX)?;
        if !(0.0..=1.0).contains(&settings.sample) {
            return Err(ConfigError::Limit {
                setting: "sample",
                value: settings.sample.to_string(),
                allowed: "a rate from 0 (nobody) to 1 (everybody)".to_owned(),
            });
        }
        if let Some(fault) = &self.context_fault {
            return Err(ConfigError::Context(fault.clone()));
        }
        match &settings.spool {
            Some(folder) if folder.as_os_str().is_empty() => Err(ConfigError::NoSpoolFolder),
            Some(folder) if folder.is_file() => Err(ConfigError::SpoolFolder(folder.clone())),
            _ => Ok(()),
        }
    }
}

/// Shows neither the key nor hooks.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("endpoints", &self.settings.endpoints).finish_non_exhaustive()
    }
}
