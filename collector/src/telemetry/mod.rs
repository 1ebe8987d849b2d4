//! Logs and metrics.

/// Lines on stderr.
pub mod logs;

/// Figures for Prometheus.
pub mod metrics;
