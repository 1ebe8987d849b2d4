use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client::Peer;

/// A request line with all headers: 64 KiB, eight times what common servers take.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// Requests at once on one HTTP/2 connection: the streams of 4,096 connections are bounded by the budget for bodies; this
/// keeps one client from filling it alone.
const STREAMS_MAX: u32 = 64;

/// An HTTP/2 client that doesn't answer a ping this long is gone.
const PING: Duration = Duration::from_secs(20);

/// What one connection is told from outside.
#[derive(Clone)]
pub(super) struct Orders {
    /// Answer what is in flight, take nothing more.
    pub(super) finish: CancellationToken,
    /// End at once.
    pub(super) cut: CancellationToken,
}

/// Serves a connection until it ends. One that has no request in flight for `idle_max` is closed, whatever it is doing:
/// saying nothing, sending its first bytes one by one, or waiting between two requests.
pub(super) async fn serve<I>(io: I, peer: SocketAddr, app: Router, idle_max: Duration, orders: Orders)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::new();
    let requests = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, in_flight) = (app.clone(), requests.begin());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer));
            let response = app.oneshot(request).await?;
            Ok::<_, Infallible>(response.map(|body| Counted { body, _in_flight: in_flight }))
        }
    });
    let builder = builder(idle_max);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    // All four are cancel-safe: a connection keeps its state, tokens and clocks have none.
    tokio::select! {
        ended = connection.as_mut() => return log(ended),
        () = orders.cut.cancelled() => return,
        () = orders.finish.cancelled() => connection.as_mut().graceful_shutdown(),
        () = activity.idle_for(idle_max) => {
            connection.as_mut().graceful_shutdown();
            if let Ok(ended) = timeout(idle_max, connection).await {
                log(ended);
            }
            return;
        }
    }
    tokio::select! {
        ended = connection.as_mut() => log(ended),
        () = orders.cut.cancelled() => {}
    }
}

fn builder(header_timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEADERS_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// What goes wrong on a connection is the client's or the network's doing.
fn log(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// How many requests of a connection are in flight, and since when there is none.
#[derive(Clone)]
struct Activity(Arc<Mutex<(usize, Instant)>>);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((0, Instant::now()))))
    }

    fn update(&self, change: impl FnOnce(usize) -> usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (change(state.0), Instant::now());
    }

    fn begin(&self) -> InFlight {
        self.update(|count| count + 1);
        InFlight(self.clone())
    }

    /// Returns once there has been no request for a while.
    async fn idle_for(&self, idle_max: Duration) {
        loop {
            let (count, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if count > 0 {
                sleep(idle_max).await;
            } else if since.elapsed() >= idle_max {
                return;
            } else {
                sleep_until(since + idle_max).await;
            }
        }
    }
}

/// A request from its headers to the last byte of its answer.
struct InFlight(Activity);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.update(|count| count - 1);
    }
}

/// An answer that counts as in flight until it is sent.
struct Counted {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
