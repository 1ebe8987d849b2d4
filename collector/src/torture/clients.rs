//! The applications: buckets of the SDK that send numbered events over both edges, and remember every batch they sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use eventbucket::transport::{Attempt, HttpTransport, Question, Sending};
use eventbucket::{Bucket, Compression, Event, Ledger, Transport};
use eventbucket_protocol::Timestamp;
use eventbucket_protocol::codec::{Format, decode};

use crate::bus::message::ValidBatch;
use crate::ingest::{Arrival, validate};
use crate::project::ProjectId;

use super::schedule::CLIENTS;

/// Small and young batches, so that a fault finds many on their way.
const BATCH_EVENTS: usize = 40;
const BATCH_AGE: Duration = Duration::from_millis(30);

/// Hours that the events lie in.
const HOURS: u64 = 3;
const HOUR_MS: i64 = 3_600_000;

/// Of so many events in a row this many have the first of the names, and nearly each a user of its own: in every second
/// schedule there are more than a sketch counts one by one. The other names have few users, and some events without one.
const ROUND: u64 = 20;
const OF_FIRST_NAME: u64 = 16;
const SECOND_EVENT_EVERY: u64 = 16;
const USERS: u64 = 7;

/// Of the second client's events every so many-th has the id of one of the first's: it is stored once all the same.
const SHARED_EVERY: u64 = 10;

/// The pause before a batch that must be taken is sent once more.
const RESEND_PAUSE: Duration = Duration::from_millis(50);

/// How long one flush may take; while a broker is away the next one goes on.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What an event is called, where it lies in time, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) name: String,
    pub(super) time_ms: i64,
    pub(super) user: Option<String>,
}

impl Sent {
    /// The event of a client with a number, which is the same whoever sends it.
    fn draw(owner: usize, number: u64, began_ms: i64) -> Self {
        let name = (number % ROUND).saturating_sub(OF_FIRST_NAME - 1);
        let user = match name {
            0 => Some(format!("{owner}-{}", number - number / SECOND_EVENT_EVERY)),
            _ => Some(number / ROUND % (USERS + 1))
                .filter(|user| *user < USERS)
                .map(|user| format!("user-{user}")),
        };
        let hours = i64::try_from(number % HOURS).unwrap_or(0);
        Self { name: format!("torture-{name}"), time_ms: began_ms - hours * HOUR_MS, user }
    }

    fn event(&self) -> Event {
        let event = Event::new(self.name.clone()).time_ms(self.time_ms);
        match &self.user {
            Some(user) => event.user(user.clone()),
            None => event,
        }
    }
}

/// The applications.
pub(super) struct Clients {
    clients: Vec<Client>,
    sent: BTreeMap<String, Sent>,
    /// Their ids in the order in which they were captured.
    order: Vec<String>,
    /// How many there are, for whoever works beside.
    captured: Arc<AtomicUsize>,
    batches: Arc<Batches>,
    began_ms: i64,
}

struct Client {
    bucket: Bucket,
    captured: u64,
}

/// Every batch that was sent, the first attempt of each.
#[derive(Default)]
pub(super) struct Batches(Mutex<Vec<Attempt>>);

/// Sends as the SDK does by itself, and remembers.
struct Remembering {
    inner: HttpTransport,
    batches: Arc<Batches>,
}

impl Transport for Remembering {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        self.batches.remember(attempt);
        self.inner.send(attempt)
    }

    fn ask<'a>(&'a self, question: &'a Question) -> Sending<'a> {
        self.inner.ask(question)
    }
}

impl Batches {
    fn remember(&self, attempt: &Attempt) {
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.iter().all(|known| known.batch_id != attempt.batch_id) {
            batches.push(attempt.clone());
        }
    }

    /// All of the batches so far.
    pub(super) fn all(&self) -> Vec<Attempt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One of the batches so far, if there is any.
    pub(super) fn pick(&self, which: u64) -> Option<Attempt> {
        let batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = which.checked_rem(batches.len() as u64)?;
        batches.get(usize::try_from(place).ok()?).cloned()
    }
}

/// What an edge makes of a batch, as it arrives now.
pub(super) fn as_accepted(attempt: &Attempt, project: ProjectId) -> Option<ValidBatch> {
    let raw = decode(&attempt.body, Format::from_content_type(attempt.content_type)?).ok()?;
    let received = Timestamp::from_system(SystemTime::now());
    Some(validate(project, raw, Arrival { received, sent_at: None }).batch.into_owned())
}

impl Clients {
    /// Begins to send to the edges, with a write key.
    pub(super) fn start(edges: &[String], key: &str) -> Result<Self, String> {
        let batches = Arc::<Batches>::default();
        let start = |client| Client::start(client, edges, key, &batches);
        let clients = (0..CLIENTS).map(start).collect::<Result<_, _>>()?;
        let began_ms = Timestamp::from_system(SystemTime::now()).ms();
        let (sent, order, captured) = (BTreeMap::new(), Vec::new(), Arc::default());
        Ok(Self { clients, sent, order, captured, batches, began_ms })
    }

    /// Lets each client capture so many events.
    pub(super) fn capture(&mut self, events: [u64; CLIENTS]) {
        for (place, events) in events.into_iter().enumerate() {
            for _ in 0..events {
                self.capture_one(place);
            }
        }
    }

    /// One more event: behind everything that the same edge took before, in the queue of the same shard.
    pub(super) fn capture_last(&mut self) {
        self.capture([1; CLIENTS]);
    }

    fn capture_one(&mut self, place: usize) {
        let first_has = self.clients[0].captured;
        let client = &mut self.clients[place];
        let number = client.captured;
        client.captured += 1;
        let shared = place > 0 && number.is_multiple_of(SHARED_EVERY) && number < first_has;
        let owner = if shared { 0 } else { place };
        let (id, sent) = (format!("{owner}-{number}"), Sent::draw(owner, number, self.began_ms));
        client.bucket.capture(sent.event().id(id.clone()).prop("number", number));
        if self.sent.insert(id.clone(), sent).is_none() {
            self.order.push(id);
            self.captured.store(self.order.len(), Ordering::Release);
        }
    }

    /// Everything that was captured, by its id.
    pub(super) fn sent(&self) -> &BTreeMap<String, Sent> {
        &self.sent
    }

    /// The ids of the first events that were captured.
    pub(super) fn first(&self, events: usize) -> BTreeSet<String> {
        self.order.iter().take(events).cloned().collect()
    }

    /// How many events were captured, now and later.
    pub(super) fn captured(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.captured)
    }

    /// The batches that were sent.
    pub(super) fn batches(&self) -> Arc<Batches> {
        Arc::clone(&self.batches)
    }

    /// Tries to deliver everything, and to learn what became of it; tells where every event is.
    pub(super) async fn flush(&self) -> Vec<Ledger> {
        let flushes = self.clients.iter().map(|client| async {
            // What is left after the timeout is in the ledger.
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, client.bucket.flush()).await;
            client.bucket.stats()
        });
        futures_util::future::join_all(flushes).await
    }
}

impl Client {
    fn start(place: usize, edges: &[String], key: &str, batches: &Arc<Batches>) -> Result<Self, String> {
        let inner = HttpTransport::builder().build().map_err(|error| error.to_string())?;
        let (first, others) = edges.split_first().ok_or("there is no edge")?;
        let mut builder = Bucket::builder(first, key)
            .transport(Arc::new(Remembering { inner, batches: Arc::clone(batches) }))
            // The bodies are read again, for a second delivery.
            .compression(Compression::None)
            .batch_events_max(BATCH_EVENTS)
            .batch_age_max(BATCH_AGE)
            .context([("client", place)])
            .final_verdicts(true);
        for edge in others {
            builder = builder.endpoint(edge);
        }
        let bucket = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { bucket, captured: 0 })
    }
}

/// Sends batches again, apart from the clients.
pub(super) struct Resender(HttpTransport);

impl Resender {
    pub(super) fn new() -> Result<Self, String> {
        HttpTransport::builder().build().map(Self).map_err(|error| error.to_string())
    }

    /// Sends batches again until each was taken, by one edge or another.
    pub(super) async fn resend_until_taken(&self, attempts: Vec<Attempt>, edges: &[String]) {
        for mut attempt in attempts {
            for edge in edges.iter().cycle() {
                edge.clone_into(&mut attempt.endpoint);
                if self.0.send(&attempt).await.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
                tokio::time::sleep(RESEND_PAUSE).await;
            }
        }
    }

    /// Sends a batch again, so many times; whether anybody answers doesn't matter.
    pub(super) async fn resend(&self, mut attempt: Attempt, edge: &str, times: u64) {
        edge.clone_into(&mut attempt.endpoint);
        for _ in 0..times {
            let _ = self.0.send(&attempt).await;
        }
    }
}
