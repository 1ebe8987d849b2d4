//! Capture events that are never lost and never counted twice.
//!
//! [`Bucket::capture`] takes an event in well under a microsecond and never blocks. A thread of the SDK's own batches
//! events, drops repeats, keeps them (in memory, or on disk when it is given a folder) and delivers them to a
//! collector until each has its verdict. The application needs no async runtime and may have any.
//!
//! ```no_run
//! use eventbucket::{Bucket, event};
//!
//! fn main() -> Result<(), eventbucket::ConfigError> {
//!     let bucket = Bucket::builder("http://127.0.0.1:4000", "eb_write_key").build()?;
//!
//!     bucket.capture(event!("order_paid", user: "u-17", plan: "pro", amount: 12.5));
//!
//!     let report = bucket.shutdown_blocking(std::time::Duration::from_secs(5));
//!     assert_eq!(report.still_pending, 0);
//!     Ok(())
//! }
//! ```
//!
//! Whatever happens to an event is counted: [`Bucket::stats`] returns a [`Ledger`] that always balances.
//! [`Bucket::test`] gives a bucket for tests, with a recording [`Sink`] and a clock of its own.
//!
//! The modules below stand in the order an event passes them.

/// How a bucket is set up.
mod config;

/// The handle an application holds: capture, flush, shutdown, stats.
mod bucket;

/// An event under construction.
mod event;

/// Properties, written as JSON text while they are added.
mod props;

/// `event!` and `props!`.
mod macros;

/// UUIDv7 ids without a system call.
mod id;

/// Forked children get a bucket of their own.
mod fork;

/// The wall clock and the monotonic clock, or a test's.
mod clock;

/// The bounded queue between the application and the worker, under one lock with the ledger.
mod queue;

/// Answers that are waited for by a future or a blocked thread.
mod promise;

/// A capture that resolves once it is on disk.
mod durable;

/// What a flush or shutdown came to.
mod report;

/// The one thread that does everything else.
mod worker;

/// What the worker does to each event before it is encoded.
mod intake;

/// The window in which an id or a key is taken once.
mod dedup;

/// An event as the bytes that travel.
mod encoded;

/// The open batch.
mod batcher;

/// Everything encoded and not yet answered, in memory or in the spool.
mod backlog;

/// Events on disk until they are delivered.
#[cfg(feature = "spool")]
mod spool;

/// The spool of a build without one.
#[cfg(not(feature = "spool"))]
#[path = "spool_absent.rs"]
mod spool;

/// Sends batches and acts on what comes back.
mod delivery;

/// What became of accepted batches in the end.
mod finals;

/// The rules of delivery: what an answer means, how long to wait.
mod retry;

/// Several collectors: round-robin, failover, health.
mod endpoints;

/// Collectors that others name.
mod discovery;

/// How a batch reaches a collector.
pub mod transport;

/// Where every event went.
mod ledger;

/// What goes wrong, for the caller and for `on_error`.
mod error;

/// A bucket for tests.
mod testing;

/// Captures tracing events.
#[cfg(feature = "tracing")]
mod tracing_layer;

pub use bucket::Bucket;
pub use config::{Builder, Overflow};
pub use durable::Durable;
pub use error::{CaptureError, ConfigError, Fault};
pub use event::Event;
pub use eventbucket_protocol as protocol;
pub use eventbucket_protocol::EventId;
pub use ledger::{Delivered, Dropped, Ledger, Withheld};
pub use props::Props;
pub use report::{Report, Reporting};
/// No part of the API: the collector beside this crate keeps messages in files of the same kind.
#[cfg(feature = "spool")]
#[doc(hidden)]
pub mod message_spool {
    pub use crate::spool::{Abandoned, Group, Message, MessageSpool, Trouble};
}
pub use testing::Sink;
#[cfg(feature = "tracing")]
pub use tracing_layer::TracingLayer;
#[cfg(feature = "http")]
pub use transport::HttpTransport;
pub use transport::{Compression, Transport};
