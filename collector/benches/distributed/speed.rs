//! How fast batches are accepted, and stored and counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::project::ProjectId;
use eventbucket_protocol::{BatchId, Timestamp};
use uuid::Uuid;

use crate::events::events;
use crate::load::{self, BATCH_EVENTS, Requests};
use crate::process::Process;
use crate::stack::{Fresh, Servers, Stack};
use crate::{bare_whole, median, process};

const ROUNDS: usize = 5;

/// Batches in a round of the whole path: 200,000 events.
const BATCHES: usize = 400;

/// Batches in a round of the edge, which takes five times as many in the same time.
const EDGE_BATCHES: usize = 2_000;

/// Queues, as the collector has by default.
const SHARDS: usize = 8;

/// How long a round may take: ten times what a busy machine takes.
const DEADLINE: Duration = Duration::from_secs(120);

/// Numbers of projects that are measured.
const PROJECTS: [usize; 2] = [1, 50];

/// Keeps the events that warm a round up apart from those that are measured.
const WARM_UP: usize = 1_000;

pub(crate) async fn edge(servers: &mut Servers) {
    for projects in PROJECTS {
        println!("\nedge: batches of {BATCH_EVENTS} confirmed, {projects} projects, events/s");
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let mut stack = servers.stack(projects, &[]).await;
            warm_up(&stack, round).await;
            stack.edge_alone();
            let requests = requests(&stack, round, EDGE_BATCHES);
            let before = stack.cpu_s();
            let ours = load::send_all(&stack.edge.address, requests).await;
            println!(
                "  edge      {ours:>9.0}   CPU µs an event: {}",
                used(&before, &stack.cpu_s(), EDGE_BATCHES)
            );
            drop(stack);
            let fresh = servers.fresh(projects).await;
            let bare = Process::bare_edge(&fresh.bus_url, projects.min(SHARDS));
            let requests = Requests::new(vec!["none".to_owned()], round).take(EDGE_BATCHES).collect();
            let cpu = || {
                let mut used = process::servers_cpu_s();
                used.insert("bare edge", bare.cpu_s());
                used
            };
            let before = cpu();
            let speed = load::send_all(&bare.address, requests).await;
            let (used, bare) = (used(&before, &cpu(), EDGE_BATCHES), speed);
            println!("  bare loop {bare:>9.0}   CPU µs an event: {used}   ratio {:.2}", ours / bare);
            ratios.push(ours / bare);
        }
        println!("  median ratio {:.2}", median(&mut ratios));
    }
}

pub(crate) async fn whole(servers: &mut Servers) {
    for projects in PROJECTS {
        println!("\nwhole: batches of {BATCH_EVENTS} stored and counted, {projects} projects, events/s");
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            servers.settle();
            let stack = servers.stack(projects, &[]).await;
            let measured = once(&stack, round).await;
            println!(
                "  stored {:>8.0}   and counted {:>8.0}   CPU µs an event: {}   memory, MiB: {}",
                measured.stored,
                measured.counted,
                measured.used,
                stack.memory(),
            );
            drop(stack);
            servers.settle();
            let fresh = servers.fresh(projects).await;
            open_heads(&fresh).await;
            let messages = bare_whole::messages(BATCHES, round);
            let (queues, before) = (projects.min(SHARDS), process::servers_cpu_s());
            let bare = bare_whole::run(&fresh.bus_url, &fresh.store_url, projects, queues, messages).await;
            let used = used(&before, &process::servers_cpu_s(), BATCHES);
            println!(
                "  bare loop {bare:>8.0}   CPU µs an event: {used}   ratio {:.2}",
                measured.counted / bare
            );
            ratios.push(measured.counted / bare);
        }
        println!("  median ratio {:.2}", median(&mut ratios));
    }
}

/// What one round of the whole path came to.
pub(crate) struct Measured {
    pub(crate) stored: f64,
    pub(crate) counted: f64,
    used: String,
}

/// Sends a round's events and waits until all are stored and counted.
pub(crate) async fn once(stack: &Stack, round: usize) -> Measured {
    warm_up(stack, round).await;
    let per_project = ((BATCHES / stack.projects.len() + 1) * BATCH_EVENTS) as u64;
    let (requests, before, start) = (requests(stack, round, BATCHES), stack.cpu_s(), Instant::now());
    let sending = load::send_all(&stack.edge.address, requests);
    let ((stored_at, counted_at), _) = tokio::join!(stack.until(per_project, DEADLINE), sending);
    let used = used(&before, &stack.cpu_s(), BATCHES);
    let events = (BATCHES * BATCH_EVENTS) as f64;
    let speed = |at: Instant| events / (at - start).as_secs_f64();
    Measured { stored: speed(stored_at), counted: speed(counted_at), used }
}

fn requests(stack: &Stack, round: usize, batches: usize) -> Vec<Vec<u8>> {
    Requests::new(write_keys(stack), round).take(batches).collect()
}

pub(crate) fn write_keys(stack: &Stack) -> Vec<String> {
    stack.projects.iter().map(|project| project.write_key.clone()).collect()
}

/// One batch of each project: connections, statements and keys are there.
pub(crate) async fn warm_up(stack: &Stack, round: usize) {
    let requests = Requests::new(write_keys(stack), WARM_UP + round).take(stack.projects.len()).collect();
    load::send_all(&stack.edge.address, requests).await;
    stack.until(BATCH_EVENTS as u64, DEADLINE).await;
}

/// One event of each project through the store: head rows and the first segment are there.
async fn open_heads(fresh: &Fresh) {
    let mut events = events(WARM_UP);
    let batch = |project: usize| ValidBatch {
        project: ProjectId(u32::try_from(project).unwrap()),
        batch: BatchId::from_uuid(Uuid::from_u128(project as u128)),
        received: Timestamp::from_ms(1_700_000_000_000).unwrap(),
        skew_ms: None,
        events: events.by_ref().take(1).collect(),
        undated: Vec::new(),
        refused: Vec::new(),
        part: 0,
        parts: 1,
    };
    fresh.store.append((1..=fresh.projects.len()).map(batch).collect()).await.unwrap();
}

/// Processor time an event between two looks.
fn used(before: &BTreeMap<&'static str, f64>, after: &BTreeMap<&'static str, f64>, batches: usize) -> String {
    let events = (batches * BATCH_EVENTS) as f64;
    let each = after.iter().map(|(name, seconds)| {
        let used = (seconds - before.get(name).copied().unwrap_or(0.0)) * 1e6 / events;
        format!("{name} {used:.1}")
    });
    each.collect::<Vec<_>>().join(", ")
}
