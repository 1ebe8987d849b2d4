//! What an Event Bucket client and collector say to each other: events, batches, verdicts, their limits
//! and their encodings. Types and pure functions only; nothing here does I/O or reads a clock.
//!
//! A body becomes events in two steps, so that one bad event never costs its neighbours their verdict:
//! [`codec::decode`] cuts a body into a [`RawBatch`], and [`RawEvent::complete`] turns each part into an
//! [`Event`] or a [`Reason`] to refuse it. The way back is [`codec::encode`].

/// The identity of events and batches, derived from text where a client brings its own.
mod id;

/// A moment in milliseconds, read from RFC 3339 or an integer.
mod time;

/// A JSON object, checked once and carried as text.
mod properties;

/// A fact, complete or as it arrived.
mod event;

/// Events sent together under one id.
mod batch;

/// What became of an event, and the reply that says so.
mod verdict;

/// The error document for a request that failed as a whole.
mod problem;

/// Every bound of the protocol with its arithmetic.
pub mod limits;

/// MessagePack, JSON and NDJSON.
pub mod codec;

pub use batch::RawBatch;
pub use event::{CheckedEvent, Event, RawEvent, Texts};
pub use id::{BatchId, EventId};
pub use problem::Problem;
pub use properties::{CheckedProperties, Properties};
pub use time::Timestamp;
pub use verdict::{Code, Reason, Reply, ReplyError, Verdict};

/// The path that takes batches.
pub const EVENTS_PATH: &str = "/v1/events";

/// Where the final verdicts of a batch are asked for, its id behind a slash.
pub const BATCHES_PATH: &str = "/v1/batches";

/// Where the collector's processes are listed.
pub const NODES_PATH: &str = "/v1/nodes";

/// The request header that says when an attempt was sent, in Unix milliseconds. It lies outside the body, whose bytes
/// stay the same on every resend; the collector measures the sender's clock with it.
pub const SENT_AT_HEADER: &str = "event-bucket-sent-at";

/// The answer header with which a collector that is about to stop asks its clients to go on elsewhere. Its value is 1.
pub const DRAINING_HEADER: &str = "event-bucket-draining";

/// The name of the event that tells who a user is.
pub const IDENTIFY: &str = "$identify";

/// The name of the event that says two user ids are one person.
pub const ALIAS: &str = "$alias";
