//! What counting costs: CPU time for each event that is added to the counts, on SQLite and on Postgres, with users and without.
//!
//! `cargo bench -p eventbucket-collector --bench counts`. Steps of 2,000 events are what a worker does that follows the log, a
//! rebuild is 50,000 at a time. CPU time is what the machine's other work disturbs least: that of this process, and of the
//! Postgres that this starts for itself.

#![expect(clippy::unwrap_used, reason = "a bench that can't measure ends")]

use std::fs;
use std::path::Path;

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{PostgresOptions, SqliteOptions, Store};
use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use eventbucket_servers::Postgres;

/// Rounds of each measurement, in turns.
const ROUNDS: usize = 3;

/// Events of a round.
const EVENTS: usize = 200_000;

/// Events of a batch, and of a step of the worker.
const BATCH_EVENTS: usize = 500;
const STEP_EVENTS: usize = 2_000;

/// Names, and users in no order; an hour passes every 40,000 events.
const NAMES: usize = 20;
const USERS: usize = 50_000;
const HOUR_EVENTS: usize = 40_000;

/// Ticks of a second in `/proc`.
const TICKS_PER_S: f64 = 100.0;

fn main() {
    // `cargo test --benches` runs this as well; measuring is asked for by `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = Postgres::start().unwrap();
    println!("CPU µs an event, {EVENTS} events, {NAMES} names, {USERS} users");
    for _ in 0..ROUNDS {
        for users in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::sqlite(SqliteOptions::new(folder.path().join("store.db"))).unwrap();
            runtime.block_on(measure("SQLite", store, users, || ticks_of("self")));
            let postmaster = fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
            let postmaster = postmaster.lines().next().unwrap().to_owned();
            let store = runtime.block_on(async {
                Store::postgres(PostgresOptions::parse(&server.url(), None).unwrap()).await.unwrap()
            });
            runtime.block_on(measure("Postgres", store, users, || {
                ticks_of("self") + ticks_of_family(&postmaster)
            }));
        }
    }
}

async fn measure(backend: &str, store: Store, users: bool, ticks: impl Fn() -> u64) {
    let name = format!("{}", Timestamp::from_system(std::time::SystemTime::now()).ms());
    let account = store.create_account(&name, "team").await.unwrap();
    let project = store.create_project(account, &name).await.unwrap().project.id;
    for first in (0..EVENTS).step_by(4 * BATCH_EVENTS) {
        let batches = (0..4).map(|i| batch(project, first + i * BATCH_EVENTS, users)).collect();
        store.append(batches).await.unwrap();
    }
    let each = |ticks: u64| ticks as f64 / TICKS_PER_S * 1e6 / EVENTS as f64;
    let before = ticks();
    for through in (STEP_EVENTS..=EVENTS).step_by(STEP_EVENTS) {
        store.apply_counts(project, through as u64).await.unwrap();
    }
    let followed = ticks();
    store.rebuild_counts(project, |_, _| {}).await.unwrap();
    let rebuilt = ticks();
    let with = if users { "with users" } else { "without" };
    println!(
        "{backend:>9} {with:>10}: steps {:>5.2}   rebuild {:>5.2}",
        each(followed - before),
        each(rebuilt - followed)
    );
    store.close().await.unwrap();
}

fn batch(project: ProjectId, first: usize, users: bool) -> ValidBatch {
    let one = |i: usize| {
        // A step through the users that meets each once before any again.
        let user = users.then(|| format!("user-{:05}", i * 7_919 % USERS));
        let hour_ms = i64::try_from(i / HOUR_EVENTS).unwrap() * 3_600_000;
        Event {
            id: EventId::from_text(&format!("{project}-{i}")),
            name: format!("name_{}", i * 31 % NAMES),
            description: None,
            user,
            time: Timestamp::from_ms(1_709_290_800_000 + hour_ms).unwrap(),
            stream: None,
            correlation: None,
            properties: Properties::parse(r#"{"amount":12.5,"plan":"pro","country":"pt"}"#).unwrap(),
        }
    };
    let received = Timestamp::from_ms(1_709_290_800_000).unwrap();
    ValidBatch {
        project,
        batch: BatchId::from_text(&format!("{project}-{first}")),
        received,
        skew_ms: None,
        events: (first..first + BATCH_EVENTS).map(one).collect(),
        undated: Vec::new(),
        refused: Vec::new(),
        part: 0,
        parts: 1,
    }
}

/// User and system time of a process, and of its children that have ended.
fn ticks_of(process: &str) -> u64 {
    let Ok(text) = fs::read_to_string(Path::new("/proc").join(process).join("stat")) else { return 0 };
    let (_, fields) = text.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(4).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// The time of a process and of its children.
fn ticks_of_family(process: &str) -> u64 {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    ticks_of(process) + children.split_whitespace().map(ticks_of).sum::<u64>()
}
