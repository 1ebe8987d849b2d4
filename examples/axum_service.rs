//! A small web service that captures an event for each request and each order, and loses none on Ctrl-C or SIGTERM.
//!
//! `EVENTBUCKET_KEY=eb_write_… cargo run --example axum_service`, then
//! `curl --json '{"customer": "ada", "amount": 12.5}' http://127.0.0.1:3000/orders`.
//! LISTEN chooses another address.

use std::env;
use std::time::Instant;

use anyhow::Context;
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use eventbucket::{Bucket, event, props};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = env::var("EVENTBUCKET_URL").unwrap_or_else(|_| "http://127.0.0.1:4000".into());
    let key = env::var("EVENTBUCKET_KEY").context("set EVENTBUCKET_KEY to the project's write key")?;
    let bucket = Bucket::builder(&url, &key)
        .spool(env::temp_dir().join("axum_service-events"))
        .context(props! { service: "axum_service", version: env!("CARGO_PKG_VERSION") })
        .on_error(|fault| eprintln!("{fault}"))
        .build()?;

    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(&address).await.with_context(|| format!("listen on {address}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, routes(bucket.clone())).with_graceful_shutdown(stop()?).await?;

    // Requests have ended, so nothing captures any more: deliver the rest, for up to 30 s. What is left then stays in the
    // spool for the next start.
    let report = bucket.shutdown().await;
    let (delivered, dropped) = (report.ledger.delivered.total(), report.ledger.dropped.total());
    println!("delivered {delivered}, left in the spool {}, dropped {dropped}", report.still_pending);
    Ok(())
}

fn routes(bucket: Bucket) -> Router {
    Router::new()
        .route("/", get(|| async { "POST an order to /orders\n" }))
        .route("/orders", post(order))
        .layer(middleware::from_fn_with_state(bucket.clone(), served))
        .with_state(bucket)
}

/// An order as customers send it.
#[derive(Deserialize)]
struct Order {
    customer: String,
    amount: f64,
}

/// A business event, captured where it happens.
async fn order(State(bucket): State<Bucket>, Json(order): Json<Order>) -> StatusCode {
    if order.customer.is_empty() {
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    bucket.capture(event!("order_placed", user: order.customer, amount: order.amount));
    StatusCode::CREATED
}

/// A technical event for each request. The route is captured, not the path: paths may carry names of people.
async fn served(State(bucket): State<Bucket>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    bucket.capture(event!(
        "request_served",
        method: method.as_str(),
        route: route,
        status: response.status().as_u16(),
        ms: started.elapsed().as_secs_f64() * 1e3,
    ));
    response
}

/// Resolves on Ctrl-C or SIGTERM.
fn stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    Ok(async move {
        // Both are cancel-safe: a signal that isn't taken here is of no more interest.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
