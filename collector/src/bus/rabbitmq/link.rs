//! A connection that is made anew whenever it breaks.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_rs::Runtime;
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::failure::{Ended, NoConnection};
use super::options::RabbitOptions;
use super::topology::Topology;
use crate::bus::Error;

/// How long making a connection and declaring everything may take: a broker under load takes seconds for 16 queues.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long opening a channel and consuming may take on a connection that stands: a queue chooses its leader within 1 s.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long ending a connection may take: one that broke can't be ended in order, one that hangs needn't be.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before a connection is tried again: from 100 ms doubling to 2 s, so that a broker that is back is used soon.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Seconds between signs of life: a broker that hangs is found out within two of them, where its own default of 60 s would
/// leave a consumer waiting for two minutes.
const HEARTBEAT_SECONDS: u16 = 10;

/// How long a connection has to serve before the next pause is the shortest again: one that is made and fails at once, over
/// and over, costs the broker a declaration of everything each time.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// How a client waits for a broker that is away: until the next try and a second for what then waits.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Whether the broker is there, for whoever asks.
#[derive(Clone, Debug)]
pub(super) struct Standing(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    Up,
    Down { reason: String, next_try: Instant },
}

impl Standing {
    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Says why the broker can't be used, and when it may be again.
    pub(super) fn serving(&self) -> Result<(), Error> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Up => Ok(()),
            State::Down { reason, next_try } => {
                let until = next_try.saturating_duration_since(Instant::now());
                Err(Error::Away { words: reason.as_str().into(), retry_after: until + RETRY_AFTER_MIN })
            }
        }
    }
}

/// Connects, and declares everything.
pub(super) async fn connect(options: &RabbitOptions, purpose: &str) -> Result<Connection, NoConnection> {
    dial(options, purpose, true).await
}

/// Connects, and leaves everything as it is.
pub(super) async fn reach(options: &RabbitOptions, purpose: &str) -> Result<Connection, NoConnection> {
    dial(options, purpose, false).await
}

async fn dial(options: &RabbitOptions, purpose: &str, declaring: bool) -> Result<Connection, NoConnection> {
    let mut address: AMQPUri = options.url.secret().parse().map_err(|why| {
        NoConnection::Refused(format!(
            "{} can't be used as [bus] url ({why}); it looks like amqp://user:password@host:5672/%2f",
            options.url
        ))
    })?;
    address.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    let name = format!("eventbucket {purpose}");
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    // Read each time: authorities are replaced while a collector runs.
    let cert_chain = match &options.ca_file {
        Some(file) => Some(tokio::fs::read_to_string(file).await.map_err(|error| {
            NoConnection::Refused(format!("[bus] ca_file {} can't be read: {error}", file.display()))
        })?),
        None => None,
    };
    let tls = OwnedTLSConfig { identity: None, cert_chain };
    let connecting = async {
        let runtime = Runtime::tokio_current();
        let connection = Connection::connect_uri_with_config(address, properties, tls, runtime).await?;
        if declaring {
            let channel = connection.create_channel().await?;
            Topology::new(options).declare(&channel).await?;
            channel.close(200, "declared".into()).await?;
        }
        Ok(connection)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(NoConnection::of(options, &error)),
        Err(_) => {
            let seconds = CONNECT_TIMEOUT.as_secs();
            let reason = format!("RabbitMQ at {} did not answer within {seconds} s", options.url);
            Err(NoConnection::Away(reason))
        }
    }
}

/// Waits for what a broker that works does within milliseconds. One that has just been started may never answer, so nothing
/// is waited for without an end.
pub(super) async fn answered<T>(
    options: &RabbitOptions,
    asking: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Ended> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Ended::of(options, &error)),
        Err(_) => {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(Ended::Broke(format!("RabbitMQ at {} did not answer within {seconds} s", options.url)))
        }
    }
}

/// Ends a connection in order if that is possible soon.
pub(super) async fn close(connection: &Connection) {
    // A connection that broke can't be closed; one that hangs needn't be.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
}

/// What a kept connection is for, and how long.
pub(super) struct Link {
    pub(super) options: RabbitOptions,
    pub(super) purpose: &'static str,
    pub(super) cancel: CancellationToken,
    /// A connection that stands already.
    pub(super) first: Option<Connection>,
    /// Cancelled when the task that keeps it panics.
    pub(super) failed: CancellationToken,
    /// Who hears when the broker comes and goes, after everybody who asks would.
    pub(super) told: Told,
}

/// Hears that the broker is there, or why not.
pub(super) type Told = Box<dyn Fn(Result<(), Error>) + Send>;

impl Link {
    /// Keeps a connection until it is cancelled: whenever one stands, `serve` is called with it and returns when it broke.
    pub(super) fn keep<F, Serving>(self, tasks: &TaskTracker, serve: F) -> Standing
    where
        F: FnMut(Arc<Connection>) -> Serving + Send + 'static,
        Serving: Future<Output = Ended> + Send + 'static,
    {
        let state = match self.first {
            Some(_) => State::Up,
            None => State::Down { reason: "not connected yet".to_owned(), next_try: Instant::now() },
        };
        let standing = Standing(Arc::new(Mutex::new(state)));
        let (failed, running) = (self.failed.clone().drop_guard(), self.run(standing.clone(), serve));
        tasks.spawn(async move {
            running.await;
            // There was nothing left to do.
            failed.disarm();
        });
        standing
    }

    async fn run<F, Serving>(self, standing: Standing, mut serve: F)
    where
        F: FnMut(Arc<Connection>) -> Serving + Send + 'static,
        Serving: Future<Output = Ended> + Send + 'static,
    {
        let Self { options, purpose, cancel, mut first, told, .. } = self;
        let (mut pause, longest) = PAUSE;
        loop {
            // A try that is cut short leaves a connection that ends by itself.
            let connected = tokio::select! {
                connected = first_or_new(&mut first, &options, purpose) => connected,
                () = cancel.cancelled() => return,
            };
            let (ended, connection) = match connected {
                Ok(connection) => {
                    standing.set(State::Up);
                    told(Ok(()));
                    let since = Instant::now();
                    tracing::info!(purpose, "connected to RabbitMQ");
                    let connection = Arc::new(connection);
                    // A serving that is dropped leaves nothing half done: what it held unacknowledged comes again.
                    let ended = tokio::select! {
                        ended = serve(Arc::clone(&connection)) => ended,
                        () = cancel.cancelled() => Ended::Done,
                    };
                    if since.elapsed() >= SETTLED_AFTER {
                        pause = PAUSE.0;
                    }
                    (ended, Some(connection))
                }
                Err(why) => (Ended::Broke(why.reason().to_owned()), None),
            };
            // Known before anybody is told to try again, and before the time that closing may take.
            if let Ended::Broke(reason) = &ended {
                tracing::warn!(purpose, reason, "RabbitMQ can't be used; it is tried again");
                standing.set(State::Down { reason: reason.clone(), next_try: Instant::now() + pause });
                told(standing.serving());
            }
            if let Some(connection) = connection {
                close(&connection).await;
            }
            if matches!(ended, Ended::Done) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
            pause = (pause * 2).min(longest);
        }
    }
}

async fn first_or_new(
    first: &mut Option<Connection>,
    options: &RabbitOptions,
    purpose: &str,
) -> Result<Connection, NoConnection> {
    match first.take() {
        Some(first) => Ok(first),
        None => connect(options, purpose).await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::ServerUrl;

    /// Far more than any of this takes, far less than anybody waits.
    const DEADLINE: Duration = Duration::from_secs(60);

    async fn link(prefix: &str) -> Link {
        let url = tokio::task::spawn_blocking(eventbucket_servers::shared::rabbitmq).await.unwrap();
        let url = ServerUrl::parse(&url, &["amqp"]).unwrap();
        let options = RabbitOptions { prefix: prefix.to_owned(), shards: 1, ..RabbitOptions::new(url) };
        let (cancel, failed) = (CancellationToken::new(), CancellationToken::new());
        Link { options, purpose: "test", cancel, first: None, failed, told: Box::new(|_| {}) }
    }

    #[tokio::test]
    async fn a_connection_that_fails_at_once_is_made_less_and_less_often() {
        let (link, tasks) = (link("link_pauses").await, TaskTracker::new());
        let (cancel, failed) = (link.cancel.clone(), link.failed.clone());
        let (served, mut times) = mpsc::unbounded_channel();
        link.keep(&tasks, move |_| {
            served.send(Instant::now()).unwrap();
            async { Ended::Broke("on purpose".to_owned()) }
        });
        let mut at = Vec::new();
        while at.len() < 5 {
            at.push(tokio::time::timeout(DEADLINE, times.recv()).await.unwrap().unwrap());
        }
        assert!(at[4] - at[3] >= Duration::from_millis(800), "{at:?}");
        cancel.cancel();
        tasks.close();
        tokio::time::timeout(DEADLINE, tasks.wait()).await.unwrap();
        assert!(!failed.is_cancelled(), "it was told to end");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_noticed() {
        let (link, tasks) = (link("link_panics").await, TaskTracker::new());
        let failed = link.failed.clone();
        link.keep(&tasks, |_| async { panic!("on purpose") });
        tokio::time::timeout(DEADLINE, failed.cancelled()).await.unwrap();
    }
}
