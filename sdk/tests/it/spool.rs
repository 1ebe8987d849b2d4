use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eventbucket::transport::{Answer, Attempt, SendError, Sending};
use eventbucket::{Bucket, Builder, CaptureError, Event, Overflow, Transport, event};

const LONG: Duration = Duration::from_secs(60);

/// A collector that can be switched off, and keeps the bodies.
#[derive(Default)]
struct Switch {
    on: Mutex<bool>,
    bodies: Mutex<Vec<Arc<[u8]>>>,
}

impl Switch {
    fn set(&self, on: bool) {
        *self.on.lock().unwrap() = on;
    }
}

impl Transport for Switch {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        Box::pin(async move {
            self.bodies.lock().unwrap().push(Arc::clone(&attempt.body));
            if !*self.on.lock().unwrap() {
                return Err(SendError::connect("switched off"));
            }
            let reply = format!(
                r#"{{"batch_id":"b","events":{0},"verdicts":[{1}]}}"#,
                attempt.events,
                vec![r#"{"verdict":"stored"}"#; attempt.events].join(",")
            );
            Ok(Answer::new(200).with_body(reply))
        })
    }
}

fn builder(folder: &Path, switch: &Arc<Switch>) -> Builder {
    Bucket::builder("http://test.invalid", "key")
        .transport(Arc::clone(switch) as Arc<dyn Transport>)
        .spool(folder)
}

fn capture(bucket: &Bucket, count: u32) {
    for number in 0..count {
        bucket.capture(event!("kept", number: number));
    }
}

#[test]
fn what_one_bucket_leaves_the_next_delivers_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let first = builder(folder.path(), &switch).build().unwrap();
    capture(&first, 250);
    let report = first.flush_blocking(Duration::from_millis(200));
    assert_eq!((report.still_pending, report.timed_out), (250, true));
    let report = first.shutdown_blocking(Duration::ZERO);
    assert_eq!((report.still_pending, report.dropped), (250, 0), "the spool keeps them: {report:?}");
    switch.set(true);
    let second = builder(folder.path(), &switch).build().unwrap();
    let report = second.shutdown_blocking(LONG);
    assert_eq!(
        (report.ledger.recovered, report.delivered, report.still_pending),
        (250, 250, 0),
        "{report:?}"
    );
    assert!(report.ledger.balances());
    let bodies = switch.bodies.lock().unwrap();
    assert_eq!(bodies.first(), bodies.last(), "the same bytes after a restart");
}

#[test]
fn dropping_with_a_spool_waits_for_no_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let bucket = builder(folder.path(), &switch).build().unwrap();
    capture(&bucket, 100);
    drop(bucket);
    let switch = Arc::new(Switch::default());
    switch.set(true);
    let next = builder(folder.path(), &switch).build().unwrap();
    assert_eq!(next.shutdown_blocking(LONG).delivered, 100);
}

#[test]
fn durable_resolves_once_the_event_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = builder(folder.path(), &Arc::default()).build().unwrap();
    let id = bucket.capture_durable(Event::new("paid").id("order-1")).wait(LONG).unwrap();
    assert_eq!(id.to_string(), "order-1");
    let again = bucket.capture_durable(Event::new("paid").id("order-1")).wait(LONG);
    assert_eq!(again, Err(CaptureError::Withheld));
    assert_eq!(bucket.stats().pending, 1);
}

#[test]
fn a_file_that_is_set_aside_or_left_alone_is_told_once_and_keeps_nothing_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let name = |number: u8| format!("spool-0190163d-8694-739b-aea5-966c26f8ad9{number}.db");
    std::fs::write(folder.path().join(name(1)), vec![0xA5; 50_000]).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .spool(folder.path())
        .on_error(move |fault| tell.lock().unwrap().push(fault.to_string()))
        .build_test()
        .unwrap();
    bucket.capture_durable("kept").wait(LONG).expect("the spool works");
    sink.advance(Duration::from_secs(300));
    {
        let told = told.lock().unwrap();
        let [fault] = &told[..] else { panic!("{told:?}") };
        assert!(fault.contains("renamed to *.corrupt-*") && !fault.contains("memory"), "{fault}");
    }
    told.lock().unwrap().clear();
    // A database of another program.
    let foreign = folder.path().join(name(2));
    std::fs::copy(
        std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "db"))
            .unwrap(),
        &foreign,
    )
    .unwrap();
    let mut bytes = std::fs::read(&foreign).unwrap();
    bytes[68..72].copy_from_slice(b"Else");
    std::fs::write(&foreign, bytes).unwrap();
    for _ in 0..5 {
        sink.advance(Duration::from_secs(61));
        bucket.capture("more");
    }
    let told = told.lock().unwrap();
    let [fault] = &told[..] else { panic!("{told:?}") };
    assert!(fault.contains("left alone") && !fault.contains("memory"), "{fault}");
}

#[test]
fn an_id_whose_event_was_pushed_out_of_the_spool_may_be_captured_again() {
    let folder = tempfile::tempdir().unwrap();
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .spool(folder.path())
        .spool_bytes_max(1 << 20)
        .batch_events_max(1)
        .on_overflow(Overflow::DropOldest)
        .build_test()
        .unwrap();
    for _ in 0..3 {
        sink.fail_next(503);
    }
    let large =
        |number: u32| Event::new("large").id(format!("order-{number}")).prop("text", "x".repeat(100 * 1024));
    for number in 0..50 {
        bucket.capture(large(number));
        sink.settle();
    }
    let lost = bucket.stats().dropped.spool_full;
    assert!(lost > 20, "{:?}", bucket.stats());
    for _ in 0..10 {
        sink.advance(Duration::from_secs(10));
    }
    let arrived = sink.events().len() as u64;
    assert_eq!(arrived + lost, 50);
    for number in 0..50 {
        bucket.capture(Event::new("again").id(format!("order-{number}")));
    }
    let again = sink.events().len() as u64 - arrived;
    assert_eq!((again, bucket.stats().withheld.duplicate), (lost, 50 - lost), "only what was lost passes");
    assert!(bucket.stats().balances());
}

#[test]
fn a_folder_that_cannot_be_used_degrades_to_memory_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    // A file in the way stops even root, unlike permissions.
    let parent = folder.path().join("file");
    std::fs::write(&parent, "in the way").unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
        .spool(parent.join("spool"))
        .on_error(move |fault| tell.lock().unwrap().push(fault.to_string()))
        .build_test()
        .unwrap();
    sink.fail_next(503);
    capture(&bucket, 10);
    let durable = bucket.capture_durable("paid").wait(LONG);
    assert!(matches!(durable, Err(CaptureError::NotDurable(_))), "{durable:?}");
    sink.settle();
    assert!(bucket.stats().spool_failures > 0 && bucket.stats().balances());
    assert!(told.lock().unwrap().iter().any(|fault| fault.contains("held in memory")), "{told:?}");
    std::fs::remove_file(&parent).unwrap();
    sink.advance(Duration::from_secs(31));
    bucket.capture_durable("after").wait(LONG).expect("the disk works again");
    assert_eq!(sink.events().len(), 12);
    assert!(bucket.stats().balances());
}

#[test]
fn a_full_spool_falls_back_to_memory_or_drops_the_oldest() {
    for (overflow, dropped) in [(Overflow::DropNewest, false), (Overflow::DropOldest, true)] {
        let folder = tempfile::tempdir().unwrap();
        let switch = Arc::new(Switch::default());
        let builder = builder(folder.path(), &switch).spool_bytes_max(64 * 1024).batch_events_max(50);
        let bucket = builder.on_overflow(overflow).build().unwrap();
        for number in 0..1_000 {
            bucket.capture(event!("kept", number: number, text: "x".repeat(100)));
        }
        let began = Instant::now();
        let mut _report = bucket.flush_blocking(Duration::from_millis(100));
        while dropped && bucket.stats().dropped.spool_full == 0 {
            assert!(began.elapsed() < LONG, "{:?}", bucket.stats());
            _report = bucket.flush_blocking(Duration::from_millis(100));
        }
        let stats = bucket.stats();
        assert!(stats.balances(), "{stats:?}");
        assert_eq!(stats.dropped.spool_full > 0, dropped, "{stats:?}");
        switch.set(true);
        let report = bucket.shutdown_blocking(LONG);
        assert_eq!(report.ledger.delivered.stored + report.ledger.dropped.spool_full, 1_000, "{report:?}");
        assert!(report.ledger.balances());
    }
}

#[test]
fn an_event_that_no_collector_takes_is_kept_aside_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let (bucket, sink) =
        Bucket::builder("http://test.invalid", "key").spool(folder.path()).build_test().unwrap();
    sink.fail_next(413);
    bucket.capture(event!("large", number: 7));
    sink.settle();
    let report = bucket.shutdown_blocking(LONG);
    assert_eq!((report.ledger.dropped.too_large, report.still_pending), (1, 0), "{report:?}");
    assert!(report.ledger.balances());
    let mut files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let file =
        files.find(|path| path.extension().is_some_and(|ending| ending == "db")).expect("the file stays");
    let spool = rusqlite::Connection::open(file).unwrap();
    let select = "SELECT count(*), min(reason), instr(min(body), 'large') > 0 FROM dead_letters";
    let (count, reason, body): (i64, String, bool) =
        spool.query_row(select, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    assert_eq!((count, body), (1, true));
    assert!(reason.contains("413") || reason.contains("too large"), "{reason}");
}

#[test]
fn the_newest_are_kept_at_the_end_where_the_oldest_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let builder = builder(folder.path(), &switch).spool_bytes_max(64 * 1024).batch_events_max(50);
    let bucket = builder.on_overflow(Overflow::DropOldest).build().unwrap();
    for number in 0..1_000 {
        bucket.capture(event!("kept", number: number, text: "x".repeat(100)));
    }
    let report = bucket.shutdown_blocking(Duration::from_millis(500));
    let dropped = &report.ledger.dropped;
    assert!(dropped.spool_full > 0 && dropped.shutdown == 0, "{report:?}");
    let (next, sink) =
        Bucket::builder("http://test.invalid", "key").spool(folder.path()).build_test().unwrap();
    assert_eq!(next.flush_blocking(LONG).still_pending, 0);
    let number = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["number"].as_u64();
    let numbers: Vec<u64> =
        sink.events().iter().filter_map(|event| number(event.properties.as_json())).collect();
    assert_eq!(numbers, (1_000 - numbers.len() as u64..1_000).collect::<Vec<_>>());
}

#[test]
fn what_others_left_is_taken_over_also_by_a_process_that_never_rests() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = || Bucket::builder("http://test.invalid", "key").spool(folder.path()).build_test().unwrap();
    let (busy, sink) = bucket();
    // Its own batch waits all the time.
    sink.answer_next(Answer::new(503).with_retry_after(Duration::from_secs(3_600)));
    capture(&busy, 1);
    sink.settle();
    let (other, others_sink) = bucket();
    others_sink.answer_next(Answer::new(503).with_retry_after(Duration::from_secs(3_600)));
    capture(&other, 5);
    others_sink.settle();
    assert_eq!(other.shutdown_blocking(Duration::ZERO).still_pending, 5);
    drop(other);
    sink.advance(Duration::from_secs(61));
    let stats = busy.stats();
    assert_eq!((stats.recovered, stats.pending), (5, 6), "{stats:?}");
    sink.advance(Duration::from_secs(3_600));
    assert_eq!(busy.flush_blocking(LONG).still_pending, 0);
    let stats = busy.stats();
    assert_eq!(stats.delivered.stored, 6, "{stats:?}");
    assert!(stats.balances(), "{stats:?}");
}

#[test]
fn events_that_got_too_old_are_given_up_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (bucket, sink) =
        Bucket::builder("http://test.invalid", "key").spool(folder.path()).build_test().unwrap();
    sink.answer_next(Answer::new(503).with_retry_after(Duration::from_secs(3_600)));
    capture(&bucket, 5);
    sink.settle();
    for _ in 0..200 {
        sink.fail_next(503);
    }
    for _ in 0..8 {
        sink.advance(Duration::from_secs(24 * 3_600));
    }
    let stats = bucket.stats();
    assert_eq!((stats.dropped.too_old, stats.pending), (5, 0), "{stats:?}");
}

const LOSABLE: Duration = Duration::from_millis(50);
/// What a loaded machine may keep a thread from running, on top.
const SCHEDULING: Duration = Duration::from_millis(450);

#[test]
#[ignore = "the child of `sigkill_loses_at_most_the_last_moment_of_the_rest`"]
fn chatting_process() {
    let folder = std::env::var(CHILD).expect("only started by the test below it");
    let bucket = builder(Path::new(&folder), &Arc::default()).build().unwrap();
    let began = Instant::now();
    for number in 0_u32.. {
        let at = began.elapsed();
        bucket.capture(event!("chatted", number: number));
        println!("captured {number} at {}", at.as_millis());
        // Paced by a channel nobody writes to.
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        let _timeout = receiver.recv_timeout(Duration::from_millis(1));
    }
}

#[test]
fn sigkill_loses_at_most_the_last_moment_of_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let mut captured = 0;
    let mut losable = 0;
    for _ in 0..3 {
        let (mut child, lines) = start_child("spool::chatting_process", folder.path());
        let mut said = lines.filter_map(|line| {
            let (_, at) = line.split_once("captured ")?.1.split_once(" at ")?;
            at.trim().parse::<u64>().ok()
        });
        let mut times: Vec<u64> = Vec::new();
        while times.last().is_none_or(|at| *at < 1_200) {
            times.push(said.next().expect("the child goes on until it is killed"));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        times.extend(said);
        let end = times.last().copied().unwrap();
        let window = u64::try_from((LOSABLE + SCHEDULING).as_millis()).unwrap();
        captured += times.len() as u64;
        losable += times.iter().filter(|at| **at + window >= end).count() as u64;
    }
    let switch = Arc::new(Switch::default());
    switch.set(true);
    let bucket = builder(folder.path(), &switch).build().unwrap();
    let report = bucket.shutdown_blocking(LONG);
    println!("{captured} captured, {} recovered, {losable} losable", report.ledger.recovered);
    assert!(report.delivered + losable >= captured, "{captured}, {losable}: {report:?}");
    assert!(losable * 2 < captured, "the test must be able to fail");
}

fn start_child(name: &str, folder: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The last line may be cut in the middle.
    (child, lines.map_while(Result::ok))
}

const CHILD: &str = "EVENTBUCKET_TEST_SPOOL_FOLDER";

#[test]
#[ignore = "the child of `sigkill_loses_nothing_that_was_confirmed`"]
fn capturing_process() {
    let folder = std::env::var(CHILD).expect("only started by the test below it");
    let bucket = builder(Path::new(&folder), &Arc::default()).build().unwrap();
    for number in 0_u32.. {
        let durable = bucket.capture_durable(event!("confirmed", number: number));
        durable.wait(LONG).unwrap();
        println!("confirmed {number}");
    }
}

#[test]
fn sigkill_loses_nothing_that_was_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let mut confirmed = 0;
    for _ in 0..5 {
        let (mut child, lines) = start_child("spool::capturing_process", folder.path());
        let mut said = lines.filter(|line| line.contains("confirmed "));
        for _ in 0..20 {
            said.next().expect("the child goes on until it is killed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        confirmed += 20 + said.count() as u64;
    }
    let switch = Arc::new(Switch::default());
    switch.set(true);
    let bucket = builder(folder.path(), &switch).build().unwrap();
    let report = bucket.shutdown_blocking(LONG);
    // By the ledger: the worker may have delivered some before it was asked for a report. Each kill may come between the
    // commit and the word about it.
    let delivered = report.ledger.delivered.total();
    assert!((confirmed..=confirmed + 5).contains(&delivered), "{confirmed}: {report:?}");
    assert_eq!((report.ledger.recovered, report.still_pending), (delivered, 0));
}
