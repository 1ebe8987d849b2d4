use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use uuid::Uuid;

use super::random::Random;
use super::world::is_poison;
use crate::bus::message::ValidBatch;
use crate::project::ProjectId;

/// Projects, each a shard of its own.
pub(super) const PROJECTS: u32 = 2;

/// Clients that send.
pub(super) const CLIENTS: usize = 2;

/// 2024-03-01T12:00:00Z, and an hour.
const NOON_MS: i64 = 1_709_294_400_000;
const HOUR_MS: i64 = 3_600_000;

pub(super) fn projects() -> impl Iterator<Item = ProjectId> {
    (1..=PROJECTS).map(ProjectId)
}

/// A message of accepted batches.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) batches: Vec<ValidBatch>,
    /// It was given out before.
    again: bool,
}

/// A message that was given out: by which delivery, and how many of its batches have no answer yet.
#[derive(Clone)]
pub(super) struct Tag {
    delivery: u64,
    pub(super) again: bool,
    open: Rc<Cell<(usize, bool)>>,
}

/// A queue for each project. What is given out stays the broker's until it is acknowledged.
#[derive(Default)]
pub(super) struct Broker {
    queues: BTreeMap<ProjectId, VecDeque<Message>>,
    given: BTreeMap<u64, (usize, Message)>,
    deliveries: u64,
    /// Messages that were acknowledged, to be delivered once more.
    done: Vec<Message>,
}

impl Broker {
    /// Takes a batch, now and then into the message that waits last.
    pub(super) fn publish(&mut self, batch: ValidBatch, coalesce: bool) {
        let queue = self.queues.entry(batch.project).or_default();
        match queue.back_mut() {
            Some(last) if coalesce && !last.again => last.batches.push(batch),
            _ => queue.push_back(Message { batches: vec![batch], again: false }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty() && self.queues.values().all(VecDeque::is_empty)
    }

    /// Gives messages out to a worker.
    pub(super) fn give(&mut self, project: ProjectId, worker: usize, most: usize) -> Vec<(ValidBatch, Tag)> {
        let mut given = Vec::new();
        let queue = self.queues.entry(project).or_default();
        for message in queue.drain(..most.min(queue.len())).collect::<Vec<_>>() {
            self.deliveries += 1;
            let open = Rc::new(Cell::new((message.batches.len(), true)));
            let tag = Tag { delivery: self.deliveries, again: message.again, open };
            given.extend(message.batches.iter().map(|batch| (batch.clone(), tag.clone())));
            self.given.insert(self.deliveries, (worker, message));
        }
        given
    }

    /// Notes an answer; a message is forgotten when all its batches have good ones. A tag of a lost connection means nothing.
    pub(super) fn answered(&mut self, tag: Tag, good: bool) {
        let (open, all_good) = tag.open.get();
        let left = (open - 1, all_good && good);
        tag.open.set(left);
        if left == (0, true)
            && let Some((_, message)) = self.given.remove(&tag.delivery)
        {
            self.done.push(message);
        }
    }

    /// A worker's connection is lost: what it was given comes again, in its place.
    pub(super) fn give_back(&mut self, worker: usize) {
        let back: Vec<u64> =
            self.given.iter().filter(|(_, (of, _))| *of == worker).map(|(delivery, _)| *delivery).collect();
        for delivery in back.into_iter().rev() {
            let Some((_, mut message)) = self.given.remove(&delivery) else { continue };
            message.again = true;
            self.queues.entry(message.batches[0].project).or_default().push_front(message);
        }
    }

    /// The broker never heard of an acknowledgement.
    pub(super) fn deliver_again(&mut self, random: &mut Random) -> bool {
        let Some(place) = pick(self.done.len(), random) else { return false };
        let message = Message { again: true, ..self.done[place].clone() };
        self.queues.entry(message.batches[0].project).or_default().push_back(message);
        true
    }

    /// Everything that is still the broker's.
    pub(super) fn kept(&self) -> BTreeSet<(ProjectId, Uuid)> {
        let messages = self.queues.values().flatten().chain(self.given.values().map(|(_, message)| message));
        messages.flat_map(|message| &message.batches).flat_map(ids).collect()
    }
}

fn ids(batch: &ValidBatch) -> impl Iterator<Item = (ProjectId, Uuid)> + '_ {
    batch.events.iter().map(|event| (batch.project, event.id.uuid()))
}

pub(super) fn pick(len: usize, random: &mut Random) -> Option<usize> {
    (len > 0).then(|| usize::try_from(random.below(len as u64)).unwrap_or(0))
}

/// Applications that send until they are answered.
#[derive(Default)]
pub(super) struct Clients {
    pending: [Vec<ValidBatch>; CLIENTS],
    /// Batches of before, answered or not, for a proxy or a person that sends them again.
    history: Vec<ValidBatch>,
    next_event: u64,
    next_batch: u64,
    /// With poison among the events.
    poisonous: bool,
    /// Every event that was ever sent, and those that must be in the log in the end.
    pub(super) sent: BTreeMap<(ProjectId, Uuid), Event>,
    pub(super) owed: BTreeSet<(ProjectId, Uuid)>,
}

impl Clients {
    pub(super) fn new(poisonous: bool) -> Self {
        Self { poisonous, ..Self::default() }
    }

    /// A new batch, of new events and a few that another batch had.
    pub(super) fn new_batch(&mut self, client: usize, random: &mut Random) -> ValidBatch {
        let project = ProjectId(1 + u32::try_from(random.below(u64::from(PROJECTS))).unwrap_or(0));
        let count = 1 + random.below(6);
        let events = (0..count).map(|_| {
            let old = self.next_event > 0 && random.percent(15);
            let number = if old { random.below(self.next_event) } else { self.next_event };
            self.next_event = self.next_event.max(number + 1);
            event(number, self.poisonous)
        });
        let events = events.collect();
        let batch = self.batch(project, events);
        self.remember(client, &batch);
        batch
    }

    fn batch(&mut self, project: ProjectId, events: Vec<Event>) -> ValidBatch {
        self.next_batch += 1;
        ValidBatch {
            project,
            batch: BatchId::from_text(&format!("batch-{}", self.next_batch)),
            received: Timestamp::from_ms(NOON_MS).expect("a time"),
            skew_ms: None,
            events,
            undated: Vec::new(),
            refused: Vec::new(),
            part: 0,
            parts: 1,
        }
    }

    fn remember(&mut self, client: usize, batch: &ValidBatch) {
        for event in &batch.events {
            self.sent.insert((batch.project, event.id.uuid()), event.clone());
        }
        self.pending[client].push(batch.clone());
        self.history.push(batch.clone());
    }

    /// A batch that waits for its answer, as it is.
    pub(super) fn resend(&self, client: usize, random: &mut Random) -> Option<ValidBatch> {
        pick(self.pending[client].len(), random).map(|place| self.pending[client][place].clone())
    }

    /// A batch of long ago: the whole of it under its own id, or a part under a new one.
    pub(super) fn once_more(&mut self, client: usize, random: &mut Random) -> Option<ValidBatch> {
        let batch = self.history[pick(self.history.len(), random)?].clone();
        if random.percent(50) {
            return Some(batch);
        }
        let events: Vec<Event> = batch.events.into_iter().filter(|_| random.percent(60)).collect();
        if events.is_empty() {
            return None;
        }
        let part = self.batch(batch.project, events);
        self.remember(client, &part);
        Some(part)
    }

    /// A client was answered, or told to send again.
    pub(super) fn answered(&mut self, client: usize, batch: &ValidBatch, confirmed: bool) {
        if confirmed {
            self.owed.extend(ids(batch));
            self.pending[client].retain(|pending| pending.batch != batch.batch);
        }
    }

    pub(super) fn all_answered(&self) -> bool {
        self.pending.iter().all(Vec::is_empty)
    }
}

fn event(number: u64, poisonous: bool) -> Event {
    let poison = poisonous && number % 29 == 7;
    let hours = i64::try_from(number % 3).unwrap_or(0);
    let event = Event {
        id: EventId::from_text(&format!("event-{number}")),
        name: if poison { "poison".to_owned() } else { format!("name-{}", number % 4) },
        description: None,
        // Some have none, and some had one before under another name or hour.
        user: (!number.is_multiple_of(3)).then(|| format!("user-{}", number % 5)),
        time: Timestamp::from_ms(NOON_MS - hours * HOUR_MS).expect("a time"),
        stream: None,
        correlation: None,
        properties: Properties::default(),
    };
    debug_assert_eq!(is_poison(&event), poison);
    event
}
