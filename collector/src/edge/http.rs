use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{self, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use eventbucket_protocol::{SENT_AT_HEADER, Timestamp, codec};

use super::problem::{Cause, Refusal};
use super::{State, body, cors, decode, key, reply};
use crate::ingest::{self, Arrival};
use crate::project::Grant;

/// `POST /v1/events`: authenticate → decode → validate → prepare → publish → verdicts.
pub(super) async fn take_events(extract::State(edge): extract::State<State>, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let grant = match key::sender(&edge, &head.headers).await {
        Ok(grant) => grant,
        Err(refusal) => {
            body::discard_rest(&head, body).await;
            return cors::echo_origin(refusal.into_response(), &head.headers);
        }
    };
    let answer = match batch(&edge, grant, &head, &mut body).await {
        Ok(answer) => answer,
        Err(refusal) => {
            body::discard_rest(&head, body).await;
            refusal.into_response()
        }
    };
    if grant.browser { cors::echo_origin(answer, &head.headers) } else { answer }
}

async fn batch(edge: &State, grant: Grant, head: &Parts, body: &mut Body) -> Result<Response, Refusal> {
    edge.health.check_room()?;
    let format = decode::format(&head.headers)?;
    let encoding = decode::encoding(&head.headers)?;
    let sent_at = sent_at(&head.headers)?;

    let held = body::read(head, body, &edge.limits, edge.config.body_timeout).await?;
    edge.metrics.body_received(held.bytes.len());
    let arrival = Arrival { received: Timestamp::from_system(SystemTime::now()), sent_at };

    // The bytes stay drawn until the answer is made: the events live until they are stored.
    let ingest = edge.ingest.clone();
    let (prepared, drawn) = decode::decoded(held, encoding, &edge.limits, move |bytes| {
        Ok(ingest.prepare(ingest::validate(grant.project, codec::decode(bytes, format)?, arrival)))
    })
    .await?;
    let ingest = edge.ingest.clone();
    // A task of its own: a client that leaves now is not charged for what goes no further.
    let taking = tokio::spawn(async move {
        let admitted = ingest.admit(grant.limits, &prepared).await?;
        let outcome = ingest.publish_admitted(prepared, &admitted).await;
        drop(drawn);
        Ok::<_, ingest::Error>((outcome?, admitted.closest))
    });
    let taken = taking.await.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()));
    let (outcome, closest) = taken?;
    Ok(reply::with_limit(reply::batch(outcome), closest))
}

/// Reads when the attempt was sent, by the sender's clock.
fn sent_at(headers: &HeaderMap) -> Result<Option<Timestamp>, Refusal> {
    let Some(value) = headers.get(SENT_AT_HEADER) else { return Ok(None) };
    let sent_at = value.to_str().ok().and_then(|text| text.trim().parse().ok()).and_then(Timestamp::from_ms);
    if sent_at.is_none() {
        let detail =
            format!("{SENT_AT_HEADER} must be Unix milliseconds from 0001-01-01 to 9999-12-30T22:00:00Z");
        return Err(Refusal::new(Cause::InvalidHeader, detail));
    }
    Ok(sent_at)
}
