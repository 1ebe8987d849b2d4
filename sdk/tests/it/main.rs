//! The SDK through its public API.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// A collector's batch interface, over real HTTP, with faults to order.
#[cfg(feature = "http")]
mod server;

mod capture;
mod config;
#[cfg(feature = "http")]
mod delivery;
mod discovery;
mod exactly_once;
#[cfg(feature = "http")]
mod finals;
#[cfg(all(unix, feature = "http"))]
mod fork;
mod overflow;
mod panics;
mod runtimes;
#[cfg(feature = "spool")]
mod spool;
