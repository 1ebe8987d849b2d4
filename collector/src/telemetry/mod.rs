//! Logs and metrics.

/// Lines on stderr.
pub mod logs;

/// The newest warnings, kept for whoever comes later.
pub mod kept;

/// What goes on failing is said once a minute.
pub mod complaint;

/// Figures for Prometheus.
pub mod metrics;
