use std::time::{Duration, Instant};

use jiff::civil::Date;
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};

/// How fast a project may send, over all edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Events per second that are granted for ever.
    pub events_per_s: u64,
    /// Events that may come at once. A batch of more passes when the bucket is full, and is paid back before the next.
    pub burst: u64,
}

/// How much a project may send per calendar day and month, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Events a day.
    pub per_day: Option<u64>,
    /// Events a month.
    pub per_month: Option<u64>,
}

/// All limits of a project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How fast.
    pub rate: Option<RateLimit>,
    /// How much.
    pub quota: Quota,
}

impl Limits {
    /// Nothing is limited.
    #[must_use]
    pub fn none(&self) -> bool {
        *self == Self::default()
    }

    /// What one of several edges grants while they can't agree. Quotas are not enforced then.
    pub(super) fn shared_by(&self, edges: usize) -> Self {
        let edges = edges.max(1) as u64;
        let share = |all: u64| if all == 0 { 0 } else { (all / edges).max(1) };
        let rate = self
            .rate
            .map(|rate| RateLimit { events_per_s: share(rate.events_per_s), burst: share(rate.burst) });
        Self { rate, quota: Quota::default() }
    }
}

/// Which limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Too fast.
    Rate,
    /// The day's quota.
    Day,
    /// The month's quota.
    Month,
}

/// What is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The limit: the burst, or the quota.
    pub limit: u64,
    /// Events that would pass now.
    pub remaining: u64,
    /// When all of it is there again.
    pub resets_after: Duration,
}

/// Whether events may pass, and what is left for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What refused them, all of them; `None` when they may pass.
    pub refused: Option<Bound>,
    /// When the same events would pass, as far as can be said now; zero when they do.
    pub retry_after: Duration,
    /// What is left of the burst.
    pub rate: Option<Left>,
    /// What is left of the day's quota.
    pub day: Option<Left>,
    /// What is left of the month's quota.
    pub month: Option<Left>,
    /// `false` while Redis is away: then this process decides alone, by its share of the rate, and lets quotas pass.
    pub exact: bool,
    /// What was used of a quota is not known for sure: read it from the store's ledger and call
    /// [`super::Cache::recount_quota`]. Until then events pass as if nothing had been used before. Said once a second.
    pub recount: bool,
}

/// What a project has sent in this day and month, UTC, by the store's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Events received since the day began.
    pub day: u64,
    /// Events received since the month began.
    pub month: u64,
}

/// Day and month as numbers, and when the next ones begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) day: i64,
    pub(super) month: i64,
    pub(super) day_ends: Duration,
    pub(super) month_ends: Duration,
}

impl Calendar {
    pub(super) fn at(now: Timestamp) -> Self {
        let date = Offset::UTC.to_datetime(now).date();
        let until = |begin: Option<Date>| {
            let begin = begin.and_then(|date| Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok());
            begin.map_or(Duration::ZERO, |begin| begin.duration_since(now).unsigned_abs())
        };
        Self {
            day: now.as_second().div_euclid(86_400),
            month: i64::from(date.year()) * 12 + i64::from(date.month()) - 1,
            day_ends: until(date.tomorrow().ok()),
            month_ends: until(date.first_of_month().checked_add(1.month()).ok()),
        }
    }
}

/// What a taking came to, in the figures of the Lua script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) refused: Option<Bound>,
    pub(super) taken: u64,
    /// Below zero while a large batch is paid back.
    pub(super) tokens: i64,
    pub(super) wait: Duration,
    pub(super) day_used: u64,
    pub(super) month_used: u64,
    pub(super) recounted: bool,
}

impl Figures {
    /// Says it to a person. `spare` events were taken and not used yet.
    pub(super) fn taken(&self, limits: &Limits, calendar: &Calendar, spare: u64) -> Taken {
        let retry_after = match self.refused {
            None => Duration::ZERO,
            Some(Bound::Rate) => self.wait,
            Some(Bound::Day) => calendar.day_ends,
            Some(Bound::Month) => calendar.month_ends,
        };
        let rate = limits.rate.map(|rate| {
            let tokens = self.tokens.saturating_add_unsigned(spare);
            let missing = i64::try_from(rate.burst).unwrap_or(i64::MAX).saturating_sub(tokens).max(0);
            Left {
                limit: rate.burst,
                remaining: u64::try_from(tokens).unwrap_or(0),
                resets_after: time_for(missing as f64, rate.events_per_s),
            }
        });
        let left = |limit: Option<u64>, used: u64, resets_after| {
            let remaining = |limit: u64| limit.saturating_sub(used.saturating_sub(spare));
            limit.map(|limit| Left { limit, remaining: remaining(limit), resets_after })
        };
        Taken {
            refused: self.refused,
            retry_after,
            rate,
            day: left(limits.quota.per_day, self.day_used, calendar.day_ends),
            month: left(limits.quota.per_month, self.month_used, calendar.month_ends),
            exact: true,
            recount: !self.recounted && limits.quota != Quota::default(),
        }
    }
}

/// How long `events` take at a rate; a day when there is none.
fn time_for(events: f64, events_per_s: u64) -> Duration {
    const NEVER: Duration = Duration::from_secs(86_400);
    if events_per_s == 0 { NEVER } else { Duration::from_secs_f64(events / events_per_s as f64).min(NEVER) }
}

/// How often a recount is asked for: requests go on while the ledger is read.
const RECOUNT_PERIOD: Duration = Duration::from_secs(1);

/// When a recount was asked for last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RecountAsked(Option<Instant>);

impl RecountAsked {
    /// Lets one request a period ask for it.
    pub(super) fn once(&mut self, taken: Taken) -> Taken {
        let recount = taken.recount && self.0.is_none_or(|last| last.elapsed() >= RECOUNT_PERIOD);
        if recount {
            self.0 = Some(Instant::now());
        }
        Taken { recount, ..taken }
    }
}

/// What a project has left within this process: the rules of `take.lua`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    /// Tokens, and when they were counted; `None` when the bucket is full because nobody took any.
    tokens: Option<(f64, Instant)>,
    day: i64,
    month: i64,
    used: Used,
    recounted: Option<i64>,
}

impl Allowance {
    pub(super) fn take(&mut self, need: u64, limits: &Limits, calendar: &Calendar, now: Instant) -> Figures {
        self.turn_to(calendar);
        let tokens = limits.rate.map_or(0.0, |rate| self.tokens_at(now, &rate));
        let (refused, wait) = self.judge(need, tokens, limits);
        let mut left = tokens;
        if refused.is_none() {
            left -= need as f64;
            self.used.day += need;
            self.used.month += need;
        }
        self.tokens = limits.rate.map(|_| (left, now));
        Figures {
            refused,
            taken: if refused.is_none() { need } else { 0 },
            tokens: left.floor() as i64,
            wait,
            day_used: self.used.day,
            month_used: self.used.month,
            recounted: self.recounted == Some(calendar.day),
        }
    }

    fn judge(&self, need: u64, tokens: f64, limits: &Limits) -> (Option<Bound>, Duration) {
        // The batch that uses it up passes whole: otherwise one larger than the quota never would.
        let over = |limit: Option<u64>, used: u64| limit.is_some_and(|limit| used >= limit);
        if over(limits.quota.per_month, self.used.month) {
            return (Some(Bound::Month), Duration::ZERO);
        }
        if over(limits.quota.per_day, self.used.day) {
            return (Some(Bound::Day), Duration::ZERO);
        }
        let Some(rate) = limits.rate else { return (None, Duration::ZERO) };
        let enough = need.min(rate.burst) as f64;
        if tokens < enough {
            return (Some(Bound::Rate), time_for(enough - tokens, rate.events_per_s));
        }
        (None, Duration::ZERO)
    }

    fn tokens_at(&self, now: Instant, rate: &RateLimit) -> f64 {
        let burst = rate.burst as f64;
        let Some((tokens, at)) = self.tokens else { return burst };
        let grown = now.saturating_duration_since(at).as_secs_f64() * rate.events_per_s as f64;
        (tokens + grown).min(burst)
    }

    fn turn_to(&mut self, calendar: &Calendar) {
        if self.day != calendar.day {
            (self.day, self.used.day) = (calendar.day, 0);
        }
        if self.month != calendar.month {
            (self.month, self.used.month) = (calendar.month, 0);
        }
    }

    /// Raises what was used to what the store knows of.
    pub(super) fn recount(&mut self, used: Used, calendar: &Calendar) {
        self.turn_to(calendar);
        self.used = Used { day: self.used.day.max(used.day), month: self.used.month.max(used.month) };
        self.recounted = Some(calendar.day);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Calendar {
        Calendar::at(text.parse().unwrap())
    }

    fn rate(events_per_s: u64, burst: u64) -> Limits {
        Limits { rate: Some(RateLimit { events_per_s, burst }), quota: Quota::default() }
    }

    #[test]
    fn days_and_months_end_in_utc() {
        let calendar = at("2024-02-29T23:00:00Z");
        assert_eq!((calendar.day, calendar.month), (19_782, 2024 * 12 + 1));
        assert_eq!(
            (calendar.day_ends, calendar.month_ends),
            (Duration::from_secs(3_600), Duration::from_secs(3_600))
        );
        assert_eq!(at("2025-12-31T12:00:00Z").month + 1, at("2026-01-01T00:00:00Z").month);
    }

    #[test]
    fn a_batch_larger_than_the_burst_passes_once_and_is_paid_back() {
        let (mut allowance, calendar, now) =
            (Allowance::default(), at("2026-01-01T00:00:00Z"), Instant::now());
        let limits = rate(100, 50);
        assert_eq!(allowance.take(250, &limits, &calendar, now).refused, None);
        let figures = allowance.take(1, &limits, &calendar, now);
        // 200 in debt, and one more: 2.01 s at 100 a second.
        assert_eq!((figures.refused, figures.wait), (Some(Bound::Rate), Duration::from_millis(2_010)));
        let taken = figures.taken(&limits, &calendar, 0);
        assert_eq!(taken.rate.map(|left| (left.limit, left.remaining)), Some((50, 0)));
        assert_eq!(allowance.take(1, &limits, &calendar, now + Duration::from_millis(2_011)).refused, None);
    }

    #[test]
    fn a_quota_lets_the_batch_through_that_uses_it_up_and_begins_again_with_the_day() {
        let mut allowance = Allowance::default();
        let limits = Limits { rate: None, quota: Quota { per_day: Some(10), per_month: Some(15) } };
        let (first, now) = (at("2026-01-01T00:00:00Z"), Instant::now());
        assert!(allowance.take(1, &limits, &first, now).taken(&limits, &first, 0).recount);
        allowance.recount(Used { day: 8, month: 8 }, &first);
        assert_eq!(
            allowance.take(1, &limits, &first, now).taken(&limits, &first, 0).day.map(|left| left.remaining),
            Some(1)
        );
        let taken = allowance.take(3, &limits, &first, now).taken(&limits, &first, 0);
        assert_eq!(
            (taken.refused, taken.recount, taken.day.map(|left| left.remaining)),
            (None, false, Some(0))
        );
        let taken = allowance.take(1, &limits, &first, now).taken(&limits, &first, 0);
        assert_eq!((taken.refused, taken.retry_after), (Some(Bound::Day), Duration::from_secs(86_400)));
        let second = at("2026-01-02T00:00:00Z");
        assert_eq!(allowance.take(7, &limits, &second, now).refused, None);
        assert_eq!(allowance.take(1, &limits, &second, now).refused, Some(Bound::Month));
    }

    #[test]
    fn edges_that_cannot_agree_each_grant_their_share() {
        assert_eq!(rate(100, 50).shared_by(4).rate, Some(RateLimit { events_per_s: 25, burst: 12 }));
        assert_eq!(rate(1, 1).shared_by(0).rate, rate(1, 1).rate);
        assert_eq!(rate(0, 0).shared_by(3).rate, rate(0, 0).rate);
    }

    proptest! {
        /// Over any time no more passes than the burst, what grew, and one batch of debt.
        #[test]
        fn no_more_passes_than_was_granted(
            events_per_s in 0_u64..1_000, burst in 0_u64..1_000,
            steps in prop::collection::vec((0_u64..2_000, 1_u64..1_500), 1..60),
        ) {
            let (limits, calendar) = (rate(events_per_s, burst), at("2026-01-01T00:00:00Z"));
            let (mut allowance, begun) = (Allowance::default(), Instant::now());
            let (mut passed, mut ms, mut largest) = (0, 0, 0);
            for (wait_ms, need) in steps {
                ms += wait_ms;
                largest = largest.max(need);
                let figures = allowance.take(need, &limits, &calendar, begun + Duration::from_millis(ms));
                passed += figures.taken;
                prop_assert!(passed <= burst + events_per_s * ms / 1_000 + largest.saturating_sub(burst) + 1);
            }
        }
    }
}
