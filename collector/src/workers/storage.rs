use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::{Reason, Verdict};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bus::message::{Published, StoredRange, ValidBatch};
use crate::bus::{Accepted, Bus, Delivery, Error};
use crate::cache::Cache;
use crate::store::{self, Appended, Store, TRANSACTION_BATCHES_MAX};
use crate::telemetry::complaint::Complaint;

use super::ask::{Answer as _, Live, Log, Source};

/// The pause before batches that couldn't be stored are tried again: from 100 ms doubling to 5 s, so that a store that is
/// back is used within 5 s and one that is away costs nothing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a writer needs beside its batches.
pub(super) struct Writer<B, S, C> {
    pub(super) bus: B,
    pub(super) store: S,
    pub(super) cache: C,
}

/// What can't be stored, and who is answered when it is safe among the dead letters.
struct Burial<T> {
    letter: ValidBatch,
    reason: String,
    ticket: T,
}

/// A batch, and who waits for its verdicts.
type Waiting<B> = (ValidBatch, <B as Source>::Ticket);

/// Appends what the bus accepted until it is closed and empty: all batches that wait share one commit, and each publisher
/// is answered after it. What can't be stored then is left to a broker that keeps it. `cancel` is the hard stop: who still
/// waits is told to send again.
///
/// # Panics
/// When another storage worker has taken the receiving ends of this bus already.
pub async fn run(bus: Bus, store: Store, cache: Cache, cancel: CancellationToken) {
    let accepted = bus.accepted();
    assert!(!accepted.is_empty(), "a bus has one storage worker");
    let writer = Arc::new(Writer { bus, store, cache });
    // Tasks of their own, so that writers work on several cores.
    let mut drained = JoinSet::new();
    for accepted in accepted {
        let writer = Arc::clone(&writer);
        drained.spawn(async move { writer.drain(accepted).await });
    }
    // Both are cancel-safe: `next` takes nothing before it returns, and a cut append answers nobody.
    tokio::select! {
        () = cancel.cancelled() => {}
        _ = drained.join_all() => writer.bus.finish().await,
    }
}

impl Writer<Bus, Store, Cache> {
    async fn drain(&self, mut accepted: Accepted) {
        let events_max = self.store.transaction_events_max();
        while let Some(deliveries) = accepted.next(events_max, TRANSACTION_BATCHES_MAX).await {
            let waiting = deliveries.into_iter().map(|Delivery { batch, ticket }| (batch, ticket)).collect();
            if !self.append(waiting).await {
                // What was brought and not looked at goes back with the receiving end.
                return;
            }
        }
    }
}

impl<B: Source, S: Log, C: Live> Writer<B, S, C> {
    /// Appends until every publisher is answered. On a durable bus nobody waits for the answer, so what the store can't take
    /// yet is held and tried again: a store that is away spends no delivery. So are dead letters that can't be left yet. When
    /// the bus is closed they go back at once, and the answer is `false`.
    pub(super) async fn append(&self, mut left: Vec<Waiting<B>>) -> bool {
        let (mut pause, longest) = PAUSE;
        let (mut burials, mut tried) = (Vec::new(), false);
        loop {
            if !left.is_empty() {
                left = self.append_once(left, tried, &mut burials).await;
            }
            // One that failed may have been committed all the same.
            tried = true;
            burials = self.bury(burials).await;
            if left.is_empty() && burials.is_empty() {
                return true;
            }
            if !self.bus.hold(pause).await {
                let batches = left.len() + burials.len();
                tracing::warn!(
                    batches,
                    "batches can't be stored before this process ends; RabbitMQ keeps them"
                );
                return false;
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Commit, then answer, then announce: a kill in between leaves a range that the views find in the log. Returns what is to
    /// be tried again; what can't be stored is added to `burials` and answered for after them.
    async fn append_once(
        &self,
        waiting: Vec<Waiting<B>>,
        tried: bool,
        burials: &mut Vec<Burial<B::Ticket>>,
    ) -> Vec<Waiting<B>> {
        let (batches, tickets): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let batches: Arc<[ValidBatch]> = batches.into();
        let outcomes = self.store.append_each(Arc::clone(&batches)).await;
        let (mut ranges, mut left) = (Vec::with_capacity(tickets.len()), Vec::new());
        let (mut failed, mut cause) = (0_usize, None);
        for ((ticket, outcome), batch) in tickets.into_iter().zip(outcomes).zip(batches.iter()) {
            match self.set_aside_if_refused(batch, outcome).await {
                Ok(appended) => {
                    ranges.push(appended.range);
                    match self.burial(batch, &appended, tried || ticket.comes_again()) {
                        Some((letter, reason)) => burials.push(Burial { letter, reason, ticket }),
                        None => ticket.answer(Ok(Published { verdicts: appended.verdicts })),
                    }
                }
                Err(error) => {
                    failed += 1;
                    cause = Some(error.clone());
                    match error {
                        error if !self.bus.is_durable() => ticket.answer(Err(Error::Storage(error))),
                        // The broker would bring it again for ever, and it can't be stored for its own sake.
                        error if error.concerns_one_batch() => {
                            burials.push(Burial { letter: batch.clone(), reason: error.to_string(), ticket });
                        }
                        _ => left.push((batch.clone(), ticket)),
                    }
                }
            }
        }
        if let Some(error) = cause {
            // What a durable bus doesn't get back goes to the dead letters, which is told there.
            let told_so = if self.bus.is_durable() { 0 } else { failed - left.len() };
            report(&error, told_so, left.len());
        }
        self.announce(&ranges);
        left
    }

    /// A batch that the database refuses whole is put aside on a durable bus: its verdicts are known, and counted.
    async fn set_aside_if_refused(
        &self,
        batch: &ValidBatch,
        outcome: Result<Appended, store::Error>,
    ) -> Result<Appended, store::Error> {
        match outcome {
            Err(store::Error::Refused { what }) if self.bus.is_durable() => {
                self.store.quarantine(batch, &what).await
            }
            outcome => outcome,
        }
    }

    /// What of a batch belongs to the dead letters of a durable bus, and why: what was put into quarantine now. What was there
    /// before has its letter, or the message that brought it first has not been answered and sees to it; that one comes
    /// again, and so does what a person put back.
    fn burial(
        &self,
        batch: &ValidBatch,
        appended: &Appended,
        comes_again: bool,
    ) -> Option<(ValidBatch, String)> {
        let now = appended.verdicts.iter().enumerate().filter_map(|(place, verdict)| match verdict {
            Verdict::Quarantined(reason) => Some((place, reason)),
            _ => None,
        });
        let before = appended.aside.iter().filter(|_| comes_again).map(|(place, reason)| (*place, reason));
        let culprits: BTreeMap<usize, &Reason> = now.chain(before).collect();
        let (first, reason) = culprits.first_key_value().filter(|_| self.bus.is_durable())?;
        let again =
            if appended.aside.iter().any(|(place, _)| place == first) { "refused again: " } else { "" };
        let places: Vec<usize> = culprits.keys().copied().collect();
        Some((batch.only(&places), format!("{again}{}", reason.message)))
    }

    /// Puts to the dead letters what can't be stored, and answers for it; returns what they can't take now.
    async fn bury(&self, burials: Vec<Burial<B::Ticket>>) -> Vec<Burial<B::Ticket>> {
        let mut left = Vec::new();
        for burial in burials {
            if self.buried(&burial.letter, &burial.reason).await {
                // A durable bus asks whether all is safe, not for the verdicts.
                burial.ticket.answer(Ok(Published { verdicts: Vec::new() }));
            } else {
                left.push(burial);
            }
        }
        left
    }

    async fn buried(&self, batch: &ValidBatch, reason: &str) -> bool {
        match self.bus.bury(batch, reason).await {
            Ok(()) => {
                tracing::error!(project = %batch.project, batch = %batch.batch.uuid(), reason, "events went to the dead letters");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the dead letters take nothing now; they are tried again");
                false
            }
        }
    }

    /// Tells the views, and the readers of the live tail in every process. Both may get lost: the log is the proof.
    fn announce(&self, ranges: &[StoredRange]) {
        self.bus.announce(ranges);
        for range in ranges.iter().filter(|range| range.first <= range.last) {
            self.cache.publish_tail(range.project, &range.announcement());
        }
    }
}

/// Everything that waits fails while the store is away.
static COMPLAINT: Complaint = Complaint::new();

fn report(error: &store::Error, told_so: usize, held: usize) {
    if told_so + held == 0 || !COMPLAINT.is_due() {
        return;
    }
    if held > 0 {
        tracing::warn!(%error, batches = held, "batches can't be stored yet; they are held and tried again");
    }
    if told_so > 0 {
        tracing::warn!(%error, batches = told_so, "batches were not stored; their publishers are told so");
    }
}
