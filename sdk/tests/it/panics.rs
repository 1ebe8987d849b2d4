use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use eventbucket::transport::{Answer, Attempt, Sending};
use eventbucket::{Bucket, Event, Fault, Transport, event};

#[test]
fn a_panicking_hook_costs_its_event_alone() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .before_send(|event| if event.name() == "bad" { panic!("hook: no") } else { Some(event) })
        .on_error(move |fault| {
            tell.lock().unwrap().push(fault.to_string());
            panic!("and so does on_error");
        })
        .build_test()
        .unwrap();
    for name in ["good", "bad", "good", "bad"] {
        bucket.capture(name);
    }
    assert_eq!(sink.events().len(), 2);
    let stats = bucket.stats();
    assert_eq!((stats.dropped.hook_panicked, stats.worker_restarts), (2, 0));
    assert!(stats.balances());
    assert_eq!(*told.lock().unwrap(), ["contained a panic of before_send: hook: no"; 2]);
    // They are told with the next figures: it is the telling that failed.
    bucket.capture("good");
    assert_eq!(sink.events().len(), 3);
    assert_eq!(bucket.stats().on_error_panics, 2);
}

/// Panics a number of times, at once or while it is polled, then stores everything.
struct Shaky {
    panics: AtomicU32,
    bodies: Mutex<Vec<Arc<[u8]>>>,
}

impl Transport for Shaky {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        self.bodies.lock().unwrap().push(Arc::clone(&attempt.body));
        let left = self.panics.load(Ordering::SeqCst);
        if left > 0 {
            self.panics.store(left - 1, Ordering::SeqCst);
            assert!(left.is_multiple_of(2), "a panic before the future");
        }
        Box::pin(async move {
            assert!(left == 0, "a panic within the future");
            let reply =
                format!(r#"{{"batch_id":"b","events":{0},"all":{{"verdict":"stored"}}}}"#, attempt.events);
            Ok(Answer::new(200).with_body(reply))
        })
    }
}

#[test]
fn a_panicking_transport_loses_nothing_and_is_counted() {
    let shaky = Arc::new(Shaky { panics: AtomicU32::new(2), bodies: Mutex::default() });
    let faults = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&faults);
    let bucket = Bucket::builder("http://test.invalid", "key")
        .transport(Arc::clone(&shaky) as Arc<dyn Transport>)
        .on_error(move |fault| {
            if let Fault::Panicked { who: "transport", .. } = fault {
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()
        .unwrap();
    for _ in 0..10 {
        bucket.capture(event!("kept", user: "u"));
    }
    let report = bucket.shutdown_blocking(Duration::from_secs(60));
    assert_eq!((report.delivered, report.dropped, report.still_pending), (10, 0, 0), "{report:?}");
    assert_eq!((report.ledger.worker_restarts, faults.load(Ordering::SeqCst)), (2, 2));
    let bodies = shaky.bodies.lock().unwrap();
    assert_eq!(bodies.len(), 3);
    assert!(bodies.iter().all(|body| *body == bodies[0]), "a whole resend has the same bytes");
}

/// Whoever waits for a durable capture is woken in the worker itself, in none of the places it guards one by one.
#[test]
fn a_worker_that_panics_is_restarted_and_goes_on() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("the application's waker");
        }
    }
    let (bucket, sink) = Bucket::test();
    let waker = Waker::from(Arc::new(Panics));
    let mut durable = bucket.capture_durable("first");
    // The worker may have answered before it is asked: then nobody is woken.
    let asked = Pin::new(&mut durable).poll(&mut Context::from_waker(&waker));
    bucket.capture("second");
    let report = bucket.flush_blocking(Duration::from_secs(60));
    assert_eq!(report.still_pending, 0, "{report:?}");
    bucket.capture("third");
    assert_eq!(sink.events().last().map(|event| event.name.clone()).as_deref(), Some("third"));
    let stats = bucket.stats();
    assert!(stats.balances(), "{stats:?}");
    assert_eq!((stats.captured, stats.worker_restarts), (3, u64::from(asked.is_pending())), "{stats:?}");
}

#[test]
fn a_bucket_survives_captures_from_a_thread_that_panics() {
    let (bucket, sink) = Bucket::test();
    struct OnDrop(Bucket);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.capture(Event::new("dropped").prop("panicking", std::thread::panicking()));
            let report = self.0.flush_blocking(Duration::from_secs(30));
            assert_eq!(report.still_pending, 0);
        }
    }
    let guard = OnDrop(bucket.clone());
    let thread = std::thread::spawn(move || {
        let _guard = guard;
        panic!("the application's own");
    });
    assert!(thread.join().is_err());
    assert_eq!(sink.events()[0].properties.as_json(), r#"{"panicking":true}"#);
}
