use std::any::Any;
use std::path::PathBuf;

use eventbucket_protocol::{EventId, Reason};

/// Why a bucket can't be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A collector's URL.
    #[error("{url:?} is no collector URL: {reason}; write it like https://events.example.org")]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The project's key.
    #[error("the key {reason}; copy the write key that `eventbucket project create` printed")]
    Key {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A limit or a rate.
    #[error("{setting} is {value}; choose {allowed}")]
    Limit {
        /// The builder method.
        setting: &'static str,
        /// The value as given.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A property of the context that JSON can't hold.
    #[error("the context can't be written as JSON: {0}; use plain values and text keys")]
    Context(String),
    /// The folder for the spool is something else.
    #[error("the spool folder {} is a file; name a folder", .0.display())]
    SpoolFolder(PathBuf),
    /// The folder for the spool has no name.
    #[error("the spool folder is empty; name a folder, or leave .spool(…) out to keep events in memory")]
    NoSpoolFolder,
    /// No way to send.
    #[error("there is no transport; add the feature `http` or give one with .transport(…)")]
    NoTransport,
    /// The transport's own settings.
    #[error("can't set up the transport: {0}; check the proxy and the certificates")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The operating system gave no thread.
    #[error("can't start the worker thread; raise the limit of threads")]
    Thread(#[source] std::io::Error),
}

/// Why an event wasn't taken, or isn't durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The bucket is switched off.
    #[error("the bucket is disabled; switch it on with set_enabled(true)")]
    Disabled,
    /// The bucket was shut down.
    #[error("the bucket is shut down; capture before shutdown")]
    Closed,
    /// No room, and the overflow rule is to drop.
    #[error("the queue is full; raise queue_bytes_max, add a spool or capture less")]
    QueueFull,
    /// Over the limit of one event.
    #[error("the event takes {bytes} bytes, more than {bytes_max}; send less in one event")]
    TooLarge {
        /// About how many bytes it takes.
        bytes: usize,
        /// The protocol's limit.
        bytes_max: usize,
    },
    /// Against the protocol's limits.
    #[error("the event is invalid: {0}")]
    Invalid(String),
    /// Kept back by sampling, the hook, deduplication or `once`.
    #[error("the event was withheld by sampling, before_send, its id or its once key")]
    Withheld,
    /// A hook or the worker panicked over it.
    #[error("the event was lost in a panic of before_send or the worker; mend the hook")]
    Panicked,
    /// The event is held in memory but on no disk.
    #[error("the event is held in memory only: {0}")]
    NotDurable(String),
}

/// Something that went wrong on the worker thread; told to `on_error`. Counted in the ledger where it concerns events.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A collector can't be reached or doesn't answer as one; told once an outage. Everything is kept and retried.
    #[error("{endpoint} fails: {message}; events are kept and sent again")]
    Unreachable {
        /// The collector's URL.
        endpoint: String,
        /// What happened.
        message: String,
    },
    /// A collector refuses the key, or isn't one. Everything is kept and tried again slowly.
    #[error("{endpoint} answered {status}: {message}; events are kept, check the key and the URL")]
    Refused {
        /// The collector's URL.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The collector's words.
        message: String,
    },
    /// What a collector says about the others can't be used; told once until it can. Nothing changes.
    #[error("{endpoint} names no collectors to use: {message}; events go on to those known")]
    Discovery {
        /// The URL of the collector that was asked.
        endpoint: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The collector refused an event for good.
    #[error("event {id} was rejected: {}", reason.message)]
    Rejected {
        /// The event.
        id: EventId,
        /// Why.
        reason: Reason,
    },
    /// Events were lost.
    #[error("{events} events dropped: {reason}")]
    Dropped {
        /// How many.
        events: u64,
        /// Why, and what to do.
        reason: String,
    },
    /// The spool can't be used, and events go on in memory until the disk is tried again; or a file in its folder can't, and
    /// the spool itself works. The text says which.
    #[error("the spool: {0}")]
    Spool(String),
    /// A panic was contained.
    #[error("contained a panic of {who}: {message}")]
    Panicked {
        /// Whose: `before_send`, `transport` or `worker`. A panic of `on_error` is counted alone: there is nobody to tell.
        who: &'static str,
        /// The panic's message.
        message: String,
    },
}

/// Says what is wrong with an event that breaks a limit. Its id may be as long as it likes, and as odd.
pub(crate) fn invalid_words(id: &EventId, message: &str) -> String {
    const ID_CHARS_SHOWN: usize = 64;
    let id: String = id.to_string().chars().take(ID_CHARS_SHOWN).collect();
    format!("event {id:?} is invalid: {message}")
}

/// Reads the message of a panic that was caught.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
