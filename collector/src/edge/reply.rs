use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use eventbucket_protocol::Reply;
use serde::Serialize;

use super::problem::{Cause, Refusal};
use crate::ingest::{self, Outcome};
use crate::query;

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
            _ => failed(&error, error.status(), error.retry()),
        }
    }
}

impl From<query::Error> for Refusal {
    fn from(error: query::Error) -> Self {
        match &error {
            query::Error::Parameter { .. } => Self::new(Cause::InvalidQuery, error.to_string()),
            query::Error::Cursor(_) => Self::new(Cause::InvalidCursor, error.to_string()),
            query::Error::NotFound(_) => Self::new(Cause::NotFound, error.to_string()),
            query::Error::Store(_) => failed(&error, error.status(), error.retry()),
        }
    }
}

/// Answers what a stage behind the edge could not do. What only an operator can mend goes to the log in full.
fn failed(error: &dyn std::error::Error, status: u16, retry: Option<Duration>) -> Refusal {
    let cause = match status {
        400 => Cause::InvalidQuery,
        404 => Cause::NotFound,
        409 => Cause::NameTaken,
        429 => Cause::Busy,
        503 => Cause::Unavailable,
        _ => {
            tracing::error!(%error, "a request failed");
            return Refusal::new(Cause::Internal, "the collector failed; its log says why");
        }
    };
    let refusal = Refusal::new(cause, error.to_string());
    match retry {
        Some(wait) => refusal.retry_after(wait),
        None => refusal,
    }
}
