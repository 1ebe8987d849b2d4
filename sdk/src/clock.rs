use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use eventbucket_protocol::Timestamp;

/// Where times come from. Ages of events are wall time, because they outlive the process; delays are monotonic, so
/// that a corrected clock neither stalls nor hurries a retry.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The system's clocks.
    System {
        /// The zero of the monotonic clock.
        anchor: Instant,
    },
    /// A test's clock, moved by hand.
    Test(Arc<TestTimes>),
}

/// What a test's clocks say.
#[derive(Debug, Default)]
pub(crate) struct TestTimes {
    /// What passed by either clock; the wall's began at [`TEST_EPOCH_MS`].
    passed_ms: AtomicU64,
    /// By how much the wall's was set forward or back on top.
    wall_step_ms: AtomicI64,
}

/// 2026-01-01T00:00:00Z.
const TEST_EPOCH_MS: i64 = 1_767_225_600_000;

impl Clock {
    pub(crate) fn system() -> Self {
        Self::System { anchor: Instant::now() }
    }

    pub(crate) fn test() -> Self {
        Self::Test(Arc::default())
    }

    pub(crate) fn is_test(&self) -> bool {
        matches!(self, Self::Test(_))
    }

    pub(crate) fn wall(&self) -> Timestamp {
        match self {
            Self::System { .. } => Timestamp::from_system(SystemTime::now()),
            Self::Test(times) => {
                let passed = i64::try_from(times.passed_ms.load(Ordering::SeqCst)).unwrap_or(i64::MAX);
                let passed = passed.saturating_add(times.wall_step_ms.load(Ordering::SeqCst));
                Timestamp::from_ms(TEST_EPOCH_MS).expect("2026 can be written").shifted(passed)
            }
        }
    }

    pub(crate) fn monotonic_ms(&self) -> u64 {
        match self {
            Self::System { anchor } => ms(anchor.elapsed()),
            Self::Test(times) => times.passed_ms.load(Ordering::SeqCst),
        }
    }

    /// Moves a test's clock; the system's stays.
    pub(crate) fn advance(&self, by: Duration) {
        if let Self::Test(times) = self {
            times.passed_ms.fetch_add(ms(by), Ordering::SeqCst);
        }
    }

    /// Sets a test's wall clock forward or back; the monotonic one stays.
    #[cfg(test)]
    pub(crate) fn step_wall(&self, by_ms: i64) {
        if let Self::Test(times) = self {
            times.wall_step_ms.fetch_add(by_ms, Ordering::SeqCst);
        }
    }

    /// Waits until a monotonic time. A test's clock never gets there by waiting: who moves it wakes the worker.
    pub(crate) async fn sleep_until(&self, until_ms: Option<u64>) {
        match (self, until_ms) {
            (Self::System { .. }, Some(until_ms)) => {
                tokio::time::sleep(Duration::from_millis(until_ms.saturating_sub(self.monotonic_ms()))).await;
            }
            _ => std::future::pending().await,
        }
    }
}

/// A duration in whole milliseconds.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
