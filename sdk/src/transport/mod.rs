//! How a batch reaches a collector.
//!
//! [`Transport`] is the one open set of the SDK: bring your own to go through a message queue, a Unix socket or a client
//! your company prescribes. It is mechanism only. It sends one body once and says what came back; retries, delays,
//! failover, bisecting and counting are decided above it.

/// Bodies made smaller, the same way each time.
mod compress;

/// Delivery over HTTP by reqwest with rustls.
#[cfg(feature = "http")]
mod http;

/// How long a collector asks to be left alone.
#[cfg(feature = "http")]
mod retry_after;

#[cfg(test)]
#[cfg(feature = "http")]
mod http_tests;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_protocol::BatchId;

pub use compress::Compression;
#[cfg(feature = "http")]
pub use http::{HttpTransport, HttpTransportBuilder, TransportError};

/// One attempt under way.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Answer, SendError>> + Send + 'a>>;

/// Carries one attempt to a collector and brings back its answer.
///
/// The SDK polls the future on its own thread, inside a current-thread tokio runtime with time and I/O enabled, and drops
/// it when [`Attempt::timeout`] has passed or the bucket shuts down. So `send` must be safe to drop at any await.
/// A panic in it counts as a failed attempt.
///
/// # Examples
///
/// A transport that writes to a place of its own and accepts everything:
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use eventbucket::Bucket;
/// use eventbucket::transport::{Answer, Attempt, Sending, Transport};
///
/// #[derive(Clone, Default)]
/// struct Kept(Arc<Mutex<Vec<Arc<[u8]>>>>);
///
/// impl Transport for Kept {
///     fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
///         Box::pin(async move {
///             self.0.lock().unwrap().push(Arc::clone(&attempt.body));
///             Ok(Answer::all_stored(attempt))
///         })
///     }
/// }
///
/// let kept = Kept::default();
/// let transport = Arc::new(kept.clone());
/// let bucket = Bucket::builder("http://kept.invalid", "key").transport(transport).build()?;
/// bucket.capture("order_paid");
/// assert_eq!(bucket.shutdown_blocking(std::time::Duration::from_secs(5)).delivered, 1);
/// assert_eq!(kept.0.lock().unwrap().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Transport: Send + Sync + 'static {
    /// Sends the attempt once.
    ///
    /// # Errors
    ///
    /// When no answer came back. An answer with an error status is an [`Answer`], not an error.
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a>;

    /// Asks once what became of a batch whose events were `accepted`; the answer has the form of the answer to the batch.
    /// Asked only of a bucket with [`final_verdicts`](crate::Builder::final_verdicts). A transport that can't ask leaves
    /// it at this: 405, and the events stay accepted.
    ///
    /// # Errors
    ///
    /// When no answer came back.
    fn ask<'a>(&'a self, question: &'a Question) -> Sending<'a> {
        let _ = question;
        Box::pin(std::future::ready(Ok(Answer::new(405))))
    }

    /// Asks a collector once which others there are; the answer is that to `GET /v1/nodes`. Asked only of a bucket with
    /// [`discover`](crate::Builder::discover). Whether what it names may be used is decided above. A transport that can't
    /// ask leaves it at this: 405, and the collectors stay those that were given.
    ///
    /// # Errors
    ///
    /// When no answer came back.
    fn discover<'a>(&'a self, inquiry: &'a Inquiry) -> Sending<'a> {
        let _ = inquiry;
        Box::pin(std::future::ready(Ok(Answer::new(405))))
    }
}

/// Which collector is asked for the others.
#[derive(Clone)]
#[non_exhaustive]
pub struct Inquiry {
    /// The collector's base URL without a trailing slash.
    pub endpoint: String,
    /// The project's write key, to be sent as a bearer token.
    pub key: String,
    /// How long the inquiry may take as a whole.
    pub timeout: Duration,
}

/// Shows everything but the key.
impl fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiry")
            .field("endpoint", &self.endpoint)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Which batch is asked about, and where.
#[derive(Clone)]
#[non_exhaustive]
pub struct Question {
    /// The collector's base URL without a trailing slash.
    pub endpoint: String,
    /// The project's write key, to be sent as a bearer token.
    pub key: String,
    /// The batch.
    pub batch_id: BatchId,
    /// How long the collector may wait for the batch before it answers that it is pending.
    pub wait: Duration,
    /// How long the question may take as a whole.
    pub timeout: Duration,
}

/// Shows everything but the key.
impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question")
            .field("endpoint", &self.endpoint)
            .field("batch_id", &self.batch_id)
            .field("wait", &self.wait)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What is to be sent, and where.
#[derive(Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// The collector's base URL without a trailing slash: `https://events.example.org`.
    pub endpoint: String,
    /// The project's write key, to be sent as a bearer token.
    pub key: String,
    /// The media type of the body.
    pub content_type: &'static str,
    /// How the body is compressed: `zstd`, `gzip` or not at all.
    pub content_encoding: Option<&'static str>,
    /// The body; the same bytes on every resend of the batch.
    pub body: Arc<[u8]>,
    /// When this attempt was made, in Unix milliseconds; belongs into the header `event-bucket-sent-at`.
    pub sent_at_ms: i64,
    /// The batch the body holds.
    pub batch_id: BatchId,
    /// How many events the body holds.
    pub events: usize,
    /// How long the attempt may take as a whole.
    pub timeout: Duration,
}

impl Attempt {
    /// Makes an attempt to send an uncompressed MessagePack body with a timeout of 30 s.
    #[must_use]
    pub fn new(
        endpoint: impl Into<String>,
        key: impl Into<String>,
        batch_id: BatchId,
        body: Arc<[u8]>,
    ) -> Self {
        Self {
            endpoint: endpoint.into(),
            key: key.into(),
            content_type: "application/msgpack",
            content_encoding: None,
            body,
            sent_at_ms: 0,
            batch_id,
            events: 0,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Shows everything but the key and the body.
impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("endpoint", &self.endpoint)
            .field("content_type", &self.content_type)
            .field("content_encoding", &self.content_encoding)
            .field("body_bytes", &self.body.len())
            .field("sent_at_ms", &self.sent_at_ms)
            .field("batch_id", &self.batch_id)
            .field("events", &self.events)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What a collector answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The HTTP status, or what corresponds to it.
    pub status: u16,
    /// How long the collector asks to be left alone.
    pub retry_after: Option<Duration>,
    /// The body: a reply with verdicts when the status is 200, an error document otherwise.
    pub body: Vec<u8>,
    /// Whether the collector says that it is about to stop, so that the next batches go elsewhere.
    pub draining: bool,
}

impl Answer {
    /// Makes an answer with an empty body.
    #[must_use]
    pub const fn new(status: u16) -> Self {
        Self { status, retry_after: None, body: Vec::new(), draining: false }
    }

    /// Adds the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Answers that every event of an attempt was stored, for a transport that keeps them itself.
    #[must_use]
    pub fn all_stored(attempt: &Attempt) -> Self {
        let (batch, events) = (attempt.batch_id, attempt.events);
        let body = format!(r#"{{"batch_id":"{batch}","events":{events},"all":{{"verdict":"stored"}}}}"#);
        Self::new(200).with_body(body)
    }

    /// Adds how long the collector asks to be left alone.
    #[must_use]
    pub const fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds that the collector is about to stop.
    #[must_use]
    pub const fn with_draining(mut self) -> Self {
        self.draining = true;
        self
    }
}

/// Why there is no answer. Whether the collector took the batch is unknown in every case, so all are retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nothing came back in time.
    #[error("no answer within the timeout")]
    Timeout,
    /// No connection could be made.
    #[error("can't connect: {0}; check the URL, the proxy and the certificates")]
    Connect(String),
    /// The exchange broke off, or the answer makes no sense.
    #[error("{0}")]
    Other(String),
}

impl SendError {
    /// Says that no connection could be made.
    #[must_use]
    pub fn connect(reason: impl Into<String>) -> Self {
        Self::Connect(reason.into())
    }

    /// Says that the exchange broke off, or that the answer makes no sense.
    #[must_use]
    pub fn other(reason: impl Into<String>) -> Self {
        Self::Other(reason.into())
    }
}
