use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::bus::SpoolOptions;
use crate::config::ServerUrl;

/// Which RabbitMQ to use, and how. Everything that shapes the queues must be the same in every process of a collector: the
/// broker refuses a second declaration that differs.
#[derive(Clone)]
pub struct RabbitOptions {
    /// Where it is: `amqp://` or `amqps://`, user, password, host, port and virtual host.
    pub url: ServerUrl,
    /// Certificate authorities of an `amqps://` server beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// What every exchange and queue is called first, so that several collectors can share a virtual host.
    pub prefix: String,
    /// Whose batches these are: the broker refuses processes of another store. Everybody's without it.
    pub store: Option<String>,
    /// Queues that the projects are spread over.
    pub shards: u16,
    /// Receiving ends of accepted batches in one process.
    pub writers: usize,
    /// Bytes that may wait in one shard's queue. 2 GiB are 14,000 batches of 500 events, and with 8 shards 16 GiB of the
    /// broker's disk: about 15 minutes of what one PostgreSQL takes. Then batches are refused, never dropped.
    pub queue_bytes_max: u64,
    /// How long a publish may wait for its confirm: what a client waits at most, less the way back.
    pub confirm_timeout: Duration,
    /// How long batches are held for a store that is away before the broker gets them back: less than the 30 minutes after
    /// which RabbitMQ closes a consumer's channel by itself.
    pub hold_max: Duration,
    /// Where batches wait while the broker is away; without it they are refused.
    pub spool: Option<SpoolOptions>,
}

/// The defaults that have no key of their own.
const QUEUE_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(20);
const HOLD_MAX: Duration = Duration::from_secs(20 * 60);

impl RabbitOptions {
    /// The options for an address, with everything else as it should be.
    #[must_use]
    pub fn new(url: ServerUrl) -> Self {
        Self {
            url,
            ca_file: None,
            prefix: "eventbucket".to_owned(),
            store: None,
            shards: 8,
            writers: 2,
            queue_bytes_max: QUEUE_BYTES_MAX,
            confirm_timeout: CONFIRM_TIMEOUT,
            hold_max: HOLD_MAX,
            spool: None,
        }
    }
}

/// Shows where, never the password.
impl fmt::Debug for RabbitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitOptions({}, {} shards)", self.url, self.shards)
    }
}
