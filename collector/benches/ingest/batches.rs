//! Batches of 500 over HTTP from a few connections, each answered when it is committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use eventbucket_protocol::codec::encode;
use eventbucket_protocol::{BatchId, Event};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::events::events;
use crate::process::Collector;

/// Events in a batch.
pub(crate) const BATCH_EVENTS: usize = 500;

/// Batches in a round: 100,000 events.
pub(crate) const BATCHES: usize = 200;

/// Connections, each sending the next batch when the last is answered.
const CONNECTIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    MessagePack,
    Json,
}

/// Whole requests, ready to be written.
pub(crate) struct Load {
    format: Format,
    bodies: Vec<Vec<u8>>,
}

impl Load {
    pub(crate) fn make(format: Format, round: usize) -> Self {
        let salt = if format == Format::Json { 1_000 } else { 0 };
        let events: Vec<Event> = events(round + salt).take(BATCHES * BATCH_EVENTS).collect();
        let bodies = events.chunks(BATCH_EVENTS).map(|chunk| body(format, chunk)).collect();
        Self { format, bodies }
    }

    /// Sends everything and returns events a second.
    pub(crate) async fn send(self, collector: &Collector) -> f64 {
        let content_type =
            if self.format == Format::Json { "application/json" } else { "application/msgpack" };
        let head = |length: usize| {
            format!(
                "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: {content_type}\r\n\
                 content-length: {length}\r\n\r\n",
                collector.key()
            )
        };
        let requests: Vec<Vec<u8>> =
            self.bodies.into_iter().map(|body| [head(body.len()).into_bytes(), body].concat()).collect();
        let events = requests.len() * BATCH_EVENTS;
        let (requests, next) = (Arc::new(requests), Arc::new(AtomicUsize::new(0)));
        let address = collector.url().strip_prefix("http://").unwrap().to_owned();
        let start = Instant::now();
        let connections = (0..CONNECTIONS).map(|_| {
            let (requests, next, address) = (Arc::clone(&requests), Arc::clone(&next), address.clone());
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let mut answer = vec![0; 16 * 1024];
                while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    stream.write_all(request).await.unwrap();
                    let bytes = stream.read(&mut answer).await.unwrap();
                    let text = String::from_utf8_lossy(&answer[..bytes]);
                    assert!(
                        text.starts_with("HTTP/1.1 200") && text.contains("\"all\":{\"verdict\":\"stored\"}"),
                        "{text}"
                    );
                }
            })
        });
        for connection in connections.collect::<Vec<_>>() {
            connection.await.unwrap();
        }
        events as f64 / start.elapsed().as_secs_f64()
    }
}

fn body(format: Format, events: &[Event]) -> Vec<u8> {
    match format {
        Format::MessagePack => {
            let mut out = Vec::new();
            encode::batch_header(BatchId::from_uuid(events[0].id.uuid()), events.len() as u32, &mut out);
            events.iter().for_each(|event| encode::event(event, &mut out));
            out
        }
        Format::Json => {
            let events: Vec<_> = events
                .iter()
                .map(|event| {
                    json!({
                        "id": event.id.to_string(), "name": event.name, "user": event.user,
                        "time": event.time.to_string(), "properties": event.properties,
                    })
                })
                .collect();
            json!({ "events": events }).to_string().into_bytes()
        }
    }
}
