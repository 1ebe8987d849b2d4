//! What one call of `capture` costs the caller, beside posthog-rs in the same run.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eventbucket::{Bucket, event};

/// Captures in one turn: below posthog-rs' queue of 10,000, so that neither drops.
const BURST: usize = 1_000;

/// Turns of each; the first two warm up and are not counted.
const TURNS: usize = 102;
const WARM_UP: usize = 2;

/// Between turns both workers deliver what they have: 20,000 captures a second on average.
const PAUSE: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let binary = std::env::args().nth(1).context("give the path of the eventbucket binary")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let collector = Collector::start(&binary)?;
    let bucket = Bucket::builder(&collector.url, &collector.key).build()?;
    let sink = runtime.block_on(answer_everything())?;
    let options =
        posthog_rs::ClientOptionsBuilder::default().api_key("phc_x".to_owned()).host(sink).build()?;
    let posthog = runtime.block_on(posthog_rs::client(options));

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        for i in 0..BURST {
            let time = timed(|| {
                bucket.capture(event!("order_paid", user: "user-17", plan: "pro", amount: 12.5, items: i, paid: true, city: "Wien"));
            });
            if turn >= WARM_UP {
                ours.push(time);
            }
        }
        std::thread::sleep(PAUSE);
        for i in 0..BURST {
            let time = timed(|| {
                let mut event = posthog_rs::Event::new("order_paid", "user-17");
                event.insert_prop("plan", "pro").expect("plain values are JSON");
                event.insert_prop("amount", 12.5).expect("plain values are JSON");
                event.insert_prop("items", i).expect("plain values are JSON");
                event.insert_prop("paid", true).expect("plain values are JSON");
                event.insert_prop("city", "Wien").expect("plain values are JSON");
                posthog.capture(event);
            });
            if turn >= WARM_UP {
                theirs.push(time);
            }
        }
        std::thread::sleep(PAUSE);
    }
    let report = bucket.flush_blocking(Duration::from_secs(60));
    ensure!(report.still_pending == 0, "not everything was delivered: {report:?}");
    let ledger = bucket.stats();
    ensure!(ledger.delivered.stored == (TURNS * BURST) as u64, "something was dropped: {ledger:?}");
    runtime.block_on(posthog.flush());

    ours.sort_unstable();
    theirs.sort_unstable();
    println!("one call, build and capture, {} calls each          p50 ns   p99 ns  p99.9 ns", ours.len());
    let row = |name: &str, times: &[u64]| {
        println!("{name:<50} {:>9} {:>8} {:>9}", at(times, 500), at(times, 990), at(times, 999));
    };
    row("eventbucket, delivered to a collector", &ours);
    row("posthog-rs 0.30, delivered to a sink", &theirs);
    println!(
        "ratio                                              {:>9.1} {:>8.1} {:>9.1}",
        ratio(&theirs, &ours, 500),
        ratio(&theirs, &ours, 990),
        ratio(&theirs, &ours, 999)
    );
    let mut clock: Vec<u64> = (0..100_000).map(|_| timed(|| {})).collect();
    clock.sort_unstable();
    row("of which reading the clock twice", &clock);
    println!(
        "delivered: eventbucket {} of {}, posthog-rs {} of {}",
        ledger.delivered.stored,
        TURNS * BURST,
        RECEIVED.load(Ordering::Relaxed),
        TURNS * BURST
    );
    Ok(())
}

fn timed(call: impl FnOnce()) -> u64 {
    let start = Instant::now();
    call();
    start.elapsed().as_nanos() as u64
}

fn at(sorted: &[u64], per_mille: usize) -> u64 {
    sorted[sorted.len() * per_mille / 1000]
}

fn ratio(theirs: &[u64], ours: &[u64], per_mille: usize) -> f64 {
    at(theirs, per_mille) as f64 / at(ours, per_mille) as f64
}

/// Events that came to the sink.
static RECEIVED: AtomicUsize = AtomicUsize::new(0);

/// A server that takes any body and says that all went well, as PostHog's does.
async fn answer_everything() -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = axum::Router::new().fallback(|body: axum::body::Bytes| async move {
        let text = String::from_utf8_lossy(&body);
        RECEIVED.fetch_add(text.matches("\"order_paid\"").count(), Ordering::Relaxed);
        "{\"status\":1}"
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

/// The real collector on a folder of its own.
struct Collector {
    process: Child,
    folder: std::path::PathBuf,
    url: String,
    key: String,
    // The collector goes on printing; a closed pipe would end it.
    _output: BufReader<ChildStdout>,
}

impl Collector {
    fn start(binary: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("eventbucket-rivals-{}", std::process::id()));
        let mut process = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(&folder)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {binary}"))?;
        let (mut url, mut key) = (None, None);
        let mut output = BufReader::new(process.stdout.take().context("read the collector's output")?);
        while url.is_none() || key.is_none() {
            let mut line = String::new();
            ensure!(output.read_line(&mut line)? > 0, "the collector ended");
            let mut words = line.split_whitespace();
            if let Some(found) = words.find(|word| word.starts_with("eb_write_")).map(str::to_owned) {
                key.get_or_insert(found);
            }
            if let Some(found) = line.strip_prefix("listening on ") {
                url = Some(found.trim().to_owned());
            }
        }
        let url = url.context("the collector printed no address")?;
        Ok(Self { process, folder, url, key: key.context("the collector printed no key")?, _output: output })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
