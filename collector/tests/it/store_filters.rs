//! Filters on both stores: what they find is what a plain look at every event finds, and no page takes long to look for it.

use eventbucket_collector::store::{
    Condition, EventFilter, EventOrder, LOOKED_AT_MAX, NAMES_MAX, PAGE_BYTES_MAX, Store, StoredEvent,
};
use eventbucket_collector::{project::ProjectId, query};
use eventbucket_protocol::{Event, Properties};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::store_fixture::{HOUR, NOON, Place, at, batch, event, project};

fn condition(text: &str) -> Condition {
    text.parse().unwrap()
}

/// Reads all pages, in the order of the pages.
async fn all(store: &Store, shop: ProjectId, filter: &EventFilter, newest_first: bool) -> Vec<StoredEvent> {
    let mut order = if newest_first {
        EventOrder::NewestFirst { before: None }
    } else {
        EventOrder::ByPosition { after: 0 }
    };
    let mut all = Vec::new();
    loop {
        let page = store.events(shop, filter, order, 7).await.unwrap();
        assert!(page.events.len() <= 7);
        all.extend(page.events);
        order = match (page.next, order) {
            (None, _) => return all,
            (Some(next), EventOrder::NewestFirst { before }) => {
                assert!(before.is_none_or(|before| next < before), "it goes on");
                EventOrder::NewestFirst { before: Some(next) }
            }
            (Some(next), EventOrder::ByPosition { after }) => {
                assert!(next > after, "it goes on");
                EventOrder::ByPosition { after: next }
            }
        };
    }
}

/// A condition that is known by its parts: what a plain judgement needs.
#[derive(Clone, Debug)]
struct Asked {
    path: Vec<&'static str>,
    test: Option<(&'static str, Value)>,
}

/// Keys and texts that somebody may use to confuse: operators, escapes, HTML, directions, controls, emoji.
const KEYS: [&str; 9] = ["a", "b", "a.b", "=", "x>y", "\\", "<b>\"&", "\u{202e}\u{1b}", "🚀 ü"];
const TEXTS: [&str; 10] =
    ["", "a", "10", "true", "null", "a.b=c", "<script>&\"\\", "\u{202e}x\u{7}", "🚀 ü🚀", "\" \"~"];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
        (-8_i32..9).prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
        prop::sample::select(&TEXTS[..]).prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from), object(inner),]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let members = prop::collection::btree_map(prop::sample::select(&KEYS[..]), inner, 0..4);
    members.prop_map(|members| members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn asked() -> impl Strategy<Value = Asked> {
    let operator = prop::sample::select(&["=", "!=", "~", ">", ">=", "<", "<="][..]);
    let test = prop::option::weighted(0.9, (operator, scalar()));
    let path = prop::collection::vec(prop::sample::select(&KEYS[..]), 1..3);
    (path, test).prop_map(|(path, test)| {
        // What can't be asked becomes something that can.
        let test = test.map(|(operator, value)| match operator {
            "~" if !value.is_string() => (operator, Value::from(value.to_string())),
            ">" | ">=" | "<" | "<=" if value.is_null() || value.is_boolean() => ("!=", value),
            _ => (operator, value),
        });
        Asked { path, test }
    })
}

impl Asked {
    /// Writes it by the rules of the documentation: every sign of the syntax escaped, texts in quotes.
    fn written(&self) -> String {
        let key = |key: &&str| -> String {
            let escaped = |sign: char| ".=!~><\\ ".contains(sign);
            key.chars().flat_map(|c| escaped(c).then_some('\\').into_iter().chain([c])).collect()
        };
        let path: Vec<String> = self.path.iter().map(key).collect();
        match &self.test {
            None => path.join("."),
            Some((operator, value)) => format!("{}{operator}{value}", path.join(".")),
        }
    }

    fn holds(&self, properties: &Value) -> bool {
        let mut reached = vec![properties];
        for key in &self.path {
            reached = reached.into_iter().flat_map(elements).filter_map(|value| value.get(key)).collect();
        }
        let any = |test: &dyn Fn(&Value) -> bool| reached.iter().copied().flat_map(elements).any(test);
        match &self.test {
            None => !reached.is_empty(),
            Some(("=", wanted)) => any(&|value| same(value, wanted)),
            Some(("!=", wanted)) => !reached.is_empty() && !any(&|value| same(value, wanted)),
            Some(("~", wanted)) => {
                any(&|value| value.as_str().is_some_and(|text| text.contains(wanted.as_str().unwrap())))
            }
            Some((operator, wanted)) => any(&|value| match order(value, wanted) {
                Some(order) => match *operator {
                    ">" => order.is_gt(),
                    ">=" => order.is_ge(),
                    "<" => order.is_lt(),
                    _ => order.is_le(),
                },
                None => false,
            }),
        }
    }
}

/// A list stands for its elements, and those for theirs.
fn elements(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().flat_map(elements).collect(),
        other => vec![other],
    }
}

fn order(value: &Value, wanted: &Value) -> Option<std::cmp::Ordering> {
    match (value, wanted) {
        (Value::Number(one), Value::Number(other)) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

fn same(value: &Value, wanted: &Value) -> bool {
    let scalar = !value.is_object() && !value.is_array();
    order(value, wanted).map_or(scalar && value == wanted, std::cmp::Ordering::is_eq)
}

#[derive(Clone, Debug)]
struct Question {
    names: Vec<usize>,
    user: Option<usize>,
    hours: (Option<i64>, Option<i64>),
    after: u64,
    before: Option<u64>,
    asked: Vec<Asked>,
}

fn question() -> impl Strategy<Value = Question> {
    let hours = (prop::option::weighted(0.3, -3_i64..4), prop::option::weighted(0.3, -3_i64..4));
    let names = prop::collection::vec(0..4_usize, 0..3);
    let user = prop::option::weighted(0.3, 0..3_usize);
    let positions = (prop_oneof![2 => Just(0), 1 => 0..60_u64], prop::option::weighted(0.3, 0..60_u64));
    (names, user, hours, positions, prop::collection::vec(asked(), 0..3)).prop_map(
        |(names, user, hours, (after, before), asked)| Question { names, user, hours, after, before, asked },
    )
}

/// An event of a random log: name, user, hour, properties.
type Drawn = (usize, Option<usize>, i64, Value);

fn drawn() -> impl Strategy<Value = Drawn> {
    (0..4_usize, prop::option::of(0..3_usize), -3_i64..4, object(value()))
}

fn name_of(name: usize) -> String {
    ["open", "\u{202e}<b>'", "close", "🚀"][name].to_owned()
}

fn user_of(user: usize) -> String {
    format!("u'{user}")
}

impl Question {
    fn filter(&self) -> EventFilter {
        let hour = |hour: i64| at(NOON + hour * HOUR);
        EventFilter {
            names: self.names.iter().copied().map(name_of).collect(),
            user: self.user.map(user_of),
            from: self.hours.0.map(hour),
            to: self.hours.1.map(hour),
            after: self.after,
            before: self.before,
            conditions: self.asked.iter().map(|asked| condition(&asked.written())).collect(),
        }
    }

    fn takes(&self, position: u64, (name, user, hour, properties): &Drawn) -> bool {
        (self.names.is_empty() || self.names.contains(name))
            && (self.user.is_none() || self.user == *user)
            && self.hours.0.is_none_or(|from| *hour >= from)
            && self.hours.1.is_none_or(|to| *hour < to)
            && position > self.after
            && self.before.is_none_or(|before| position < before)
            && self.asked.iter().all(|asked| asked.holds(properties))
    }
}

async fn finds_what_a_plain_look_finds(drawn: &[Drawn], questions: &[Question]) {
    let events: Vec<Event> = drawn
        .iter()
        .enumerate()
        .map(|(i, (name, user, hour, properties))| Event {
            user: user.map(user_of),
            time: at(NOON + hour * HOUR),
            properties: Properties::parse(&properties.to_string()).unwrap(),
            ..event(&format!("e{i}"), &name_of(*name))
        })
        .collect();
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        store.append(vec![batch(shop, events.clone())]).await.unwrap();
        for question in questions {
            let expected: Vec<u64> =
                (1..).zip(drawn).filter(|(at, one)| question.takes(*at, one)).map(|(at, _)| at).collect();
            for newest_first in [false, true] {
                let found = all(&store, shop, &question.filter(), newest_first).await;
                let mut found: Vec<u64> = found.iter().map(|stored| stored.position).collect();
                if newest_first {
                    found.reverse();
                }
                assert_eq!(found, expected, "{question:?}");
            }
        }
        store.close().await.unwrap();
    }
}

proptest! {
    // Each case has a store of each kind and asks some thirty questions of it.
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn filters_on_random_events_find_what_a_plain_look_finds(
        drawn in prop::collection::vec(drawn(), 1..60), questions in prop::collection::vec(question(), 30..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(finds_what_a_plain_look_finds(&drawn, &questions));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn a_condition_holds_when_a_plain_look_says_so(properties in object(value()), asked in asked()) {
        let found = condition(&asked.written()).is_met_by(&properties.to_string()).unwrap();
        prop_assert_eq!(found, asked.holds(&properties), "{}", asked.written());
    }

    #[test]
    fn no_text_makes_reading_a_condition_panic(text in "\\PC{0,20}|[a.=!~<>\\\\\" 0-9]{0,12}") {
        if let Ok(condition) = text.parse::<Condition>() {
            prop_assert_eq!(condition.to_string(), text);
            condition.is_met_by(r#"{"a":[{"b":1},"x"],"":null}"#).unwrap();
        }
    }
}

#[tokio::test]
async fn a_rare_property_is_looked_for_in_steps() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let count = 2 * LOOKED_AT_MAX + 100;
        let mut some: Vec<Event> = (0..count).map(|i| event(&format!("e{i}"), ["a", "b"][i % 2])).collect();
        some[10].properties = Properties::parse(r#"{"coupon":"x"}"#).unwrap();
        store.append(vec![batch(shop, some)]).await.unwrap();
        let coupon = EventFilter { conditions: vec![condition("coupon=x")], ..EventFilter::default() };
        let of_both = EventFilter { names: ["a".into(), "b".into()].into(), ..coupon.clone() };
        for filter in [coupon, of_both] {
            let (mut before, mut looks, head) = (None, Vec::new(), count as u64);
            let found = loop {
                let page = store.events(shop, &filter, EventOrder::NewestFirst { before }, 5).await.unwrap();
                looks.push(page.next);
                assert!(page.looked_to.is_some());
                match page.next {
                    Some(next) if page.events.is_empty() => before = Some(next),
                    _ => break page.events,
                }
            };
            assert_eq!(found[0].position, 11, "{filter:?}");
            let step = LOOKED_AT_MAX as u64;
            assert_eq!(looks, [Some(head - step + 1), Some(head - 2 * step + 1), None]);
        }
        // What isn't asked for is looked at no more than what is returned.
        let plain = EventOrder::ByPosition { after: 0 };
        let page = store.events(shop, &EventFilter::default(), plain, 5).await.unwrap();
        assert_eq!((page.events.len(), page.next), (5, Some(5)));
    }
}

#[tokio::test]
async fn large_events_end_a_step_early() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let large = json!({ "x": "y".repeat(200_000) }).to_string();
        let properties = Properties::parse(&large).unwrap();
        for part in 0..4 {
            let some = (0..15)
                .map(|i| Event { properties: properties.clone(), ..event(&format!("{part}-{i}"), "a") });
            store.append(vec![batch(shop, some.collect())]).await.unwrap();
        }
        let filter = EventFilter { conditions: vec![condition("z")], ..EventFilter::default() };
        let page = store.events(shop, &filter, EventOrder::ByPosition { after: 0 }, 5).await.unwrap();
        let fit = PAGE_BYTES_MAX.div_ceil(large.len()) as u64;
        assert_eq!((page.events.len(), page.next), (0, Some(fit)));
    }
}

#[tokio::test]
async fn several_names_come_in_one_order_and_too_many_are_refused() {
    for (_place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let some = (0..200).map(|i| event(&format!("e{i}"), &format!("n{}", i % 10))).collect();
        store.append(vec![batch(shop, some)]).await.unwrap();
        for count in 1..=NAMES_MAX {
            let names = (0..count).map(|name| format!("n{name}")).collect();
            let filter = EventFilter { names, ..EventFilter::default() };
            let expected: Vec<u64> = (0..200).filter(|i| i % 10 < count as u64).map(|i| i + 1).collect();
            let found = all(&store, shop, &filter, false).await;
            assert_eq!(found.iter().map(|stored| stored.position).collect::<Vec<_>>(), expected);
            let found = all(&store, shop, &filter, true).await;
            assert!(found.iter().map(|stored| stored.position).eq(expected.into_iter().rev()));
        }
        let reader = query::Reader::new(store.clone(), eventbucket_collector::cache::Cache::memory());
        let names = (0..=NAMES_MAX).map(|name| name.to_string()).collect();
        let filter = EventFilter { names, ..EventFilter::default() };
        let refused = reader.events(shop, query::EventsQuery { filter, ..Default::default() }).await;
        assert!(matches!(refused, Err(query::Error::Parameter { name: "name", .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_damaged_row_is_named_and_never_passed_over() {
    for (place, store) in Place::both().await {
        let shop = project(&store, "shop").await.project.id;
        let some = (0..5).map(|i| event(&format!("e{i}"), "a")).collect();
        store.append(vec![batch(shop, some)]).await.unwrap();
        let third = match place {
            Place::Sqlite(_) => "UPDATE event SET properties = '{\"a\":' WHERE key & 0xFFFFFFFFFF = 3",
            Place::Postgres(_) => "UPDATE event SET properties = '{\"a\":' WHERE position = 3",
        };
        place.change(third).await;
        let filter = EventFilter { conditions: vec![condition("b")], ..EventFilter::default() };
        let told = store.events(shop, &filter, EventOrder::ByPosition { after: 0 }, 5).await.unwrap_err();
        assert!(told.to_string().contains("at position 3"), "{told}");
    }
}
