//! The application under fire: this test binary again, as a process of its own that captures numbered events.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use eventbucket::{Bucket, Event};

use crate::harness::{DEADLINE, lines_of};

/// What the child is told: address, key, spool folder, first number.
const VARIABLE: &str = "EVENTBUCKET_FAULTS_CLIENT";

/// Every so many events one is waited for until it is on disk, and reported.
const CONFIRM_EVERY: u64 = 10;

/// Numbers are handed out in strides, so that a restarted process never repeats one that its predecessor captured but did
/// not live to report.
const STRIDE: u64 = 1_000_000;

/// Numbers a process may hand out before it says so: nothing above what it announced can be stored.
const ANNOUNCE_EVERY: u64 = 256;

/// How long the last process may take to deliver everything.
const FINISH: Duration = Duration::from_secs(120);

pub(super) fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The child: captures until its standard input ends, then delivers everything and reports its ledger.
pub(super) fn run() {
    let told = std::env::var(VARIABLE).unwrap();
    let [url, key, spool, first] = told.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let bucket =
        Bucket::builder(url, key).spool(spool).batch_age_max(Duration::from_millis(30)).build().unwrap();
    static STOP: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        STOP.store(true, Ordering::Relaxed);
    });
    let mut number: u64 = first.parse().unwrap();
    let mut announced = number;
    while !STOP.load(Ordering::Relaxed) {
        if number == announced {
            // Before the first of them is captured: what a kill cuts off was announced.
            announced += ANNOUNCE_EVERY;
            println!("\nreaching {announced}");
        }
        let event =
            Event::new(format!("fault-{}", number % 4)).id(format!("n-{number}")).prop("number", number);
        if number.is_multiple_of(CONFIRM_EVERY) {
            if bucket.capture_durable(event).wait(DEADLINE).is_ok() {
                println!("\nconfirmed {number}");
            }
        } else {
            bucket.capture(event);
        }
        number += 1;
    }
    println!("\nattempted {number}");
    println!("\nreaching {number}");
    let deadline = std::time::Instant::now() + FINISH;
    while bucket.flush_blocking(Duration::from_secs(5)).still_pending > 0
        && std::time::Instant::now() < deadline
    {}
    let ledger = bucket.stats();
    println!("\nledger balances {}", ledger.balances());
    println!("\nledger pending {}", ledger.pending);
    println!("\nledger rejected {}", ledger.rejected);
    println!("\nledger dropped {}", ledger.dropped.total());
    println!("\nended");
}

/// The parent's end of it.
pub(super) struct Client {
    process: Child,
    lines: Receiver<String>,
    first: u64,
    confirmed: BTreeSet<u64>,
    reached: BTreeMap<u64, u64>,
}

/// What is known of all processes in the end.
pub(super) struct Finished {
    /// The numbers that were confirmed to be on disk.
    pub(super) confirmed: BTreeSet<u64>,
    /// How many numbers the last process handed out.
    pub(super) attempted: u64,
    /// For the first number of each process the end of those that it can have captured, exclusive.
    pub(super) reached: BTreeMap<u64, u64>,
    /// The last process's ledger.
    pub(super) ledger: BTreeMap<String, String>,
}

impl Client {
    pub(super) fn start(proxy: SocketAddr, key: &str, spool: &Path) -> Self {
        let (process, lines) = spawn(proxy, key, spool, 0);
        Self { process, lines, first: 0, confirmed: BTreeSet::new(), reached: BTreeMap::new() }
    }

    /// Starts the next process on what the killed one left behind.
    pub(super) fn restart(&mut self, proxy: SocketAddr, key: &str, spool: &Path) {
        self.first += STRIDE;
        (self.process, self.lines) = spawn(proxy, key, spool, self.first);
    }

    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        // What it had written before it died is still in the pipe, to its end.
        while let Ok(line) = self.lines.recv() {
            self.note(&line);
        }
    }

    fn note(&mut self, line: &str) -> Option<(String, String)> {
        let mut words = line.split_whitespace();
        match (words.next()?, words.next()?, words.next()) {
            ("confirmed", number, None) => {
                self.confirmed.insert(number.parse().unwrap());
                None
            }
            ("reaching", number, None) => {
                self.reached.insert(self.first, number.parse().unwrap());
                None
            }
            ("attempted", number, None) => Some(("attempted".to_owned(), number.to_owned())),
            ("ledger", figure, Some(value)) => Some((figure.to_owned(), value.to_owned())),
            _ => None,
        }
    }

    /// Ends its input, waits until all is delivered, and returns what is known.
    pub(super) fn finish(mut self) -> Finished {
        drop(self.process.stdin.take());
        let mut said = BTreeMap::new();
        while let Ok(line) = self.lines.recv_timeout(FINISH + DEADLINE) {
            said.extend(self.note(&line));
        }
        assert!(self.process.wait().unwrap().success(), "the application failed");
        let attempted = said.remove("attempted").expect("it says how far it came").parse::<u64>().unwrap();
        Finished {
            confirmed: std::mem::take(&mut self.confirmed),
            attempted: attempted - self.first,
            reached: std::mem::take(&mut self.reached),
            ledger: said,
        }
    }
}

fn spawn(proxy: SocketAddr, key: &str, spool: &Path, first: u64) -> (Child, Receiver<String>) {
    let told = format!("http://{proxy}\n{key}\n{}\n{first}", spool.display());
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::kills_and_lost_answers_neither_lose_nor_double_an_event", "--nocapture"])
        .env(VARIABLE, told)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines_of(process.stdout.take().unwrap());
    (process, lines)
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
