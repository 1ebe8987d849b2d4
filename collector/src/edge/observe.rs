use std::time::Instant;

use axum::extract::{self, MatchedPath, Request};
use axum::http::header::{CONNECTION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;
use eventbucket_protocol::DRAINING_HEADER;

use super::State;
use super::client::{self, Peer};

/// Counts, times and logs every request, whatever its route. Keys and parameters stay out of the log.
pub(super) async fn request(
    extract::State(edge): extract::State<State>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    // What no route matches is one line in the figures, whatever the paths that are tried.
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);
    let client = request
        .extensions()
        .get::<Peer>()
        .map(|Peer(peer)| client::address(peer.ip(), request.headers(), &edge.config.trusted_proxies));
    let (method, version) = (request.method().clone(), request.version());

    let mut response = next.run(request).await;

    let (status, took) = (response.status().as_u16(), began.elapsed());
    edge.metrics.request_answered(route, status, took);
    let client = client.map(tracing::field::display);
    tracing::debug!(%method, route, status, client, took_ms = took.as_millis(), "answered a request");
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if edge.draining.is_cancelled() {
        headers.insert(DRAINING_HEADER, HeaderValue::from_static("1"));
        if version < Version::HTTP_2 {
            // A client that keeps its connection busy leaves it after this answer instead of meeting its end.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}
