//! Every answer to a request that failed as a whole, in one table: the code programs match on, its status, its title.

use std::any::Any;
use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{self, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use eventbucket_protocol::Problem;

use super::{State, body, reply};
use crate::config::Role;
use crate::ingest::Left;

/// Why a request failed as a whole. The names in snake case are the stable codes of docs/PROTOCOL.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    MissingKey,
    UnknownKey,
    RevokedKey,
    WrongKeyKind,
    UnsupportedMediaType,
    UnsupportedEncoding,
    MethodNotAllowed,
    NotFound,
    BodyTooLarge,
    TooManyEvents,
    DecompressedTooLarge,
    TruncatedBody,
    MalformedBody,
    SlowBody,
    Busy,
    Limited,
    Crowded,
    Unavailable,
    Behind,
    DiskLow,
    InvalidQuery,
    InvalidCursor,
    InvalidHeader,
    NameTaken,
    Internal,
}

impl Cause {
    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::MissingKey => (401, "missing_key", "No key was given"),
            Self::UnknownKey => (401, "unknown_key", "The key is not known"),
            Self::RevokedKey => (401, "revoked_key", "The key was revoked"),
            Self::WrongKeyKind => (403, "wrong_key_kind", "The key may not do this"),
            Self::UnsupportedMediaType => {
                (415, "unsupported_media_type", "The content type is not supported")
            }
            Self::UnsupportedEncoding => {
                (415, "unsupported_encoding", "The content encoding is not supported")
            }
            Self::MethodNotAllowed => (405, "method_not_allowed", "The path does not take this method"),
            Self::NotFound => (404, "not_found", "There is nothing here"),
            Self::BodyTooLarge => (413, "body_too_large", "The body is too large"),
            Self::TooManyEvents => (413, "too_many_events", "The batch holds too many events"),
            Self::DecompressedTooLarge => {
                (413, "decompressed_too_large", "The body is too large once decompressed")
            }
            Self::TruncatedBody => (400, "truncated_body", "The body breaks off"),
            Self::MalformedBody => (400, "malformed_body", "The body can't be read"),
            Self::SlowBody => (408, "slow_body", "The body took too long"),
            Self::Busy => (429, "busy", "Too much at once"),
            Self::Limited => (429, "limited", "The project sends too much"),
            Self::Crowded => (503, "busy", "Too much at once"),
            Self::Unavailable => (503, "unavailable", "Nothing can be stored at the moment"),
            Self::Behind => (503, "behind", "The answer does not go that far yet"),
            Self::DiskLow => (503, "disk_low", "The disk is almost full"),
            Self::InvalidQuery => (400, "invalid_query", "A parameter can't be used"),
            Self::InvalidCursor => (400, "invalid_cursor", "The cursor can't be used"),
            Self::InvalidHeader => (400, "invalid_header", "A header can't be used"),
            Self::NameTaken => (409, "name_taken", "The name is taken"),
            Self::Internal => (500, "internal", "The collector failed"),
        }
    }
}

/// A cause with what is wrong here and what to do.
#[derive(Debug)]
pub(super) struct Refusal {
    cause: Cause,
    detail: Cow<'static, str>,
    retry_after_s: Option<u64>,
    limit: Option<Left>,
}

impl Refusal {
    pub(super) fn new(cause: Cause, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { cause, detail: detail.into(), retry_after_s: None, limit: None }
    }

    /// Says when to try again, in whole seconds: HTTP has no finer unit, and 0 would be an invitation to hammer.
    pub(super) fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after_s: Some(whole_seconds(wait)), ..self }
    }

    /// Says what is left of a limit.
    pub(super) fn limit(self, limit: Option<Left>) -> Self {
        Self { limit, ..self }
    }

    pub(super) fn problem(&self) -> Problem {
        let (status, code, title) = self.cause.parts();
        Problem {
            status,
            code: code.to_owned(),
            title: title.to_owned(),
            detail: self.detail.clone().into_owned(),
        }
    }

    pub(super) fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let json = serde_json::to_vec(&problem).expect("text and a number are always JSON");
        let mut response = Response::new(Body::from(json));
        *response.status_mut() =
            StatusCode::from_u16(problem.status).expect("the table holds valid statuses");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if problem.status == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        reply::with_limit(response, self.limit)
    }
}

/// Answers every unknown path, and the paths of other processes' roles.
pub(super) async fn not_found(extract::State(edge): extract::State<State>, request: Request) -> Refusal {
    let (path, roles) = (request.uri().path(), edge.roles);
    let detail = if roles.has(Role::Edge) && roles.has(Role::Query) {
        format!("there is no path {path}; events are sent by POST /v1/events, the page at / shows how")
    } else {
        format!(
            "there is no path {path} at this process, which has the roles {roles}; events are sent to one with the role edge \
             and read from one with the role query"
        )
    };
    body::discard(request.into_parts()).await;
    Refusal::new(Cause::NotFound, detail)
}

/// Answers a known path with the wrong method; the router adds `Allow`.
pub(super) async fn method_not_allowed(request: Request) -> Refusal {
    let detail = format!(
        "{} doesn't take {}; the Allow header says what it takes",
        request.uri().path(),
        request.method()
    );
    body::discard(request.into_parts()).await;
    Refusal::new(Cause::MethodNotAllowed, detail)
}

/// Answers for a request whose handling panicked. The panic itself was logged by its hook; nothing of it goes out.
pub(super) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("handling a request panicked; it was answered 500");
    Refusal::new(
        Cause::Internal,
        "handling the request failed; the collector's log says why, please report it",
    )
    .into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_and_says_nothing_of_itself() {
        let panics = || async {
            if true {
                panic!("ada's password");
            }
        };
        let app: Router = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(panicked));
        let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.code, "internal");
        assert!(!problem.detail.contains("ada"), "{problem:?}");
    }

    #[test]
    fn waits_are_rounded_up_to_whole_seconds_and_never_zero() {
        for (wait_ms, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (5_000, 5)] {
            assert_eq!(whole_seconds(Duration::from_millis(wait_ms)), seconds);
        }
    }
}
