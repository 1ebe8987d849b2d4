//! The shortest useful program: capture one event, see it delivered.
//!
//! Start a collector with `cargo run --release`, copy the write key it prints, then
//! `EVENTBUCKET_KEY=eb_write_… cargo run --example quickstart`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use eventbucket::{Bucket, event};

fn main() -> anyhow::Result<ExitCode> {
    let url = std::env::var("EVENTBUCKET_URL").unwrap_or_else(|_| "http://127.0.0.1:4000".into());
    let key = std::env::var("EVENTBUCKET_KEY")
        .context("set EVENTBUCKET_KEY to the write key the collector printed")?;
    let bucket = Bucket::builder(&url, &key).on_error(|fault| eprintln!("{fault}")).build()?;

    bucket.capture(event!("order_paid", user: "ada", plan: "pro", amount: 12.5));

    let report = bucket.shutdown_blocking(Duration::from_secs(5));
    let lost = report.dropped + report.rejected;
    println!("{} delivered, {lost} lost", report.delivered);
    // Without a spool nothing outlives the program, so what is pending at the end is lost too.
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
