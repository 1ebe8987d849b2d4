use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::PubSub;
use redis::{Client, RedisResult};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::link::{CONNECT_TIMEOUT, Link, RECONNECT_DELAYS, timed_out};
use crate::cache::keys::RecentKeys;
use crate::cache::tail::{TAIL_BYTES_MAX, TAIL_WAITING_MAX, Tail, TailFan, TailReceiver};
use crate::project::ProjectId;

/// How often a subscription is tried, and how long it may take to answer: a server that went silent is noticed within two
/// seconds. Keys don't wait for it: they are believed for a second only.
const PING_PERIOD: Duration = Duration::from_secs(1);

/// Bytes that wait to be published: at the 2 KB of five events the 1,024 messages come first, at the largest messages 64
/// of them.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Messages that are published in one round trip.
const PUBLISH_AT_ONCE: usize = 64;

fn tail_name(prefix: &str) -> String {
    format!("{prefix}:tail")
}

fn notices_name(prefix: &str) -> String {
    format!("{prefix}:notices")
}

/// What is heard from all processes, this one included.
pub(super) struct Channels {
    client: Client,
    tail_name: String,
    tail: TailFan,
    follows: Once,
    cancel: CancellationToken,
}

impl Channels {
    pub(super) fn new(client: Client, prefix: &str, recent: RecentKeys, cancel: CancellationToken) -> Self {
        let heard = move |heard: Heard<'_>| match heard {
            Heard::Message(_) => recent.forget(),
            Heard::Begins | Heard::Ends => recent.may_have_missed(),
        };
        tokio::spawn(listen(client.clone(), notices_name(prefix), heard, cancel.clone()));
        let (tail_name, tail) = (tail_name(prefix), TailFan::new());
        Self { client, tail_name, tail, follows: Once::new(), cancel }
    }

    /// The first follower makes this process subscribe: most roles have none.
    pub(super) fn follow_tail(&self) -> TailReceiver {
        let receiver = self.tail.subscribe();
        self.follows.call_once(|| {
            let tail = self.tail.clone();
            let heard = move |heard: Heard<'_>| {
                if let Some(heard) = read(&heard) {
                    tail.send(heard);
                }
            };
            tokio::spawn(listen(self.client.clone(), self.tail_name.clone(), heard, self.cancel.clone()));
        });
        receiver
    }
}

/// What comes over a subscription.
enum Heard<'a> {
    Message(&'a [u8]),
    /// It begins now; what was published before went by.
    Begins,
    /// It broke; what is published now goes by.
    Ends,
}

/// A message is the project and the bytes; one without a project says that some were not sent.
fn read(heard: &Heard<'_>) -> Option<Tail> {
    match heard {
        Heard::Message(message) => Some(match message.split_first_chunk() {
            Some((project, bytes)) => Tail::Message {
                project: ProjectId(u32::from_be_bytes(*project)),
                bytes: Bytes::copy_from_slice(bytes),
            },
            None => Tail::Missed,
        }),
        Heard::Begins => Some(Tail::Missed),
        // They are told when it begins again.
        Heard::Ends => None,
    }
}

/// Stays subscribed until `cancel`.
async fn listen(
    client: Client,
    channel: String,
    mut heard: impl FnMut(Heard<'_>) + Send,
    cancel: CancellationToken,
) {
    let (first, longest) = RECONNECT_DELAYS;
    let mut delay = first;
    loop {
        let subscription = within(CONNECT_TIMEOUT, async {
            let mut subscription = client.get_async_pubsub().await?;
            subscription.subscribe(&channel).await?;
            Ok(subscription)
        });
        // Cancel-safe: a connection that was begun is dropped.
        let subscribed = tokio::select! {
            () = cancel.cancelled() => return,
            subscribed = subscription => subscribed,
        };
        if let Ok(subscription) = subscribed {
            heard(Heard::Begins);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = follow(subscription, &mut heard) => heard(Heard::Ends),
            }
            delay = first;
        }
        // Why it failed is said by the links, once for all.
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(longest),
        }
    }
}

/// Hears until the subscription breaks or goes silent.
async fn follow(subscription: PubSub, heard: &mut (impl FnMut(Heard<'_>) + Send)) {
    let (mut sink, mut messages) = subscription.split();
    loop {
        // Cancel-safe: a message that wasn't taken stays in the stream, a sleep is begun again.
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => heard(Heard::Message(message.get_payload_bytes())),
                None => return,
            },
            () = tokio::time::sleep(PING_PERIOD) => {
                if within(PING_PERIOD, sink.ping::<redis::Value>()).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn within<T>(timeout: Duration, asked: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    // Boxed: connecting is a large future, held by a task that lives as long as the process.
    let asked: Pin<Box<_>> = Box::pin(asked);
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| Err(timed_out()))
}

/// What waits to be published. Never waits itself: what doesn't fit is left out, and followers are told so.
pub(super) struct Outgoing {
    sender: mpsc::Sender<Vec<u8>>,
    state: Arc<OutgoingState>,
}

#[derive(Default)]
struct OutgoingState {
    /// Something of the tail was left out since followers were last told.
    left_out: AtomicBool,
    /// Keys were made or revoked since the others were last told.
    forget_keys: AtomicBool,
    /// Wakes the publisher to tell either.
    tell: Notify,
    waiting_bytes: AtomicUsize,
}

impl Outgoing {
    pub(super) fn start(link: Link, prefix: &str, cancel: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(TAIL_WAITING_MAX);
        let state = Arc::<OutgoingState>::default();
        let publisher = Publisher {
            link,
            tail: tail_name(prefix),
            notices: notices_name(prefix),
            state: Arc::clone(&state),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = publisher.run(receiver) => {}
            }
        });
        Self { sender, state }
    }

    pub(super) fn send(&self, project: ProjectId, bytes: &[u8]) -> bool {
        let mut message = project.0.to_be_bytes().to_vec();
        message.extend_from_slice(bytes);
        let size = message.len();
        let waiting = self.state.waiting_bytes.fetch_add(size, Ordering::Relaxed);
        let fits = bytes.len() <= TAIL_BYTES_MAX && waiting + size <= WAITING_BYTES_MAX;
        let sent = fits && self.sender.try_send(message).is_ok();
        if !sent {
            self.state.waiting_bytes.fetch_sub(size, Ordering::Relaxed);
            self.state.leave_out();
        }
        sent
    }

    /// Tells every process that keys were made or revoked: as soon as that can be.
    pub(super) fn forget_keys(&self) {
        self.state.forget_keys.store(true, Ordering::SeqCst);
        self.state.tell.notify_one();
    }
}

impl OutgoingState {
    fn leave_out(&self) {
        metrics::counter!("eventbucket_tail_left_out_total").increment(1);
        self.left_out.store(true, Ordering::SeqCst);
        self.tell.notify_one();
    }
}

struct Publisher {
    link: Link,
    tail: String,
    notices: String,
    state: Arc<OutgoingState>,
}

impl Publisher {
    async fn run(self, mut receiver: mpsc::Receiver<Vec<u8>>) {
        let mut messages = Vec::with_capacity(PUBLISH_AT_ONCE);
        loop {
            // Both are cancel-safe: `recv_many` takes nothing unless it returns, a notification that wasn't taken stays.
            tokio::select! {
                taken = receiver.recv_many(&mut messages, PUBLISH_AT_ONCE) => if taken == 0 { return },
                () = self.state.tell.notified() => {}
            }
            if self.publish(&mut messages).await.is_none() {
                // Followers may be connected although this process isn't.
                tokio::time::sleep(PING_PERIOD).await;
                self.state.leave_out();
            }
        }
    }

    async fn publish(&self, messages: &mut Vec<Vec<u8>>) -> Option<()> {
        let mut pipe = redis::pipe();
        let forget_keys = self.state.forget_keys.swap(false, Ordering::SeqCst);
        if forget_keys {
            pipe.publish(&self.notices, &b"keys"[..]).ignore();
        }
        // Before the messages, since what is missing came before them or is told twice.
        if self.state.left_out.swap(false, Ordering::SeqCst) {
            pipe.publish(&self.tail, &b""[..]).ignore();
        }
        for bytes in messages.drain(..) {
            self.state.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            pipe.publish(&self.tail, bytes).ignore();
        }
        let told = self.link.ask(async |mut connection| pipe.query_async::<()>(&mut connection).await).await;
        if forget_keys && told.is_none() {
            // Unlike the tail it is told in the end: who missed it would believe the key while the store is away.
            self.state.forget_keys.store(true, Ordering::SeqCst);
        }
        told
    }
}
