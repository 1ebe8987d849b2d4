use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::time::Instant;

use super::parameters::Parameters;
use super::problem::{Cause, Refusal};
use super::{State, key};
use crate::query::{EventFilter, EventShape, StoredEvent, Tail};

/// A comment is sent this often when nothing happens: proxies cut connections that are silent for 30 to 60 s. The key is
/// looked at as often, however busy the log is, so that a revoked one doesn't go on reading.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// `GET /v1/events/tail`: server-sent events. Each `event` has the position as its id; `Last-Event-ID` goes on behind it, and
/// without it the tail begins at the end of the log.
pub(super) async fn events(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let filter = EventFilter {
        names: parameters.texts("name")?.into_iter().collect(),
        user: parameters.text("user")?,
        conditions: parameters.conditions()?,
        ..EventFilter::default()
    };
    let after = parameters.number("after")?;
    parameters.finish()?;
    let after = last_event_id(&headers)?.or(after);
    let tail = edge.query.tail(grant.project, filter, after).await?;
    let key = key::bearer(&headers)?.to_owned();
    Ok(stream_of(Following { edge, key, tail, stage: Stage::Opening, looked: Instant::now() }))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok("") => Ok(None),
        text => text.ok().and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| {
            Refusal::new(Cause::InvalidCursor, "Last-Event-ID must be the position of an event: 1, 2, 3, …")
        }),
    }
}

/// A stream is asked for its next piece only when the one before is on its way, so a slow reader makes the log wait for
/// nobody and holds one page.
fn stream_of(following: Following) -> Response {
    let pieces = stream::unfold(following, |mut following| async {
        let piece = following.next_piece().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), following))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx holds answers back until 4 KiB are there, unless it is told.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Following {
    edge: State,
    key: String,
    tail: Tail,
    stage: Stage,
    /// When the key was looked at last.
    looked: Instant,
}

enum Stage {
    /// Nothing was sent: the first piece tells the client that it is connected, and from where.
    Opening,
    Open,
    Closed,
}

impl Following {
    async fn next_piece(&mut self) -> Option<Vec<u8>> {
        match self.stage {
            Stage::Opening => {
                self.stage = Stage::Open;
                return Some(format!("retry: 1000\n{}", self.place("following from")).into());
            }
            Stage::Open => {}
            Stage::Closed => return None,
        }
        // A log that never rests leaves no pause in which to look at the key.
        if self.looked.elapsed() >= HEARTBEAT {
            return Some(self.heartbeat().await);
        }
        // All three are cancel-safe: the tail moves only when it returns events.
        tokio::select! {
            () = self.edge.draining.cancelled() => None,
            events = self.tail.next() => match events {
                Ok(events) => Some(self.written(&events)),
                Err(error) => Some(self.close(Refusal::from(error))),
            },
            () = tokio::time::sleep_until(self.looked + HEARTBEAT) => Some(self.heartbeat().await),
        }
    }

    async fn heartbeat(&mut self) -> Vec<u8> {
        self.looked = Instant::now();
        match self.edge.ingest.authenticate(&self.key).await {
            Ok(_) => self.place("still here at").into(),
            Err(error) => self.close(Refusal::from(error)),
        }
    }

    /// Tells the client its place by an id without data, so that it can come back to it although it has seen no event yet.
    fn place(&self, word: &str) -> String {
        let position = self.tail.position();
        format!(": {word} position {position}\nid: {position}\n\n")
    }

    fn written(&mut self, events: &[StoredEvent]) -> Vec<u8> {
        let mut piece = Vec::new();
        for event in events {
            if let Err(error) = write(&mut piece, "event", Some(event.position), &EventShape::from(event)) {
                tracing::error!(%error, position = event.position, "a stored event can't be written as JSON");
                return self
                    .close(Refusal::new(Cause::Internal, "a stored event can't be read; see the log"));
            }
        }
        piece
    }

    /// Says why before the stream ends.
    fn close(&mut self, refusal: Refusal) -> Vec<u8> {
        self.stage = Stage::Closed;
        let mut piece = Vec::new();
        write(&mut piece, "problem", None, &refusal.problem()).expect("text and a number are always JSON");
        piece
    }
}

fn write(
    piece: &mut Vec<u8>,
    kind: &str,
    id: Option<u64>,
    document: &impl Serialize,
) -> serde_json::Result<()> {
    piece.extend_from_slice(format!("event: {kind}\n").as_bytes());
    if let Some(id) = id {
        piece.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    piece.extend_from_slice(b"data: ");
    // It is one line: properties are kept on one.
    serde_json::to_writer(&mut *piece, document)?;
    piece.extend_from_slice(b"\n\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::Properties;

    use super::*;

    #[test]
    fn line_breaks_in_properties_do_not_end_the_data() {
        let mut piece = Vec::new();
        let properties = Properties::parse("{\"a\":\r\n \"x\\n\"}").unwrap();
        write(&mut piece, "event", Some(7), &properties).unwrap();
        let text = String::from_utf8(piece).unwrap();
        assert_eq!(text, "event: event\nid: 7\ndata: {\"a\":   \"x\\n\"}\n\n");
    }
}
