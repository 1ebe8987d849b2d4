use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use eventbucket::transport::{Attempt, Sending};
use eventbucket::{Bucket, Transport};

/// The smallest executor there is: not tokio, and it has no timers.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

async fn capture_flush_shutdown(bucket: Bucket) {
    bucket.capture("one");
    assert_eq!(bucket.flush().await.delivered, 1);
    bucket.capture("two");
    let report = bucket.flush_blocking(Duration::from_secs(30));
    assert_eq!((report.delivered, report.timed_out), (1, false));
    bucket.capture("three");
    let report = bucket.shutdown().await;
    assert_eq!((report.delivered, report.still_pending, report.timed_out), (1, 0, false));
}

#[test]
fn futures_work_on_any_executor() {
    block_on(capture_flush_shutdown(Bucket::test().0));
}

#[tokio::test(flavor = "current_thread")]
async fn futures_and_blocking_forms_work_on_a_current_thread_runtime() {
    capture_flush_shutdown(Bucket::test().0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_and_blocking_forms_work_on_a_multi_thread_runtime() {
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(capture_flush_shutdown(Bucket::test().0))).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_last_bucket_dropped_inside_a_runtime_delivers() {
    let (bucket, sink) = Bucket::test();
    bucket.capture("last");
    drop(bucket);
    assert_eq!(sink.events().len(), 1);
}

struct Silent;

impl Transport for Silent {
    fn send<'a>(&'a self, _: &'a Attempt) -> Sending<'a> {
        Box::pin(pending())
    }
}

fn silent() -> Bucket {
    Bucket::builder("http://test.invalid", "key").transport(Arc::new(Silent)).build().unwrap()
}

#[test]
fn deadlines_hold_when_nobody_answers() {
    let bucket = silent();
    bucket.capture("kept");
    let began = Instant::now();
    let report = bucket.flush_blocking(Duration::from_millis(50));
    assert_eq!((report.still_pending, report.timed_out), (1, true));
    let report = bucket.shutdown_blocking(Duration::from_millis(50));
    assert_eq!((report.still_pending, report.dropped, report.timed_out), (0, 1, true));
    assert!(report.ledger.balances());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn dropping_without_a_spool_waits_a_second_at_most() {
    let bucket = silent();
    bucket.capture("lost");
    let began = Instant::now();
    drop(bucket);
    let took = began.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(20)).contains(&took), "{took:?}");
}

#[test]
fn dropping_an_idle_bucket_does_not_wait() {
    let bucket = silent();
    let began = Instant::now();
    drop(bucket);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
}

#[test]
fn the_worker_never_waits_for_itself() {
    let cell: Arc<std::sync::OnceLock<Bucket>> = Arc::default();
    let own = Arc::clone(&cell);
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .before_send(move |event| {
            let bucket = own.get().expect("the bucket is set before the first capture");
            if event.name() == "outer" {
                let began = Instant::now();
                bucket.capture("inner");
                assert!(bucket.flush_blocking(Duration::from_secs(60)).timed_out);
                assert!(bucket.capture_durable("durable").wait(Duration::from_secs(60)).is_err());
                assert!(began.elapsed() < Duration::from_secs(30));
            }
            Some(event)
        })
        .build_test()
        .unwrap();
    cell.set(bucket.clone()).unwrap();
    bucket.capture("outer");
    assert_eq!(sink.events().len(), 3);
    assert_eq!(bucket.stats().dropped.hook_panicked, 0);
}

#[test]
fn many_threads_capture_at_once_and_nothing_is_lost() {
    let (bucket, sink) = Bucket::test();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bucket = bucket.clone();
            scope.spawn(move || {
                for number in 0..500 {
                    bucket.capture(eventbucket::event!("counted", thread: thread, number: number));
                    assert!(number % 100 != 0 || bucket.stats().balances());
                }
            });
        }
    });
    assert_eq!(sink.events().len(), 2_000);
    assert_eq!(bucket.stats().delivered.stored, 2_000);
}
