use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventbucket::transport::{Attempt, Sending};
use eventbucket::{Bucket, CaptureError, Event, Overflow, Transport};

/// A collector that never answers.
struct Silent;

impl Transport for Silent {
    fn send<'a>(&'a self, _: &'a Attempt) -> Sending<'a> {
        Box::pin(pending())
    }
}

/// 2 MiB, the least a queue may take: about 20 of these events.
const QUEUE_BYTES: usize = 2 << 20;

fn large(number: u64) -> Event {
    Event::new("large").prop("number", number).prop("text", "x".repeat(100 * 1024))
}

fn silent(overflow: Overflow) -> Bucket {
    let builder = Bucket::builder("http://test.invalid", "key").transport(Arc::new(Silent));
    builder.queue_bytes_max(QUEUE_BYTES).on_overflow(overflow).build().unwrap()
}

fn end(bucket: &Bucket) {
    let report = bucket.shutdown_blocking(Duration::ZERO);
    assert!(report.ledger.balances(), "{:?}", report.ledger);
    assert_eq!(report.still_pending, 0, "memory alone keeps nothing");
    assert!(report.dropped > 0 && report.ledger.dropped.shutdown > 0);
}

#[test]
fn the_newest_is_dropped_when_the_queue_is_full() {
    let bucket = silent(Overflow::DropNewest);
    for number in 0..200 {
        bucket.capture(large(number));
        assert!(bucket.stats().balances());
    }
    let stats = bucket.stats();
    assert!(stats.dropped.overflow > 150, "{stats:?}");
    assert_eq!(stats.dropped.overflow + stats.pending, 200);
    assert!(stats.pending * 100 * 1024 <= QUEUE_BYTES as u64, "{stats:?}");
    assert_eq!(bucket.try_capture(large(200)), Err(CaptureError::QueueFull));
    end(&bucket);
}

#[test]
fn the_oldest_make_room_also_from_the_backlog() {
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .queue_bytes_max(QUEUE_BYTES)
        .on_overflow(Overflow::DropOldest)
        .build_test()
        .unwrap();
    for _ in 0..3 {
        sink.fail_next(503);
    }
    for number in 0..200 {
        bucket.capture(large(number));
        sink.settle();
        assert!(bucket.stats().balances());
    }
    for _ in 0..5 {
        sink.advance(Duration::from_secs(3_600));
    }
    let events = sink.events();
    // Not the last: a batch that failed twice lets the others go ahead.
    let newest = events.iter().any(|event| event.properties.as_json().contains("\"number\":199"));
    assert!(newest, "the newest is there");
    let stats = bucket.stats();
    assert!(stats.dropped.overflow > 100, "{stats:?}");
    assert_eq!(stats.dropped.overflow + stats.delivered.stored, 200, "{stats:?}");
}

#[test]
fn an_id_whose_event_was_pushed_out_may_be_captured_again() {
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .queue_bytes_max(QUEUE_BYTES)
        .batch_events_max(1)
        .on_overflow(Overflow::DropOldest)
        .build_test()
        .unwrap();
    for _ in 0..3 {
        sink.fail_next(503);
    }
    for number in 0..200 {
        bucket.capture(large(number).id(format!("order-{number}")));
        sink.settle();
    }
    let lost = bucket.stats().dropped.overflow;
    assert!(lost > 100, "{lost}");
    for _ in 0..10 {
        sink.advance(Duration::from_secs(10));
    }
    let mut arrived = sink.events().len() as u64;
    assert_eq!(arrived + lost, 200);
    for number in 0..200 {
        bucket.capture(Event::new("again").id(format!("order-{number}")));
    }
    arrived = sink.events().len() as u64 - arrived;
    assert_eq!((arrived, bucket.stats().withheld.duplicate), (lost, 200 - lost), "only what was lost passes");
    assert!(bucket.stats().balances());
}

#[test]
fn blocking_waits_for_room_and_no_longer() {
    let bucket = silent(Overflow::Block(Duration::from_millis(30)));
    let full = (0..200).find(|number| bucket.try_capture(large(*number)).is_err());
    assert!(full.is_some(), "try_capture never waits");
    let began = Instant::now();
    // Room may still be made once by events becoming smaller as they are encoded; not for ever.
    while bucket.stats().dropped.overflow < 2 {
        bucket.capture(large(0));
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    assert!(began.elapsed() >= Duration::from_millis(30));
    end(&bucket);
}

#[test]
fn a_blocked_capture_goes_on_when_room_is_made() {
    let (bucket, _sink) = Bucket::builder("http://test.invalid", "key")
        .queue_bytes_max(QUEUE_BYTES)
        .on_overflow(Overflow::Block(Duration::from_secs(60)))
        .build_test()
        .unwrap();
    for number in 0..200 {
        bucket.capture(large(number));
    }
    let report = bucket.flush_blocking(Duration::from_secs(60));
    assert_eq!((report.ledger.delivered.stored, report.ledger.dropped.overflow), (200, 0));
}

#[test]
fn a_blocked_capture_ends_with_the_bucket() {
    let bucket = silent(Overflow::Block(Duration::from_secs(3_600)));
    while bucket.try_capture(large(0)).is_ok() {}
    let blocked = {
        let bucket = bucket.clone();
        std::thread::spawn(move || {
            for number in 0..100 {
                bucket.capture(large(number));
            }
        })
    };
    let report = bucket.shutdown_blocking(Duration::ZERO);
    blocked.join().unwrap();
    assert!(bucket.stats().balances() && report.ledger.balances());
}

#[test]
fn one_giant_property_costs_its_own_event_alone() {
    let bucket = silent(Overflow::DropOldest);
    for _ in 0..100 {
        bucket.capture(Event::new("small"));
    }
    bucket.capture(Event::new("giant").prop("text", "x".repeat(9 * 1024 * 1024)));
    let stats = bucket.stats();
    assert_eq!((stats.dropped.overflow, stats.dropped.invalid, stats.pending), (0, 1, 100), "{stats:?}");
    end(&bucket);
}
