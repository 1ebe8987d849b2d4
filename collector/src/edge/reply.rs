use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use eventbucket_protocol::Reply;
use serde::Serialize;

use super::problem::{Cause, Refusal};
use crate::ingest::{self, Left, Outcome};
use crate::query;
use crate::telemetry::complaint::Complaint;

/// Answers a batch: a verdict an event, and the ids when the collector made some.
pub(super) fn batch(outcome: Outcome) -> Response {
    let reply = Reply::new(outcome.batch, outcome.verdicts);
    json(
        StatusCode::OK,
        &match outcome.ids {
            Some(ids) => reply.with_ids(&ids),
            None => reply,
        },
    )
}

/// Adds what is left of the limit that is closest to its end: how many events may come at once or in the period, how many are
/// left of them, and after how many seconds all are there again.
pub(super) fn with_limit(mut response: Response, limit: Option<Left>) -> Response {
    if let Some(left) = limit {
        let headers = response.headers_mut();
        headers.insert("ratelimit-limit", HeaderValue::from(left.limit));
        headers.insert("ratelimit-remaining", HeaderValue::from(left.remaining));
        let seconds = left.resets_after.as_secs() + u64::from(left.resets_after.subsec_nanos() > 0);
        headers.insert("ratelimit-reset", HeaderValue::from(seconds));
    }
    response
}

/// Answers a document. Nothing of the API may be kept by caches on the way.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Response {
    let bytes = match serde_json::to_vec(document) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%error, "what is stored can't be written as JSON");
            return Refusal::new(Cause::Internal, "what is stored can't be read; see the collector's log")
                .into_response();
        }
    };
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl From<ingest::Error> for Refusal {
    fn from(error: ingest::Error) -> Self {
        match &error {
            ingest::Error::UnknownKey => Self::new(Cause::UnknownKey, error.to_string()),
            ingest::Error::RevokedKey => Self::new(Cause::RevokedKey, error.to_string()),
            ingest::Error::Limited { retry_after, left, .. } => {
                Self::new(Cause::Limited, error.to_string()).retry_after(*retry_after).limit(*left)
            }
            _ => failed(&error, error.told(), error.status(), error.retry()),
        }
    }
}

impl From<query::Error> for Refusal {
    fn from(error: query::Error) -> Self {
        match &error {
            query::Error::Parameter { .. } => Self::new(Cause::InvalidQuery, error.to_string()),
            query::Error::Cursor(_) => Self::new(Cause::InvalidCursor, error.to_string()),
            query::Error::NotFound(_) => Self::new(Cause::NotFound, error.to_string()),
            query::Error::Behind { .. } => {
                let refusal = Self::new(Cause::Behind, error.to_string());
                error.retry().into_iter().fold(refusal, Self::retry_after)
            }
            query::Error::Store(_) if error.names_damage() => {
                tracing::error!(%error, "a request met damage");
                Self::new(Cause::Internal, error.to_string())
            }
            query::Error::Store(_) if error.is_crowded() => {
                let refusal = Self::new(Cause::Crowded, error.told());
                error.retry().into_iter().fold(refusal, Self::retry_after)
            }
            query::Error::Bus(_) | query::Error::Store(_) => {
                failed(&error, error.told(), error.status(), error.retry())
            }
        }
    }
}

/// Every request fails while a server is away.
static COMPLAINT: Complaint = Complaint::new();

/// Answers what a stage behind the edge could not do. What only an operator can mend goes to the log in full; `told` is what
/// anybody may know of it.
fn failed(error: &dyn std::error::Error, told: String, status: u16, retry: Option<Duration>) -> Refusal {
    let cause = match status {
        400 => Cause::InvalidQuery,
        404 => Cause::NotFound,
        409 => Cause::NameTaken,
        429 => Cause::Busy,
        503 => {
            if COMPLAINT.is_due() {
                tracing::warn!(%error, "requests can't be answered now; they are told to come again");
            }
            Cause::Unavailable
        }
        _ => {
            tracing::error!(%error, "a request failed");
            return Refusal::new(Cause::Internal, "the collector failed; its log says why");
        }
    };
    let refusal = Refusal::new(cause, told);
    match retry {
        Some(wait) => refusal.retry_after(wait),
        None => refusal,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{bus, store};

    #[test]
    fn servers_are_named_to_no_client() {
        let words = "can't connect to ada@db.example:6432/log";
        let away = || bus::Error::Away { words: words.into(), retry_after: Duration::from_secs(3) };
        let unavailable = || store::Error::Unavailable { reason: words.into() };
        let says_no = || store::Error::Postgres { what: Arc::from(words), code: "42501".into() };
        let refusals = [
            Refusal::from(ingest::Error::Store(unavailable())),
            Refusal::from(ingest::Error::Storage(says_no())),
            Refusal::from(ingest::Error::Bus(away())),
            Refusal::from(ingest::Error::Bus(bus::Error::Storage(unavailable()))),
            Refusal::from(query::Error::Store(says_no())),
            Refusal::from(query::Error::Bus(away())),
        ];
        for refusal in refusals {
            let problem = refusal.problem();
            assert_eq!((problem.status, refusal.retry_after_s().is_some()), (503, true), "{problem:?}");
            let told = ["is away", "can't do it now"].iter().any(|words| problem.detail.contains(words));
            assert!(told, "{problem:?}");
            for name in ["ada", "db.example", "6432", "log"] {
                assert!(!problem.detail.contains(name), "{problem:?}");
            }
        }
    }
}
