//! Processes of a distributed collector that are restarted one after the other, or alone, while an application sends.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use eventbucket::transport::{Answer, Attempt, HttpTransport, Inquiry, Question, Sending};
use eventbucket::{Bucket, Builder, Event, Ledger, Transport};
use eventbucket_servers::{Redis, shared};

use crate::harness::{Collector, DEADLINE, Keys, eventually};

/// What must have arrived before the next process is stopped, and again once it is back: some dozens of batches.
const PROGRESS: u64 = 500;

/// The processes of one collector on servers of its own, each in a folder of its own.
struct Cluster {
    processes: Vec<Collector>,
    keys: Keys,
    _redis: Redis,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts one process for each list of roles; the first has `query`, which shows the keys and reads.
    fn start(roles: &[&str]) -> Self {
        let redis = Redis::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = format!(
            "[store]\nurl = \"{}\"\n[bus]\nurl = \"{}\"\nshards = 2\n[cache]\nurl = \"{}\"\n",
            shared::database(),
            shared::vhost(),
            redis.url(),
        );
        let start =
            |(number, roles): (usize, &&str)| process(&folder.path().join(number.to_string()), &file, roles);
        let processes: Vec<Collector> = roles.iter().enumerate().map(start).collect();
        let keys = processes[0].keys().clone();
        let cluster = Self { processes, keys, _redis: redis, _folder: folder };
        cluster.processes.iter().for_each(ready);
        cluster
    }

    /// Stops a process by SIGTERM, waits for its end and starts it again.
    fn restart(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let status = process.terminate();
        let said = process.logged();
        assert_eq!(status.code(), Some(0), "process {index}: {said}");
        assert!(!said.contains("did not end in time"), "process {index} kept its deadline: {said}");
        process.restart();
        ready(process);
    }

    /// Everything that was captured is in the log once and counted once, and nothing came to storage twice.
    fn holds(&self, ledger: &Ledger) {
        let audit = self.processes[0].over_http(&["audit", "--json"]).json();
        assert_eq!(audit["projects"][0]["stored"], ledger.captured, "{audit}");
        assert_eq!(audit["projects"][0]["applied_to"], ledger.captured, "{audit}");
        let metrics = self.processes[0].metrics();
        let figure = |verdict: &str| {
            let line = metrics.lines().find(|line| {
                line.starts_with("eventbucket_events_total") && line.contains(&format!("\"{verdict}\""))
            });
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            value.unwrap_or_else(|| panic!("no figure of {verdict} in {metrics}"))
        };
        assert_eq!((figure("stored"), figure("duplicate")), (ledger.captured, 0), "{metrics}");
    }
}

fn process(folder: &Path, file: &str, roles: &str) -> Collector {
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("eventbucket.toml"), file).unwrap();
    Collector::start_in(folder, &["--roles", roles])
}

fn ready(process: &Collector) {
    eventually("a process is ready", || process.get("/healthz/ready").starts_with("HTTP/1.1 200"));
}

/// The SDK's own transport, with every attempt noted: where it went, and whether it failed.
struct Watched {
    inner: HttpTransport,
    attempts: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
}

impl Watched {
    fn new() -> Arc<Self> {
        let inner = HttpTransport::builder().build().unwrap();
        Arc::new(Self { inner, attempts: Mutex::default(), failed: Mutex::default() })
    }

    fn attempts_to(&self, url: &str) -> usize {
        self.attempts.lock().unwrap().iter().filter(|endpoint| *endpoint == url).count()
    }

    fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }
}

impl Transport for Watched {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        Box::pin(async move {
            self.attempts.lock().unwrap().push(attempt.endpoint.clone());
            let answer = self.inner.send(attempt).await;
            if !matches!(&answer, Ok(Answer { status: 200, .. })) {
                self.failed.lock().unwrap().push(format!("{}: {answer:?}", attempt.endpoint));
            }
            answer
        })
    }

    fn ask<'a>(&'a self, question: &'a Question) -> Sending<'a> {
        self.inner.ask(question)
    }

    fn discover<'a>(&'a self, inquiry: &'a Inquiry) -> Sending<'a> {
        self.inner.discover(inquiry)
    }
}

/// An application that captures about a thousand numbered events a second, in small batches.
struct Application {
    bucket: Bucket,
    watched: Arc<Watched>,
    faults: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    capturing: JoinHandle<()>,
}

impl Application {
    fn start(cluster: &Cluster, edges: &[&str], set: impl FnOnce(Builder) -> Builder) -> Self {
        let (watched, faults) = (Watched::new(), Arc::<Mutex<Vec<String>>>::default());
        let told = Arc::clone(&faults);
        let builder = Bucket::builder(edges[0], &cluster.keys.write)
            .transport(Arc::clone(&watched) as Arc<dyn Transport>)
            .batch_age_max(Duration::from_millis(20))
            .final_verdicts(true)
            .on_error(move |fault| told.lock().unwrap().push(fault.to_string()));
        let builder = edges[1..].iter().fold(builder, |builder, url| builder.endpoint(*url));
        let bucket = set(builder).build().unwrap();
        let stop = Arc::<AtomicBool>::default();
        let (stopped, capturer) = (Arc::clone(&stop), bucket.clone());
        let capturing = std::thread::spawn(move || {
            let number = AtomicU64::new(0);
            while !stopped.load(Ordering::Relaxed) {
                let number = number.fetch_add(1, Ordering::Relaxed);
                capturer.capture(Event::new("rolled").id(format!("n-{number}")).prop("number", number));
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        Self { bucket, watched, faults, stop, capturing }
    }

    /// Waits until so much more was answered for.
    fn progress(&self) {
        let before = self.bucket.stats().delivered.total();
        eventually("events arrive", || self.bucket.stats().delivered.total() >= before + PROGRESS);
    }

    /// Ends the sending and waits until what became of everything is known.
    fn end(self) -> (Ledger, Vec<String>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.capturing.join().unwrap();
        let report = self.bucket.shutdown_blocking(DEADLINE);
        let ledger = report.ledger;
        assert!(ledger.balances() && !report.timed_out, "{ledger:?}");
        let lost = (ledger.rejected, ledger.dropped.total(), ledger.withheld.total(), ledger.pending);
        assert_eq!(lost, (0, 0, 0, 0), "{ledger:?}");
        assert_eq!(ledger.delivered.stored, ledger.captured, "{ledger:?}");
        let faults = self.faults.lock().unwrap().clone();
        (ledger, self.watched.failed(), faults)
    }
}

#[test]
fn a_rolling_restart_of_every_process_fails_no_request() {
    let mut cluster = Cluster::start(&["edge,query", "edge", "storage", "storage", "insight,notify"]);
    let edges: Vec<String> = cluster.processes[..2].iter().map(|edge| edge.url().to_owned()).collect();
    let application = Application::start(&cluster, &[&edges[0], &edges[1]], |builder| builder);
    for index in 0..cluster.processes.len() {
        application.progress();
        cluster.restart(index);
    }
    application.progress();
    let counts: Vec<usize> = edges.iter().map(|url| application.watched.attempts_to(url)).collect();
    let (ledger, failed, faults) = application.end();
    println!("{} events; {counts:?} attempts; {} failed", ledger.captured, failed.len());
    assert!(failed.is_empty() && faults.is_empty(), "{failed:#?}\n{faults:#?}");
    assert!(counts.iter().all(|attempts| *attempts > 10), "both edges were used: {counts:?}");
    cluster.holds(&ledger);
}

#[test]
fn the_only_process_of_a_role_finishes_what_it_holds() {
    let mut cluster = Cluster::start(&["query", "edge", "storage", "insight", "notify"]);
    let edge = cluster.processes[1].url().to_owned();
    let application = Application::start(&cluster, &[&edge], |builder| builder);
    // Nobody stands in for the edge, so the application is told and keeps its events.
    for index in 0..cluster.processes.len() {
        application.progress();
        cluster.restart(index);
    }
    application.progress();
    let (ledger, failed, _) = application.end();
    for attempt in &failed {
        assert!(attempt.contains("Connect("), "only a closed door is met, nobody is thrown out: {attempt}");
    }
    cluster.holds(&ledger);
}

#[test]
fn a_cluster_is_found_from_one_of_its_edges_and_rolls_as_well() {
    let mut cluster = Cluster::start(&["edge,query", "edge", "storage,insight"]);
    let [given, other] = [0, 1].map(|index| cluster.processes[index].url().to_owned());
    let application = Application::start(&cluster, &[&given], |builder| builder.discover(true));
    eventually("both edges are sent to", || {
        [&given, &other].iter().all(|url| application.watched.attempts_to(url) > 10)
    });
    // The one that was found leaves the registry, and must be known again when the one that was given stops.
    for index in [1, 0] {
        application.progress();
        cluster.restart(index);
    }
    application.progress();
    let (ledger, failed, faults) = application.end();
    assert!(failed.is_empty() && faults.is_empty(), "{failed:#?}\n{faults:#?}");
    cluster.holds(&ledger);
}
