use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use eventbucket_protocol::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{self, Orders};
use super::problem::{Cause, Refusal};
use super::tls::Tls;
use super::{State, routes};

/// When draining begins, connections in use get this long to take an answer with `Connection: close` and leave by
/// themselves. Closing one between two requests would reset a request that is already on its way.
const LEAVING: Duration = Duration::from_millis(500);

/// Connections that are told at once that there are too many; further ones are just closed.
const TURNED_AWAY_MAX: usize = 64;

/// How long that may take.
const TURNING_AWAY: Duration = Duration::from_secs(1);

/// When a turned away client may come again: idle connections are closed after seconds.
const TURNED_AWAY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long to wait when the process is out of file descriptors: some come back as connections end.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// File descriptors beside those of connections: database, log, runtime.
const DESCRIPTORS_ASIDE: u64 = 256;

/// How often the disk is looked at: at 500 MB/s the least mark worth setting (128 MiB) lasts a quarter of that, but the
/// log grows by 50 MB/s at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Serves connections until `stop`, then drains: gives notice to its clients, takes no more connections, answers what is in
/// flight, and cuts what is left after the drain timeout. Returns when the last connection has ended.
///
/// # Errors
/// When the listener can't be used at all.
pub async fn serve(
    listener: TcpListener,
    state: State,
    tls: Option<Tls>,
    stop: CancellationToken,
) -> io::Result<()> {
    raise_descriptors(state.config.connections_max as u64 + DESCRIPTORS_ASIDE);
    let server = Server::new(state, tls);
    let ended = CancellationToken::new();
    let watch = tokio::spawn(watch(server.state.clone(), ended.clone()));
    loop {
        // Both are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => server.accepted(accepted).await,
        }
    }
    let drained = server.drain(listener).await;
    ended.cancel();
    watch.await.map_err(io::Error::other)?;
    drained
}

struct Server {
    app: Router,
    state: State,
    tls: Option<Tls>,
    room: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    connections: TaskTracker,
    orders: Orders,
}

impl Server {
    fn new(state: State, tls: Option<Tls>) -> Self {
        Self {
            app: routes(state.clone()),
            room: Arc::new(Semaphore::new(state.config.connections_max.max(1))),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
            connections: TaskTracker::new(),
            orders: Orders { finish: CancellationToken::new(), cut: CancellationToken::new() },
            state,
            tls,
        }
    }

    async fn accepted(&self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, peer)) => self.admit(stream, peer),
            // These concern the connection alone, which is gone.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted; trying again");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(place) => {
                self.connections.spawn(self.connection(stream, peer, place));
            }
            Err(_) => {
                self.state.metrics.connection_refused();
                // A plain answer would be noise inside TLS, and a handshake is the work that is to be saved.
                if let (None, Ok(place)) = (&self.tls, Arc::clone(&self.turned_away).try_acquire_owned()) {
                    self.connections.spawn(turn_away(stream, place));
                }
            }
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (app, tls, orders) = (self.app.clone(), self.tls.clone(), self.orders.clone());
        let idle_max = self.state.config.header_timeout;
        let counted = self.state.metrics.connection();
        async move {
            let (_place, _counted) = (place, counted);
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "answers on a connection may be delayed");
            }
            let Some(tls) = tls else { return connection::serve(stream, peer, app, idle_max, orders).await };
            // A handshake is part of what comes before the first request, and may take as long.
            let handshake = timeout(idle_max, tls.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = orders.cut.cancelled() => return,
            };
            match shaken {
                Ok(Ok(stream)) => connection::serve(stream, peer, app, idle_max, orders).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        }
    }

    async fn drain(&self, listener: TcpListener) -> io::Result<()> {
        self.state.draining.cancel();
        self.give_notice(&listener).await;
        let deadline = Instant::now() + self.state.config.drain_timeout;
        self.admit_waiting(listener)?;
        self.connections.close();
        let leaving = deadline.min(Instant::now() + LEAVING);
        if timeout_at(leaving, self.connections.wait()).await.is_ok() {
            return Ok(());
        }
        self.orders.finish.cancel();
        if timeout_at(deadline, self.connections.wait()).await.is_err() {
            tracing::warn!(open = self.connections.len(), "connections did not end in time and are cut");
            self.orders.cut.cancel();
            self.connections.wait().await;
        }
        Ok(())
    }

    /// Goes on taking requests while every answer says where not to send the next one, so that clients that are told of
    /// another collector leave without meeting a closed door.
    async fn give_notice(&self, listener: &TcpListener) {
        let until = Instant::now() + self.state.config.drain_notice.unwrap_or_default();
        // A timeout looks at the clock only when nobody comes. Accepting is cancel-safe.
        while Instant::now() < until
            && let Ok(accepted) = timeout_at(until, listener.accept()).await
        {
            self.accepted(accepted).await;
        }
    }

    /// Takes the connections the kernel has accepted already: closing the listener would reset them, with requests that
    /// may have been sent on them.
    fn admit_waiting(&self, listener: TcpListener) -> io::Result<()> {
        let listener = listener.into_std()?;
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    self.admit(TcpStream::from_std(stream)?, peer);
                }
                Err(error) if is_of_connection(&error) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

/// Waits for the beginning of a request, because an answer to nothing confuses clients; answers, and reads on until the
/// client has taken the answer: closing with its request unread would reset it away.
async fn turn_away(mut stream: TcpStream, _place: OwnedSemaphorePermit) {
    let refusal = Refusal::new(Cause::Crowded, "too many connections are open; come again in a moment")
        .retry_after(TURNED_AWAY_RETRY_AFTER);
    let json = serde_json::to_string(&refusal.problem()).expect("text and a number are always JSON");
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {}\r\nretry-after: {}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{json}",
        Problem::CONTENT_TYPE,
        refusal.retry_after_s().unwrap_or(1),
        json.len()
    );
    let answered = async {
        let mut rest = [0; 4096];
        if stream.read(&mut rest).await? == 0 {
            return Ok(());
        }
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether the client took it or not, the connection ends here.
    let _ = timeout(TURNING_AWAY, answered).await;
}

/// Looks at the disk and folds the figures while the server runs.
async fn watch(state: State, ended: CancellationToken) {
    let mut look = interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both are cancel-safe.
        tokio::select! {
            () = ended.cancelled() => return,
            _ = look.tick() => {}
        }
        let health = state.health.clone();
        match tokio::task::spawn_blocking(move || health.look()).await {
            Ok(Ok(Some(free_bytes))) => state.metrics.free_disk(free_bytes),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the free space of the data folder's disk can't be read");
            }
            Err(error) => tracing::error!(%error, "looking at the disk failed"),
        }
        state.metrics.fold();
    }
}

/// Lifts the soft limit of open files, which is 1,024 in most shells, as far as needed and allowed.
fn raise_descriptors(needed: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum })
    {
        tracing::debug!(%error, raised, "the limit of open files can't be raised");
    }
}
