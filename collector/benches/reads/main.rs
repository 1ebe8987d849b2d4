//! How long a page of events takes among a million: lists and filters, on SQLite and on Postgres.
//!
//! `cargo bench -p eventbucket-collector --bench reads`. Each question is asked as a reader does, through `Reader::events`, 100
//! events a page, from places all over the log; the first pages of a question that matches rarely may hold nothing, and all of them
//! count. Then how long it takes to go through the whole log for what isn't there, page after page.

#![expect(clippy::unwrap_used, reason = "a bench that can't measure ends")]

use std::time::{Duration, Instant};

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::{EventFilter, EventsQuery, Order, Reader};
use eventbucket_collector::store::{PostgresOptions, SqliteOptions, Store};
use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use eventbucket_servers::Postgres;

/// Events of the log: three years of flights, 335 a day each of three.
const EVENTS: usize = 1_000_000;

/// Events of a batch, and batches of a transaction.
const BATCH_EVENTS: usize = 500;
const TRANSACTION_BATCHES: usize = 4;

/// Pages read for each question.
const PAGES: usize = 200;

/// A flight a minute.
const FIRST_MS: i64 = 1_356_998_400_000;
const STEP_MS: i64 = 60_000;

fn main() {
    // `cargo test --benches` runs this as well; measuring is asked for by `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Store::sqlite(SqliteOptions::new(folder.path().join("store.db"))).unwrap();
    runtime.block_on(measure("SQLite", sqlite));
    let server = Postgres::start().unwrap();
    let postgres =
        async { Store::postgres(PostgresOptions::parse(&server.url(), None).unwrap()).await.unwrap() };
    let postgres = runtime.block_on(postgres);
    runtime.block_on(measure("Postgres", postgres));
}

async fn measure(backend: &str, store: Store) {
    let account = store.create_account("ada@example.com", "team").await.unwrap();
    let project = store.create_project(account, "flights").await.unwrap().project.id;
    let begun = Instant::now();
    for first in (0..EVENTS).step_by(TRANSACTION_BATCHES * BATCH_EVENTS) {
        let batches = (0..TRANSACTION_BATCHES).map(|i| batch(project, first + i * BATCH_EVENTS)).collect();
        store.append(batches).await.unwrap();
    }
    println!("{backend}: {EVENTS} events stored in {:.0} s", begun.elapsed().as_secs_f64());
    let reader = Reader::new(store.clone(), Cache::memory());
    for (what, filter) in questions() {
        let (mut times, mut found) = pages(&reader, project, &filter).await;
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        found /= times.len();
        println!(
            "{backend:>9} {what:<42} p50 {:>6.1} ms  p95 {:>6.1} ms  {found:>3} events a page",
            at(50),
            at(95)
        );
    }
    for (what, condition) in [("a key that is nowhere", "coupon"), ("a value that is nowhere", "carrier=ZZ")]
    {
        let (time, pages) = through(&reader, project, condition).await;
        println!("{backend:>9} through the log for {what}: {:.1} s in {pages} pages", time.as_secs_f64());
    }
    store.close().await.unwrap();
}

fn questions() -> Vec<(&'static str, EventFilter)> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let with = |conditions: &[&str]| EventFilter {
        conditions: conditions.iter().map(|text| text.parse().unwrap()).collect(),
        ..EventFilter::default()
    };
    let time = |minute: i64| Timestamp::from_ms(FIRST_MS + minute * STEP_MS);
    vec![
        ("everything", EventFilter::default()),
        ("a name (1 of 4)", EventFilter { names: names(&["arrived"]), ..EventFilter::default() }),
        (
            "three names",
            EventFilter { names: names(&["arrived", "departed", "diverted"]), ..EventFilter::default() },
        ),
        ("a rare name (1 of 10,000)", EventFilter { names: names(&["diverted"]), ..EventFilter::default() }),
        ("a user (1 of 4,000)", EventFilter { user: Some("N1234".into()), ..EventFilter::default() }),
        ("a month", EventFilter { from: time(300_000), to: time(343_200), ..EventFilter::default() }),
        (
            "a name in a month",
            EventFilter {
                names: names(&["arrived"]),
                from: time(300_000),
                to: time(343_200),
                ..EventFilter::default()
            },
        ),
        ("carrier=UA (1 of 16)", with(&["carrier=UA"])),
        ("delay>120 (1 of 50)", with(&["delay>120"])),
        ("route.origin=JFK, delay>60, note~snow", with(&["route.origin=JFK", "delay>60", "note~snow"])),
        ("flight=4711 (1 of 5,000)", with(&["flight=4711"])),
        ("coupon (nowhere)", with(&["coupon"])),
        (
            "eight conditions, the last nowhere",
            with(&[
                "carrier",
                "flight",
                "delay",
                "route.origin",
                "route.dest",
                "distance>0",
                "note",
                "note~sun and snow",
            ]),
        ),
    ]
}

/// Reads pages from places all over the log; tells how long each took, and how many events they held together.
async fn pages(reader: &Reader, project: ProjectId, filter: &EventFilter) -> (Vec<Duration>, usize) {
    let (mut times, mut found) = (Vec::new(), 0);
    for page in 0..PAGES {
        // Steps that meet every part of the log in no order.
        let before = 1 + page * 7_919 * 53 % EVENTS;
        let cursor = Some(before.to_string());
        let query = EventsQuery { filter: filter.clone(), cursor, ..EventsQuery::default() };
        let begun = Instant::now();
        found += reader.events(project, query).await.unwrap().events.len();
        times.push(begun.elapsed());
    }
    (times, found)
}

/// Goes through the whole log.
async fn through(reader: &Reader, project: ProjectId, condition: &str) -> (Duration, usize) {
    let conditions = vec![condition.parse().unwrap()];
    let filter = EventFilter { conditions, ..EventFilter::default() };
    let (begun, mut cursor, mut pages) = (Instant::now(), None, 0);
    loop {
        let query =
            EventsQuery { filter: filter.clone(), order: Order::Newest, cursor, ..EventsQuery::default() };
        let page = reader.events(project, query).await.unwrap();
        assert!(page.events.is_empty());
        pages += 1;
        match page.next {
            Some(next) => cursor = Some(next.to_string()),
            None => return (begun.elapsed(), pages),
        }
    }
}

fn batch(project: ProjectId, first: usize) -> ValidBatch {
    ValidBatch {
        project,
        batch: BatchId::from_text(&format!("{project}-{first}")),
        received: Timestamp::from_ms(FIRST_MS).unwrap(),
        skew_ms: None,
        events: (first..first + BATCH_EVENTS).map(flight).collect(),
        undated: Vec::new(),
        refused: Vec::new(),
        part: 0,
        parts: 1,
    }
}

/// A flight with about as many bytes as one of the New York flights of 2013.
fn flight(i: usize) -> Event {
    // Different figures in no order.
    let figure = |multiplier: usize, end: usize| (i * multiplier + i / 977) % end;
    let name = match figure(31, 10_000) {
        0 => "diverted",
        rest => ["departed", "arrived", "scheduled", "boarded"][rest % 4],
    };
    let carriers =
        ["UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX", "FL", "AS", "F9", "YV", "HA", "OO"];
    let properties = format!(
        r#"{{"carrier":"{}","flight":{},"tail":"N{}","route":{{"origin":"{}","dest":"{}"}},"distance":{},"delay":{},"scheduled":"2013-{:02}-{:02}T{:02}:15:00Z","note":"{}","hour":{},"minute":{}}}"#,
        carriers[figure(7, 16)],
        figure(13, 5_000),
        figure(7_919, 4_000),
        ["JFK", "EWR", "LGA"][figure(11, 3)],
        ["IAH", "MIA", "BQN", "ATL", "ORD", "LAX"][figure(17, 6)],
        200 + figure(101, 2_500),
        // One in fifty is more than two hours late.
        match figure(37, 50) {
            0 => 121 + figure(3, 200) as i64,
            rest => rest as i64 * 2 - 20,
        },
        1 + figure(1, 12),
        1 + figure(3, 28),
        figure(5, 24),
        if figure(41, 40) == 0 { "late because of snow" } else { "all as planned" },
        figure(5, 24),
        figure(19, 60),
    );
    Event {
        id: EventId::from_text(&format!("flight-{i}")),
        name: name.to_owned(),
        description: None,
        user: Some(format!("N{}", figure(7_919, 4_000))),
        time: Timestamp::from_ms(FIRST_MS + i64::try_from(i).unwrap() * STEP_MS).unwrap(),
        stream: None,
        correlation: None,
        properties: Properties::parse(&properties).unwrap(),
    }
}
