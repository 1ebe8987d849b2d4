//! What must be true in the end, as a pure judgement over what was sent and what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use eventbucket::Ledger as Delivery;
use uuid::Uuid;

use crate::cache::Counters;
use crate::insight::{COUNTED_MAX, STANDARD_ERROR, Sketch};
use crate::store::{Ledger, ViewState};

use super::clients::Sent;

/// An event as it lies in the log.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) position: u64,
    pub(super) id: String,
    pub(super) event: Sent,
}

/// Counts by name and hour, or by name alone.
pub(super) type Hours = BTreeMap<(String, i64), u64>;
pub(super) type Totals = BTreeMap<String, u64>;

/// Different users by name and hour, or by name alone, where it is known.
pub(super) type HourUsers = BTreeMap<(String, i64), Option<u64>>;
pub(super) type TotalUsers = BTreeMap<String, Option<u64>>;

/// Everything that was found, each from a source of its own.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) log: Vec<Logged>,
    pub(super) head: u64,
    pub(super) ledger: Ledger,
    pub(super) view: ViewState,
    pub(super) hours: Hours,
    pub(super) totals: Totals,
    pub(super) hour_users: HourUsers,
    pub(super) total_users: TotalUsers,
    /// The live counters, and whether they follow the epoch of the log.
    pub(super) counters: Option<Counters>,
    pub(super) epoch_is_current: bool,
    pub(super) dead_letters: usize,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) epoch: Uuid,
}

/// What was sent, and what faults have done to it that nobody has to mend.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub(super) sent: &'a BTreeMap<String, Sent>,
    /// The ids of those that may have been dropped: captured before the open segment began.
    pub(super) droppable: BTreeSet<String>,
    /// The epoch that the log had before it was put back, where it was.
    pub(super) epoch_before: Option<Uuid>,
}

const HOUR_MS: i64 = 3_600_000;

/// How far an estimate of users may be off, in standard errors: one of two million is further off by chance.
const STANDARD_ERRORS_MAX: f64 = 5.0;

/// Complaints told at most: one lost position makes every later one wrong.
const COMPLAINTS_MAX: usize = 20;

/// What doesn't hold.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    pub(super) texts: Vec<String>,
    /// Whether some of it can't mend itself however long one waits: the log only grows.
    pub(super) lasting: bool,
}

impl Complaints {
    fn expect(&mut self, holds: bool, complaint: impl FnOnce() -> String) {
        if !holds && self.texts.len() < COMPLAINTS_MAX {
            self.texts.push(complaint());
        }
    }

    fn expect_always(&mut self, holds: bool, complaint: impl FnOnce() -> String) {
        self.lasting |= !holds;
        self.expect(holds, complaint);
    }
}

/// Finds everything that doesn't hold, nothing when all does.
pub(super) fn complaints(expected: &Expected<'_>, found: &Found) -> Complaints {
    let mut complaints = Complaints::default();
    judge_log(&mut complaints, expected, found);
    judge_counts(&mut complaints, expected.sent, found);
    judge_users(&mut complaints, expected.sent, found);
    judge_deliveries(&mut complaints, expected, found);
    complaints
}

impl Found {
    /// How many events were dropped: those before the first that is there.
    pub(super) fn dropped(&self) -> u64 {
        self.log.first().map_or(self.head, |first| first.position.saturating_sub(1))
    }
}

fn judge_log(complaints: &mut Complaints, expected: &Expected<'_>, found: &Found) {
    let Found { log, head, ledger, .. } = found;
    let (sent, dropped) = (expected.sent, found.dropped());
    let mut stored: BTreeMap<&str, &Logged> = BTreeMap::new();
    for (place, logged) in log.iter().enumerate() {
        let due = dropped + place as u64 + 1;
        complaints.expect_always(logged.position == due, || {
            format!("position {} stands where {due} is due", logged.position)
        });
        let first = stored.insert(&logged.id, logged);
        complaints.expect_always(first.is_none(), || format!("event {} is stored twice", logged.id));
        let original = sent.get(&logged.id);
        complaints.expect_always(original.is_some(), || format!("event {} was sent by nobody", logged.id));
        complaints.expect_always(original.is_none_or(|original| *original == logged.event), || {
            format!("event {} is stored as {:?} and was sent as {original:?}", logged.id, logged.event)
        });
    }
    let absent = || sent.keys().filter(|id| !stored.contains_key(id.as_str()));
    let missing: Vec<&String> = absent().filter(|id| !expected.droppable.contains(*id)).collect();
    complaints.expect(missing.is_empty(), || {
        format!("{} events are not stored, e.g. {}", missing.len(), missing[0])
    });
    let absent = absent().count() as u64;
    complaints.expect(absent == dropped, || {
        format!("{absent} events are not there, and {dropped} positions were dropped")
    });
    complaints.expect(*head == dropped + log.len() as u64, || {
        format!("the head is {head}, and the log has {} events behind {dropped} that were dropped", log.len())
    });
    complaints.expect(expected.epoch_before != Some(found.epoch), || {
        format!("the log was put back, and its epoch is {} still", found.epoch)
    });

    complaints.expect(ledger.balances(), || format!("the collector's ledger doesn't balance: {ledger:?}"));
    complaints
        .expect(ledger.stored == *head, || format!("the ledger counts {} stored of {head}", ledger.stored));
    complaints
        .expect(ledger.quarantined + ledger.rejected == 0, || format!("events were put aside: {ledger:?}"));
}

/// What was dropped stays counted: a recount is one of what was sent.
fn judge_counts(complaints: &mut Complaints, sent: &BTreeMap<String, Sent>, found: &Found) {
    let Found { head, view, counters, .. } = found;
    let (hours, totals) = recount(sent);
    complaints
        .expect(view.applied_to == *head, || format!("the counts are at {} of {head}", view.applied_to));
    complaints
        .expect(found.hours == hours, || format!("by hour {:?} are counted, not {hours:?}", found.hours));
    complaints
        .expect(found.totals == totals, || format!("in all {:?} are counted, not {totals:?}", found.totals));
    let live = counters.as_ref().filter(|_| found.epoch_is_current);
    complaints.expect(live.is_some_and(|live| live.applied_to == *head && live.per_name == totals), || {
        format!("the live counters are {counters:?}, not {totals:?} through {head}")
    });
}

/// Users are a function of what was sent, however it came and was counted: the estimate is that of one sketch over all.
fn judge_users(complaints: &mut Complaints, sent: &BTreeMap<String, Sent>, found: &Found) {
    let by_hour = |event: &Sent| (event.name.clone(), hour_of(event));
    judge_cells(complaints, &cells(sent, by_hour), &found.hour_users);
    judge_cells(complaints, &cells(sent, |event| event.name.clone()), &found.total_users);
}

fn judge_cells<K: Ord + Debug>(
    complaints: &mut Complaints,
    sent: &BTreeMap<K, Cell<'_>>,
    found: &BTreeMap<K, Option<u64>>,
) {
    let told: BTreeMap<&K, u64> = found.iter().filter_map(|(cell, users)| Some((cell, (*users)?))).collect();
    let stray = found.keys().find(|cell| !sent.contains_key(cell));
    complaints.expect(stray.is_none(), || format!("{stray:?} has users, and nothing was sent there"));
    for (place, cell) in sent {
        let (told, recounted) = (told.get(place).copied(), cell.estimate());
        complaints.expect(told == Some(recounted), || {
            format!("{place:?} has {told:?} users, and a recount gives {recounted}")
        });
        let users = cell.users.len();
        complaints.expect(told.is_none_or(|told| is_near(told, users)), || {
            format!("{place:?} has {told:?} users, too far from {users}")
        });
    }
}

/// What one count is of.
#[derive(Default)]
struct Cell<'a> {
    events: u64,
    users: BTreeSet<&'a str>,
}

impl Cell<'_> {
    /// What one sketch over all gives; the API never tells more users than events.
    fn estimate(&self) -> u64 {
        let mut sketch = Sketch::default();
        self.users.iter().for_each(|user| sketch.insert(user.as_bytes()));
        sketch.estimate().min(self.events)
    }
}

fn cells<K: Ord>(sent: &BTreeMap<String, Sent>, place: impl Fn(&Sent) -> K) -> BTreeMap<K, Cell<'_>> {
    let mut cells: BTreeMap<K, Cell<'_>> = BTreeMap::new();
    for event in sent.values() {
        let cell = cells.entry(place(event)).or_default();
        cell.events += 1;
        cell.users.extend(event.user.as_deref());
    }
    cells
}

/// Says whether an estimate is as near as is promised.
#[expect(clippy::cast_precision_loss, reason = "a schedule has a few thousand users")]
fn is_near(told: u64, users: usize) -> bool {
    let off = (told as f64 - users as f64).abs();
    let off_max =
        if users <= COUNTED_MAX { 0.0 } else { STANDARD_ERRORS_MAX * STANDARD_ERROR * users as f64 };
    off <= off_max
}

fn hour_of(event: &Sent) -> i64 {
    event.time_ms - event.time_ms.rem_euclid(HOUR_MS)
}

fn judge_deliveries(complaints: &mut Complaints, expected: &Expected<'_>, found: &Found) {
    let Found { head, dead_letters, .. } = found;
    complaints.expect(*dead_letters == 0, || format!("{dead_letters} messages are in the dead-letter queue"));
    for (delivery, client) in found.deliveries.iter().zip(1..) {
        complaints.expect(delivery.balances(), || {
            format!("the ledger of client {client} doesn't balance: {delivery:?}")
        });
        let settled = delivery.pending + delivery.delivered.accepted == 0;
        complaints.expect(settled, || format!("client {client} still waits: {delivery:?}"));
        let lost = delivery.dropped.total() + delivery.rejected + delivery.withheld.total();
        complaints.expect(lost == 0, || format!("client {client} lost events: {delivery:?}"));
    }
    let new: u64 = found.deliveries.iter().map(|delivery| delivery.delivered.stored).sum();
    // What was put back is new a second time, for whoever sends it again.
    complaints.expect(new == *head || expected.epoch_before.is_some(), || {
        format!("the clients were told {new} times that an event was new, of {head}")
    });
}

fn recount(sent: &BTreeMap<String, Sent>) -> (Hours, Totals) {
    let (mut hours, mut totals) = (Hours::new(), Totals::new());
    for event in sent.values() {
        *hours.entry((event.name.clone(), hour_of(event))).or_default() += 1;
        *totals.entry(event.name.clone()).or_default() += 1;
    }
    (hours, totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(events: u64) -> BTreeMap<String, Sent> {
        let user = |number| Some(format!("user-{}", number / 2));
        let one =
            |number: u64| Sent { name: format!("n{}", number % 2), time_ms: 7_200_000, user: user(number) };
        (0..events).map(|number| (number.to_string(), one(number))).collect()
    }

    /// What is found when everything went well.
    fn good(sent: &BTreeMap<String, Sent>) -> Found {
        let logged = |((id, event), position): ((&String, &Sent), u64)| Logged {
            position,
            id: id.clone(),
            event: event.clone(),
        };
        let log: Vec<Logged> = sent.iter().zip(1..).map(logged).collect();
        let head = log.len() as u64;
        let (hours, totals) = recount(sent);
        let users = cells(sent, |event| event.name.clone());
        let users = || users.iter().map(|(name, cell)| (name.clone(), Some(cell.estimate())));
        let mut delivery = Delivery::default();
        (delivery.captured, delivery.delivered.stored) = (head, head);
        let counters =
            Counters { epoch: Uuid::nil(), generation: 1, applied_to: head, per_name: totals.clone() };
        Found {
            log,
            head,
            ledger: Ledger { received: head + 2, stored: head, duplicate: 2, ..Ledger::default() },
            view: ViewState { generation: 1, applied_to: head },
            hours,
            totals,
            hour_users: users().map(|(name, users)| ((name, 7_200_000), users)).collect(),
            total_users: users().collect(),
            counters: Some(counters),
            epoch_is_current: true,
            dead_letters: 0,
            deliveries: vec![delivery],
            epoch: Uuid::nil(),
        }
    }

    /// Nothing was dropped or put back.
    fn all(sent: &BTreeMap<String, Sent>) -> Expected<'_> {
        Expected { sent, droppable: BTreeSet::new(), epoch_before: None }
    }

    #[test]
    fn what_is_right_has_no_complaint() {
        let sent = sent(5);
        assert_eq!(complaints(&all(&sent), &good(&sent)).texts, Vec::<String>::new());
    }

    #[test]
    fn what_was_dropped_is_missing_from_the_log_alone_and_no_more_of_it() {
        let sent = sent(5);
        let first = |events| sent.keys().take(events).cloned().collect();
        let judge = |droppable, found: &Found| {
            complaints(&Expected { droppable: first(droppable), ..all(&sent) }, found).texts
        };
        let mut found = good(&sent);
        assert_eq!(judge(3, &found), Vec::<String>::new(), "nothing had to go");
        found.log.drain(..2);
        assert_eq!(judge(3, &found), Vec::<String>::new());
        assert!(judge(1, &found).concat().contains("1 events are not stored"), "{:?}", judge(1, &found));
        found.log.remove(0);
        found.log[0].position = 3;
        assert!(judge(3, &found).concat().contains("2 positions were dropped"), "{:?}", judge(3, &found));
        let mut found = good(&sent);
        found.log.clear();
        assert_eq!(judge(5, &found), Vec::<String>::new(), "all of it");
    }

    #[test]
    fn a_log_that_was_put_back_has_another_epoch_and_events_that_are_new_twice() {
        let sent = sent(5);
        let back = |epoch| Expected { epoch_before: Some(epoch), ..all(&sent) };
        let mut found = good(&sent);
        found.deliveries[0].captured += 1;
        found.deliveries[0].delivered.stored += 1;
        assert_eq!(complaints(&back(Uuid::max()), &found).texts, Vec::<String>::new());
        assert!(complaints(&back(Uuid::nil()), &found).texts.concat().contains("epoch"));
        assert!(complaints(&all(&sent), &found).texts.concat().contains("were told"));
    }

    #[test]
    fn users_are_exact_up_to_a_limit_and_near_beyond_it() {
        assert!(is_near(768, 768) && !is_near(767, 768) && !is_near(769, 768));
        assert!(is_near(1_000, 1_000) && is_near(1_080, 1_000) && is_near(920, 1_000));
        assert!(!is_near(1_082, 1_000) && !is_near(918, 1_000));
    }

    fn live(found: &mut Found) -> &mut Counters {
        found.counters.as_mut().unwrap()
    }

    /// Makes one thing wrong.
    type Spoil = fn(&mut Found);

    #[test]
    fn whatever_is_wrong_is_found() {
        let sent = sent(5);
        let wrongs: [(&str, Spoil); 28] = [
            ("not stored", |found| drop(found.log.pop())),
            ("stored twice", |found| found.log.push(Logged { position: 6, ..found.log[0].clone() })),
            ("sent by nobody", |found| "x".clone_into(&mut found.log[0].id)),
            ("was sent as", |found| found.log[0].event.time_ms += 1),
            ("position", |found| found.log[2].position = 9),
            ("the head", |found| found.head += 1),
            ("the collector's ledger doesn't balance", |found| found.ledger.received += 1),
            ("the ledger counts", |found| (found.ledger.stored, found.ledger.duplicate) = (4, 3)),
            ("put aside", |found| (found.ledger.quarantined, found.ledger.received) = (1, 8)),
            ("put aside", |found| (found.ledger.rejected, found.ledger.received) = (1, 8)),
            ("by hour", |found| found.hours.values_mut().for_each(|count| *count += 1)),
            ("in all", |found| found.totals.values_mut().for_each(|count| *count += 1)),
            ("a recount gives", |found| found.hour_users.values_mut().for_each(|users| *users = Some(1))),
            ("too far from", |found| found.total_users.values_mut().for_each(|users| *users = Some(9))),
            ("has users", |found| found.total_users.extend([("n9".to_owned(), Some(1))])),
            ("the counts are at", |found| found.view.applied_to = 4),
            ("the live counters", |found| found.counters = None),
            ("the live counters", |found| found.epoch_is_current = false),
            ("the live counters", |found| live(found).applied_to = 4),
            ("the live counters", |found| live(found).per_name.values_mut().for_each(|count| *count += 1)),
            ("dead-letter", |found| found.dead_letters = 1),
            ("the ledger of client 1 doesn't balance", |found| found.deliveries[0].captured += 1),
            ("still waits", |found| found.deliveries[0].pending = 1),
            ("still waits", |found| found.deliveries[0].delivered.accepted = 1),
            ("lost events", |found| found.deliveries[0].rejected = 1),
            ("lost events", |found| found.deliveries[0].dropped.shutdown = 1),
            ("lost events", |found| found.deliveries[0].withheld.hook = 1),
            ("were told", |found| {
                (found.deliveries[0].delivered.stored, found.deliveries[0].delivered.duplicate) = (4, 1);
            }),
        ];
        for (words, spoil) in wrongs {
            let mut found = good(&sent);
            spoil(&mut found);
            let told = complaints(&all(&sent), &found).texts;
            assert!(told.iter().any(|complaint| complaint.contains(words)), "{words}: {told:?}");
        }
    }
}
