use std::time::{Duration, Instant};

use super::limits::Taken;

/// How often a recount that is needed is asked for: requests go on while the ledger is read.
const RECOUNT_PERIOD: Duration = Duration::from_secs(1);

/// How often one is asked for where nothing seems to be missing: a question for at most 31 rows a project, edge and minute.
const RECOUNT_ANYWAY_PERIOD: Duration = Duration::from_secs(60);

/// When a recount was asked for or done last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RecountAsked(Option<Instant>);

impl RecountAsked {
    /// Lets one request a period ask for it, where there is a quota.
    pub(super) fn once(&mut self, taken: Taken, now: Instant) -> Taken {
        let quota = taken.day.is_some() || taken.month.is_some();
        let period = if taken.recount { RECOUNT_PERIOD } else { RECOUNT_ANYWAY_PERIOD };
        let due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= period);
        let recount = quota && due;
        if recount {
            self.0 = Some(now);
        }
        Taken { recount, ..taken }
    }

    /// Notes that it was done.
    pub(super) fn done(&mut self, now: Instant) {
        self.0 = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::limits::{Left, Period};

    #[test]
    fn it_is_asked_for_each_second_while_it_is_needed_and_each_minute_all_the_same() {
        let (begun, mut asked) = (Instant::now(), RecountAsked::default());
        let asks = |asked: &mut RecountAsked, recount: bool, ms| {
            let day = Some(Left { limit: 10, remaining: 9, resets_after: Duration::ZERO });
            let taken = Taken {
                refused: None,
                retry_after: Duration::ZERO,
                rate: day,
                day,
                month: None,
                exact: true,
                recount,
                period: Period::default(),
            };
            let mut other = *asked;
            let without = other.once(Taken { day: None, ..taken }, begun + Duration::from_millis(ms));
            assert!(!without.recount, "there is no quota");
            asked.once(taken, begun + Duration::from_millis(ms)).recount
        };
        let needed = [0, 999, 1_000, 1_001].map(|ms| asks(&mut asked, true, ms));
        assert_eq!(needed, [true, false, true, false]);
        let anyway = [2_001, 60_999, 61_000, 61_001].map(|ms| asks(&mut asked, false, ms));
        assert_eq!(anyway, [false, false, true, false]);
        asked.done(begun + Duration::from_secs(63));
        assert_eq!([122_999, 123_000].map(|ms| asks(&mut asked, false, ms)), [false, true]);
    }
}
