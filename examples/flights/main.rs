//! Captures the departures of a CSV file, one event each, and says what became of them.
//!
//! `cargo run --release --example flights -- --url http://127.0.0.1:4000 --key eb_write_… examples/data/flights-sample.csv`
//!
//! Ids are derived from the rows: running it again stores nothing twice, and running it after an interruption completes
//! what is missing.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use csv::{Reader, StringRecord};
use eventbucket::{Bucket, Fault, Ledger, Overflow};
use flate2::read::MultiGzDecoder;

/// From a row of the file to an event.
mod departure;

/// The bar, or lines on a pipe.
mod progress;

use departure::Departures;
use progress::Progress;

/// How long the final verdicts are waited for once everything was taken.
const FINAL_MAX: Duration = Duration::from_secs(30);

/// How long a collector may be away before departures are given up.
const OUTAGE_MAX: Duration = Duration::from_secs(60);

/// Capture every departure of a CSV file (columns as in nycflights13) as an event.
#[derive(Parser)]
struct Args {
    /// The collector, e.g. http://127.0.0.1:4000
    #[arg(long, env = "EVENTBUCKET_URL")]
    url: String,
    /// A write key of the project
    #[arg(long, env = "EVENTBUCKET_KEY", hide_env_values = true)]
    key: String,
    /// The file, plain or gzipped
    #[arg(value_name = "FILE.csv[.gz]")]
    file: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let started = Instant::now();
    let refused = Arc::new(AtomicBool::new(false));
    let bucket = Bucket::builder(&args.url, &args.key)
        .final_verdicts(true)
        // The file can wait: a full queue holds reading back instead of losing rows.
        .on_overflow(Overflow::Block(OUTAGE_MAX))
        .on_error({
            let refused = Arc::clone(&refused);
            move |fault| {
                refused.fetch_or(matches!(fault, Fault::Refused { .. }), Ordering::Relaxed);
                eprintln!("{fault}");
            }
        })
        .build()?;

    let file = File::open(&args.file).with_context(|| format!("open {}", args.file.display()))?;
    let progress = Progress::new(file.metadata().context("read the file's size")?.len());
    let read = csv_of(progress.reading(file)).and_then(|csv| capture_all(&bucket, csv, &progress));
    deliver(&bucket, &progress, &refused);
    progress.end();

    // A collector that queues what it accepts takes a while to say what was new.
    let all_taken = bucket.stats().pending == 0;
    let report = bucket.shutdown_blocking(if all_taken { FINAL_MAX } else { Duration::from_secs(1) });
    print_summary(&report.ledger, started.elapsed());
    let passed_over = read.with_context(|| format!("capture {}", args.file.display()))?;
    if passed_over > 0 {
        eprintln!("{passed_over} rows are no departures and were passed over; mend them and run it again");
    }
    let all_there = passed_over == 0 && lost(&report.ledger) == 0;
    Ok(if all_there { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first bytes tell whether it is compressed, whatever its name says.
fn csv_of(mut file: Box<dyn Read>) -> anyhow::Result<Reader<Box<dyn Read>>> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    let mut first = Vec::new();
    file.by_ref().take(2).read_to_end(&mut first).context("read its beginning")?;
    let gzipped = first == GZIP;
    let whole = Cursor::new(first).chain(file);
    Ok(Reader::from_reader(if gzipped { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) }))
}

/// Rows that are told one by one; of more only the number.
const ROWS_TOLD_MAX: u64 = 10;

/// Captures every row; returns how many were no departures.
fn capture_all(bucket: &Bucket, mut csv: Reader<Box<dyn Read>>, progress: &Progress) -> anyhow::Result<u64> {
    let departures = Departures::new(csv.headers().context("read the header row")?)?;
    let mut row = StringRecord::new();
    let (mut captured, mut passed_over) = (0, 0);
    while csv.read_record(&mut row).context("read a row")? {
        let line = row.position().map_or(0, csv::Position::line);
        let event = match departures.event(&row) {
            Ok(event) => event,
            Err(error) => {
                passed_over += 1;
                if passed_over <= ROWS_TOLD_MAX {
                    eprintln!("line {line}: {error:#}");
                }
                continue;
            }
        };
        let began = Instant::now();
        bucket.capture(event);
        if began.elapsed() >= OUTAGE_MAX {
            bail!("line {line}: the collector has taken nothing for {} s", OUTAGE_MAX.as_secs());
        }
        captured += 1;
        progress.captured(captured);
    }
    Ok(passed_over)
}

/// Waits until nothing is pending, for as long as something still moves. A refused key moves nothing: people have to mend it.
fn deliver(bucket: &Bucket, progress: &Progress, refused: &AtomicBool) {
    let mut pending = bucket.stats().pending;
    let mut moved = Instant::now();
    while pending > 0 && !refused.load(Ordering::Relaxed) && moved.elapsed() < OUTAGE_MAX {
        progress.delivering(pending);
        let _report = bucket.flush_blocking(progress.pace());
        let now_pending = bucket.stats().pending;
        if now_pending < pending {
            moved = Instant::now();
        }
        pending = now_pending;
    }
}

/// Events that aren't in the collector's log.
fn lost(ledger: &Ledger) -> u64 {
    ledger.rejected + ledger.dropped.total() + ledger.pending + ledger.delivered.quarantined
}

fn print_summary(ledger: &Ledger, took: Duration) {
    println!("captured    {:>9}", ledger.captured);
    println!("stored      {:>9}", ledger.delivered.stored);
    println!("duplicates  {:>9}", ledger.delivered.duplicate + ledger.withheld.duplicate);
    if ledger.delivered.differs > 0 {
        println!(
            "  differing {:>9}   stored before with other columns, which stay",
            ledger.delivered.differs
        );
    }
    if ledger.delivered.accepted > 0 {
        println!("queued      {:>9}", ledger.delivered.accepted);
    }
    println!("rejected    {:>9}", ledger.rejected);
    println!("lost        {:>9}", lost(ledger) - ledger.rejected);
    println!("seconds     {:>9.1}", took.as_secs_f64());
}
