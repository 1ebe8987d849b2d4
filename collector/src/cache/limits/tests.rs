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
    assert_eq!(calendar.period, Period { day: 19_782, month: 2024 * 12 + 1 });
    assert_eq!(
        (calendar.day_ends, calendar.month_ends),
        (Duration::from_secs(3_600), Duration::from_secs(3_600))
    );
    let month = |text| at(text).period.month;
    assert_eq!(month("2025-12-31T12:00:00Z") + 1, month("2026-01-01T00:00:00Z"));
}

#[test]
fn a_batch_larger_than_the_burst_passes_once_and_is_paid_back() {
    let (mut allowance, calendar, now) = (Allowance::default(), at("2026-01-01T00:00:00Z"), Instant::now());
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
    let today = first.period.day;
    assert!(!allowance.recount(Used { on_day: today - 1, day: 20, month: 20 }, &first), "of yesterday");
    assert!(allowance.recount(Used { on_day: today, day: 8, month: 8 }, &first));
    assert_eq!(
        allowance.take(1, &limits, &first, now).taken(&limits, &first, 0).day.map(|left| left.remaining),
        Some(1)
    );
    let taken = allowance.take(3, &limits, &first, now).taken(&limits, &first, 0);
    assert_eq!((taken.refused, taken.recount, taken.day.map(|left| left.remaining)), (None, false, Some(0)));
    let taken = allowance.take(1, &limits, &first, now).taken(&limits, &first, 0);
    assert_eq!((taken.refused, taken.retry_after), (Some(Bound::Day), Duration::from_secs(86_400)));
    let second = at("2026-01-02T00:00:00Z");
    assert_eq!(allowance.take(7, &limits, &second, now).refused, None);
    assert_eq!(allowance.take(1, &limits, &second, now).refused, Some(Bound::Month));
}

#[test]
fn what_was_taken_yesterday_is_given_back_to_yesterday() {
    let (mut allowance, now) = (Allowance::default(), Instant::now());
    let limits = Limits { rate: None, quota: Quota { per_day: Some(10), per_month: Some(100) } };
    let (first, second) = (at("2026-01-01T23:59:59Z"), at("2026-01-02T00:00:00Z"));
    let taken = allowance.take(9, &limits, &first, now).taken(&limits, &first, 0);
    allowance.take(8, &limits, &second, now);
    allowance.give_back(9, &taken);
    let left = allowance.take(1, &limits, &second, now).taken(&limits, &second, 0);
    assert_eq!(
        (left.day.map(|day| day.remaining), left.month.map(|month| month.remaining)),
        (Some(1), Some(91))
    );
}

#[test]
fn edges_that_cannot_agree_each_grant_their_share() {
    assert_eq!(rate(100, 50).shared_by(4).rate, Some(RateLimit { events_per_s: 25, burst: 12 }));
    assert_eq!(rate(1, 1).shared_by(0).rate, rate(1, 1).rate);
    assert_eq!(rate(0, 0).shared_by(3).rate, rate(0, 0).rate);
}

#[test]
fn what_is_a_projects_own_stands_in_place_of_what_holds_for_all() {
    let all = Limits {
        rate: Some(RateLimit { events_per_s: 5, burst: 7 }),
        quota: Quota { per_day: Some(100), per_month: Some(1_000) },
    };
    let own = |events_per_s: &str, events_per_day: &str| OwnLimits {
        events_per_s: events_per_s.parse().unwrap(),
        events_per_day: events_per_day.parse().unwrap(),
    };
    assert_eq!(all.for_project(OwnLimits::default()), all);
    let rate = Some(RateLimit { events_per_s: 20, burst: 200 });
    assert_eq!(all.for_project(own("20", "default")), Limits { rate, ..all });
    let quota = Quota { per_day: Some(3), per_month: Some(1_000) };
    assert_eq!(all.for_project(own("none", "3")), Limits { rate: None, quota });
    let quota = Quota { per_day: None, per_month: Some(1_000) };
    assert_eq!(all.for_project(own("default", "none")), Limits { quota, ..all });
    assert_eq!(Limits::default().for_project(own("20", "default")).rate, rate);
    assert!(Limits::default().for_project(own("none", "none")).none());
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
