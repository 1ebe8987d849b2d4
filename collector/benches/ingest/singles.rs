//! Single events from many connections by `wrk`, and the same server with nothing behind its bus.

use std::process::Command;
use std::time::Duration;

use eventbucket_collector::bus::message::Published;
use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::config::EdgeConfig;
use eventbucket_collector::edge::{self, Health};
use eventbucket_collector::ingest::Ingest;
use eventbucket_collector::query::Reader;
use eventbucket_collector::store::{DATABASE_FILE, SqliteOptions, Store};
use eventbucket_collector::telemetry::metrics::Metrics;
use eventbucket_protocol::Verdict;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Connections that `wrk` keeps busy.
pub(crate) const CONNECTIONS: usize = 64;

/// Posts one event per request, without an id, so that each is a new one, and returns requests a second.
pub(crate) fn wrk(url: &str, key: &str, length: Duration) -> f64 {
    let script = tempfile::NamedTempFile::with_suffix(".lua").unwrap();
    let body = r#"{"name":"page_viewed","user":"user-17","properties":{"plan":"pro","amount":12.5,"items":3,"paid":true,"city":"Wien"}}"#;
    let lua = format!(
        "wrk.method = 'POST'\nwrk.body = '{body}'\nwrk.headers['Content-Type'] = 'application/json'\n\
         wrk.headers['Authorization'] = 'Bearer {key}'\n"
    );
    std::fs::write(script.path(), lua).unwrap();
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{}s", length.as_secs()), "-s"])
        .arg(script.path())
        .arg(format!("{url}/v1/events"))
        .output()
        .expect("install wrk, e.g. apt-get install wrk");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("Non-2xx"), "{text}");
    let line =
        text.lines().find(|line| line.starts_with("Requests/sec:")).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The collector's edge and ingest with a bus that answers `stored` at once.
pub(crate) struct WithoutStoring {
    pub(crate) url: String,
    pub(crate) key: String,
    stop: CancellationToken,
    _folder: TempDir,
}

impl WithoutStoring {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::sqlite(SqliteOptions::new(folder.path().join(DATABASE_FILE))).unwrap();
        let account = store.create_account("a@example.com", "team").await.unwrap();
        let made = store.create_project(account, "bench").await.unwrap();
        let (bus, cache, stop) =
            (Bus::in_process(bus::Limits::default()), Cache::memory(), CancellationToken::new());
        let mut accepted = bus.accepted().pop().unwrap();
        tokio::spawn(async move {
            while let Some(deliveries) = accepted.next(10_000, 256).await {
                for delivery in deliveries {
                    let verdicts = vec![Verdict::Stored; delivery.batch.events.len()];
                    delivery.ticket.answer(Ok(Published { verdicts }));
                }
            }
        });
        let config = EdgeConfig::default();
        let health = Health::new(folder.path(), config.free_disk_min).unwrap();
        let ingest = Ingest::new(bus.clone(), store.clone(), cache.clone());
        let state = edge::State::new(ingest, Reader::new(store, cache), health, config, Metrics::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(edge::serve(listener, state, None, stop.clone()));
        Self { url, key: made.write_key.text, stop, _folder: folder }
    }
}

impl Drop for WithoutStoring {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
