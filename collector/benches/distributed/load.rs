//! Batches of 500 events over HTTP, as fast as they are answered or at a given pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventbucket_protocol::codec::encode;
use eventbucket_protocol::{BatchId, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

use crate::events::events;

/// Events in a batch.
pub(crate) const BATCH_EVENTS: usize = 500;

/// Connections, each sending the next batch when the last is answered.
pub(crate) const CONNECTIONS: usize = 16;

/// Makes whole requests, ready to be written; no two have an event in common.
pub(crate) struct Requests {
    events: Box<dyn Iterator<Item = Event> + Send>,
    keys: Vec<String>,
    made: usize,
}

impl Requests {
    /// For these keys in turn. `salt` keeps the events of several rounds apart.
    pub(crate) fn new(keys: Vec<String>, salt: usize) -> Self {
        Self { events: Box::new(events(salt)), keys, made: 0 }
    }
}

impl Iterator for Requests {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let events: Vec<Event> = self.events.by_ref().take(BATCH_EVENTS).collect();
        let mut body = Vec::new();
        encode::batch_header(BatchId::from_uuid(events[0].id.uuid()), events.len() as u32, &mut body);
        events.iter().for_each(|event| encode::event(event, &mut body));
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/msgpack\r\n\
             content-length: {}\r\n\r\n",
            self.keys[self.made % self.keys.len()],
            body.len()
        );
        self.made += 1;
        Some([head.into_bytes(), body].concat())
    }
}

/// What was answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Events taken so far.
    pub(crate) taken: AtomicU64,
    /// Requests answered 429 or 503.
    pub(crate) refused: AtomicU64,
}

/// One accepted batch: when it was answered, and the events taken with it.
pub(crate) type Accepted = (Instant, u64);

/// Sends everything over `CONNECTIONS` connections, as fast as it is answered; returns events a second.
pub(crate) async fn send_all(address: &str, requests: Vec<Vec<u8>>) -> f64 {
    let (sender, receiver) = mpsc::channel(requests.len());
    let batches = requests.len();
    for request in requests {
        sender.try_send(request).unwrap();
    }
    drop(sender);
    let (start, answers) = (Instant::now(), Arc::new(Answers::default()));
    send(address, receiver, &answers, None).await;
    assert_eq!(
        answers.taken.load(Ordering::Relaxed),
        (batches * BATCH_EVENTS) as u64,
        "something was refused"
    );
    (batches * BATCH_EVENTS) as f64 / start.elapsed().as_secs_f64()
}

/// Sends at a pace of `events_per_s` for a while; `told` hears of each batch that was taken. Batches go out at their time
/// though earlier ones aren't answered, as long as a connection is free; one that can't is not made up for.
pub(crate) async fn send_paced(
    address: &str,
    mut requests: Requests,
    (events_per_s, time): (f64, Duration),
    answers: &Arc<Answers>,
    told: Option<mpsc::UnboundedSender<Accepted>>,
) {
    let (sender, receiver) = mpsc::channel(1);
    let sending = send(address, receiver, answers, told);
    let making = async move {
        let mut tick = tokio::time::interval(Duration::from_secs_f64(BATCH_EVENTS as f64 / events_per_s));
        let end = Instant::now() + time;
        while Instant::now() < end {
            let request = requests.next().unwrap();
            tick.tick().await;
            if sender.send(request).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(sending, making);
}

async fn send(
    address: &str,
    requests: mpsc::Receiver<Vec<u8>>,
    answers: &Arc<Answers>,
    told: Option<mpsc::UnboundedSender<Accepted>>,
) {
    let requests = Arc::new(Mutex::new(requests));
    let connections = (0..CONNECTIONS).map(|_| {
        let (requests, answers, told) = (Arc::clone(&requests), Arc::clone(answers), told.clone());
        let address = address.to_owned();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut answer = vec![0; 16 * 1024];
            loop {
                let Some(request) = requests.lock().await.recv().await else { return };
                stream.write_all(&request).await.unwrap();
                let bytes = stream.read(&mut answer).await.unwrap();
                let text = String::from_utf8_lossy(&answer[..bytes]);
                if text.starts_with("HTTP/1.1 200") {
                    let taken =
                        answers.taken.fetch_add(BATCH_EVENTS as u64, Ordering::Relaxed) + BATCH_EVENTS as u64;
                    if let Some(told) = &told {
                        told.send((Instant::now(), taken)).unwrap();
                    }
                } else {
                    let refused = text.starts_with("HTTP/1.1 429") || text.starts_with("HTTP/1.1 503");
                    assert!(refused, "{text}");
                    answers.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for connection in connections.collect::<Vec<_>>() {
        connection.await.unwrap();
    }
}
