//! What works behind the bus: storage appends to the log, insight turns the log into counts.

/// Appends accepted batches to the log.
pub mod storage;

/// Keeps this process to its share of the shards.
pub mod share;

/// Applies stored ranges to the counts.
pub mod insight;

/// Drops what is older than the retention.
pub mod retention;

/// What workers ask of store, bus and cache.
mod ask;

/// The same decisions under simulated faults and time.
#[cfg(test)]
mod tests;
