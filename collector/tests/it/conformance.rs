//! What every store must do, whatever stands behind it. A backend joins by handing in a way to make an empty store.

use std::pin::Pin;

use eventbucket_collector::project::{
    Grant, KeyHash, KeyKind, LimitsChange, OwnLimit, OwnLimits, ProjectId, Standing,
};
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{
    CountRow, CountsBy, CountsQuery, Error, EventFilter, EventOrder, Ledger, Store, ViewState,
};
use eventbucket_protocol::{Event, EventId, Properties, Verdict};

use crate::store_fixture::{
    Folder, HOUR, NOON, at, batch, count_all, count_all_projects, event, events, project, refused, totals,
};
use crate::store_postgres::Database;

type Rule = fn(Store) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The rules by name; each gets an empty store.
const RULES: [(&str, Rule); 14] = [
    ("positions are dense and verdicts in order", |s| Box::pin(positions_are_dense(s))),
    ("an id twice in one transaction is stored once", |s| Box::pin(an_id_twice_is_stored_once(s))),
    ("duplicates are flagged when they differ", |s| Box::pin(duplicates_are_flagged(s))),
    ("identity is per project", |s| Box::pin(identity_is_per_project(s))),
    ("the ledger balances with rejected events and empty batches", |s| Box::pin(the_ledger_balances(s))),
    ("an unknown project fails the whole append", |s| Box::pin(an_unknown_project_fails(s))),
    ("an event comes back as it was", |s| Box::pin(an_event_comes_back_as_it_was(s))),
    ("pages neither skip nor repeat", |s| Box::pin(pages_neither_skip_nor_repeat(s))),
    ("filters find what a scan finds", |s| Box::pin(filters_find_what_a_scan_finds(s))),
    ("keys open their project until rotated", |s| Box::pin(keys_open_their_project(s))),
    ("a project's own limits come with its keys", |s| Box::pin(limits_come_with_keys(s))),
    ("counts follow the log by name and corrected hour", |s| Box::pin(counts_follow_the_log(s))),
    ("nothing is applied twice", |s| Box::pin(nothing_is_applied_twice(s))),
    ("a rebuild gives the same counts in a new generation", |s| Box::pin(a_rebuild_gives_the_same(s))),
];

#[tokio::test]
async fn sqlite_conforms() {
    for (name, rule) in RULES {
        eprintln!("{name}");
        let folder = Folder::new();
        let store = folder.open();
        rule(store.clone()).await;
        count_all_projects(&store).await;
        let found = audit(&store, None, |_, _| {}).await.unwrap();
        assert!(found.holds(), "after {name:?}: {found:#?}");
    }
}

#[tokio::test]
async fn postgres_conforms() {
    for (name, rule) in RULES {
        eprintln!("{name}");
        let database = Database::new().await;
        let store = database.open().await;
        rule(store.clone()).await;
        count_all_projects(&store).await;
        let found = audit(&store, None, |_, _| {}).await.unwrap();
        assert!(found.holds(), "after {name:?}: {found:#?}");
    }
}

fn stored(count: usize) -> Vec<Verdict> {
    vec![Verdict::Stored; count]
}

async fn positions_are_dense(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let known = store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    assert_eq!((known[0].range.first, known[0].range.last), (1, 3));
    // Old and new in turns, over two batches of one transaction.
    let mixed = vec![event("x0", "a"), event("new0", "a"), event("x1", "a"), event("new1", "a")];
    let appended = store.append(vec![batch(shop, mixed), batch(shop, events("y", 2))]).await.unwrap();
    let kinds: Vec<bool> = appended[0].verdicts.iter().map(|v| *v == Verdict::Stored).collect();
    assert_eq!(kinds, [false, true, false, true]);
    assert_eq!((appended[0].range.first, appended[0].range.last), (4, 5));
    assert_eq!(appended[1].verdicts, stored(2));
    assert_eq!((appended[1].range.first, appended[1].range.last), (6, 7));
    let again = store.append(vec![batch(shop, events("y", 2))]).await.unwrap();
    assert_eq!((again[0].range.first, again[0].range.last), (8, 7), "nothing new");
    assert_eq!(store.head(shop).await.unwrap(), 7);
    let page = read(&store, shop, EventFilter::default(), EventOrder::ByPosition { after: 0 }).await;
    let ids: Vec<String> = page.iter().map(|event| event.event.id.to_string()).collect();
    assert_eq!(ids, ["x0", "x1", "x2", "new0", "new1", "y0", "y1"], "in the order of the body");
}

async fn an_id_twice_is_stored_once(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let twice = vec![event("x", "a"), event("x", "a")];
    let appended = store.append(vec![batch(shop, twice.clone()), batch(shop, twice)]).await.unwrap();
    let duplicate = Verdict::Duplicate { differs: false };
    assert_eq!(appended[0].verdicts, [Verdict::Stored, duplicate.clone()]);
    assert_eq!(appended[1].verdicts, [duplicate.clone(), duplicate]);
    assert_eq!(store.head(shop).await.unwrap(), 1);
}

async fn duplicates_are_flagged(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let first = Event { user: Some("ada".into()), ..event("x", "a") };
    store.append(vec![batch(shop, vec![first.clone()])]).await.unwrap();
    let variants = vec![
        first.clone(),
        Event { name: "b".into(), ..first.clone() },
        Event { user: None, ..first.clone() },
        Event { time: at(NOON + 24 * HOUR), ..first.clone() },
        Event { properties: Properties::parse(r#"{"k":1}"#).unwrap(), ..first.clone() },
        Event { description: Some("d".into()), ..first.clone() },
        Event { stream: Some("s".into()), ..first.clone() },
        Event { correlation: Some("c".into()), ..first },
    ];
    let verdicts = store.append(vec![batch(shop, variants)]).await.unwrap().remove(0).verdicts;
    let differs = |differs| Verdict::Duplicate { differs };
    assert_eq!(verdicts[0], differs(false));
    assert_eq!(verdicts[1..], [const { Verdict::Duplicate { differs: true } }; 7]);
    let kept = store.event(shop, EventId::from_text("x").uuid()).await.unwrap().unwrap();
    assert_eq!((kept.event.name.as_str(), kept.event.time), ("a", at(NOON)), "the stored one stays");
}

async fn identity_is_per_project(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let blog = project(&store, "blog").await.project.id;
    let both = vec![batch(shop, events("x", 2)), batch(blog, events("x", 2)), batch(shop, events("z", 1))];
    let appended = store.append(both).await.unwrap();
    assert!(appended.iter().flat_map(|one| &one.verdicts).all(|verdict| *verdict == Verdict::Stored));
    assert_eq!((store.head(shop).await.unwrap(), store.head(blog).await.unwrap()), (3, 2));
    assert_eq!(appended[2].range.first, 3);
    assert!(store.event(blog, EventId::from_text("z0").uuid()).await.unwrap().is_none());
    let page = read(&store, blog, EventFilter::default(), EventOrder::NewestFirst { before: None }).await;
    assert_eq!(page.len(), 2);
}

async fn the_ledger_balances(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let blog = project(&store, "blog").await.project.id;
    let mut half_good = batch(shop, events("x", 5));
    half_good.refused = refused(5);
    let mut all_bad = batch(blog, Vec::new());
    all_bad.refused = refused(3);
    store.append(vec![half_good.clone(), all_bad]).await.unwrap();
    store.append(vec![half_good]).await.unwrap();
    let expected = Ledger { received: 20, stored: 5, duplicate: 5, quarantined: 0, rejected: 10 };
    assert_eq!(store.ledger(Some(shop)).await.unwrap(), expected);
    let all = store.ledger(None).await.unwrap();
    assert_eq!((all.received, all.rejected), (23, 13));
    assert!(all.balances());
}

async fn an_unknown_project_fails(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let nobody = ProjectId(77);
    let outcome = store.append(vec![batch(shop, events("x", 1)), batch(nobody, events("x", 1))]).await;
    assert!(matches!(outcome, Err(Error::UnknownProject(id)) if id == nobody), "{outcome:?}");
    assert_eq!(store.head(shop).await.unwrap(), 0, "nothing of the append is kept");
    assert!(store.head(nobody).await.is_err());
    assert!(store.apply_counts(nobody, 1).await.is_err());
    assert_eq!(store.append(vec![batch(shop, events("x", 1))]).await.unwrap()[0].verdicts, stored(1));
}

async fn an_event_comes_back_as_it_was(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let full = Event {
        id: EventId::from_text("order-17"),
        name: "ünï \u{1F680}".into(),
        description: Some("what happened".into()),
        user: Some("ada".into()),
        time: at(-62_135_596_800_000),
        stream: Some("orders".into()),
        correlation: Some("request-1".into()),
        properties: Properties::parse(r#"{"big":123456789012345678901234567890,"nested":{"a":[1,null]}}"#)
            .unwrap(),
    };
    let mut sent = batch(shop, vec![full.clone()]);
    sent.skew_ms = Some(-90_000);
    store.append(vec![sent]).await.unwrap();
    let found = store.event(shop, full.id.uuid()).await.unwrap().unwrap();
    assert_eq!(found.event, full);
    assert_eq!((found.position, found.skew_ms, found.received), (1, Some(-90_000), at(NOON + 1)));
}

/// Reads everything in pages of three.
async fn read(
    store: &Store,
    project: ProjectId,
    filter: EventFilter,
    mut order: EventOrder,
) -> Vec<eventbucket_collector::store::StoredEvent> {
    let mut all = Vec::new();
    loop {
        let page = store.events(project, &filter, order, 3).await.unwrap();
        assert!(page.events.len() <= 3);
        all.extend(page.events);
        let Some(next) = page.next else { return all };
        order = match order {
            EventOrder::NewestFirst { .. } => EventOrder::NewestFirst { before: Some(next) },
            EventOrder::ByPosition { .. } => EventOrder::ByPosition { after: next },
        };
    }
}

async fn pages_neither_skip_nor_repeat(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let next_door = project(&store, "next door").await.project.id;
    store.append(vec![batch(shop, events("x", 10)), batch(next_door, events("x", 4))]).await.unwrap();
    let positions = |events: Vec<eventbucket_collector::store::StoredEvent>| {
        events.into_iter().map(|event| event.position).collect::<Vec<u64>>()
    };
    let forward = read(&store, shop, EventFilter::default(), EventOrder::ByPosition { after: 0 }).await;
    assert_eq!(positions(forward), (1..=10).collect::<Vec<u64>>());
    let back = read(&store, shop, EventFilter::default(), EventOrder::NewestFirst { before: None }).await;
    assert_eq!(positions(back), (1..=10).rev().collect::<Vec<u64>>());
    let exact =
        store.events(shop, &EventFilter::default(), EventOrder::ByPosition { after: 7 }, 3).await.unwrap();
    assert_eq!((exact.events.len(), exact.next), (3, None), "a page that ends with the log has no next");
    let beyond = EventOrder::ByPosition { after: u64::MAX };
    assert!(store.events(shop, &EventFilter::default(), beyond, 3).await.unwrap().events.is_empty());
}

async fn filters_find_what_a_scan_finds(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let next_door = project(&store, "next door").await.project.id;
    let user = |i: usize| (!i.is_multiple_of(4)).then(|| format!("u{}", i % 4));
    let all: Vec<Event> =
        events("x", 60).into_iter().enumerate().map(|(i, e)| Event { user: user(i), ..e }).collect();
    // Half of them with a clock ten minutes slow, so that filters have to use the corrected time.
    let mut late = batch(shop, all[30..].to_vec());
    late.skew_ms = Some(600_000);
    store.append(vec![batch(shop, all[..30].to_vec()), late, batch(next_door, all.clone())]).await.unwrap();
    let corrected = |i: usize| all[i].time.shifted(if i >= 30 { 600_000 } else { 0 });
    let (from, to) = (at(NOON + 20 * 60_000), at(NOON + 45 * 60_000));
    for (name, only_user, timed) in [
        (None, None, true),
        (Some("b"), None, false),
        (None, Some("u3"), false),
        (Some("b"), None, true),
        (None, Some("u3"), true),
        (Some("b"), Some("u3"), true),
        (Some("nobody"), None, false),
    ] {
        let filter = EventFilter {
            names: name.map(str::to_owned).into_iter().collect(),
            user: only_user.map(str::to_owned),
            from: timed.then_some(from),
            to: timed.then_some(to),
            ..EventFilter::default()
        };
        let matches = |i: &usize| {
            name.is_none_or(|name| all[*i].name == name)
                && only_user.is_none_or(|user| all[*i].user.as_deref() == Some(user))
                && (!timed || (from..to).contains(&corrected(*i)))
        };
        let expected: Vec<u64> = (0..60).filter(matches).map(|i| i as u64 + 1).collect();
        assert_eq!(expected.is_empty(), name == Some("nobody"), "the case tests something");
        let forward = read(&store, shop, filter.clone(), EventOrder::ByPosition { after: 0 }).await;
        let back = read(&store, shop, filter.clone(), EventOrder::NewestFirst { before: None }).await;
        let forward: Vec<u64> = forward.iter().map(|event| event.position).collect();
        let mut back: Vec<u64> = back.iter().map(|event| event.position).collect();
        back.reverse();
        assert_eq!((&forward, &back), (&expected, &expected), "{filter:?}");
    }
}

async fn valid(store: &Store, key: &KeyHash) -> Grant {
    match store.find_key(key).await.unwrap() {
        Standing::Valid(grant) => grant,
        other => panic!("the key is {other:?}"),
    }
}

async fn keys_open_their_project(store: Store) {
    assert!(store.is_empty().await.unwrap());
    let account = store.create_account("ada@example.com", "team").await.unwrap();
    let taken = store.create_account("ada@example.com", "others").await;
    assert!(matches!(taken, Err(Error::Taken { what: "account", .. })), "{taken:?}");
    let shop = store.create_project(account, "shop").await.unwrap();
    let taken = store.create_project(account, " shop ").await;
    assert!(matches!(taken, Err(Error::Taken { what: "project", .. })), "{taken:?}");
    assert!(matches!(store.create_project(account, " ").await, Err(Error::InvalidName(_))));
    let id = shop.project.id;
    assert_eq!(store.project_named("shop").await.unwrap(), Some(shop.project.clone()));
    let old = shop.write_key.hash();
    let grant = valid(&store, &old).await;
    assert_eq!(
        (grant.account, grant.project, grant.kind, grant.browser),
        (account, id, KeyKind::Write, false)
    );
    store.set_browser(id, true).await.unwrap();
    assert!(valid(&store, &old).await.browser);
    let new = store.rotate_key(id, KeyKind::Write, None).await.unwrap();
    assert!(valid(&store, &new.hash()).await.browser, "a key for browsers is replaced by one");
    let old = new.hash();
    let new = store.rotate_key(id, KeyKind::Write, Some(false)).await.unwrap();
    assert!(!valid(&store, &new.hash()).await.browser);
    assert_eq!(store.find_key(&old).await.unwrap(), Standing::Revoked);
    assert_eq!(store.find_key(&KeyHash::of("eb_write_never")).await.unwrap(), Standing::Unknown);
    assert_eq!(valid(&store, &new.hash()).await.kind, KeyKind::Write);
    let secret = valid(&store, &shop.secret_key.hash()).await;
    assert_eq!((secret.kind, secret.browser), (KeyKind::Secret, false), "the other kind is untouched");
    assert!(matches!(
        store.rotate_key(ProjectId(9), KeyKind::Write, None).await,
        Err(Error::UnknownProject(ProjectId(9)))
    ));
}

async fn limits_come_with_keys(store: Store) {
    let (shop, blog) = (project(&store, "shop").await, project(&store, "blog").await);
    let (id, usual) = (shop.project.id, OwnLimits::default());
    assert_eq!((shop.project.limits, valid(&store, &shop.write_key.hash()).await.limits), (usual, usual));
    let limit = |text: &str| text.parse::<OwnLimit>().unwrap();
    let mut expected = usual;
    for (events_per_s, events_per_day) in [
        (Some("1"), None),
        (None, Some("1000000000000")),
        (None, None),
        (Some("none"), Some("none")),
        (Some("default"), None),
    ] {
        let change =
            LimitsChange { events_per_s: events_per_s.map(limit), events_per_day: events_per_day.map(limit) };
        expected = OwnLimits {
            events_per_s: change.events_per_s.unwrap_or(expected.events_per_s),
            events_per_day: change.events_per_day.unwrap_or(expected.events_per_day),
        };
        assert_eq!(store.set_limits(id, change).await.unwrap(), expected);
        for key in [&shop.write_key, &shop.secret_key] {
            assert_eq!(valid(&store, &key.hash()).await.limits, expected);
        }
        let listed: Vec<_> = store.projects(None).await.unwrap().iter().map(|one| one.limits).collect();
        assert_eq!(listed, [expected, usual]);
    }
    assert_eq!(expected, OwnLimits { events_per_s: OwnLimit::Default, events_per_day: OwnLimit::None });
    assert_eq!(valid(&store, &blog.secret_key.hash()).await.limits, usual);
    let nobody = store.set_limits(ProjectId(9), LimitsChange::default()).await;
    assert!(matches!(nobody, Err(Error::UnknownProject(ProjectId(9)))), "{nobody:?}");
}

async fn counts_follow_the_log(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    let mut skewed = batch(shop, vec![event("s", "a")]);
    skewed.skew_ms = Some(HOUR);
    // Before 1970 the hour still begins before the event.
    let old = Event { time: at(-1), ..event("o", "old") };
    store.append(vec![batch(shop, vec![event("x", "a"), event("y", "b"), old]), skewed]).await.unwrap();
    count_all(&store, shop).await;
    assert_eq!(totals(&store, shop).await, [("a".into(), 2), ("b".into(), 1), ("old".into(), 1)]);
    let hours = CountsQuery { by: CountsBy::Hour, ..CountsQuery::default() };
    let row = |name: &str, hour, count| CountRow { name: name.into(), start: Some(at(hour)), count };
    let noon = NOON - NOON % HOUR;
    let all = [row("a", noon, 1), row("a", noon + HOUR, 1), row("b", noon, 1), row("old", -HOUR, 1)];
    assert_eq!(store.counts(shop, hours.clone()).await.unwrap(), all);
    let later = CountsQuery { from_hour: Some(at(noon + HOUR)), ..hours.clone() };
    assert_eq!(store.counts(shop, later).await.unwrap(), all[1..2]);
    let named = CountsQuery { name: Some("a".into()), to_hour: Some(at(noon + HOUR)), ..hours };
    assert_eq!(store.counts(shop, named).await.unwrap(), all[..1]);
}

async fn nothing_is_applied_twice(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 9))]).await.unwrap();
    let first = store.apply_counts(shop, 4).await.unwrap();
    assert_eq!((first.from, first.through), (0, 4));
    assert_eq!(first.per_name, [("a".into(), 2), ("b".into(), 1), ("c".into(), 1)]);
    for through in [4, 2, 0] {
        let again = store.apply_counts(shop, through).await.unwrap();
        assert_eq!((again.from, again.through, again.per_name.len()), (4, 4, 0));
    }
    let rest = store.apply_counts(shop, 7).await.unwrap();
    assert_eq!((rest.from, rest.through), (4, 7));
    assert_eq!(store.apply_counts(shop, u64::MAX).await.unwrap().through, 9);
    assert_eq!(totals(&store, shop).await, [("a".into(), 3), ("b".into(), 3), ("c".into(), 3)]);
    assert_eq!(store.view_state(shop).await.unwrap(), ViewState { generation: 1, applied_to: 9 });
}

async fn a_rebuild_gives_the_same(store: Store) {
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 9))]).await.unwrap();
    store.apply_counts(shop, 5).await.unwrap();
    let rebuilt = store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!(rebuilt, ViewState { generation: 2, applied_to: 9 });
    assert_eq!(totals(&store, shop).await, [("a".into(), 3), ("b".into(), 3), ("c".into(), 3)]);
    store.append(vec![batch(shop, events("y", 3))]).await.unwrap();
    count_all(&store, shop).await;
    let again = store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    assert_eq!(again, ViewState { generation: 3, applied_to: 12 });
    assert_eq!(totals(&store, shop).await, [("a".into(), 4), ("b".into(), 4), ("c".into(), 4)]);
}
