use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often something that goes on failing is said again.
const PERIOD: Duration = Duration::from_secs(60);

/// Something that may fail many times a second for an hour, and is said once a minute.
#[derive(Debug, Default)]
pub struct Complaint(Mutex<Option<Instant>>);

impl Complaint {
    /// Nothing was said yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Says whether it is to be said now; then the next minute is quiet.
    pub fn is_due(&self) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = said.is_none_or(|last| last.elapsed() >= PERIOD);
        if due {
            *said = Some(Instant::now());
        }
        due
    }

    /// Notes that it is over; says whether it was ever said.
    pub fn end(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_at_once_is_not_said_again() {
        let complaint = Complaint::new();
        assert!(complaint.is_due());
        assert!(!complaint.is_due());
        assert!(complaint.end() && !complaint.end());
        assert!(complaint.is_due(), "what begins again is said at once");
    }
}
