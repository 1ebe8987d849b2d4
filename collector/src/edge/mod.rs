//! The HTTP side: connections, bodies, replies, health. What travels over the wire is written and read here alone.

/// The whole path of a batch.
mod http;

/// Keys out of headers.
mod key;

/// Bodies read off the wire, within limits of size and time.
mod body;

/// Bodies decompressed and cut into events.
mod decode;

/// Answers to batches.
mod reply;

/// Answers to requests that failed as a whole.
mod problem;

/// What bounds memory and work.
mod limits;

/// Which origins browsers may send from.
mod cors;

/// Reading events and counts.
mod read;

/// The live tail.
mod tail;

/// Projects, keys, limits, audit and rebuild.
mod manage;

/// Dead letters.
mod dead_letters;

/// Parameters behind the question mark.
mod parameters;

/// Whether the collector can work, and its figures.
mod health;

/// Who the users are, and what they did.
mod users;

/// Who is asking, behind proxies.
mod client;

/// What is counted about every request, whatever its route.
mod observe;

/// The listener: accepting, capping, draining.
mod server;

/// One connection from its first byte to its last.
mod connection;

/// TLS on the listener.
mod tls;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, patch, post};
use eventbucket_protocol::{EVENTS_PATH, NODES_PATH};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

pub use health::Health;
pub use server::serve;
pub use tls::{Tls, TlsError};

use crate::config::{EdgeConfig, Role, Roles};
use crate::dashboard;
use crate::ingest::Ingest;
use crate::query::Reader;
use crate::telemetry::metrics::Metrics;
use limits::Limits;

/// What every request may reach. Clones share it.
#[derive(Clone)]
pub struct State {
    ingest: Ingest,
    query: Reader,
    health: Health,
    config: Arc<EdgeConfig>,
    roles: Roles,
    metrics: Metrics,
    limits: Arc<Limits>,
    /// Cancelled when draining begins: open tails end, and answers ask clients to come back elsewhere.
    draining: CancellationToken,
}

impl State {
    /// Puts the edge together.
    #[must_use]
    pub fn new(ingest: Ingest, query: Reader, health: Health, config: EdgeConfig, metrics: Metrics) -> Self {
        let limits = Arc::new(Limits::new(config.decoding_max));
        let draining = CancellationToken::new();
        let (config, roles) = (Arc::new(config), Roles::default());
        Self { ingest, query, health, config, roles, metrics, limits, draining }
    }

    /// Answers only what belongs to these roles.
    #[must_use]
    pub fn for_roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }
}

/// The paths, in the order a newcomer meets them. Every process tells its health; what else it answers is its roles'.
pub fn routes(state: State) -> Router {
    let mut events = MethodRouter::new();
    let mut paths = Router::new()
        .route("/healthz/live", get(health::live))
        .route("/healthz/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/metrics", get(health::metrics));
    if state.roles.has(Role::Edge) {
        events = events.post(http::take_events).options(cors::preflight);
        paths = paths.route("/v1/batches/{id}", get(read::batch).options(cors::preflight));
    }
    if state.roles.has(Role::Query) {
        events = events.get(read::events);
        paths = paths.merge(reading()).merge(dashboard::routes());
    }
    if state.roles.has(Role::Edge) || state.roles.has(Role::Query) {
        paths = paths
            .route(EVENTS_PATH, events)
            .route("/v1/key", get(manage::key))
            .route(NODES_PATH, get(manage::nodes));
    }
    paths
        .method_not_allowed_fallback(problem::method_not_allowed)
        .fallback(problem::not_found)
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(axum::middleware::from_fn_with_state(state.clone(), observe::request))
        .with_state(state)
}

fn reading() -> Router<State> {
    Router::new()
        .route("/v1/events/tail", get(tail::events))
        .route("/v1/events/{id}", get(read::event))
        .route("/v1/events/by-id", get(read::event_by_parameter))
        .route("/v1/counts", get(read::counts))
        .route("/v1/users", get(users::list))
        .route("/v1/users/{id}", get(users::show))
        .route("/v1/users/{id}/events", get(users::timeline))
        .route("/v1/users/by-id", get(users::show_by_parameter))
        .route("/v1/users/by-id/events", get(users::timeline_by_parameter))
        .route("/v1/projects", get(manage::projects).post(manage::create_project))
        .route("/v1/projects/{id}/keys/rotate", post(manage::rotate_key))
        .route("/v1/projects/{id}/limits", patch(manage::set_limits))
        .route("/v1/dead-letters", get(dead_letters::list))
        .route("/v1/dead-letters/{id}", get(dead_letters::show).delete(dead_letters::discard))
        .route("/v1/dead-letters/{id}/replay", post(dead_letters::replay))
        .route("/v1/audit", get(manage::audit))
        .route("/v1/rebuild", post(manage::rebuild))
}
