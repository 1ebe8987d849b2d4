//! Logs and metrics.

/// Lines on stderr.
pub mod logs;

/// What goes on failing is said once a minute.
pub mod complaint;

/// Figures for Prometheus.
pub mod metrics;
