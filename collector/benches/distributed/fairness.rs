//! What a project that sends four times its limit costs another that stays within its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::latency::watch;
use crate::load::{Answers, BATCH_EVENTS, Requests, send_paced};
use crate::stack::{Servers, Stack};
use crate::{quantile, speed};

/// Events a second that a project may send: with two projects at it, half of what two cores store.
const LIMIT: f64 = 15_000.0;

/// Of which the well-behaved project sends this much.
const MODEST: f64 = 0.8;

const OVERLOAD: f64 = 4.0;

const TIME: Duration = Duration::from_secs(20);

const ROUNDS: usize = 3;

pub(crate) async fn measure(servers: &mut Servers) {
    println!(
        "\nfairness: one project sends {:.0} events/s, another {OVERLOAD} times its limit of {LIMIT:.0}",
        LIMIT * MODEST
    );
    for same_queue in [false, true] {
        println!("  {}", if same_queue { "both in one queue" } else { "in two queues" });
        for round in 0..ROUNDS {
            let alone = goodput(servers, same_queue, false, round).await;
            let beside = goodput(servers, same_queue, true, round).await;
            println!(
                "  alone {:>7.0} stored/s, p99 {:>4.0} ms   beside {:>7.0} stored/s, p99 {:>4.0} ms   ratio {:.3}   \
                 the other: {:.0} taken/s, {} requests refused",
                alone.stored,
                alone.p99_ms,
                beside.stored,
                beside.p99_ms,
                beside.stored / alone.stored,
                beside.others_taken,
                beside.refused,
            );
        }
    }
}

struct Goodput {
    stored: f64,
    p99_ms: f64,
    others_taken: f64,
    refused: u64,
}

async fn goodput(servers: &mut Servers, same_queue: bool, overloaded: bool, round: usize) -> Goodput {
    servers.settle();
    let limit = |value: f64| format!("{value:.0}");
    let mut variables =
        vec![("EVENTBUCKET_LIMITS_EVENTS_PER_S", limit(LIMIT)), ("EVENTBUCKET_LIMITS_BURST", limit(LIMIT))];
    if same_queue {
        variables.push(("EVENTBUCKET_BUS_SHARDS", "1".to_owned()));
    }
    let stack = servers.stack(2, &variables).await;
    speed::warm_up(&stack, round).await;
    let (told, heard) = mpsc::unbounded_channel();
    let (answers, others) = (Arc::new(Answers::default()), Arc::new(Answers::default()));
    let pace = (LIMIT * MODEST, TIME);
    let modest = send_paced(&stack.edge.address, of(&stack, 0, 1), pace, &answers, Some(told));
    let other = async {
        if overloaded {
            let pace = (LIMIT * OVERLOAD, TIME);
            send_paced(&stack.edge.address, of(&stack, 1, 2), pace, &others, None).await;
        }
    };
    let start = std::time::Instant::now();
    let (mut lags, ..) = tokio::join!(watch(&stack, 0, BATCH_EVENTS as u64, heard), modest, other);
    let seconds = start.elapsed().as_secs_f64();
    Goodput {
        stored: answers.taken.load(Ordering::Relaxed) as f64 / seconds,
        p99_ms: quantile(&mut lags.stored, 0.99),
        others_taken: others.taken.load(Ordering::Relaxed) as f64 / seconds,
        refused: others.refused.load(Ordering::Relaxed),
    }
}

fn of(stack: &Stack, project: usize, salt: usize) -> Requests {
    Requests::new(vec![stack.projects[project].write_key.clone()], salt)
}
