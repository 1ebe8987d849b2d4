use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use eventbucket::protocol::codec::{Format, decode};
#[cfg(feature = "zstd")]
use eventbucket::protocol::limits::BATCH_DECODED_BYTES_MAX;
use eventbucket::protocol::{
    BATCHES_PATH, BatchId, DRAINING_HEADER, EVENTS_PATH, Event, EventId, NODES_PATH, Problem, Reply,
    SENT_AT_HEADER, Timestamp, Verdict,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A collector's batch interface over real HTTP/1.1, with a log in memory. Stops when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) requests: Vec<Request>,
    pub(crate) log: Vec<Event>,
    known: HashSet<EventId>,
    pub(crate) faults: VecDeque<Fault>,
    /// More events than this in a batch get 413.
    pub(crate) events_max: Option<usize>,
    /// A batch that holds an event of this name gets 400.
    pub(crate) chokes_on: Option<&'static str>,
    /// A batch that holds an event of this name gets 500.
    pub(crate) fails_on: Option<&'static str>,
    /// Batches are only queued: what becomes of them is to be asked, and isn't known for so many questions.
    pub(crate) queues: Option<usize>,
    /// Of so many queued batches nobody ever knows what became.
    pub(crate) loses: usize,
    finals: HashMap<String, Vec<u8>>,
    pub(crate) questions: usize,
    /// What is answered to who asks for the cluster's collectors; 404 without it.
    pub(crate) nodes: Option<String>,
    /// The keys of those who asked for them.
    pub(crate) inquiries: Vec<String>,
    /// Every answer says that the collector is about to stop.
    pub(crate) draining: bool,
}

/// A batch as it came.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) batch: BatchId,
    pub(crate) ids: Vec<EventId>,
    pub(crate) body: Vec<u8>,
    pub(crate) sent_at_ms: i64,
    pub(crate) key: String,
    pub(crate) status: u16,
}

/// What goes wrong with the next request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing is taken, and this is the answer, a problem document, perhaps with `Retry-After`.
    Status(u16, Option<u64>),
    /// Nothing is taken, and a proxy answers in plain text.
    Plain(u16),
    /// Everything is taken, and the connection is cut before the answer.
    DropAnswer,
    /// Everything is taken, and the answer has one verdict too few.
    WrongCount,
    /// Every other event is taken, the others get `retry`.
    RetryOdd,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    pub(crate) fn start_at(address: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::<Shared>::default();
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { url, shared, runtime: Some(runtime) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Waits until the condition holds.
    pub(crate) fn wait_until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        while !holds(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; {} requests", state.requests.len());
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut buffer).await? {
        let Some(answer) = shared.answer(&head, body) else { return Ok(()) };
        stream.write_all(&answer).await?;
    }
    Ok(())
}

/// Reads one request with a `Content-Length`; what follows it stays in the buffer.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).map_err(io::Error::other)?;
            let length: usize =
                header(&head, "content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
            if buffer.len() >= end + 4 + length {
                let body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Ok(Some((head, body)));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

impl Shared {
    /// `None` cuts the connection.
    fn answer(&self, head: &str, body: Vec<u8>) -> Option<Vec<u8>> {
        let mut state = self.state.lock().unwrap();
        let mut answer = state.answer(head, body);
        if let Some(answer) = answer.as_mut().filter(|_| state.draining) {
            let line_end = answer.windows(2).position(|window| window == b"\r\n").unwrap() + 2;
            answer.splice(line_end..line_end, format!("{DRAINING_HEADER}: 1\r\n").into_bytes());
        }
        drop(state);
        self.changed.notify_all();
        answer
    }
}

impl State {
    fn answer(&mut self, head: &str, body: Vec<u8>) -> Option<Vec<u8>> {
        if let Some(rest) = head.strip_prefix(&format!("GET {BATCHES_PATH}/")) {
            return Some(self.tell_final(rest.split(['?', ' ']).next()?));
        }
        if head.starts_with(&format!("GET {NODES_PATH} ")) {
            return self.tell_nodes(head);
        }
        assert!(head.starts_with(&format!("POST {EVENTS_PATH} HTTP/1.1")), "{head}");
        let decoded = decompressed(head, &body);
        let batch = decode(&decoded, Format::from_content_type(header(head, "content-type")?)?).unwrap();
        let id = batch.id.expect("the SDK names its batches");
        let now = Timestamp::from_ms(0).unwrap();
        let complete = |raw| {
            let raw: eventbucket::protocol::RawEvent<'_> = Result::unwrap(raw);
            raw.complete(|| panic!("the SDK names its events"), now).unwrap()
        };
        let events: Vec<Event> = batch.events.into_iter().map(complete).collect();
        let fault = self.fault_for(&events);
        let status =
            if let Some(Fault::Status(status, _) | Fault::Plain(status)) = fault { status } else { 200 };
        self.requests.push(Request {
            batch: id,
            ids: events.iter().map(|event| event.id.clone()).collect(),
            body,
            sent_at_ms: header(head, SENT_AT_HEADER)?.parse().unwrap(),
            key: header(head, "authorization")?.to_owned(),
            status,
        });
        match fault {
            Some(Fault::Status(status, after)) => return Some(problem(status, after)),
            Some(Fault::Plain(status)) => {
                return Some(http(status, None, "text/plain", b"no upstream takes this"));
            }
            _ => {}
        }
        let mut verdicts: Vec<_> = events
            .into_iter()
            .enumerate()
            .map(|(index, event)| match fault {
                Some(Fault::RetryOdd) if index % 2 == 1 => Verdict::Retry,
                _ => self.take(event),
            })
            .collect();
        match fault {
            Some(Fault::DropAnswer) => return None,
            Some(Fault::WrongCount) => drop(verdicts.pop()),
            _ => {}
        }
        let mut reply = serde_json::to_vec(&Reply::new(id, verdicts.clone())).unwrap();
        if self.queues.is_some() {
            if self.loses > 0 {
                self.loses -= 1;
            } else {
                self.finals.entry(id.to_string()).or_insert(reply);
            }
            verdicts.fill(Verdict::Accepted);
            reply = serde_json::to_vec(&Reply::new(id, verdicts)).unwrap();
        }
        Some(http(200, None, "application/json", &reply))
    }

    fn tell_nodes(&mut self, head: &str) -> Option<Vec<u8>> {
        self.inquiries.push(header(head, "authorization")?.to_owned());
        let answer = |nodes: &String| http(200, None, "application/json", nodes.as_bytes());
        Some(self.nodes.as_ref().map_or_else(|| problem(404, None), answer))
    }

    fn tell_final(&mut self, batch: &str) -> Vec<u8> {
        self.questions += 1;
        match (self.finals.get(batch), self.queues.as_mut()) {
            (Some(_), Some(left @ 1..)) => {
                *left -= 1;
                http(202, None, "application/json", br#"{"state":"pending"}"#)
            }
            (Some(reply), _) => http(200, None, "application/json", reply),
            (None, _) => problem(404, None),
        }
    }

    fn fault_for(&mut self, events: &[Event]) -> Option<Fault> {
        if self.events_max.is_some_and(|max| events.len() > max) {
            return Some(Fault::Status(413, None));
        }
        if events.iter().any(|event| Some(event.name.as_str()) == self.chokes_on) {
            return Some(Fault::Status(400, None));
        }
        if events.iter().any(|event| Some(event.name.as_str()) == self.fails_on) {
            return Some(Fault::Status(500, None));
        }
        self.faults.pop_front()
    }

    fn take(&mut self, event: Event) -> Verdict {
        if self.known.insert(event.id.clone()) {
            self.log.push(event);
            Verdict::Stored
        } else {
            Verdict::Duplicate { differs: false }
        }
    }
}

fn decompressed(head: &str, body: &[u8]) -> Vec<u8> {
    match header(head, "content-encoding") {
        None => body.to_vec(),
        #[cfg(feature = "zstd")]
        Some("zstd") => {
            let mut out = Vec::with_capacity(BATCH_DECODED_BYTES_MAX);
            zstd_safe::decompress(&mut out, body).unwrap();
            out
        }
        #[cfg(feature = "gzip")]
        Some("gzip") => {
            let mut out = Vec::new();
            io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body), &mut out).unwrap();
            out
        }
        Some(other) => panic!("unknown encoding {other}"),
    }
}

/// The document with which a collector refuses a request, with the code it has for the status.
fn problem(status: u16, retry_after: Option<u64>) -> Vec<u8> {
    let code = match status {
        400 => "malformed_body",
        401 => "unknown_key",
        413 => "too_many_events",
        429 | 503 => "busy",
        _ => "internal",
    };
    let (title, detail) = ("refused".to_owned(), format!("the test asked for {status}"));
    let body = serde_json::to_vec(&Problem { status, code: code.to_owned(), title, detail }).unwrap();
    http(status, retry_after, Problem::CONTENT_TYPE, &body)
}

fn http(status: u16, retry_after: Option<u64>, content_type: &str, body: &[u8]) -> Vec<u8> {
    let retry_after = retry_after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n{retry_after}\r\n"
    );
    [head.as_bytes(), body].concat()
}
