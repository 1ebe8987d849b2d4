/// Closed batches in the order they are to be sent.
mod waiting;

/// The spool where one is wanted, and the disk under it.
mod disk;

/// How batches leave.
mod sending;

use std::collections::HashMap;
use std::sync::Arc;

use eventbucket_protocol::BatchId;

use self::disk::Disk;
use self::waiting::{Home, Waiting, WaitingList, memory_bytes};
use crate::batcher::{Batcher, FRAME_BYTES, Open, OpenHome};
use crate::config::{Overflow, Settings};
use crate::encoded::EncodedEvent;
use crate::id;
use crate::ledger::Tally;
use crate::spool::{FullBy, SpoolError, SpooledBatch};

/// The order of what a spool brought along: before any batch of this process.
const ADOPTED: u64 = 0;

/// Whether events are on disk, or why not.
pub(crate) type Durability = Result<(), String>;

/// Everything encoded and not yet answered: the open batch and those closed, in order, each in memory or in the spool.
pub(crate) struct Backlog {
    settings: Arc<Settings>,
    batcher: Batcher,
    disk: Disk,
    open: Option<Open>,
    waiting: WaitingList,
    next_number: u64,
}

impl Backlog {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        let batcher = Batcher {
            events_max: settings.batch_events_max,
            bytes_max: settings.batch_bytes_max.saturating_sub(FRAME_BYTES).max(1),
            age_ms: settings.batch_age_ms(),
        };
        let (open, waiting, next_number) = (None, WaitingList::default(), ADOPTED + 1);
        Self { batcher, disk: Disk::new(&settings), settings, open, waiting, next_number }
    }

    /// Looks after the disk: opens or reopens the spool, takes over what others left, brings in what waits in memory.
    pub(crate) fn tend(&mut self, tally: &mut Tally) {
        if !self.disk.is_wanted() {
            return;
        }
        let now_ms = self.now_ms();
        match self.disk.open(now_ms, tally) {
            Some(found) => self.reconcile(found, tally),
            None => self.disk.adopt(now_ms, tally).into_iter().for_each(|batch| self.take_over(batch, tally)),
        }
        self.bring_to_disk(tally);
    }

    /// Adds events to the open batch, closing batches as they fill.
    pub(crate) fn add(&mut self, events: &[EncodedEvent], durable: bool, tally: &mut Tally) -> Durability {
        let mut durability = Ok(());
        let mut rest = events;
        while !rest.is_empty() {
            let (count, bytes) = self.open.as_ref().map_or((0, 0), |open| (open.events, open.bytes));
            let (part, later) = rest.split_at(self.batcher.fitting(count, bytes, rest));
            if part.is_empty() {
                self.close_open(tally);
                continue;
            }
            durability = durability.and(self.append(part, durable, tally));
            rest = later;
            if self.open.as_ref().is_some_and(|open| self.batcher.is_full(open)) {
                self.close_open(tally);
            }
        }
        durability
    }

    fn append(&mut self, part: &[EncodedEvent], durable: bool, tally: &mut Tally) -> Durability {
        let mut durability = Err("the bucket has no spool; give it one with .spool(folder)".to_owned());
        let open_in_memory = matches!(&self.open, Some(Open { home: OpenHome::Memory(_), .. }));
        if self.disk.is_wanted() && !open_in_memory {
            durability = self.append_to_disk(part, durable, tally);
            if durability.is_ok() {
                self.grow_open(part);
                return durability;
            }
            self.close_open_spooled();
        } else if self.disk.is_wanted() {
            durability = Err("the spool is out of order or full".to_owned());
        }
        if self.open.is_none() {
            self.open = Some(self.new_open(OpenHome::Memory(Vec::new())));
        }
        if let Some(Open { home: OpenHome::Memory(events), .. }) = &mut self.open {
            events.extend_from_slice(part);
        }
        self.grow_open(part);
        durability
    }

    /// Appends to the open batch in the spool, beginning one if need be.
    fn append_to_disk(&mut self, part: &[EncodedEvent], durable: bool, tally: &mut Tally) -> Durability {
        let now_ms = self.now_ms();
        loop {
            let open = self.open.take();
            let Some(spool) = self.disk.writable(now_ms) else {
                self.open = open;
                return Err("the disk failed lately and is tried again later".to_owned());
            };
            let open = match open {
                Some(open) => open,
                None => {
                    let mut open = self.new_open(OpenHome::Memory(Vec::new()));
                    let spool = self.disk.spool().expect("it was writable a moment ago");
                    open.home = OpenHome::Spool(spool.begin(open.id));
                    self.open = Some(open);
                    continue;
                }
            };
            let OpenHome::Spool(key) = open.home else {
                unreachable!("the caller looked: it isn't in memory")
            };
            let appended = spool.append(key, part, durable);
            self.open = Some(open);
            match appended {
                Ok(()) => return Ok(()),
                Err(SpoolError::Full { by: FullBy::Bound }) => {
                    if self.settings.overflow != Overflow::DropOldest || !self.drop_oldest(true, tally) {
                        return Err("the spool is full".to_owned());
                    }
                }
                Err(error) => {
                    let message = error.to_string();
                    self.disk.failed(error, now_ms, tally);
                    return Err(message);
                }
            }
        }
    }

    fn new_open(&mut self, home: OpenHome) -> Open {
        let number = self.take_number();
        Open {
            id: id::batch(self.settings.clock.wall()),
            order: number,
            home,
            events: 0,
            bytes: 0,
            first_captured_ms: i64::MAX,
            opened_ms: self.now_ms(),
        }
    }

    fn grow_open(&mut self, part: &[EncodedEvent]) {
        if let Some(open) = &mut self.open {
            open.events += part.len();
            open.bytes += part.iter().map(|event| event.bytes.len()).sum::<usize>();
            let first = part.iter().map(|event| event.captured_ms).min().unwrap_or(i64::MAX);
            open.first_captured_ms = open.first_captured_ms.min(first);
        }
    }

    /// Closes the open batch, so that it can be sent.
    pub(crate) fn close_open(&mut self, tally: &mut Tally) {
        self.close_open_spooled();
        if let Some(Open {
            id,
            order,
            home: OpenHome::Memory(events),
            events: count,
            first_captured_ms,
            opened_ms,
            ..
        }) = self.open.take()
        {
            self.push_waiting(order, id, count, first_captured_ms, Some(opened_ms), Home::Memory(events));
        }
        self.bring_to_disk(tally);
    }

    fn close_open_spooled(&mut self) {
        let Some(Open { home: OpenHome::Spool(key), .. }) = &self.open else { return };
        let key = *key;
        if let Some(spool) = self.disk.spool() {
            spool.close_batch();
        }
        if let Some(open) = self.open.take()
            && open.events > 0
        {
            let (first_captured_ms, begun_ms) = (open.first_captured_ms, Some(open.opened_ms));
            self.push_waiting(
                open.order,
                open.id,
                open.events,
                first_captured_ms,
                begun_ms,
                Home::Spool(key),
            );
        }
    }

    /// Closes the open batch if it is due; otherwise says when it will be.
    pub(crate) fn close_due(&mut self, any_healthy: bool, tally: &mut Tally) -> Option<u64> {
        let due_ms = self.batcher.due_ms(self.open.as_ref()?, any_healthy);
        if due_ms > self.now_ms() {
            return Some(due_ms);
        }
        self.close_open(tally);
        None
    }

    /// `begun_ms` is `None` for what an earlier process captured.
    fn push_waiting(
        &mut self,
        order: u64,
        id: BatchId,
        events: usize,
        first_captured_ms: i64,
        begun_ms: Option<u64>,
        home: Home,
    ) {
        let number = self.take_number();
        self.waiting.insert(Waiting {
            number,
            order,
            id,
            events,
            first_captured_ms,
            not_before_ms: 0,
            begun_ms,
            deferrals: 0,
            failures: 0,
            in_flight: false,
            memory_bytes: home.memory_bytes(),
            home,
        });
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn now_ms(&self) -> u64 {
        self.settings.clock.monotonic_ms()
    }

    /// Moves closed batches from memory to the spool while it takes them, so that they survive the process. The spool
    /// has one open batch at a time, so this waits until that is closed.
    fn bring_to_disk(&mut self, tally: &mut Tally) {
        if !self.disk.is_wanted() || matches!(&self.open, Some(Open { home: OpenHome::Spool(_), .. })) {
            return;
        }
        let now_ms = self.now_ms();
        for waiting in self.waiting.iter_mut().filter(|waiting| !waiting.in_flight) {
            let Home::Memory(events) = &waiting.home else { continue };
            let Some(spool) = self.disk.writable(now_ms) else { return };
            let key = spool.begin(waiting.id);
            let appended = spool.append(key, events, false);
            spool.close_batch();
            match appended {
                Ok(()) => {
                    waiting.home = Home::Spool(key);
                    waiting.memory_bytes = waiting.home.memory_bytes();
                }
                Err(SpoolError::Full { by: FullBy::Bound }) => return,
                Err(error) => return self.disk.failed(error, now_ms, tally),
            }
        }
    }

    /// Compares what the spool holds with what it should hold: unknown events are adopted, missing ones are lost.
    fn reconcile(&mut self, found: Vec<SpooledBatch>, tally: &mut Tally) {
        let mut found: HashMap<BatchId, (usize, SpooledBatch)> =
            found.into_iter().enumerate().map(|(turn, batch)| (batch.id, (turn, batch))).collect();
        let (mut lost, mut extra) = (0, 0);
        self.waiting.retain(|waiting| {
            let Home::Spool(key) = &mut waiting.home else { return true };
            let known = waiting.events as u64;
            match found.remove(&waiting.id) {
                Some((_, batch)) => {
                    *key = batch.key;
                    waiting.events = batch.events;
                    // A commit that reported an error may have happened all the same.
                    extra += (batch.events as u64).saturating_sub(known);
                    lost += known.saturating_sub(batch.events as u64);
                    true
                }
                None => {
                    lost += known;
                    false
                }
            }
        });
        tally.ledger.recovered += extra;
        if lost > 0 {
            tally.ledger.dropped.spool_lost += lost;
            tally.dropped(lost, "the spool's file broke; what is left of it was set aside beside it");
        }
        let mut adopted: Vec<_> = found.into_values().collect();
        adopted.sort_by_key(|(turn, _)| *turn);
        adopted.into_iter().for_each(|(_, batch)| self.take_over(batch, tally));
    }

    /// Waits with a batch that another process left.
    fn take_over(&mut self, batch: SpooledBatch, tally: &mut Tally) {
        tally.ledger.recovered += batch.events as u64;
        let home = Home::Spool(batch.key);
        self.push_waiting(ADOPTED, batch.id, batch.events, batch.first_captured_ms, None, home);
    }

    /// Gives up what is left in memory; returns how many events it was.
    pub(crate) fn drop_memory(&mut self) -> u64 {
        let before = self.events();
        self.open = self.open.take_if(|open| matches!(open.home, OpenHome::Spool(_)));
        self.waiting.retain(|waiting| waiting.is_spooled());
        before - self.events()
    }

    pub(crate) fn deferrals(&self, number: u64) -> u32 {
        self.waiting.get(number).map_or(0, |waiting| waiting.deferrals)
    }

    /// The order that the next batch will get: everything added so far lies before it, once the open batch is closed.
    pub(crate) fn next_order(&self) -> u64 {
        self.next_number
    }

    pub(crate) fn has_before(&self, order: u64) -> bool {
        self.waiting.has_before(order)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_none() && self.waiting.is_empty()
    }

    /// Counts the events that are really here.
    pub(crate) fn events(&self) -> u64 {
        self.waiting.events() + self.open.as_ref().map_or(0, |open| open.events as u64)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let open = match &self.open {
            Some(Open { home: OpenHome::Memory(_), events, bytes, .. }) => memory_bytes(*events, *bytes),
            _ => 0,
        };
        open + self.waiting.memory_bytes()
    }

    /// Forgets that the disk failed lately: this is the last chance to use it.
    pub(crate) fn hurry_disk(&mut self) {
        self.disk.hurry();
    }

    /// Leaves the spool to the next process.
    pub(crate) fn close_disk(&mut self) {
        self.disk.close();
    }

    /// When something is to be done here without anybody asking.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        let now_ms = self.now_ms();
        [self.waiting.next_ready_ms(now_ms), self.disk.next_try_ms(now_ms)].into_iter().flatten().min()
    }
}
