use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// One event: its (corrected) time, whom it is about, its name and its properties.
type Told = (i64, String, &'static str, String);

fn seen(time_ms: i64, user: &str) -> Told {
    (time_ms, user.to_owned(), "seen", String::new())
}

fn identify(time_ms: i64, user: &str, traits: serde_json::Value) -> Told {
    (time_ms, user.to_owned(), "$identify", traits.to_string())
}

fn alias(time_ms: i64, user: &str, other: &str) -> Told {
    (time_ms, user.to_owned(), "$alias", json!({ "alias": other }).to_string())
}

/// Everything kept, after stretches of so many events. It goes the way that a store goes.
#[derive(Default)]
struct Kept {
    rows: BTreeMap<String, Identification>,
    position: u64,
}

impl Kept {
    fn after(log: &[Told], stretch: usize) -> Self {
        let mut kept = Self::default();
        log.chunks(stretch.max(1)).for_each(|stretch| kept.step(stretch));
        kept
    }

    fn step(&mut self, stretch: &[Told]) {
        let mut gathering = Gathering::default();
        for (time_ms, user, name, properties) in stretch {
            self.position += 1;
            let said = is_deed(name).then_some((*name, properties.as_str()));
            gathering.add(self.position, *time_ms, user, said);
        }
        let mut identities = Identities::default();
        let take = |identities: &mut Identities, id: &str| {
            if let Some(kept) = self.rows.get(id) {
                identities.insert(id.to_owned(), kept.clone());
            }
        };
        gathering.named().iter().for_each(|id| take(&mut identities, id));
        identities.missing().iter().for_each(|id| take(&mut identities, id));
        identities.apply(&gathering);
        let changed: Vec<_> = identities.changed().map(|(id, kept)| (id.to_owned(), kept.clone())).collect();
        self.rows.extend(changed);
        let links: HashMap<String, String> = gathering
            .carried()
            .iter()
            .filter_map(|id| Some(((*id).to_owned(), self.rows.get(*id)?.link.as_ref()?.to.clone())))
            .collect();
        for (user, seen) in gathering.seen(&links) {
            let row = self.rows.entry(user).or_default();
            match &mut row.seen {
                Some(known) => known.add(&seen),
                none => *none = Some(seen),
            }
        }
    }

    fn traits(&self, user: &str) -> serde_json::Value {
        let traits = self.rows[user].traits.iter();
        let value = |one: &Trait| -> serde_json::Value { serde_json::from_str(one.value().get()).unwrap() };
        traits.map(|(name, one)| (name.to_owned(), value(one))).collect()
    }

    fn link(&self, id: &str) -> Option<&str> {
        self.rows[id].link.as_ref().map(|link| link.to.as_str())
    }

    fn refused(&self, user: &str) -> Vec<(RefusedFor, Option<&str>, u64)> {
        let refused = self.rows[user].refused.iter();
        refused.map(|refusal| (refusal.reason, refusal.id.as_deref(), refusal.position)).collect()
    }
}

#[test]
fn what_an_id_did_before_and_after_its_link_is_its_users() {
    let log = [
        seen(50, "anon"),
        seen(10, "anon"),
        identify(30, "ada", json!({"name": "Ada"})),
        alias(40, "ada", "anon"),
        seen(90, "anon"),
        seen(90, "ada"),
        seen(60, "grace"),
    ];
    let kept = Kept::after(&log, 2);
    let ada = &kept.rows["ada"];
    let all = Seen { events: 6, first_ms: 10, last_ms: 90, last_position: 6 };
    assert_eq!((ada.seen, ada.links, ada.identified), (Some(all), 1, true));
    assert_eq!(kept.link("anon"), Some("ada"));
    assert_eq!(kept.rows["anon"].seen, None, "it is told once");
    assert_eq!((kept.rows["grace"].identified, kept.rows["grace"].seen.unwrap().events), (false, 1));
}

#[test]
fn the_latest_time_sets_a_trait_and_of_two_the_later_position() {
    let log = [
        identify(20, "ada", json!({"plan": "pro", "age": 36, "n": 1.10})),
        identify(10, "ada", json!({"plan": "free", "city": "London"})),
        identify(20, "ada", json!({"age": 37})),
        identify(30, "ada", json!({"city": null})),
        identify(25, "ada", json!({"city": "Paris"})),
    ];
    let kept = Kept::after(&log, 3);
    assert_eq!(kept.traits("ada"), json!({"plan": "pro", "age": 37, "n": 1.1}));
    let traits = &kept.rows["ada"].traits;
    let set: Vec<_> = traits.iter().map(|(name, one)| (name, one.time_ms(), one.position())).collect();
    assert_eq!(set, [("age", 20, 3), ("n", 20, 1), ("plan", 20, 1)]);
    let text = traits.to_text();
    assert!(text.contains("[30,4,null]"), "a removal is kept: {text}");
    assert_eq!(Traits::from_text(&text).unwrap().to_text(), text);
}

#[test]
fn digits_of_numbers_stay_as_they_were_sent() {
    let digits = r#"{"balance":1.10,"large":123456789012345678901234567890}"#;
    let kept = Kept::after(&[(1, "ada".to_owned(), "$identify", digits.to_owned())], 1);
    let traits: Vec<_> = kept.rows["ada"].traits.iter().map(|(_, one)| one.value().get()).collect();
    assert_eq!(traits, ["1.10", "123456789012345678901234567890"]);
}

#[test]
fn two_users_are_never_made_one() {
    let log = [
        identify(1, "ada", json!({"name": "Ada"})),
        identify(2, "grace", json!({"name": "Grace"})),
        alias(3, "ada", "grace"),
        // A shared device: it stays with whom it was linked to first.
        alias(4, "ada", "device"),
        alias(5, "grace", "device"),
        alias(6, "grace", "device"),
        alias(7, "lin", "device"),
    ];
    for stretch in 1..=7 {
        let kept = Kept::after(&log, stretch);
        assert_eq!(kept.traits("ada"), json!({"name": "Ada"}));
        assert_eq!(kept.traits("grace"), json!({"name": "Grace"}));
        assert_eq!(kept.refused("ada"), [(RefusedFor::Identified, Some("grace"), 3)]);
        assert_eq!(kept.refused("grace"), [(RefusedFor::Linked, Some("device"), 6)], "once, the last");
        assert_eq!(kept.link("device"), Some("ada"));
        assert!(!kept.rows["lin"].identified, "what was refused makes nobody a user");
    }
}

#[test]
fn chains_end_at_the_user_and_circles_change_nothing() {
    // b is a user by the first alias: c gets nothing of it.
    let kept = Kept::after(&[alias(1, "b", "a"), alias(2, "c", "b")], 1);
    assert_eq!((kept.link("a"), kept.link("b")), (Some("b"), None));
    assert_eq!(kept.refused("c"), [(RefusedFor::Identified, Some("b"), 2)]);
    // The other way round b is anonymous, and what is said of it is said of c.
    let log = [alias(1, "c", "b"), alias(2, "b", "a"), identify(3, "a", json!({"x": 1}))];
    let kept = Kept::after(&log, 1);
    assert_eq!((kept.link("a"), kept.link("b")), (Some("c"), Some("c")));
    assert_eq!(kept.traits("c"), json!({"x": 1}));
    assert_eq!(kept.rows["c"].links, 2);
    // Circles, itself, and what is known already.
    let log = [alias(1, "a", "b"), alias(2, "b", "a"), alias(3, "a", "a"), alias(4, "a", "b")];
    let kept = Kept::after(&log, 1);
    assert_eq!((kept.link("a"), kept.link("b")), (None, Some("a")));
    assert_eq!((kept.rows["a"].links, kept.rows["a"].refused.len()), (1, 0));
    assert_eq!(kept.rows["b"].link.as_ref().unwrap().position, 1);
}

#[test]
fn what_can_not_be_used_is_refused_with_the_user() {
    let long = "x".repeat(513);
    let unusable = [
        json!({}),
        json!({"alias": ""}),
        json!({"alias": 7}),
        json!({"alias": null}),
        json!({"alias": long}),
        json!({"previous_id": "anon"}),
    ];
    let of = |properties: &serde_json::Value| (1, "ada".to_owned(), "$alias", properties.to_string());
    let kept = Kept::after(&unusable.iter().map(of).collect::<Vec<_>>(), 2);
    assert_eq!(kept.refused("ada"), [(RefusedFor::Unusable, None, 6)]);
    assert!(!kept.rows["ada"].identified && kept.rows.len() == 1);
}

#[test]
fn what_a_user_has_is_bounded() {
    let half = "x".repeat(TRAITS_BYTES_MAX / 2);
    let log = [
        identify(1, "ada", json!({"a": half})),
        identify(2, "ada", json!({"b": half, "c": "fits"})),
        identify(3, "ada", json!({"a": null})),
        identify(4, "ada", json!({"b": half})),
    ];
    let kept = Kept::after(&log, 1);
    assert_eq!(kept.traits("ada"), json!({"b": half, "c": "fits"}));
    assert_eq!(kept.refused("ada"), [(RefusedFor::TraitsFull, None, 2)]);
    assert!(kept.rows["ada"].traits.to_text().len() <= TRAITS_BYTES_MAX);

    let links: Vec<Told> = (0..LINKS_MAX + 30).map(|i| alias(1, "ada", &format!("anon-{i}"))).collect();
    let kept = Kept::after(&links, 400);
    assert_eq!(kept.rows["ada"].links, LINKS_MAX);
    let refused = kept.refused("ada");
    assert_eq!(refused.len(), REFUSALS_MAX, "the newest");
    assert_eq!(refused.last(), Some(&(RefusedFor::TooManyIds, Some("anon-1029"), LINKS_MAX + 30)));
}

#[test]
fn a_stretch_ends_when_it_is_full() {
    let mut gathering = Gathering::default();
    let mut position = 0;
    while !gathering.is_full() {
        position += 1;
        gathering.add(position, 0, "ada", Some(("$identify", "{}")));
    }
    assert_eq!(position, 1_000);
    let (mut gathering, large) = (Gathering::default(), format!("{{\"x\":\"{}\"}}", "x".repeat(200_000)));
    let mut position = 0;
    while !gathering.is_full() {
        position += 1;
        gathering.add(position, 0, "ada", Some(("$identify", &large)));
    }
    assert_eq!(position, 84, "16 MiB of 200 kB each");
    let (mut gathering, mut position) = (Gathering::default(), 0);
    while !gathering.is_full() {
        position += 1;
        gathering.add(position, 0, &format!("user-{position}"), None);
    }
    assert_eq!(position, 5_000);
}

#[test]
fn an_email_is_a_text_that_can_be_looked_up() {
    let email =
        |value| Kept::after(&[identify(1, "ada", json!({"email": value}))], 1).rows["ada"].traits.email();
    assert_eq!(email(json!("ada@example.com")).as_deref(), Some("ada@example.com"));
    for none in [json!(null), json!(""), json!(7), json!(["a"]), json!("x".repeat(513))] {
        assert_eq!(email(none.clone()), None, "{none}");
    }
}

fn told() -> impl Strategy<Value = Told> {
    let id = || prop::sample::select(vec!["a", "b", "c", "d", "e", "\u{202e}ünï<b>"]);
    let value = prop::sample::select(vec![json!(1), json!("x"), json!(null), json!({"deep": [1.5]})]);
    let name = prop::sample::select(vec!["plan", "email", "<script>"]);
    prop_oneof![
        3 => (-3..3_i64, id()).prop_map(|(time, user)| seen(time, user)),
        3 => (-3..3_i64, id(), name, value).prop_map(|(time, user, name, value)| identify(time, user, json!({name: value}))),
        3 => (-3..3_i64, id(), id()).prop_map(|(time, user, other)| alias(time, user, other)),
    ]
}

proptest! {
    #[test]
    fn however_the_log_is_cut_it_makes_the_same_users(log in prop::collection::vec(told(), 1..60), stretch in 1_usize..60) {
        let (whole, cut) = (Kept::after(&log, log.len()), Kept::after(&log, stretch));
        prop_assert_eq!(&whole.rows, &cut.rows);
        let events: u64 = whole.rows.values().filter_map(|row| row.seen).map(|seen| seen.events).sum();
        prop_assert_eq!(events, log.len() as u64, "every event is one user's");
        for (id, row) in &whole.rows {
            match &row.link {
                Some(link) => {
                    let user = &whole.rows[&link.to];
                    prop_assert!(user.link.is_none() && user.identified, "{} leads to a user", id);
                    prop_assert!(row.seen.is_none() && !row.identified && row.traits == Traits::default());
                }
                None => prop_assert!(row.seen.is_some(), "{}", id),
            }
            let linked = whole.rows.values().filter(|other| other.link.as_ref().is_some_and(|link| link.to == *id));
            prop_assert_eq!(row.links, linked.count() as u64);
        }
    }
}
