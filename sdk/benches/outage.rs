//! How much memory the SDK takes while no collector answers: 10,000 events a second for a minute, about 600,000 events,
//! with a spool and without. Each in a process of its own.
//!
//! `cargo bench -p eventbucket --bench outage`

#![expect(clippy::unwrap_used, reason = "a bench that can't measure ends")]

use std::process::Command;
use std::time::{Duration, Instant};

use eventbucket::{Bucket, event};

/// Which of the two a child measures.
const VARIABLE: &str = "OUTAGE_BENCH";

const LENGTH: Duration = Duration::from_secs(60);

/// 100 events every 10 ms.
const BURST: u64 = 100;
const PACE: Duration = Duration::from_millis(10);

fn main() {
    // `cargo test --benches` runs this as well; measuring is asked for by `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    match std::env::var(VARIABLE) {
        Ok(kind) => measure(&kind),
        Err(_) => {
            for kind in ["memory", "spool"] {
                let this = std::env::current_exe().unwrap();
                assert!(Command::new(this).arg("--bench").env(VARIABLE, kind).status().unwrap().success());
            }
        }
    }
}

fn measure(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let before = resident_kib();
    // Nothing listens on the discard port: every attempt is refused.
    let builder = Bucket::builder("http://127.0.0.1:9", "eb_write_key");
    let bucket = if kind == "spool" { builder.spool(folder.path()) } else { builder }.build().unwrap();
    // The SDK at work: thread, runtime, TLS roots, spool and a first attempt.
    bucket.capture(event!("started"));
    let _report = bucket.flush_blocking(Duration::from_secs(1));
    let at_work = resident_kib();
    let (began, mut captured, mut highest) = (Instant::now(), 0, 0);
    while began.elapsed() < LENGTH {
        for _ in 0..BURST {
            bucket.capture(event!("order_paid", user: "user-17", plan: "pro", amount: 12.5, items: captured, paid: true, city: "Wien"));
            captured += 1;
        }
        highest = highest.max(resident_kib());
        std::thread::park_timeout(PACE);
    }
    let ledger = bucket.stats();
    assert!(ledger.balances(), "{ledger:?}");
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!(
        "{kind:<7} the SDK at work took {:.1} MiB and grew by at most {:.1}; {captured} captured, {} held, {} dropped",
        mib(at_work - before),
        mib(highest - at_work),
        ledger.pending,
        ledger.dropped.total()
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
