use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventbucket::{Bucket, Builder, Compression, Event, Fault as SdkFault, event};

use crate::server::{Fault, Request, Server};

const LONG: Duration = Duration::from_secs(60);

fn builder(server: &Server) -> Builder {
    Bucket::builder(&server.url, "eb_write_key").batch_age_max(Duration::from_millis(20))
}

fn capture(bucket: &Bucket, count: u32) {
    for number in 0..count {
        bucket.capture(event!("counted", user: "u", number: number));
    }
}

/// Captures, delivers, and sees to it that each event is in the log once.
fn deliver(server: &Server, bucket: &Bucket, count: u32) -> eventbucket::Report {
    capture(bucket, count);
    let report = bucket.shutdown_blocking(LONG);
    assert!(report.ledger.balances(), "{report:?}");
    assert_eq!((report.still_pending, report.timed_out), (0, false), "{report:?}");
    assert_eq!(server.state().log.len(), count as usize);
    report
}

#[test]
fn events_reach_a_server_in_batches_with_key_and_time() {
    let server = Server::start();
    let bucket = builder(&server).batch_events_max(400).build().unwrap();
    let report = deliver(&server, &bucket, 1_000);
    assert_eq!((report.delivered, report.ledger.delivered.stored), (1_000, 1_000));
    let state = server.state();
    assert!((3..=10).contains(&state.requests.len()), "{}", state.requests.len());
    assert!(state.requests.iter().all(|request| request.key == "Bearer eb_write_key"));
    assert!(state.requests.iter().all(|request| request.sent_at_ms > 1_700_000_000_000));
    let mut numbers: Vec<_> = state.log.iter().map(|event| event.properties.as_json().to_owned()).collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 1_000);
}

fn same_batch(first: &Request, second: &Request) {
    assert_eq!(first.batch, second.batch);
    assert_eq!(first.ids, second.ids);
    assert_eq!(first.body, second.body, "the same bytes");
    assert!(first.sent_at_ms <= second.sent_at_ms);
}

#[test]
fn a_lost_answer_is_healed_by_the_same_bytes_again() {
    let server = Server::start();
    server.fault(Fault::DropAnswer);
    let bucket = builder(&server).build().unwrap();
    let report = deliver(&server, &bucket, 100);
    assert_eq!(report.ledger.delivered.duplicate, 100, "taken the first time");
    let state = server.state();
    same_batch(&state.requests[0], &state.requests[1]);
}

#[test]
fn a_reply_with_too_few_verdicts_means_all_again() {
    let server = Server::start();
    server.fault(Fault::WrongCount);
    let bucket = builder(&server).build().unwrap();
    let report = deliver(&server, &bucket, 10);
    assert_eq!((report.ledger.delivered.stored, report.ledger.delivered.duplicate), (0, 10));
    let state = server.state();
    same_batch(&state.requests[0], &state.requests[1]);
}

#[test]
fn retry_after_is_waited_for() {
    let server = Server::start();
    server.fault(Fault::Status(503, Some(1)));
    let bucket = builder(&server).build().unwrap();
    let report = deliver(&server, &bucket, 10);
    assert_eq!(report.delivered, 10);
    let state = server.state();
    same_batch(&state.requests[0], &state.requests[1]);
    let waited_ms = state.requests[1].sent_at_ms - state.requests[0].sent_at_ms;
    assert!(waited_ms >= 1_000, "{waited_ms} ms, though a flush was asked for");
}

#[test]
fn verdicts_of_retry_go_into_a_new_batch() {
    let server = Server::start();
    server.fault(Fault::RetryOdd);
    let bucket = builder(&server).build().unwrap();
    let report = deliver(&server, &bucket, 10);
    assert_eq!(report.ledger.delivered.stored, 10);
    let state = server.state();
    let [first, second] = &state.requests[..] else { panic!("{} requests", state.requests.len()) };
    assert_ne!(first.batch, second.batch);
    let odd: Vec<_> = first.ids.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(second.ids, odd);
}

#[test]
fn a_batch_too_large_is_halved_until_it_fits() {
    let server = Server::start();
    server.state().events_max = Some(3);
    let bucket = builder(&server).build().unwrap();
    let report = deliver(&server, &bucket, 20);
    assert_eq!(report.ledger.delivered.stored, 20);
    let state = server.state();
    let mut batches: Vec<_> = state.requests.iter().map(|request| request.batch).collect();
    batches.sort();
    batches.dedup();
    assert_eq!(batches.len(), state.requests.len(), "every part has an id of its own");
    assert!(state.requests.iter().all(|request| (request.status == 413) == (request.ids.len() > 3)));
}

#[test]
fn a_single_event_too_large_for_the_collector_is_given_up_and_counted() {
    let server = Server::start();
    server.state().events_max = Some(0);
    let bucket = builder(&server).build().unwrap();
    capture(&bucket, 4);
    let report = bucket.shutdown_blocking(LONG);
    assert_eq!((report.ledger.dropped.too_large, report.still_pending), (4, 0));
    assert!(report.ledger.balances());
}

#[test]
fn what_is_too_large_is_told_with_its_size_and_where_the_limit_is() {
    let server = Server::start();
    server.fault(Fault::Status(413, None));
    server.fault(Fault::Plain(413));
    let told = Arc::<Mutex<Vec<String>>>::default();
    let tell = Arc::clone(&told);
    let hook = move |fault: &SdkFault| tell.lock().unwrap().push(fault.to_string());
    let bucket = builder(&server).compression(Compression::None).on_error(hook).build().unwrap();
    for _ in 0..2 {
        bucket.capture("n");
        assert!(!bucket.flush_blocking(LONG).timed_out);
    }
    let sent: Vec<usize> = server.state().requests.iter().map(|request| request.body.len()).collect();
    let told = told.lock().unwrap();
    let [collector, proxy] = &told[..] else { panic!("{told:?}") };
    assert!(collector.contains("the collector says: the test asked for 413"), "{collector}");
    assert!(proxy.contains("a proxy before it limits bodies"), "{proxy}");
    for (fault, sent) in [collector, proxy].into_iter().zip(sent) {
        assert!(fault.contains(&format!("{sent} as sent")) && fault.contains(&server.url), "{fault}");
    }
}

#[test]
fn a_batch_that_always_fails_holds_up_no_other() {
    let server = Server::start();
    server.state().fails_on = Some("poison");
    let bucket = builder(&server).batch_events_max(1).build().unwrap();
    bucket.capture("poison");
    capture(&bucket, 5);
    let began = std::time::Instant::now();
    while server.state().log.len() < 5 {
        assert!(began.elapsed() < LONG, "{:?}", bucket.stats());
        let _report = bucket.flush_blocking(Duration::from_millis(100));
    }
    let stats = bucket.stats();
    assert_eq!((stats.delivered.stored, stats.pending), (5, 1), "{stats:?}");
    assert!(stats.balances());
    let _report = bucket.shutdown_blocking(Duration::ZERO);
}

#[test]
fn one_event_the_collector_chokes_on_is_isolated() {
    let server = Server::start();
    server.state().chokes_on = Some("poison");
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let on_error = move |fault: &SdkFault| tell.lock().unwrap().push(fault.clone());
    let bucket = builder(&server).on_error(on_error).build().unwrap();
    capture(&bucket, 9);
    bucket.capture("poison");
    let report = bucket.shutdown_blocking(LONG);
    assert_eq!((report.delivered, report.rejected, report.dropped), (9, 1, 0), "{report:?}");
    assert!(report.ledger.balances());
    let told = told.lock().unwrap();
    let [SdkFault::Rejected { reason, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(reason.message, "the test asked for 400");
}

#[test]
fn a_proxy_that_answers_400_in_plain_text_costs_no_event() {
    let server = Server::start();
    server.fault(Fault::Plain(400));
    let bucket = builder(&server).build().unwrap();
    capture(&bucket, 10);
    server.wait_until("the first refusal", |state| !state.requests.is_empty());
    let report = bucket.flush_blocking(Duration::from_millis(200));
    assert_eq!((report.still_pending, report.rejected, report.dropped), (10, 0, 0), "{report:?}");
    assert_eq!(server.state().requests.len(), 1, "paused as a whole, not halved");
    let _report = bucket.shutdown_blocking(Duration::ZERO);
}

#[test]
fn a_refused_key_keeps_everything_and_is_told() {
    let server = Server::start();
    for _ in 0..8 {
        server.fault(Fault::Status(401, None));
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let on_error = move |fault: &SdkFault| tell.lock().unwrap().push(fault.clone());
    let bucket = builder(&server).on_error(on_error).build().unwrap();
    capture(&bucket, 10);
    server.wait_until("the first refusal", |state| !state.requests.is_empty());
    let report = bucket.flush_blocking(Duration::from_millis(200));
    assert_eq!((report.still_pending, report.dropped, report.timed_out), (10, 0, true));
    assert_eq!(server.state().requests.len(), 1, "paused, and no flush hurries it");
    let told = told.lock().unwrap();
    assert!(matches!(told[..], [SdkFault::Refused { status: 401, .. }]), "{told:?}");
}

#[test]
fn a_second_collector_takes_over() {
    let (first, second) = (Server::start(), Server::start());
    for _ in 0..1_000 {
        first.fault(Fault::Status(500, None));
    }
    let bucket = builder(&first).endpoint(&second.url).batch_events_max(10).build().unwrap();
    let report = deliver(&second, &bucket, 200);
    assert_eq!(report.ledger.delivered.stored, 200);
    let failed = first.state().requests.len();
    assert!((1..10).contains(&failed), "{failed} attempts at the one that fails");
}

#[test]
fn batches_go_to_all_collectors_in_turn() {
    let (first, second) = (Server::start(), Server::start());
    let bucket = builder(&first).endpoint(&second.url).batch_events_max(10).build().unwrap();
    capture(&bucket, 400);
    let _report = bucket.shutdown_blocking(LONG);
    let counts = [first.state().log.len(), second.state().log.len()];
    assert_eq!(counts[0] + counts[1], 400);
    // On a busy machine one of them may fail once, and is left alone for a while.
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
}

#[test]
fn without_a_network_events_wait_and_go_out_when_it_is_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let bucket = Bucket::builder(format!("http://{address}"), "key")
        .on_error(move |fault| tell.lock().unwrap().push(fault.to_string()))
        .build()
        .unwrap();
    capture(&bucket, 100);
    let report = bucket.flush_blocking(Duration::from_millis(300));
    assert_eq!((report.still_pending, report.timed_out), (100, true));
    let server = Server::start_at(&address);
    let report = bucket.flush_blocking(LONG);
    assert_eq!((report.delivered, report.still_pending), (100, 0), "{report:?}");
    assert_eq!(server.state().log.len(), 100);
    let told = told.lock().unwrap();
    assert!(told.len() == 1 && told[0].contains("kept"), "one outage is told once: {told:?}");
}

#[test]
fn age_alone_sends_a_batch_without_any_flush() {
    let server = Server::start();
    let bucket = builder(&server).build().unwrap();
    bucket.capture(Event::new("alone"));
    server.wait_until("the event", |state| state.log.len() == 1);
    assert!(bucket.stats().balances());
}
