use std::sync::Arc;

use eventbucket_protocol::Verdict;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::dead;
use super::link::{self, Standing};
use super::options::RabbitOptions;
use super::publisher::{self, Outbox};
use super::topology::Topology;
use crate::bus::message::{Published, ValidBatch};
use crate::bus::{Error, wire};

/// The way of a batch to the broker. Clones share the line.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) outbox: Arc<Outbox>,
    pub(super) topology: Topology,
    pub(super) options: RabbitOptions,
    pub(super) publishing: Standing,
}

/// What the parts of a batch hear when the broker has them.
pub(super) type Confirms = Vec<oneshot::Receiver<Result<(), Error>>>;

impl Sender {
    /// Says whether the broker is there.
    pub(super) fn serving(&self) -> Result<(), Error> {
        self.publishing.serving()
    }

    /// Sends a batch and waits until the broker has all of it.
    pub(super) async fn send(&self, batch: &ValidBatch) -> Result<Published, Error> {
        let confirms = self.push(batch)?;
        self.confirmed(confirms).await?;
        Ok(Published { verdicts: vec![Verdict::Accepted; batch.events.len()] })
    }

    /// Puts a batch into its shard's line, in the order of the calls.
    pub(super) fn push(&self, batch: &ValidBatch) -> Result<Confirms, Error> {
        self.serving()?;
        self.outbox.push(self.topology.shard(batch.project), wire::encode_batch(batch))
    }

    /// Waits until the broker has every part.
    pub(super) async fn confirmed(&self, confirms: Confirms) -> Result<(), Error> {
        let confirmed = tokio::time::timeout(self.options.confirm_timeout, join_all(confirms)).await;
        let Ok(confirmed) = confirmed else {
            return Err(publisher::unavailable("RabbitMQ did not confirm in time"));
        };
        for answer in confirmed {
            answer.unwrap_or_else(|_| Err(publisher::unavailable("the connection to RabbitMQ was lost")))?;
        }
        Ok(())
    }

    /// Puts a message to the dead letters as it is.
    pub(super) async fn bury(&self, message: &[u8], reason: &str) -> Result<(), Error> {
        let connection = link::connect(&self.options, "bury").await.map_err(|why| why.error())?;
        let messages = [message.to_vec()];
        let buried = dead::bury(&connection, &self.topology, &self.options, &messages, reason).await;
        link::close(&connection).await;
        buried
    }
}
