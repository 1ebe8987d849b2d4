//! What one capture costs its caller: an event with 5 properties and a user, with the worker running against a
//! transport that answers 200 with a verdict for each event.
//!
//! `cargo bench -p eventbucket --bench capture` prints criterion's figures for the whole call, and percentiles over single
//! calls, which include the two reads of the clock around each.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use eventbucket::transport::{Answer, Attempt, Sending};
use eventbucket::{Bucket, Transport, event};

/// Captures in a row before the worker is given time to empty the queue: at 600 B an event half of its 8 MiB.
const BURST: u64 = 5_000;
/// Single calls that are timed for the percentiles.
const CALLS: usize = 500_000;
const LONG: Duration = Duration::from_secs(60);

/// Stores everything.
struct Stores;

impl Transport for Stores {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        let reply =
            format!(r#"{{"batch_id":"b","events":{0},"all":{{"verdict":"stored"}}}}"#, attempt.events);
        Box::pin(std::future::ready(Ok(Answer::new(200).with_body(reply))))
    }
}

fn bucket() -> Bucket {
    Bucket::builder("http://127.0.0.1:1", "key").transport(Arc::new(Stores)).build().unwrap()
}

fn capture(bucket: &Bucket, number: u64) {
    black_box(bucket.capture(event!(
        "order_paid",
        user: "user-4711",
        plan: "pro",
        amount: 12.5,
        number: number,
        currency: "EUR",
        first: false,
    )));
}

/// Waits, outside the measurement, until everything is delivered.
fn drain(bucket: &Bucket) {
    let report = bucket.flush_blocking(LONG);
    assert_eq!((report.ledger.dropped.total(), report.timed_out), (0, false), "{report:?}");
}

fn whole_call(criterion: &mut Criterion) {
    let bucket = bucket();
    criterion.bench_function("capture, 5 properties, worker running", |bencher| {
        bencher.iter_custom(|calls| {
            let mut took = Duration::ZERO;
            let mut left = calls;
            while left > 0 {
                let burst = left.min(BURST);
                let began = Instant::now();
                (0..burst).for_each(|number| capture(&bucket, number));
                took += began.elapsed();
                drain(&bucket);
                left -= burst;
            }
            took
        });
    });
    report_percentiles(&bucket);
}

fn report_percentiles(bucket: &Bucket) {
    let mut calls_ns = Vec::with_capacity(CALLS);
    for number in 0..CALLS as u64 {
        let began = Instant::now();
        capture(bucket, number);
        calls_ns.push(began.elapsed().as_nanos());
        if number % BURST == BURST - 1 {
            drain(bucket);
        }
    }
    drain(bucket);
    calls_ns.sort_unstable();
    let at = |share: f64| calls_ns[((CALLS - 1) as f64 * share) as usize];
    println!(
        "single calls: p50 {} ns, p99 {} ns, p99.9 {} ns, max {} ns; {} captured, {} dropped",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        bucket.stats().captured,
        bucket.stats().dropped.total(),
    );
}

criterion_group!(benches, whole_call);
criterion_main!(benches);
