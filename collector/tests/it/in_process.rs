//! A collector within the test's own process: real store, bus and workers, a real listener on a port of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::config::EdgeConfig;
use eventbucket_collector::edge::{self, Health, Tls};
use eventbucket_collector::ingest::Ingest;
use eventbucket_collector::project::{AccountId, ProjectId};
use eventbucket_collector::query::Reader;
use eventbucket_collector::store::{DATABASE_FILE, SqliteOptions, Store};
use eventbucket_collector::telemetry::metrics::Metrics;
use eventbucket_collector::workers;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes, far less than anybody waits.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A collector that stops, and takes its folder along, when it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) account: AccountId,
    pub(crate) project: ProjectId,
    pub(crate) write_key: String,
    pub(crate) secret_key: String,
    pub(crate) store: Store,
    pub(crate) client: reqwest::Client,
    stop: CancellationToken,
    served: Option<JoinHandle<std::io::Result<()>>>,
    workers: CancellationToken,
    _folder: TempDir,
}

/// Starts a collector with the default limits.
pub(crate) async fn collector() -> Running {
    collector_with(EdgeConfig::default(), None).await
}

/// Starts a collector with limits of its own.
pub(crate) async fn collector_with(config: EdgeConfig, tls: Option<Tls>) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::sqlite(SqliteOptions::new(folder.path().join(DATABASE_FILE))).unwrap();
    let account = store.create_account("owner@example.com", "team").await.unwrap();
    let made = store.create_project(account, "shop").await.unwrap();

    let (bus, cache, workers) =
        (Bus::in_process(bus::Limits::default()), Cache::memory(), CancellationToken::new());
    tokio::spawn(workers::storage::run(bus.clone(), store.clone(), cache.clone(), workers.clone()));
    tokio::spawn(workers::insight::run(bus.clone(), store.clone(), cache.clone(), workers.clone()));

    let health = Health::new(folder.path(), config.free_disk_min).unwrap();
    let ingest = Ingest::new(bus.clone(), store.clone(), cache.clone());
    let query = Reader::new(store.clone(), cache);
    let state = edge::State::new(ingest, query, health, config, Metrics::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    Running {
        address,
        account,
        project: made.project.id,
        write_key: made.write_key.text,
        secret_key: made.secret_key.text,
        store,
        client: client(None),
        served: Some(tokio::spawn(edge::serve(listener, state, tls, stop.clone()))),
        stop,
        workers,
        _folder: folder,
    }
}

/// A client with the TLS provider given, because none is installed for the process.
pub(crate) fn client(root: Option<CertificateDer<'static>>) -> reqwest::Client {
    let builder = reqwest::Client::builder().tls_backend_preconfigured(tls_client(root));
    builder.no_proxy().timeout(DEADLINE).build().unwrap()
}

/// TLS that trusts one certificate, or none.
pub(crate) fn tls_client(root: Option<CertificateDer<'static>>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(certificate) = root {
        roots.add(certificate).unwrap();
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl Running {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a body as JSON with the write key.
    pub(crate) async fn send(&self, body: impl Into<reqwest::Body>) -> Answer {
        self.send_as("application/json", body).await
    }

    pub(crate) async fn send_as(&self, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.client.post(self.url("/v1/events")).bearer_auth(&self.write_key);
        Answer::to(request.header("content-type", content_type).body(body)).await
    }

    /// Reads a path with the secret key.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::to(self.client.get(self.url(path)).bearer_auth(&self.secret_key)).await
    }

    /// Sends a JSON document with the secret key.
    pub(crate) async fn post(&self, path: &str, document: &Value) -> Answer {
        Answer::to(self.client.post(self.url(path)).bearer_auth(&self.secret_key).json(document)).await
    }

    pub(crate) async fn head(&self) -> u64 {
        self.store.head(self.project).await.unwrap()
    }

    /// Waits until the counts contain the whole log.
    pub(crate) async fn counted(&self) {
        let applied = async {
            // The live counters follow the rollup, so whoever sees them caught up finds both.
            loop {
                let counts = self.get("/v1/counts").await.json();
                if counts["applied_to"].as_u64() >= Some(self.head().await) {
                    return;
                }
            }
        };
        timeout(DEADLINE, applied).await.unwrap();
    }

    /// Begins to drain without waiting for the end.
    pub(crate) fn begin_to_stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the edge has drained.
    pub(crate) async fn drained(&mut self) {
        self.stop.cancel();
        let served = self.served.take().expect("drained once");
        timeout(DEADLINE, served).await.expect("the edge drains in time").unwrap().unwrap();
    }

    /// Opens a connection to speak HTTP by hand.
    pub(crate) async fn connect(&self) -> Raw {
        Raw(TcpStream::connect(self.address).await.unwrap())
    }

    /// The headers of a batch of a given length, as they look on the wire.
    pub(crate) fn raw_head(&self, length: usize) -> String {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n",
            self.write_key
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.workers.cancel();
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn to(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.text().await.unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// A problem in one line; fails when the answer is none, or its status and media type don't fit.
    pub(crate) fn problem(&self) -> String {
        let json = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(json["status"], self.status);
        let text = |field: &str| json[field].as_str().unwrap().to_owned();
        format!("{} {}: {}. {}", self.status, text("code"), text("title"), text("detail"))
    }
}

/// A connection on which a test writes and reads bytes.
pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until the other end closes; a reset is a failure.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let mut text = Vec::new();
        timeout(DEADLINE, self.0.read_to_end(&mut text)).await.expect("the server ends it in time").unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Waits until the other end closes or resets, whatever it still says.
    pub(crate) async fn ends(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = timeout(DEADLINE, self.0.read_to_end(&mut rest)).await.expect("the server ends it in time");
    }

    /// Reads until a text appears.
    pub(crate) async fn read_until(&mut self, part: &str) -> String {
        let mut text = String::new();
        let read = async {
            let mut chunk = [0; 4096];
            while !text.contains(part) {
                let length = self.0.read(&mut chunk).await.unwrap();
                assert!(length > 0, "the connection ended before {part:?} came: {text}");
                text.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
            }
        };
        timeout(DEADLINE, read).await.expect("an answer in time");
        text
    }
}
