//! The least an edge could do: axum takes the body, lapin publishes it to a quorum queue, the answer follows the confirm.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// Persistent, in AMQP.
const PERSISTENT: u8 = 2;

/// The word that makes this program the bare edge: `bare-edge URL QUEUES`.
pub(crate) const WORD: &str = "bare-edge";

struct Target {
    channel: Channel,
    queues: usize,
    next: AtomicUsize,
}

/// Listens until it is killed, in a process of its own as the edge that it is held against.
pub(crate) async fn serve(bus_url: &str, queues: usize) {
    let (_connection, channel) = open(bus_url, queues).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let target = Arc::new(Target { channel, queues, next: AtomicUsize::new(0) });
    let app = Router::new().route("/v1/events", post(take)).with_state(target);
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

async fn take(State(target): State<Arc<Target>>, body: Bytes) -> (StatusCode, &'static str) {
    let queue = target.next.fetch_add(1, Ordering::Relaxed) % target.queues;
    publish(&target.channel, queue, &body).await;
    (StatusCode::OK, "{}")
}

/// Opens a channel, with the queues declared.
pub(crate) async fn open(bus_url: &str, queues: usize) -> (Connection, Channel) {
    let connection = Connection::connect(bus_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for queue in 0..queues {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name(queue).into(), options, arguments).await.unwrap();
    }
    (connection, channel)
}

pub(crate) fn name(queue: usize) -> String {
    format!("bare.{queue}")
}

/// Returns when the message is safe.
pub(crate) async fn publish(channel: &Channel, queue: usize, message: &[u8]) {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let confirm =
        channel.basic_publish("".into(), name(queue).into(), options, message, properties).await.unwrap();
    assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(None)));
}
