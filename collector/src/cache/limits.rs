use std::time::{Duration, Instant};

use jiff::civil::Date;
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};

use crate::project::{OwnLimit, OwnLimits};

/// The burst where none is told: what a rate allows in ten seconds, so that a client that was away may catch up.
const BURST_S: u64 = 10;

/// How fast a project may send, over all edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Events per second that are granted for ever.
    pub events_per_s: u64,
    /// Events that may come at once. A batch of more passes when the bucket is full, and is paid back before the next.
    pub burst: u64,
}

impl RateLimit {
    /// A rate with the burst it has where none is told: ten seconds' worth.
    #[must_use]
    pub fn new(events_per_s: u64) -> Self {
        Self { events_per_s, burst: events_per_s.saturating_mul(BURST_S) }
    }
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

    /// What holds for a project: what it has of its own, and the rest of these.
    #[must_use]
    pub fn for_project(&self, own: OwnLimits) -> Self {
        let rate = match own.events_per_s {
            OwnLimit::Default => self.rate,
            OwnLimit::None => None,
            OwnLimit::Events(events) => Some(RateLimit::new(events.get())),
        };
        let per_day = match own.events_per_day {
            OwnLimit::Default => self.quota.per_day,
            OwnLimit::None => None,
            OwnLimit::Events(events) => Some(events.get()),
        };
        Self { rate, quota: Quota { per_day, ..self.quota } }
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
    /// Read from the store's ledger what was used of a quota, and call [`super::Cache::recount_quota`]. Said once a second
    /// while that isn't known for sure, during which events pass as if nothing had been used before; and once a minute
    /// all the same, because what was restored to an older state doesn't know what it lacks.
    pub recount: bool,
    /// When it was taken, by the clock that counts days: what is given back later is that day's.
    pub(super) period: Period,
}

/// What a project has sent in a day and its month, UTC, by the store's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// The day, in days since 1970. On another day nothing is told by it.
    pub on_day: i64,
    /// Events received since the day began.
    pub day: u64,
    /// Events received since the month began.
    pub month: u64,
}

/// A day and its month as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) day: i64,
    pub(super) month: i64,
}

/// What day and month it is, and when the next ones begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) period: Period,
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
        let period = Period {
            day: now.as_second().div_euclid(86_400),
            month: i64::from(date.year()) * 12 + i64::from(date.month()) - 1,
        };
        Self {
            period,
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
    pub(super) period: Period,
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
            period: self.period,
        }
    }
}

/// How long `events` take at a rate; a day when there is none.
fn time_for(events: f64, events_per_s: u64) -> Duration {
    const NEVER: Duration = Duration::from_secs(86_400);
    if events_per_s == 0 { NEVER } else { Duration::from_secs_f64(events / events_per_s as f64).min(NEVER) }
}

/// What a project has left within this process: the rules of `take.lua`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    /// Tokens, and when they were counted; `None` when the bucket is full because nobody took any.
    tokens: Option<(f64, Instant)>,
    period: Period,
    day_used: u64,
    month_used: u64,
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
            self.day_used += need;
            self.month_used += need;
        }
        self.tokens = limits.rate.map(|_| (left, now));
        Figures {
            refused,
            taken: if refused.is_none() { need } else { 0 },
            tokens: left.floor() as i64,
            wait,
            day_used: self.day_used,
            month_used: self.month_used,
            recounted: self.recounted == Some(calendar.period.day),
            period: self.period,
        }
    }

    fn judge(&self, need: u64, tokens: f64, limits: &Limits) -> (Option<Bound>, Duration) {
        // The batch that uses it up passes whole: otherwise one larger than the quota never would.
        let over = |limit: Option<u64>, used: u64| limit.is_some_and(|limit| used >= limit);
        if over(limits.quota.per_month, self.month_used) {
            return (Some(Bound::Month), Duration::ZERO);
        }
        if over(limits.quota.per_day, self.day_used) {
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
        if self.period.day != calendar.period.day {
            self.day_used = 0;
        }
        if self.period.month != calendar.period.month {
            self.month_used = 0;
        }
        self.period = calendar.period;
    }

    /// Gives back events that were taken and not used: the rule of `give_back.lua`.
    pub(super) fn give_back(&mut self, events: u64, taken: &Taken) {
        if let Some((tokens, _)) = self.tokens.as_mut().filter(|_| taken.rate.is_some()) {
            *tokens += events as f64;
        }
        if self.period.day == taken.period.day {
            self.day_used = self.day_used.saturating_sub(events);
        }
        if self.period.month == taken.period.month {
            self.month_used = self.month_used.saturating_sub(events);
        }
    }

    /// Raises what was used to what the store knows of; says whether that was of today.
    pub(super) fn recount(&mut self, used: Used, calendar: &Calendar) -> bool {
        self.turn_to(calendar);
        if used.on_day != calendar.period.day {
            return false;
        }
        (self.day_used, self.month_used) = (self.day_used.max(used.day), self.month_used.max(used.month));
        self.recounted = Some(calendar.period.day);
        true
    }
}

#[cfg(test)]
mod tests;
