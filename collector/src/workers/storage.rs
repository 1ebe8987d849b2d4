use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::{Event, Verdict};
use futures_util::future::join_all;
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

/// A batch, and who waits for its verdicts.
type Waiting<B> = (ValidBatch, <B as Source>::Ticket);

/// Appends what the bus accepted until it is closed and empty: all batches that wait share one commit, and each publisher
/// is answered after it. `cancel` is the hard stop: who still waits is told to send again.
///
/// # Panics
/// When another storage worker has taken the receiving ends of this bus already.
pub async fn run(bus: Bus, store: Store, cache: Cache, cancel: CancellationToken) {
    let accepted = bus.accepted();
    assert!(!accepted.is_empty(), "a bus has one storage worker");
    let writer = Writer { bus, store, cache };
    let drained = accepted.into_iter().map(|accepted| writer.drain(accepted));
    // Both are cancel-safe: `next` takes nothing before it returns, and a cut append answers nobody.
    tokio::select! {
        () = cancel.cancelled() => {}
        _ = join_all(drained) => writer.bus.finish().await,
    }
}

impl Writer<Bus, Store, Cache> {
    async fn drain(&self, mut accepted: Accepted) {
        let events_max = self.store.transaction_events_max();
        while let Some(deliveries) = accepted.next(events_max, TRANSACTION_BATCHES_MAX).await {
            self.append(deliveries.into_iter().map(|Delivery { batch, ticket }| (batch, ticket)).collect())
                .await;
        }
    }
}

impl<B: Source, S: Log, C: Live> Writer<B, S, C> {
    /// Appends until every publisher is answered. On a durable bus nobody waits for the answer, so what the store can't take
    /// yet is held and tried again: a store that is away spends no delivery.
    pub(super) async fn append(&self, mut left: Vec<Waiting<B>>) {
        let (mut pause, longest) = PAUSE;
        loop {
            left = self.append_once(left).await;
            if left.is_empty() {
                return;
            }
            self.bus.hold(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Commit, then answer, then announce: a kill in between leaves a range that the views find in the log. Returns what is to
    /// be tried again.
    async fn append_once(&self, waiting: Vec<Waiting<B>>) -> Vec<Waiting<B>> {
        let (batches, tickets): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let batches: Arc<[ValidBatch]> = batches.into();
        let outcomes = self.store.append_each(Arc::clone(&batches)).await;
        let (mut ranges, mut left) = (Vec::with_capacity(tickets.len()), Vec::new());
        let (mut failed, mut cause) = (0_usize, None);
        for ((ticket, outcome), batch) in tickets.into_iter().zip(outcomes).zip(batches.iter()) {
            let answer = match outcome {
                Ok(Appended { verdicts, range }) => {
                    ranges.push(range);
                    self.kept_aside(batch, verdicts).await
                }
                Err(error) => {
                    failed += 1;
                    cause = Some(error.clone());
                    self.not_stored(batch, error).await
                }
            };
            match answer {
                Some(answer) => ticket.answer(answer),
                None => left.push((batch.clone(), ticket)),
            }
        }
        if let Some(error) = cause {
            report(&error, failed, left.len());
        }
        self.announce(&ranges);
        left
    }

    /// The answer to a batch that was appended: on a durable bus what of it was quarantined is put to the dead letters first.
    /// `None` when they can't take it now; the batch is tried again then, and its events are duplicates.
    async fn kept_aside(
        &self,
        batch: &ValidBatch,
        verdicts: Vec<Verdict>,
    ) -> Option<Result<Published, Error>> {
        let reason = verdicts.iter().find_map(|verdict| match verdict {
            Verdict::Quarantined(reason) => Some(reason.message.to_string()),
            _ => None,
        });
        if let (Some(reason), true) = (reason, self.bus.is_durable()) {
            let culprits = verdicts.iter().zip(&batch.events).filter_map(|(verdict, event)| match verdict {
                Verdict::Quarantined(_) => Some(event.clone()),
                _ => None,
            });
            let events: Vec<Event> = culprits.collect();
            let culprits = ValidBatch { events, undated: Vec::new(), refused: Vec::new(), ..batch.clone() };
            self.buried(&culprits, &reason).await.then_some(())?;
        }
        Some(Ok(Published { verdicts }))
    }

    /// The answer to a batch that wasn't appended, `None` when it is to be held. A durable bus brings it again for ever, so one
    /// that can't be stored for its own sake is put to the dead letters.
    async fn not_stored(&self, batch: &ValidBatch, error: store::Error) -> Option<Result<Published, Error>> {
        if !self.bus.is_durable() {
            return Some(Err(Error::Storage(error)));
        }
        let its_own = matches!(error, store::Error::Refused { .. } | store::Error::UnknownProject(_));
        let buried = its_own && self.buried(batch, &error.to_string()).await;
        buried.then(|| Ok(Published { verdicts: Vec::new() }))
    }

    async fn buried(&self, batch: &ValidBatch, reason: &str) -> bool {
        match self.bus.bury(batch, reason).await {
            Ok(()) => {
                tracing::error!(project = %batch.project, batch = %batch.batch.uuid(), reason, "events went to the dead letters");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the dead letters take nothing now; the batch is tried again");
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

fn report(error: &store::Error, failed: usize, held: usize) {
    if !COMPLAINT.is_due() {
        return;
    }
    if held > 0 {
        tracing::warn!(%error, batches = held, "batches can't be stored yet; they are held and tried again");
    }
    if failed > held {
        let batches = failed - held;
        tracing::warn!(%error, batches, "batches were not stored; their publishers are told so");
    }
}
