//! From a decoded batch to its verdicts: authenticate → validate → prepare → publish → outcome.

/// What a key may do, asked of the cache, then the store.
mod authenticate;

/// Whether a project may send as much.
mod admit;

/// What projects have sent by the ledger.
mod recount;

/// From what arrived to what may be stored.
mod validate;

/// Verdicts in the order of the body.
mod outcome;

/// Why a batch has no verdicts.
mod error;

use std::sync::Arc;

use eventbucket_protocol::{BatchId, EventId, RawBatch, Reason};

use crate::bus::message::Spooled;
use crate::bus::{Bus, Packed};
use crate::cache::{Cache, Limits};
use crate::project::{Grant, ProjectId};
use crate::store::Store;

pub use crate::cache::Left;
pub use admit::Admitted;
pub use error::Error;
pub use outcome::Outcome;
use recount::Recounts;
pub use validate::{Arrival, SKEW_MS_MIN, Valid, validate};

/// A valid batch that has let go of its body, ready to be published.
pub struct Prepared {
    project: ProjectId,
    batch: BatchId,
    packed: Packed,
    /// How many events passed.
    events: usize,
    refused: Vec<(usize, Reason)>,
    ids: Option<Vec<Option<EventId>>>,
}

/// Takes batches in. Clones share what is behind it.
#[derive(Clone)]
pub struct Ingest {
    bus: Bus,
    store: Store,
    cache: Cache,
    limits: Limits,
    recounts: Arc<Recounts>,
}

impl Ingest {
    /// Puts ingest in front of a bus.
    #[must_use]
    pub fn new(bus: Bus, store: Store, cache: Cache) -> Self {
        Self { bus, store, cache, limits: Limits::default(), recounts: Arc::default() }
    }

    /// Bounds what each project may send that has no limits of its own. For quotas [`Ingest::recount_quotas`] has to run too.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Says whether a batch sent now would be taken.
    ///
    /// # Errors
    /// What is wrong with the bus, or with the store where nothing stands between.
    pub fn serving(&self) -> Result<(), Error> {
        self.bus.serving()?;
        if self.bus.is_durable() { Ok(()) } else { self.store.serving().map_err(Error::Storage) }
    }

    /// How much was accepted and waits on this process' own disk; `None` without a spool.
    #[must_use]
    pub fn spooled(&self) -> Option<Spooled> {
        self.bus.spooled()
    }

    /// Finds out what a key may do.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] or [`Error::RevokedKey`]; [`Error::Store`] when it can't be known now.
    pub async fn authenticate(&self, key: &str) -> Result<Grant, Error> {
        authenticate::grant(key, &self.store, &self.cache).await
    }

    /// Takes a batch all the way: what [`validate()`], [`Ingest::prepare`] and [`Ingest::publish`] do, in one.
    ///
    /// # Errors
    /// Those of [`Ingest::publish`].
    pub async fn take(&self, grant: Grant, raw: RawBatch<'_>, arrival: Arrival) -> Result<Outcome, Error> {
        self.publish(self.prepare(validate(grant.project, raw, arrival))).await
    }

    /// Brings what passed into the form in which the bus carries it.
    #[must_use]
    pub fn prepare(&self, valid: Valid<'_>) -> Prepared {
        let Valid { batch, refused, ids } = valid;
        let (project, id, events) = (batch.project, batch.batch, batch.events.len());
        Prepared { project, batch: id, packed: self.bus.pack(batch), events, refused, ids }
    }

    /// Publishes a batch that was admitted. One that isn't taken costs its project nothing: what is sent again after a 503
    /// or 429 is limited once.
    ///
    /// # Errors
    /// Those of [`Ingest::publish`].
    pub async fn publish_admitted(&self, prepared: Prepared, admitted: &Admitted) -> Result<Outcome, Error> {
        let project = prepared.project;
        let published = self.publish(prepared).await;
        if let Err(Error::Bus(_)) = published {
            self.give_back(project, admitted).await;
        }
        published
    }

    /// Publishes what passed and returns a verdict for every event of the body. A batch in which everything was refused is
    /// published too: the ledger counts what was refused where it counts what was stored.
    ///
    /// # Errors
    /// Then nothing is known of the batch, and it is to be sent again.
    pub async fn publish(&self, prepared: Prepared) -> Result<Outcome, Error> {
        let Prepared { batch, packed, events, refused, ids, .. } = prepared;
        if events == 0 && refused.is_empty() {
            return Ok(Outcome { batch, verdicts: Vec::new(), ids });
        }
        let published = packed.publish().await?;
        if published.verdicts.len() != events {
            return Err(Error::VerdictsMissing { events, verdicts: published.verdicts.len() });
        }
        Ok(Outcome { batch, verdicts: outcome::in_order(published.verdicts, refused), ids })
    }
}
