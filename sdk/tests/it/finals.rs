//! What became of events that a collector only queued.

use std::time::{Duration, Instant};

use eventbucket::{Bucket, Builder, Event};

use crate::server::{Fault, Server};

const LONG: Duration = Duration::from_secs(60);

fn server(pending: usize) -> Server {
    let server = Server::start();
    server.state().queues = Some(pending);
    server
}

fn builder(server: &Server) -> Builder {
    Bucket::builder(&server.url, "eb_write_key").batch_events_max(10).final_verdicts(true)
}

fn capture(bucket: &Bucket, count: u32) {
    for number in 0..count {
        bucket.capture(Event::new("n").id(format!("e{number}")));
    }
}

#[test]
fn a_flush_waits_for_the_final_verdicts() {
    let server = server(3);
    let bucket = builder(&server).build().unwrap();
    capture(&bucket, 30);
    let report = bucket.flush_blocking(LONG);
    assert_eq!((report.delivered, report.timed_out), (30, false), "{report:?}");
    assert_eq!((report.ledger.delivered.stored, report.ledger.delivered.accepted), (30, 0), "{report:?}");
    assert!(report.ledger.balances());
    let _report = bucket.shutdown_blocking(LONG);

    let again = builder(&server).build().unwrap();
    capture(&again, 30);
    let ledger = again.shutdown_blocking(LONG).ledger;
    assert_eq!((ledger.delivered.duplicate, ledger.delivered.total()), (30, 30), "{ledger:?}");
}

#[test]
fn without_asking_accepted_events_are_delivered_and_nobody_waits() {
    let server = server(0);
    let bucket = builder(&server).final_verdicts(false).build().unwrap();
    capture(&bucket, 30);
    let report = bucket.shutdown_blocking(LONG);
    assert_eq!((report.delivered, report.ledger.delivered.accepted), (30, 30), "{report:?}");
    assert_eq!(server.state().questions, 0);
}

#[test]
fn a_verdict_that_never_comes_costs_the_deadline_and_no_event() {
    let server = server(usize::MAX);
    let bucket = builder(&server).build().unwrap();
    capture(&bucket, 10);
    server.wait_until("the first question", |state| state.questions > 0);
    let report = bucket.shutdown_blocking(Duration::from_millis(300));
    assert_eq!(report.ledger.delivered.accepted, 10, "{report:?}");
    assert_eq!((report.still_pending, report.dropped), (0, 0), "{report:?}");
}

#[test]
fn a_resend_after_a_lost_answer_is_told_what_became_of_the_first() {
    let server = server(0);
    server.fault(Fault::DropAnswer);
    let bucket = builder(&server).build().unwrap();
    capture(&bucket, 10);
    let ledger = bucket.shutdown_blocking(LONG).ledger;
    assert!(ledger.balances());
    assert_eq!(ledger.delivered.total(), 10, "{ledger:?}");
    assert_eq!(server.state().log.len(), 10);
}

#[test]
fn a_batch_that_is_never_known_does_not_keep_the_others_from_being_final() {
    let server = server(0);
    server.state().loses = 1;
    let bucket = builder(&server).build().unwrap();
    capture(&bucket, 10);
    server.wait_until("the lost batch is asked for", |state| state.questions > 0);
    for number in 10..40 {
        bucket.capture(Event::new("n").id(format!("e{number}")));
    }
    let end = Instant::now() + LONG;
    while bucket.stats().delivered.stored < 30 {
        assert!(Instant::now() < end, "{:?}", bucket.stats());
        let _report = bucket.flush_blocking(Duration::from_millis(5));
    }
    let ledger = bucket.shutdown_blocking(Duration::from_millis(100)).ledger;
    assert_eq!((ledger.delivered.stored, ledger.delivered.accepted), (30, 10), "{ledger:?}");
    assert!(ledger.balances());
}
