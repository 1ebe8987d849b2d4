//! The flights example as a user runs it, twice, against a collector.

/// Its unit tests run here; an example built as a test would not be there to run.
#[path = "../../flights/departure.rs"]
mod departure;

use std::collections::BTreeMap;
use std::path::Path;

use eventbucket_collector::app;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{CountsBy, CountsQuery, EventFilter, EventOrder, PostgresOptions, Store};
use eventbucket_servers::{Redis, shared};

use crate::{collector, example};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/flights-sample.csv");

/// Runs the example and returns its summary by line.
fn flights(url: &str, key: &str) -> BTreeMap<String, String> {
    let output = example("flights").args(["--url", url, "--key", key, SAMPLE]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
        .collect()
}

/// What the file itself says: rows by carrier, and rows without a tail number.
fn sample() -> (BTreeMap<String, u64>, u64) {
    let mut reader = csv::Reader::from_path(Path::new(SAMPLE)).unwrap();
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|column| column == name).unwrap();
    let (carrier, tail) = (column("carrier"), column("tailnum"));
    let (mut carriers, mut without) = (BTreeMap::new(), 0);
    for row in reader.records() {
        let row = row.unwrap();
        *carriers.entry(row[carrier].to_owned()).or_default() += 1;
        without += u64::from(&row[tail] == "NA");
    }
    (carriers, without)
}

/// Runs the example twice against a collector with these settings; returns the project it made.
async fn two_runs(settings: &[(&str, String)], data: &Path) -> ProjectId {
    let (running, made) = collector(settings, data).await;
    let url = format!("http://{}", running.address());
    let run = || {
        let (url, key) = (url.clone(), made.write_key.text.clone());
        tokio::task::spawn_blocking(move || flights(&url, &key))
    };
    let rows = sample().0.values().sum::<u64>().to_string();
    let first = run().await.unwrap();
    assert_eq!((&first["captured"], &first["stored"]), (&rows, &rows));
    let second = run().await.unwrap();
    assert_eq!((second["stored"].as_str(), &second["duplicates"]), ("0", &rows));
    running.stop().await.unwrap();
    made.project.id
}

/// The log holds what the file says, and so do the counts.
async fn the_log_equals_the_file(store: &Store, project: ProjectId) {
    let (carriers, without_tail_number) = sample();
    let rows: u64 = carriers.values().sum();
    assert!(rows > 2_000 && without_tail_number > 0);
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    let (mut without_user, mut after) = (0, 0);
    loop {
        let order = EventOrder::ByPosition { after };
        let page = store.events(project, &EventFilter::default(), order, 1_000).await.unwrap();
        for one in &page.events {
            let properties: serde_json::Value = serde_json::from_str(one.event.properties.as_json()).unwrap();
            *stored.entry(properties["carrier"].as_str().unwrap().to_owned()).or_default() += 1;
            without_user += u64::from(one.event.user.is_none());
            assert_eq!(one.event.user.as_deref(), properties["tailnum"].as_str());
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(stored, carriers);
    assert_eq!(without_user, without_tail_number);
    let counts =
        CountsQuery { name: None, from_hour: None, to_hour: None, by: CountsBy::Total, users: false };
    let counted = store.counts(project, counts).await.unwrap();
    assert_eq!(counted.iter().map(|row| row.count).sum::<u64>(), rows, "stopping waits for the counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_run_adds_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let project = two_runs(&[], &data).await;
    let (store, _reader) = app::beside(&data, false).unwrap();
    the_log_equals_the_file(&store, project).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_servers_the_totals_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (database, redis) = (shared::database(), Redis::start().unwrap());
    let settings = [
        ("EVENTBUCKET_STORE_URL", database.clone()),
        ("EVENTBUCKET_BUS_URL", shared::vhost()),
        ("EVENTBUCKET_CACHE_URL", redis.url()),
    ];
    let project = two_runs(&settings, &folder.path().join("data")).await;
    let store = Store::postgres(PostgresOptions::parse(&database, None).unwrap()).await.unwrap();
    the_log_equals_the_file(&store, project).await;
}
