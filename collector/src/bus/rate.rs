use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the drain rate looks.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// The shortest and longest time a client is told to wait.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How fast what waits was dealt with over the last seconds, in events or bytes.
#[derive(Default)]
pub(super) struct DrainRate {
    samples: VecDeque<(Instant, usize)>,
    amount: usize,
}

/// Samples closer together than this are added up, which bounds them to 50.
const RATE_GRAIN: Duration = Duration::from_millis(100);

impl DrainRate {
    pub(super) fn add(&mut self, amount: usize, now: Instant) {
        self.amount += amount;
        match self.samples.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < RATE_GRAIN => *sum += amount,
            _ => self.samples.push_back((now, amount)),
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            self.amount -= self.samples.pop_front().map_or(0, |(_, amount)| amount);
        }
    }

    /// How much it was lately.
    pub(super) fn recent(&mut self, now: Instant) -> usize {
        self.forget(now);
        self.amount
    }

    /// Estimates how long `waiting` of them take, in whole seconds, within the bounds.
    pub(super) fn time_for(&mut self, waiting: usize, now: Instant) -> Duration {
        self.forget(now);
        let (shortest, longest) = RETRY_AFTER;
        let Some((oldest, _)) = self.samples.front() else { return longest };
        let measured = now.duration_since(*oldest).max(RATE_GRAIN);
        #[expect(clippy::cast_precision_loss, reason = "an estimate of seconds")]
        let seconds = waiting as f64 * measured.as_secs_f64() / self.amount.max(1) as f64;
        Duration::from_secs_f64(seconds.ceil().min(longest.as_secs_f64())).clamp(shortest, longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_wait_follows_the_speed_of_storing() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        assert_eq!(rate.time_for(1000, start), RETRY_AFTER.1, "nothing was stored lately");
        for second in 0..4 {
            rate.add(1000, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(4);
        assert_eq!(rate.time_for(5000, now), Duration::from_secs(5));
        assert_eq!(rate.time_for(1, now), RETRY_AFTER.0);
        assert_eq!(rate.time_for(1_000_000, now), RETRY_AFTER.1);
    }

    #[test]
    fn samples_are_bounded() {
        let start = Instant::now();
        let mut rate = DrainRate::default();
        for ms in 0..20_000 {
            rate.add(1, start + Duration::from_millis(ms));
        }
        assert!(rate.samples.len() <= 52, "{}", rate.samples.len());
        assert!((4900..=5200).contains(&rate.amount), "{}", rate.amount);
    }
}
