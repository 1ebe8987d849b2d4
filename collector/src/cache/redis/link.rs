use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cache::Error;
use crate::telemetry::complaint::Complaint;

/// How long making a connection may take; TLS over a far link is three round trips.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a connection nobody uses is tried, so that the state is known before it is needed.
const PING_PERIOD: Duration = Duration::from_secs(1);

/// The first and the longest wait between attempts to connect: back within a second of Redis, at one attempt a second.
pub(super) const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// One connection to Redis, renewed by a task of its own. While it is down every question is answered by `None` at once:
/// the crate's own `ConnectionManager` lets each caller wait for its attempts to connect, so a server that is away would
/// hold up every request.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

struct Shared {
    client: Client,
    server: String,
    /// How long one question may take.
    timeout: Duration,
    /// Asked on each new connection before anything else is.
    greeting: Option<Cmd>,
    state: Mutex<State>,
    lost: Notify,
}

struct State {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late failure of an old one doesn't bring down the new one.
    number: u64,
    /// What failed last.
    reason: String,
    complaint: Complaint,
}

impl Link {
    /// Connects, and keeps connecting until `cancel`.
    pub(super) async fn start(
        client: Client,
        timeout: Duration,
        greeting: Option<Cmd>,
        cancel: CancellationToken,
    ) -> Result<Self, Error> {
        let server = client.get_connection_info().addr().to_string();
        let state = State { connection: None, number: 0, reason: String::new(), complaint: Complaint::new() };
        let shared =
            Shared { client, server, timeout, greeting, state: Mutex::new(state), lost: Notify::new() };
        let link = Self(Arc::new(shared));
        let connection = link.0.connect().await.map_err(|error| link.0.error(&error))?;
        link.0.connected(connection);
        tokio::spawn(keep(Arc::clone(&link.0), cancel));
        Ok(link)
    }

    /// Asks something within the link's timeout. `None` when Redis is away or refuses: then the question may have been
    /// carried out all the same.
    pub(super) async fn ask<T, F, A>(&self, question: F) -> Option<T>
    where
        F: FnOnce(MultiplexedConnection) -> A,
        A: Future<Output = RedisResult<T>>,
    {
        let (connection, number) = {
            let state = self.0.state();
            (state.connection.clone()?, state.number)
        };
        let answer = tokio::time::timeout(self.0.timeout, question(connection)).await;
        match answer.unwrap_or_else(|_| Err(timed_out())) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.0.failed(number, &error);
                None
            }
        }
    }

    /// Runs one command.
    pub(super) async fn command<T: redis::FromRedisValue>(&self, command: Cmd) -> Option<T> {
        self.ask(async |mut connection| command.query_async(&mut connection).await).await
    }

    /// Says whether it is connected.
    pub(super) fn serving(&self) -> Result<(), Error> {
        let state = self.0.state();
        match state.connection {
            Some(_) => Ok(()),
            None => Err(Error::Away { server: self.0.server.clone(), reason: state.reason.clone() }),
        }
    }
}

pub(super) fn timed_out() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time").into()
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        // This link's own timeout holds around each question, the sending included.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        let greeted = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            redis::cmd("PING").query_async::<()>(&mut connection).await?;
            if let Some(greeting) = &self.greeting {
                greeting.query_async::<()>(&mut connection).await?;
            }
            Ok(connection)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, greeted).await.unwrap_or_else(|_| Err(timed_out()))
    }

    fn connected(&self, connection: MultiplexedConnection) {
        let mut state = self.state();
        if state.complaint.end() {
            tracing::info!(server = %self.server, "redis is back");
        }
        state.connection = Some(connection);
        state.number += 1;
    }

    /// Takes a failure down, and the connection too when it is at fault.
    fn failed(&self, number: u64, error: &RedisError) {
        metrics::counter!("eventbucket_cache_failures_total").increment(1);
        let mut state = self.state();
        if ends_the_connection(error) && state.number == number && state.connection.take().is_some() {
            self.lost.notify_one();
        }
        self.complain(&mut state, error);
    }

    fn complain(&self, state: &mut State, error: &RedisError) {
        state.reason = error.to_string();
        if state.complaint.is_due() {
            tracing::warn!(server = %self.server, %error, "redis doesn't answer; the store is asked instead");
        }
    }

    fn error(&self, error: &RedisError) -> Error {
        let (server, reason) = (self.server.clone(), error.to_string());
        let refused = matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
            || error.kind() == ErrorKind::AuthenticationFailed;
        if reason.contains("certificate") {
            return Error::Certificate { server, reason };
        }
        if reason.contains("refused to switch database") && !refused {
            return Error::NoDatabase { server, reason };
        }
        if refused { Error::Refused { server, reason } } else { Error::Away { server, reason } }
    }
}

/// Whether another connection may help. A server that is loading its data, has become a replica or lost its master is
/// no more use than one that doesn't answer; one that is out of memory or finds a wrong type has answered.
fn ends_the_connection(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, MasterDown, ReadOnly};
    matches!(error.kind(), ErrorKind::Server(BusyLoading | MasterDown | ReadOnly))
        || error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
}

async fn keep(shared: Arc<Shared>, cancel: CancellationToken) {
    let link = Link(shared);
    loop {
        // Both are cancel-safe: a notification that wasn't taken stays, a sleep is begun again.
        tokio::select! {
            () = cancel.cancelled() => return,
            () = link.0.lost.notified() => {}
            () = tokio::time::sleep(PING_PERIOD) => {
                link.command::<()>(redis::cmd("PING")).await;
            }
        }
        let (mut delay, longest) = RECONNECT_DELAYS;
        while link.serving().is_err() {
            match link.0.connect().await {
                Ok(connection) => link.0.connected(connection),
                Err(error) => {
                    link.0.complain(&mut link.0.state(), &error);
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(delay) => {}
                    }
                    delay = (delay * 2).min(longest);
                }
            }
        }
    }
}
