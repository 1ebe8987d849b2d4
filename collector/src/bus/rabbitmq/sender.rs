use std::sync::Arc;

use eventbucket_protocol::Verdict;
use futures_util::future::join_all;

use super::dead::DeadLetterBox;
use super::failure;
use super::link::Standing;
use super::options::RabbitOptions;
use super::outbox::{Outbox, Parcel};
use super::topology::Topology;
use crate::bus::Error;
use crate::bus::message::Published;
use crate::bus::wire::Encoded;

/// The way of a batch to the broker. Clones share the line.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) outbox: Arc<Outbox>,
    pub(super) topology: Topology,
    pub(super) options: RabbitOptions,
    pub(super) publishing: Standing,
    pub(super) dead: Arc<DeadLetterBox>,
}

impl Sender {
    /// Says whether the broker is there.
    pub(super) fn serving(&self) -> Result<(), Error> {
        self.publishing.serving()
    }

    /// Says whether what is sent to a shard now may be confirmed.
    pub(super) fn check(&self, shard: u16) -> Result<(), Error> {
        self.serving()?;
        self.outbox.check(shard)
    }

    /// Says whether a shard's queue has room, as far as it is known.
    pub(super) fn check_room(&self, shard: u16) -> Result<(), Error> {
        self.outbox.check_room(shard)
    }

    /// Sends a batch and waits until the broker has all of it.
    pub(super) async fn send(&self, batch: &Encoded) -> Result<Published, Error> {
        let parts = batch.messages.iter().map(|part| vec![part.clone()]).collect();
        self.send_parcels(self.topology.shard(batch.project), parts).await?;
        Ok(Published { verdicts: vec![Verdict::Accepted; batch.events] })
    }

    /// Puts parcels into a shard's line, in the order of the calls, and waits until the broker has all of them.
    pub(super) async fn send_parcels(&self, shard: u16, parcels: Vec<Parcel>) -> Result<(), Error> {
        self.serving()?;
        let confirms = self.outbox.push(shard, parcels)?;
        let confirmed = tokio::time::timeout(self.options.confirm_timeout, join_all(confirms)).await;
        let Ok(confirmed) = confirmed else {
            return Err(failure::unavailable("RabbitMQ did not confirm in time"));
        };
        for answer in confirmed {
            answer.unwrap_or_else(|_| Err(self.lost()))?;
        }
        Ok(())
    }

    fn lost(&self) -> Error {
        let lost = || failure::away("the connection to RabbitMQ was lost");
        self.serving().err().unwrap_or_else(lost)
    }
}
