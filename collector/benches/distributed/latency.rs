//! From the answer to a batch until its events can be queried, and until the live counter has them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::load::{Accepted, Answers, BATCH_EVENTS, Requests, send_paced};
use crate::stack::{Progress, Servers, Stack};
use crate::{quantile, speed};

/// How long events flow.
const TIME: Duration = Duration::from_secs(30);

/// How often the collector is asked: adds at most this to a figure.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) async fn measure(servers: &mut Servers) {
    servers.settle();
    let full = speed::once(&servers.stack(1, &[]).await, 0).await.counted;
    for share in [1.0 / 3.0, 1.0 / 10.0] {
        servers.settle();
        let stack = servers.stack(1, &[]).await;
        speed::warm_up(&stack, 0).await;
        let pace = full * share;
        let Lags { mut stored, mut counted } = lags(&stack, pace).await;
        println!(
            "\nlatency: {pace:.0} events/s, {share:.2} of full speed, for {} s, in ms after the answer",
            TIME.as_secs()
        );
        for (what, lags) in [("queryable", &mut stored), ("in the live counter", &mut counted)] {
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(lags, share));
            println!("  {what:<20} p50 {p50:.0}   p99 {p99:.0}   max {max:.0}");
        }
    }
}

/// How long after its answer each batch was stored and counted, in ms.
pub(crate) struct Lags {
    pub(crate) stored: Vec<f64>,
    pub(crate) counted: Vec<f64>,
}

async fn lags(stack: &Stack, pace: f64) -> Lags {
    let (told, heard) = mpsc::unbounded_channel();
    let requests = Requests::new(speed::write_keys(stack), 1);
    let answers = Arc::new(Answers::default());
    let sending = send_paced(&stack.edge.address, requests, (pace, TIME), &answers, Some(told));
    tokio::join!(watch(stack, 0, BATCH_EVENTS as u64, heard), sending).0
}

/// Follows one project from the accepted batches to the log and the counters; `before` are the events it had.
pub(crate) async fn watch(
    stack: &Stack,
    project: usize,
    before: u64,
    mut heard: mpsc::UnboundedReceiver<Accepted>,
) -> Lags {
    let client = reqwest::Client::new();
    let (mut waiting, mut accepted): (Vec<Accepted>, bool) = (Vec::new(), true);
    let (mut next_stored, mut next_counted) = (0, 0);
    let mut lags = Lags { stored: Vec::new(), counted: Vec::new() };
    while accepted || next_counted < waiting.len() {
        let Progress { stored, counted } = stack.progress(&client, project).await;
        let now = Instant::now();
        loop {
            match heard.try_recv() {
                Ok(batch) => waiting.push(batch),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    accepted = false;
                    break;
                }
            }
        }
        let reached = |next: &mut usize, position: u64, lags: &mut Vec<f64>| {
            while let Some((at, taken)) = waiting.get(*next)
                && before + taken <= position
            {
                // One that was stored before its answer was read was there at once.
                lags.push(now.saturating_duration_since(*at).as_secs_f64() * 1e3);
                *next += 1;
            }
        };
        reached(&mut next_stored, stored, &mut lags.stored);
        reached(&mut next_counted, counted, &mut lags.counted);
        tokio::time::sleep(LOOK).await;
    }
    lags
}
