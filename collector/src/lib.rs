//! The Event Bucket collector: takes batches over HTTP, stores each event exactly once in its project's log, and
//! counts it exactly once. One binary; the modules below stand in the order a batch travels through them.

/// What the collector is told: one TOML file, `EVENTBUCKET_*` variables, flags.
pub mod config;

/// The composition root: picks backends, starts workers and the server, stops them in order.
pub mod app;

/// One signal to stop, and the order in which stages end.
pub mod shutdown;

/// Logs and metrics.
pub mod telemetry;

/// Projects, their keys and what a key may do.
pub mod project;

/// The HTTP side: connections, decoding, replies, health.
pub mod edge;

/// From a decoded batch to its verdicts: authenticate, validate, prepare, publish.
pub mod ingest;

/// What stages send each other.
pub mod bus;

/// What works behind the bus: storage, then insight.
pub mod workers;

/// Pure computation over events: tallies, and sketches of how many users.
pub mod insight;

/// The log and everything else that is kept.
pub mod store;

/// What can be lost at any moment: keys, live counters.
pub mod cache;

/// Reading back: events, counts, the live tail, audits.
pub mod query;

/// The page that shows the first event arriving.
pub mod dashboard;

/// Breaking a collector on purpose: kills, pauses and cuts by seed, and what must hold after them.
mod torture;

/// The command line.
pub mod cli;
