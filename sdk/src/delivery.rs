use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::codec::{Format, encode};
use eventbucket_protocol::{BatchId, EventId, Reason, Verdict};
use tokio::task::{Id, JoinError, JoinSet};
use uuid::Uuid;

use crate::backlog::Backlog;
use crate::batcher::FRAME_BYTES;
use crate::clock::ms;
use crate::config::Settings;
use crate::discovery::{self, Discovery, Found};
use crate::encoded::EncodedEvent;
use crate::endpoints::{Endpoints, Turn};
use crate::error::{Fault, panic_message};
use crate::finals::Finals;
use crate::id;
use crate::ledger::Tally;
use crate::retry::{self, Decision};
use crate::transport::{Answer, Attempt, Inquiry, Question, SendError, Transport};

/// One attempt as a whole: the largest body, 4 MiB, takes 34 s at 1 Mbit/s, which leaves 26 s for the
/// connection and the answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// A question as a whole: what the collector may wait, and half as long again for the way.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(15);

type Outcome = Result<Answer, SendError>;
type Finished = Result<(Id, Outcome), JoinError>;

/// Sends batches of the backlog and acts on what comes back. What an answer means is decided in [`retry`], who is asked
/// next in [`Endpoints`].
pub(crate) struct Delivery {
    settings: Arc<Settings>,
    transport: Arc<dyn Transport>,
    pub(crate) endpoints: Endpoints,
    pub(crate) finals: Finals,
    discovery: Discovery,
    sends: JoinSet<Outcome>,
    under_way: HashMap<Id, UnderWay>,
    /// The task of the question under way.
    asking: Option<Id>,
    /// The task of the inquiry under way.
    looking: Option<Id>,
}

/// A batch on its way.
struct UnderWay {
    number: u64,
    batch: BatchId,
    turn: Turn,
    /// Its events, to name those that are rejected.
    ids: Vec<Uuid>,
    /// What it takes encoded, and as the body that was sent.
    event_bytes: usize,
    body_bytes: usize,
}

impl Delivery {
    pub(crate) fn new(settings: Arc<Settings>, transport: Arc<dyn Transport>) -> Self {
        let endpoints = Endpoints::new(settings.endpoints.iter().cloned());
        let (finals, sends, under_way) = (Finals::default(), JoinSet::new(), HashMap::new());
        let (discovery, asking, looking) = (Discovery::new(settings.discover), None, None);
        Self { settings, transport, endpoints, finals, discovery, sends, under_way, asking, looking }
    }

    /// Sends what may be sent now.
    pub(crate) fn dispatch(&mut self, backlog: &mut Backlog, tally: &mut Tally) {
        let now_ms = self.settings.clock.monotonic_ms();
        while let Some(number) = backlog.next_ready(tally) {
            let Some(turn) = self.endpoints.pick(now_ms) else { return };
            let Some((id, events)) = backlog.start(number, tally) else {
                self.endpoints.given_back(turn);
                return;
            };
            let attempt = self.attempt(turn, id, &events);
            let event_bytes = events.iter().map(|event| event.bytes.len()).sum();
            let body_bytes = attempt.body.len();
            let transport = Arc::clone(&self.transport);
            let task = self.sends.spawn(async move {
                let answer = tokio::time::timeout(attempt.timeout, transport.send(&attempt)).await;
                answer.unwrap_or(Err(SendError::Timeout))
            });
            let ids = events.iter().map(|event| event.id).collect();
            self.under_way
                .insert(task.id(), UnderWay { number, batch: id, turn, ids, event_bytes, body_bytes });
        }
    }

    /// Asks for the final verdicts of a batch that was accepted, if it is time to.
    pub(crate) fn ask(&mut self) {
        let now_ms = self.settings.clock.monotonic_ms();
        let Some((open, wait)) = self.finals.start(now_ms) else { return };
        let question = Question {
            endpoint: self.endpoints.instead_of(&open.endpoint, now_ms),
            key: self.settings.key.clone(),
            batch_id: open.batch,
            wait,
            timeout: QUESTION_TIMEOUT,
        };
        let transport = Arc::clone(&self.transport);
        let task = self.sends.spawn(async move {
            let answer = tokio::time::timeout(question.timeout, transport.ask(&question)).await;
            answer.unwrap_or(Err(SendError::Timeout))
        });
        self.asking = Some(task.id());
    }

    /// Asks which collectors there are, if it is time to and somebody is to be sent to.
    pub(crate) fn discover(&mut self, backlog: &Backlog) {
        let now_ms = self.settings.clock.monotonic_ms();
        if backlog.is_empty() || !self.discovery.is_due(now_ms) {
            return;
        }
        let endpoint = self.endpoints.next_to_ask(now_ms).trim_end_matches('/').to_owned();
        self.discovery.asks(endpoint.clone(), now_ms);
        let key = self.settings.key.clone();
        let inquiry = Inquiry { endpoint, key, timeout: discovery::TIMEOUT };
        let transport = Arc::clone(&self.transport);
        let task = self.sends.spawn(async move {
            let answer = tokio::time::timeout(inquiry.timeout, transport.discover(&inquiry)).await;
            answer.unwrap_or(Err(SendError::Timeout))
        });
        self.looking = Some(task.id());
    }

    /// When to ask next which collectors there are, while somebody is to be sent to.
    pub(crate) fn next_discovery_ms(&self, backlog: &Backlog) -> Option<u64> {
        if backlog.is_empty() { None } else { self.discovery.next_ms() }
    }

    fn learn(&mut self, outcome: &Outcome, tally: &mut Tally) {
        let now_ms = self.settings.clock.monotonic_ms();
        let mut found = self.discovery.read(outcome, &self.settings.endpoints);
        if let Some((endpoint, message)) = self.discovery.settle(&found, now_ms, id::random_u64()) {
            tally.fault(Fault::Discovery { endpoint, message });
        }
        if let Found::Collectors(urls) = &mut found {
            // Where more are named than are used, each client uses others.
            let first = usize::try_from(id::random_u64() % urls.len() as u64).unwrap_or_default();
            urls.rotate_left(first);
            self.endpoints.learn(urls, now_ms);
        }
    }

    /// The body depends on the batch alone, so each attempt sends the same bytes; only its time of sending is new.
    fn attempt(&self, turn: Turn, id: BatchId, events: &[EncodedEvent]) -> Attempt {
        let bytes: usize = events.iter().map(|event| event.bytes.len()).sum();
        let mut body = Vec::with_capacity(FRAME_BYTES + bytes);
        let count = u32::try_from(events.len()).expect("a batch has at most 10,000 events");
        encode::batch_header(id, count, &mut body);
        events.iter().for_each(|event| body.extend_from_slice(&event.bytes));
        let (body, content_encoding) = self.settings.compression.compress(body.into());
        Attempt {
            endpoint: self.endpoints.url(turn).trim_end_matches('/').to_owned(),
            key: self.settings.key.clone(),
            content_type: Format::MESSAGEPACK,
            content_encoding,
            body,
            sent_at_ms: self.settings.clock.wall().ms(),
            batch_id: id,
            events: events.len(),
            timeout: ATTEMPT_TIMEOUT,
        }
    }

    /// Waits for the next attempt to end; for ever when none is under way. Safe to drop: an attempt that ended stays in
    /// the set until it is taken.
    pub(crate) async fn finished(&mut self) -> Finished {
        match self.sends.join_next_with_id().await {
            Some(finished) => finished,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Breaks off everything under way. Whether a collector took it is unknown, so it is sent again as it is.
    pub(crate) fn break_off(&mut self, backlog: &mut Backlog) {
        self.sends = JoinSet::new();
        self.under_way.clear();
        (self.asking, self.looking) = (None, None);
        self.finals.broken_off();
        self.discovery.broken_off();
        self.endpoints.broken_off();
        backlog.release_all();
    }

    /// Acts on how an attempt ended.
    pub(crate) fn settle(&mut self, finished: Finished, backlog: &mut Backlog, tally: &mut Tally) {
        let (task, outcome) = match finished {
            Ok((task, outcome)) => (task, outcome),
            Err(error) => {
                let task = error.id();
                (task, Err(SendError::other(contained(error, tally))))
            }
        };
        if self.asking == Some(task) {
            self.asking = None;
            let known = self.finals.settle(&outcome, self.settings.clock.monotonic_ms());
            tally.finals.extend(known);
            return;
        }
        if self.looking == Some(task) {
            self.looking = None;
            self.learn(&outcome, tally);
            return;
        }
        let Some(under_way) = self.under_way.remove(&task) else { return };
        let UnderWay { number, batch, turn, ids, event_bytes, body_bytes } = under_way;
        if let Ok(answer) = &outcome {
            self.heard(turn, answer.draining);
        }
        match retry::decide(&outcome, ids.len()) {
            Decision::Settled(verdicts) => {
                self.endpoints.succeeded(turn);
                let before = tally.ledger.delivered.accepted;
                count_verdicts(number, &ids, verdicts, backlog, tally, &self.settings);
                let accepted = tally.ledger.delivered.accepted - before;
                if accepted > 0 && self.settings.final_verdicts {
                    let endpoint = self.endpoints.url(turn).trim_end_matches('/').to_owned();
                    let now_ms = self.settings.clock.monotonic_ms();
                    self.finals.add(batch, endpoint, (ids.len(), accepted), now_ms);
                }
            }
            Decision::Split => {
                self.endpoints.succeeded(turn);
                let middle = ids.len() / 2;
                let halves = [(0..middle).collect(), (middle..ids.len()).collect()];
                let now = self.settings.clock.wall();
                backlog.replace(number, &halves.map(|half| (id::batch(now), half)), None, tally);
            }
            Decision::TooLarge(message) => {
                self.endpoints.succeeded(turn);
                let url = self.endpoints.url(turn);
                let reason = format!(
                    "an event of {event_bytes} bytes, {body_bytes} as sent, is too large for {url}: {message}"
                );
                backlog.bury(number, &reason, tally);
            }
            Decision::Rejected(reason) => {
                self.endpoints.succeeded(turn);
                tally.ledger.rejected += backlog.remove(number, tally);
                ids.iter().for_each(|id| rejected(*id, reason.clone(), tally));
            }
            Decision::Retry { wait_min, message } => {
                self.retry_later(turn, wait_min, message, tally);
                backlog.release(number);
            }
            Decision::Pause { status, message } => {
                self.pause(turn, status, message, tally);
                backlog.release(number);
            }
        }
    }

    fn heard(&mut self, turn: Turn, draining: bool) {
        let now_ms = self.settings.clock.monotonic_ms();
        self.endpoints.heard(turn, draining, now_ms);
        if draining {
            self.discovery.hurry(now_ms, id::random_u64());
        }
    }

    fn retry_later(&mut self, turn: Turn, wait_min: Duration, message: String, tally: &mut Tally) {
        let now_ms = self.settings.clock.monotonic_ms();
        let until = |failures| {
            let wait = retry::delay(failures, id::random_u64()).max(wait_min);
            now_ms.saturating_add(ms(wait))
        };
        let counted = self.endpoints.failed(turn, !wait_min.is_zero(), until);
        if counted == Some(1) {
            self.discovery.hurry(now_ms, id::random_u64());
            tally.fault(Fault::Unreachable { endpoint: self.endpoints.url(turn).to_owned(), message });
        }
    }

    fn pause(&mut self, turn: Turn, status: u16, message: String, tally: &mut Tally) {
        let now_ms = self.settings.clock.monotonic_ms();
        let until = |failures| now_ms.saturating_add(ms(retry::pause(failures, id::random_u64())));
        if self.endpoints.failed(turn, true, until).is_some() {
            tally.fault(Fault::Refused { endpoint: self.endpoints.url(turn).to_owned(), status, message });
        }
    }
}

/// Counts one verdict an event. Those put off become a batch of their own, to be sent after a while.
fn count_verdicts(
    number: u64,
    ids: &[Uuid],
    verdicts: Vec<Verdict>,
    backlog: &mut Backlog,
    tally: &mut Tally,
    settings: &Settings,
) {
    let mut again = Vec::new();
    let mut counted = Tally::default();
    for (index, verdict) in verdicts.into_iter().enumerate() {
        let delivered = &mut counted.ledger.delivered;
        match verdict {
            Verdict::Stored => delivered.stored += 1,
            Verdict::Accepted => delivered.accepted += 1,
            Verdict::Duplicate { differs } => delivered.repeat(differs),
            Verdict::Quarantined(_) => delivered.quarantined += 1,
            Verdict::Rejected(reason) => {
                counted.ledger.rejected += 1;
                rejected(ids[index], reason, &mut counted);
            }
            // Also what this version doesn't know.
            _ => again.push(index),
        }
    }
    let removed = if again.is_empty() {
        backlog.remove(number, tally) > 0
    } else {
        let wait = retry::delay(backlog.deferrals(number) + 1, id::random_u64());
        backlog.replace(number, &[(id::batch(settings.clock.wall()), again)], Some(ms(wait)), tally)
    };
    // Otherwise it is sent again as a whole, or was counted as lost with the spool, and nothing of this counts.
    if removed {
        tally.ledger += &counted.ledger;
        tally.faults.append(&mut counted.faults);
    }
}

fn rejected(id: Uuid, reason: Reason, tally: &mut Tally) {
    tally.fault(Fault::Rejected { id: EventId::from_uuid(id), reason });
}

/// A panic of the transport ended the attempt, not the worker.
fn contained(error: JoinError, tally: &mut Tally) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let message = panic_message(&*panic);
            tally.ledger.worker_restarts += 1;
            tally.fault(Fault::Panicked { who: "transport", message: message.clone() });
            format!("the transport panicked: {message}")
        }
        Err(_) => "the attempt was broken off".to_owned(),
    }
}
