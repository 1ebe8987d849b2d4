//! A collector within the test's own process, in both of its forms: real store, bus and workers, a real listener on a port
//! of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eventbucket_collector::bus::{self, Bus};
use eventbucket_collector::cache::{Cache, Limits};
use eventbucket_collector::config::EdgeConfig;
use eventbucket_collector::edge::{self, Health, Tls};
use eventbucket_collector::ingest::Ingest;
use eventbucket_collector::project::{AccountId, ProjectId};
use eventbucket_collector::query::Reader;
use eventbucket_collector::store::{DATABASE_FILE, SqliteOptions, Store};
use eventbucket_collector::telemetry::metrics::Metrics;
use eventbucket_collector::workers;
use eventbucket_protocol::{BatchId, EventId, Reply, Verdict};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::distributed::{Process, Servers};

/// Far more than anything here takes, far less than anybody waits.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// What a collector stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// SQLite, and a bus and a cache within the process.
    Embedded,
    /// PostgreSQL, RabbitMQ and Redis. Edge and query have connections of their own, storage and insight have others, as in
    /// two processes.
    Distributed,
}

impl Form {
    /// A test of what is promised runs in each.
    pub(crate) const BOTH: [Self; 2] = [Self::Embedded, Self::Distributed];

    /// Starts a collector with the default limits.
    pub(crate) async fn start(self) -> Running {
        // A test that fails shows which form it was in.
        eprintln!("{self:?}");
        match self {
            Self::Embedded => collector().await,
            Self::Distributed => distributed_with(Limits::default()).await,
        }
    }
}

/// A collector that stops, and takes its folder along, when it is dropped.
pub(crate) struct Running {
    pub(crate) form: Form,
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
    servers: Option<Arc<Servers>>,
    _folder: Option<TempDir>,
}

/// Starts an embedded collector with the default limits.
pub(crate) async fn collector() -> Running {
    collector_with(EdgeConfig::default(), None).await
}

/// Starts an embedded collector with limits of its own.
pub(crate) async fn collector_with(config: EdgeConfig, tls: Option<Tls>) -> Running {
    collector_on(Bus::in_process(bus::Limits::default()), config, tls).await
}

/// Starts a collector on a bus of the test's own.
pub(crate) async fn collector_on(bus: Bus, config: EdgeConfig, tls: Option<Tls>) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::sqlite(SqliteOptions::new(folder.path().join(DATABASE_FILE))).unwrap();
    let process = Process { store, bus, cache: Cache::memory() };
    let workers = work(&process);
    let health = Health::new(folder.path(), config.free_disk_min).unwrap();
    let owner = Owner::made_in(&process.store).await;
    let ingest = Ingest::new(process.bus.clone(), process.store.clone(), process.cache.clone());
    let mut running = serve(process, owner, (ingest, health, config, tls)).await;
    (running.workers, running._folder) = (workers, Some(folder));
    running
}

/// Starts a distributed collector with limits on what a project may send.
pub(crate) async fn distributed_with(limits: Limits) -> Running {
    let servers = Arc::new(Servers::new().await);
    let front = servers.process().await;
    let workers = work(&servers.process().await);
    let owner = Owner::made_in(&front.store).await;
    let mut running = serve_beside(front, owner, limits, servers).await;
    running.workers = workers;
    running
}

/// Whose keys a test uses.
struct Owner {
    account: AccountId,
    project: ProjectId,
    write_key: String,
    secret_key: String,
}

impl Owner {
    async fn made_in(store: &Store) -> Self {
        let account = store.create_account("owner@example.com", "team").await.unwrap();
        let made = store.create_project(account, "shop").await.unwrap();
        let (write_key, secret_key) = (made.write_key.text, made.secret_key.text);
        Self { account, project: made.project.id, write_key, secret_key }
    }
}

/// Starts what works behind the bus.
fn work(process: &Process) -> CancellationToken {
    let Process { store, bus, cache } = process.clone();
    let workers = CancellationToken::new();
    tokio::spawn(workers::storage::run(bus.clone(), store.clone(), cache.clone(), workers.clone()));
    tokio::spawn(workers::insight::run(bus, store, cache, workers.clone()));
    workers
}

/// Starts an edge that reads too, where others work.
async fn serve_beside(process: Process, owner: Owner, limits: Limits, servers: Arc<Servers>) -> Running {
    let ingest = Ingest::new(process.bus.clone(), process.store.clone(), process.cache.clone());
    let ingest = ingest.with_limits(limits);
    let edge = (ingest, Health::without_disk(), EdgeConfig::default(), None);
    let mut running = serve(process, owner, edge).await;
    (running.form, running.servers) = (Form::Distributed, Some(servers));
    running
}

async fn serve(
    process: Process,
    owner: Owner,
    (ingest, health, config, tls): (Ingest, Health, EdgeConfig, Option<Tls>),
) -> Running {
    let Owner { account, project, write_key, secret_key } = owner;
    let query = Reader::new(process.store.clone(), process.cache).with_bus(process.bus);
    let state = edge::State::new(ingest, query, health, config, Metrics::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    Running {
        form: Form::Embedded,
        address,
        account,
        project,
        write_key,
        secret_key,
        store: process.store,
        client: client(None),
        served: Some(tokio::spawn(edge::serve(listener, state, tls, stop.clone()))),
        stop,
        workers: CancellationToken::new(),
        servers: None,
        _folder: None,
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

    /// Starts another process of the same distributed collector, with edge and query alone.
    pub(crate) async fn another(&self, limits: Limits) -> Self {
        let servers = Arc::clone(self.servers.as_ref().expect("an embedded collector is one process"));
        let owner = Owner {
            account: self.account,
            project: self.project,
            write_key: self.write_key.clone(),
            secret_key: self.secret_key.clone(),
        };
        serve_beside(servers.process().await, owner, limits, servers).await
    }

    /// Sends a body as JSON with the write key, and returns the answer with the final verdicts.
    pub(crate) async fn send(&self, body: impl Into<reqwest::Body>) -> Answer {
        self.send_as("application/json", body).await
    }

    pub(crate) async fn send_as(&self, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.client.post(self.url("/v1/events")).bearer_auth(&self.write_key);
        let request = request.header("content-type", content_type).body(body);
        self.finally(Answer::to(request).await, &self.write_key).await
    }

    /// What the answer to a batch comes to. The embedded form gives final verdicts at once. The distributed one says `accepted` of
    /// each event that it doesn't refuse itself, and what became of them when it is asked: those stand in the answer then.
    pub(crate) async fn finally(&self, answer: Answer, key: &str) -> Answer {
        if self.form == Form::Embedded || answer.status != 200 {
            return answer;
        }
        let said = answer.json();
        let events = usize::try_from(said["events"].as_u64().unwrap()).unwrap();
        if events == 0 {
            return answer;
        }
        let id = said["batch_id"].as_str().unwrap();
        let asked = self.client.get(self.url(&format!("/v1/batches/{id}?wait=30"))).bearer_auth(key);
        let known = Answer::to(asked).await;
        assert_eq!((known.status, &known.json()["events"]), (200, &said["events"]), "{known:?}");
        let final_verdict = |(said, known): (Verdict, Verdict)| match (said, known) {
            (Verdict::Accepted, known @ (Verdict::Stored | Verdict::Duplicate { .. })) => known,
            (said @ Verdict::Rejected(_), Verdict::Rejected(known)) => {
                assert!(
                    matches!(&said, Verdict::Rejected(reason) if reason.code == known.code),
                    "{said:?}, {known:?}"
                );
                said
            }
            other => panic!("{other:?} in {answer:?}"),
        };
        let verdicts = answer.verdicts(events).into_iter().zip(known.verdicts(events)).map(final_verdict);
        let reply = Reply::new(BatchId::from_text(id), verdicts.collect());
        let reply = match said["ids"].as_array() {
            Some(ids) => {
                reply.with_ids(&ids.iter().map(|id| id.as_str().map(EventId::from_text)).collect::<Vec<_>>())
            }
            None => reply,
        };
        let body = serde_json::to_string(&reply).unwrap();
        Answer { body, ..answer }
    }

    /// Reads a path with the secret key.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::to(self.client.get(self.url(path)).bearer_auth(&self.secret_key)).await
    }

    /// Sends a JSON document with the secret key.
    pub(crate) async fn post(&self, path: &str, document: &Value) -> Answer {
        Answer::to(self.client.post(self.url(path)).bearer_auth(&self.secret_key).json(document)).await
    }

    /// Sends a JSON document that changes something, with the secret key.
    pub(crate) async fn patch(&self, path: &str, document: &Value) -> Answer {
        Answer::to(self.client.patch(self.url(path)).bearer_auth(&self.secret_key).json(document)).await
    }

    /// How many events the ledger has received.
    pub(crate) async fn received(&self) -> u64 {
        self.store.ledger(Some(self.project)).await.unwrap().received
    }

    pub(crate) async fn head(&self) -> u64 {
        self.store.head(self.project).await.unwrap()
    }

    /// Waits until the counts contain the whole log.
    pub(crate) async fn counted(&self) {
        let applied = async {
            // The live counters follow the rollup, so whoever sees them caught up finds both.
            let mut look = tokio::time::interval(Duration::from_millis(5));
            loop {
                let counts = self.get("/v1/counts").await.json();
                if counts["applied_to"].as_u64() >= Some(self.head().await) {
                    return;
                }
                look.tick().await;
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

    /// One verdict for each of so many events.
    fn verdicts(&self, events: usize) -> Vec<Verdict> {
        serde_json::from_str::<Reply>(&self.body).unwrap().into_verdicts(events).unwrap()
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
