//! What publishing on RabbitMQ costs beside a bare loop over the same broker, in one run on the same cores:
//!
//! - batches of 500 events with publisher confirms, for 1 and for 50 projects, beside a bare loop that sends messages of
//!   the same size to queues of the same kind;
//! - single events from 64 and from 1,000 publishers, each confirmed.
//!
//! `EVENTBUCKET_BENCH_BUS=amqp://… cargo bench -p eventbucket-collector --bench bus`, on a broker that holds nothing else.
//! Rounds take turns, so that a change of the machine's speed meets both sides.

#![expect(clippy::unwrap_used, reason = "a bench that can't measure ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{Bus, RabbitOptions};
use eventbucket_collector::config::ServerUrl;
use eventbucket_collector::project::ProjectId;
use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

const ROUNDS: usize = 5;
const BATCH_EVENTS: u128 = 500;
const EVENT_BYTES: usize = 275;
const MESSAGES: usize = 1_500;
const PUBLISHERS: usize = 64;
const SHARDS: u16 = 8;
const SINGLES_FOR: Duration = Duration::from_secs(3);

fn main() {
    // `cargo test --benches` runs this as well; measuring is asked for by `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let address = std::env::var("EVENTBUCKET_BENCH_BUS").expect("EVENTBUCKET_BENCH_BUS names a RabbitMQ");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(&address));
}

async fn measure(address: &str) {
    let url = ServerUrl::parse(address, &["amqp", "amqps"]).unwrap();
    let bus = Bus::rabbitmq(RabbitOptions { shards: SHARDS, ..RabbitOptions::new(url) }).await.unwrap();
    let connection = Connection::connect(address, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    declare(&channel).await;
    for projects in [1, 50] {
        println!("\nbatches of {BATCH_EVENTS}, {projects} projects, events/s");
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            let through_bus = batches(&bus, projects).await;
            purge(&channel).await;
            let bare = bare(&channel, if projects == 1 { 1 } else { SHARDS }).await;
            purge(&channel).await;
            println!("  bus {through_bus:>9.0}   bare loop {bare:>9.0}   ratio {:.2}", through_bus / bare);
            ratios.push(through_bus / bare);
        }
        ratios.sort_by(f64::total_cmp);
        println!("  median ratio {:.2}", ratios[ROUNDS / 2]);
    }
    for publishers in [64, 1_000] {
        let (events, messages) = singles(&bus, &channel, publishers).await;
        println!(
            "\nsingle events from {publishers} publishers: {events:.0} confirmed a second in {messages:.0} messages"
        );
        purge(&channel).await;
    }
}

fn event(number: u128) -> Event {
    let properties = format!(r#"{{"order":{number},"text":"{}"}}"#, "x".repeat(EVENT_BYTES - 110));
    Event {
        id: EventId::from_uuid(uuid::Uuid::from_u128(number)),
        name: "order_paid".to_owned(),
        description: None,
        user: Some("user-0123456789".to_owned()),
        time: Timestamp::from_ms(1_700_000_000_000).unwrap(),
        stream: None,
        correlation: None,
        properties: Properties::parse(&properties).unwrap(),
    }
}

fn batch(project: u32, events: Vec<Event>) -> ValidBatch {
    ValidBatch {
        project: ProjectId(project),
        batch: BatchId::from_uuid(uuid::Uuid::from_u128(project.into())),
        received: Timestamp::from_ms(1_700_000_000_001).unwrap(),
        skew_ms: None,
        events,
        undated: Vec::new(),
        refused: Vec::new(),
        part: 0,
        parts: 1,
    }
}

/// Events confirmed a second.
async fn batches(bus: &Bus, projects: u32) -> f64 {
    let events: Vec<Event> = (0..BATCH_EVENTS).map(event).collect();
    let made: Vec<ValidBatch> =
        (0..MESSAGES).map(|n| batch(u32::try_from(n).unwrap() % projects + 1, events.clone())).collect();
    let start = Instant::now();
    let mut published =
        futures_util::stream::iter(made).map(|batch| bus.publish(batch)).buffer_unordered(PUBLISHERS);
    while let Some(outcome) = published.next().await {
        outcome.unwrap();
    }
    speed(MESSAGES * 500, start)
}

/// The same with nothing but lapin.
async fn bare(channel: &Channel, queues: u16) -> f64 {
    let message = vec![7_u8; EVENT_BYTES * 500];
    let start = Instant::now();
    let mut confirms = FuturesUnordered::new();
    for number in 0..MESSAGES {
        if confirms.len() >= PUBLISHERS {
            let _: Option<()> = confirms.next().await;
        }
        let queue = format!("bench.bare.{}", number % usize::from(queues));
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm =
            channel.basic_publish("".into(), queue.into(), options, &message, properties).await.unwrap();
        confirms.push(async { assert!(confirm.await.unwrap().is_ack()) });
    }
    while confirms.next().await.is_some() {}
    speed(MESSAGES * 500, start)
}

/// Single events confirmed a second, and the messages they took.
async fn singles(bus: &Bus, channel: &Channel, publishers: u32) -> (f64, f64) {
    let (start, sum) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..publishers)
        .map(|publisher| {
            let (bus, sum) = (bus.clone(), Arc::clone(&sum));
            tokio::spawn(async move {
                while start.elapsed() < SINGLES_FOR {
                    bus.publish(batch(publisher % 50 + 1, vec![event(publisher.into())])).await.unwrap();
                    sum.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let events = speed(sum.load(Ordering::Relaxed), start);
    let messages = speed(purge(channel).await as usize, start);
    (events, messages)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn speed(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

async fn declare(channel: &Channel) {
    for queue in 0..SHARDS {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(format!("bench.bare.{queue}").into(), options, arguments).await.unwrap();
    }
}

/// Empties all queues and says how many messages the bus had in its.
async fn purge(channel: &Channel) -> u32 {
    let mut sum = 0;
    for shard in 0..SHARDS {
        let options = QueuePurgeOptions::default();
        sum += channel.queue_purge(format!("eventbucket.accepted.{shard}").into(), options).await.unwrap();
        channel.queue_purge(format!("bench.bare.{shard}").into(), options).await.unwrap();
    }
    sum
}
