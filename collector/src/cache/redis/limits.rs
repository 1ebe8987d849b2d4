use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Redis, Shared};
use crate::cache::limits::{Allowance, Bound, Calendar, Figures, Limits, Period, Taken, Used};
use crate::cache::recount::RecountAsked;
use crate::project::ProjectId;

/// An edge takes what the rate grants in this time at once, and spends it without asking: ten questions a second a
/// project and edge.
const SLICES_PER_S: u64 = 10;

/// A slice where only a quota limits: one batch of the SDK's size.
const QUOTA_SLICE: u64 = 1_000;

/// What isn't used for this long is given back.
const IDLE: Duration = Duration::from_secs(1);

/// A project that sends nothing for this long is forgotten here: 10,000 of about 300 B are 3 MB.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// What this process has taken of each project's limits.
#[derive(Default)]
pub(super) struct Slices(Mutex<HashMap<ProjectId, Arc<tokio::sync::Mutex<Slice>>>>);

struct Slice {
    limits: Limits,
    /// Taken from Redis and not used yet.
    spare: u64,
    /// When that was taken.
    spare_of: Period,
    /// What Redis said last.
    figures: Figures,
    /// How many events were refused, by what, and until when Redis needn't be asked for as many.
    refused: Option<(u64, Bound, Instant)>,
    used_at: Instant,
    /// What decides while Redis is away.
    alone: Allowance,
    /// Events passed that Redis doesn't know of.
    uncounted: bool,
    recount_asked: RecountAsked,
}

impl Slices {
    fn all(&self) -> MutexGuard<'_, HashMap<ProjectId, Arc<tokio::sync::Mutex<Slice>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, project: ProjectId) -> Arc<tokio::sync::Mutex<Slice>> {
        let slice = || Slice {
            limits: Limits::default(),
            spare: 0,
            spare_of: Period::default(),
            figures: Figures::default(),
            refused: None,
            used_at: Instant::now(),
            alone: Allowance::default(),
            uncounted: false,
            recount_asked: RecountAsked::default(),
        };
        Arc::clone(self.all().entry(project).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(slice()))))
    }
}

impl Redis {
    pub(in crate::cache) async fn take(&self, project: ProjectId, events: u64, limits: &Limits) -> Taken {
        let calendar = Calendar::at(Timestamp::now());
        let slice = self.0.slices.of(project);
        // One request of a project asks Redis, the others wait for what it brings: for the timeout of one question at most,
        // since a link that is down answers at once.
        let mut slice = slice.lock().await;
        slice.used_at = Instant::now();
        if slice.limits != *limits {
            self.0.give_back_spare(project, &mut slice).await;
            (slice.limits, slice.refused) = (*limits, None);
        }
        if let Some(taken) = slice.decide(events, &calendar) {
            return taken;
        }
        let more = events - slice.spare;
        match self.0.take(project, more, limits).await {
            Some(figures) => slice.taken(events, more, figures, &calendar),
            None => {
                let edges = self.0.edges.load(Ordering::Relaxed);
                slice.taken_alone(events, &limits.shared_by(edges), &calendar)
            }
        }
    }

    pub(in crate::cache) async fn give_back(&self, project: ProjectId, events: u64, taken: &Taken) {
        let slice = self.0.slices.of(project);
        let mut slice = slice.lock().await;
        if taken.exact {
            self.0.give_back(project, events, taken.period, taken.rate.is_some()).await;
            slice.refused = None;
        } else {
            slice.alone.give_back(events, taken);
        }
    }

    pub(in crate::cache) async fn recount(&self, project: ProjectId, used: Used) -> bool {
        let slice = self.0.slices.of(project);
        let mut slice = slice.lock().await;
        let mut call = self.0.scripts.recount.prepare_invoke();
        call.key(self.0.limits_name(project)).arg(used.day).arg(used.month).arg(used.on_day);
        let ask = async |mut connection| call.invoke_async::<bool>(&mut connection).await;
        let recounted = self.0.asks.ask(ask).await.unwrap_or(false);
        if recounted {
            (slice.uncounted, slice.figures.recounted, slice.refused) = (false, true, None);
            slice.recount_asked.done(Instant::now());
        }
        recounted
    }

    /// Gives everything back, before the process ends.
    pub(in crate::cache) async fn give_back_all(&self) {
        self.0.give_back_idle(Duration::ZERO).await;
    }
}

impl Slice {
    /// Decides by what was taken or refused a moment ago, without Redis.
    fn decide(&mut self, events: u64, calendar: &Calendar) -> Option<Taken> {
        if self.spare >= events {
            self.spare -= events;
            let figures = Figures { period: self.spare_of, ..self.figures };
            return Some(self.answer(&figures, calendar));
        }
        let now = Instant::now();
        let (refused, bound, until) = self.refused.filter(|(.., until)| *until > now)?;
        // Fewer may pass; then Redis is asked.
        if events - self.spare < refused {
            return None;
        }
        let figures = Figures { refused: Some(bound), wait: until - now, ..self.figures };
        Some(self.answer(&figures, calendar))
    }

    /// Takes down what Redis granted or refused.
    fn taken(&mut self, events: u64, more: u64, figures: Figures, calendar: &Calendar) -> Taken {
        match figures.refused {
            None => {
                self.spare = self.spare + figures.taken - events;
                self.spare_of = figures.period;
            }
            // Another edge may give something back of a quota.
            Some(bound) => {
                let wait = if bound == Bound::Rate { figures.wait } else { IDLE };
                self.refused = Some((more, bound, Instant::now() + wait));
            }
        }
        self.figures = Figures { refused: None, wait: Duration::ZERO, ..figures };
        self.answer(&figures, calendar)
    }

    fn taken_alone(&mut self, events: u64, share: &Limits, calendar: &Calendar) -> Taken {
        let figures = self.alone.take(events, share, calendar, Instant::now());
        self.uncounted |= figures.refused.is_none();
        // The ledger is asked for when Redis is back: what would be read now couldn't be told.
        Taken { exact: false, recount: false, ..figures.taken(share, calendar, 0) }
    }

    fn answer(&mut self, figures: &Figures, calendar: &Calendar) -> Taken {
        let taken = figures.taken(&self.limits, calendar, self.spare);
        let needed = taken.recount || self.uncounted;
        self.recount_asked.once(Taken { recount: needed, ..taken }, Instant::now())
    }
}

impl Shared {
    fn limits_name(&self, project: ProjectId) -> String {
        self.of_project(project, "limits")
    }

    async fn take(&self, project: ProjectId, events: u64, limits: &Limits) -> Option<Figures> {
        let (rate, burst, extra) = match limits.rate {
            Some(rate) => (number(Some(rate.events_per_s)), rate.burst, rate.events_per_s / SLICES_PER_S),
            None => (-1, 0, QUOTA_SLICE),
        };
        let mut call = self.scripts.take.prepare_invoke();
        call.key(self.limits_name(project)).arg(events).arg(extra).arg(rate).arg(burst);
        call.arg(number(limits.quota.per_day)).arg(number(limits.quota.per_month));
        let ask = async |mut connection| call.invoke_async::<[i64; 9]>(&mut connection).await;
        let [refused, taken, tokens, wait_us, day_used, month_used, recounted, day, month] =
            self.asks.ask(ask).await?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Some(Figures {
            refused: match refused {
                1 => Some(Bound::Rate),
                2 => Some(Bound::Day),
                3 => Some(Bound::Month),
                _ => None,
            },
            taken: count(taken),
            tokens,
            wait: Duration::from_micros(count(wait_us)),
            day_used: count(day_used),
            month_used: count(month_used),
            recounted: recounted == 1,
            period: Period { day, month },
        })
    }

    async fn give_back(&self, project: ProjectId, events: u64, period: Period, rated: bool) {
        if events == 0 {
            return;
        }
        let mut call = self.scripts.give_back.prepare_invoke();
        call.key(self.limits_name(project)).arg(events);
        call.arg(period.day).arg(period.month).arg(u8::from(rated));
        // When Redis is away they are lost to the project: a tenth of a second's worth, or a batch.
        let _: Option<u64> =
            self.asks.ask(async |mut connection| call.invoke_async(&mut connection).await).await;
    }

    async fn give_back_spare(&self, project: ProjectId, slice: &mut Slice) {
        let spare = std::mem::take(&mut slice.spare);
        self.give_back(project, spare, slice.spare_of, slice.limits.rate.is_some()).await;
    }

    async fn give_back_idle(&self, idle: Duration) {
        let all: Vec<_> = self.slices.all().iter().map(|(id, slice)| (*id, Arc::clone(slice))).collect();
        for (project, slice) in all {
            let mut slice = slice.lock().await;
            if slice.used_at.elapsed() >= idle {
                self.give_back_spare(project, &mut slice).await;
            }
        }
        self.slices.all().retain(|_, slice| {
            // One that is being used is held by the map and by its user.
            Arc::strong_count(slice) > 1
                || slice.try_lock().is_ok_and(|slice| {
                    slice.spare > 0 || slice.uncounted || slice.used_at.elapsed() < FORGOTTEN_AFTER
                })
        });
    }
}

/// A limit as the scripts take it.
fn number(limit: Option<u64>) -> i64 {
    limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

/// Gives back, once a second, what isn't used.
pub(super) async fn give_back_idle(shared: Weak<Shared>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(IDLE) => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        shared.give_back_idle(IDLE).await;
    }
}
