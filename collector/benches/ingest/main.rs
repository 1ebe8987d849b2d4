//! What storing costs beside its limits, in one run on the same cores:
//!
//! - batches of 500 over HTTP until committed, beside a bare loop that inserts the same rows into the same schema;
//! - single events from 64 connections, each durable, beside the same server answering without storing;
//! - the collector's memory, idle and under both loads.
//!
//! `cargo bench -p eventbucket-collector --bench ingest`, with `wrk` installed. Rounds take turns, so that a change of the
//! machine's speed meets both sides; the median of the ratios is what counts.

#![expect(clippy::unwrap_used, reason = "a bench that can't measure ends")]

mod bare;
mod batches;
mod events;
mod process;
mod singles;

use std::time::Duration;

/// Rounds of each measurement.
const ROUNDS: usize = 5;

fn main() {
    // `cargo test --benches` runs this as well; measuring is asked for by `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let collector = process::Collector::start();
    println!("memory idle: {:.1} MiB", collector.resident_mib());
    let mut highest_mib = 0.0_f64;

    for format in [batches::Format::MessagePack, batches::Format::Json] {
        let mut ratios = Vec::new();
        println!("\nbatches of {} as {format:?}, events/s", batches::BATCH_EVENTS);
        for round in 0..ROUNDS {
            // Both begin with an empty log.
            let collector = process::Collector::start();
            let load = batches::Load::make(format, round);
            let over_http = runtime.block_on(load.send(&collector));
            let bare = bare::insert_batches();
            println!("  collector {over_http:>9.0}   bare loop {bare:>9.0}   ratio {:.2}", over_http / bare);
            ratios.push(over_http / bare);
            highest_mib = highest_mib.max(collector.highest_mib());
        }
        println!("  median ratio {:.2}", median(&mut ratios));
    }

    let mut ratios = Vec::new();
    println!("\nsingle events from {} connections, requests/s", singles::CONNECTIONS);
    let without = runtime.block_on(singles::WithoutStoring::start());
    for _ in 0..ROUNDS {
        let stored = singles::wrk(collector.url(), collector.key(), Duration::from_secs(5));
        let answered = singles::wrk(&without.url, &without.key, Duration::from_secs(5));
        println!("  stored {stored:>9.0}   answered only {answered:>9.0}   ratio {:.2}", stored / answered);
        ratios.push(stored / answered);
    }
    println!("  median ratio {:.2}", median(&mut ratios));
    println!("\nmemory under load, highest: {:.1} MiB", highest_mib.max(collector.highest_mib()));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
