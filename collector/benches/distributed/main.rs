//! The distributed form beside its limits, all on the same cores in one run: PostgreSQL, RabbitMQ and Redis are started
//! privately, and an edge, a storage and an insight process of the real binary.
//!
//! `cargo bench -p eventbucket-collector --bench distributed [-- PART…]`, on a machine that does nothing else. The parts:
//!
//! - `edge`: batches accepted with quorum confirms, beside a bare loop of axum and lapin in a process of its own;
//! - `whole`: batches stored and counted, beside a bare loop of lapin and UNNEST;
//! - `latency`: from the answer until an event is queryable and counted, at a third of full speed;
//! - `fairness`: what a project that sends four times its limit costs another;
//! - `outage`: PostgreSQL gone for ten minutes (`OUTAGE_S`): memory, and how fast what waits is stored.
//!
//! Rounds take turns, so that a change of the machine's speed meets both sides; the median of the ratios is what counts.

#![expect(clippy::unwrap_used, reason = "a bench that can't measure ends")]

mod bare_edge;
mod bare_whole;
#[path = "../ingest/events.rs"]
mod events;
mod fairness;
mod latency;
mod load;
mod outage;
mod process;
mod speed;
mod stack;

const PARTS: [&str; 5] = ["edge", "whole", "latency", "fairness", "outage"];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, bus_url, queues] = &*words
        && word == bare_edge::WORD
    {
        let queues = queues.parse().unwrap();
        runtime().block_on(bare_edge::serve(bus_url, queues));
    }
    // `cargo test --benches` runs this as well; measuring is asked for by `cargo bench`.
    if !words.iter().any(|word| word == "--bench") {
        return;
    }
    let mut parts: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != "--bench").collect();
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(part)) {
        eprintln!("there is no part {unknown:?}; the parts are {}", PARTS.join(", "));
        std::process::exit(2);
    }
    if parts.is_empty() {
        parts = PARTS.to_vec();
    }
    #[expect(clippy::disallowed_methods, reason = "this bench is the application")]
    rustls::crypto::ring::default_provider().install_default().unwrap();
    runtime().block_on(async {
        let mut servers = stack::Servers::start();
        for part in parts {
            match part {
                "edge" => speed::edge(&mut servers).await,
                "whole" => speed::whole(&mut servers).await,
                "latency" => latency::measure(&mut servers).await,
                "fairness" => fairness::measure(&mut servers).await,
                _ => outage::measure(&mut servers).await,
            }
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The value in the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The value below which `share` of all are.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (share * values.len() as f64).ceil() as usize;
    values[at.clamp(1, values.len()) - 1]
}
