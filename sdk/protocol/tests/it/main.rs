//! The protocol crate through its public functions alone.
#![expect(clippy::unwrap_used, reason = "clippy excuses test functions, but not the functions they share")]

/// Random events and the three ways to write them.
mod written;

/// What is written comes back.
mod round_trip;

/// The shapes a body may have.
mod shapes;

/// What JSON and NDJSON bodies are refused for.
mod json;

/// What MessagePack bodies are refused for.
mod messagepack;

/// Limits at their edge and one beyond.
mod limits;

/// Bytes nobody meant to send.
mod arbitrary_bytes;
