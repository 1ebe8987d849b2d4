//! What it costs to read and write a batch of 500 events with 8 properties (about 386 B of JSON an event), and
//! whether carrying properties as checked text is worth it against a `serde_json::Value`.
//!
//! `cargo bench -p eventbucket-protocol`; figures and conditions are in docs/BENCHMARKS.md.
#![expect(clippy::unwrap_used, reason = "a bench may stop where its input is wrong")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eventbucket_protocol::codec::{self, Format, encode};
use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

const EVENTS: usize = 500;

fn properties(i: usize) -> Value {
    json!({
        "plan": if i.is_multiple_of(3) { "pro" } else { "free" },
        "amount": f64::from(u32::try_from(i % 9_000).unwrap()) / 100.0,
        "currency": "EUR",
        "path": format!("/checkout/cart/{}", i * 7_919),
        "referrer": "https://search.example.com/results?q=event+collector&page=2&utm_source=newsletter-november",
        "browser": "Firefox 143 on Linux x86_64",
        "first_visit": i.is_multiple_of(2),
        "items": i % 12,
    })
}

fn event(i: usize) -> Event {
    let unix_ms = 1_760_000_000_000 + u64::try_from(i).unwrap() * 37;
    Event {
        id: EventId::v7(unix_ms, &[u8::try_from(i % 251).unwrap(); 10]),
        name: ["page_viewed", "order_paid", "cart_changed"][i % 3].into(),
        description: None,
        user: Some(format!("user-{}", i * 31)),
        time: Timestamp::from_ms(i64::try_from(unix_ms).unwrap()).unwrap(),
        stream: None,
        correlation: None,
        properties: Properties::parse(&properties(i).to_string()).unwrap(),
    }
}

/// The batch as an application would write it by hand.
fn as_value() -> Value {
    let events: Vec<Value> = (0..EVENTS)
        .map(|i| {
            let event = event(i);
            json!({ "id": event.id.to_string(), "name": event.name, "user": event.user,
                "time": event.time.to_string(), "properties": properties(i) })
        })
        .collect();
    json!({ "batch_id": "0190163d-8694-739b-aea5-966c26f8ad91", "events": events })
}

fn sdk_body(events: &[Event]) -> Vec<u8> {
    let mut body = Vec::new();
    encode::batch_header(BatchId::from_text("b"), u32::try_from(events.len()).unwrap(), &mut body);
    events.iter().for_each(|event| encode::event(event, &mut body));
    body
}

/// What ingest does with a body, up to the column a store would write.
fn to_columns(body: &[u8], format: Format) -> usize {
    let now = Timestamp::from_ms(0).unwrap();
    let batch = codec::decode(body, format).unwrap();
    let complete = |raw: Result<_, _>| -> Event {
        raw.and_then(|raw: eventbucket_protocol::RawEvent<'_>| raw.complete(|| EventId::from_text("x"), now))
            .unwrap()
    };
    batch.events.into_iter().map(|raw| black_box(complete(raw)).properties.as_json().len()).sum()
}

/// The same with properties as a `Value`: what a collector without raw properties would do.
#[derive(Deserialize)]
struct ValueBatch {
    batch_id: String,
    events: Vec<ValueEvent>,
}

#[derive(Deserialize)]
struct ValueEvent {
    id: String,
    name: String,
    user: Option<String>,
    time: String,
    properties: Value,
}

fn value_to_columns(batch: ValueBatch) -> usize {
    black_box(BatchId::from_text(&batch.batch_id));
    let column = |event: ValueEvent| {
        black_box((
            EventId::from_text(&event.id),
            Timestamp::from_rfc3339(&event.time),
            event.name,
            event.user,
        ));
        event.properties.to_string().len()
    };
    batch.events.into_iter().map(column).sum()
}

fn batches(criterion: &mut Criterion) {
    let events: Vec<Event> = (0..EVENTS).map(event).collect();
    let value = as_value();
    let json = value.to_string().into_bytes();
    let bin = sdk_body(&events);
    let maps = rmp_serde::to_vec_named(&value).unwrap();
    println!(
        "bytes an event: JSON {}, MessagePack with JSON text {}, MessagePack with maps {}",
        json.len() / EVENTS,
        bin.len() / EVENTS,
        maps.len() / EVENTS
    );

    let mut group = criterion.benchmark_group("batch_of_500");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("decode/json", |b| b.iter(|| to_columns(black_box(&json), Format::Json)));
    group.bench_function("decode/json_as_value", |b| {
        b.iter(|| value_to_columns(serde_json::from_slice(black_box(&json)).unwrap()));
    });
    group.bench_function("decode/messagepack_text", |b| {
        b.iter(|| to_columns(black_box(&bin), Format::MessagePack));
    });
    group.bench_function("decode/messagepack_maps", |b| {
        b.iter(|| to_columns(black_box(&maps), Format::MessagePack));
    });
    group.bench_function("decode/messagepack_maps_as_value", |b| {
        b.iter(|| value_to_columns(rmp_serde::from_slice(black_box(&maps)).unwrap()));
    });
    group.bench_function("encode/messagepack_text", |b| b.iter(|| sdk_body(black_box(&events)).len()));
    group.finish();
}

/// The check of one event's properties between the least and the most one could do.
fn one_check(criterion: &mut Criterion) {
    let json = properties(4).to_string();
    println!("bytes of properties: {}", json.len());
    let mut group = criterion.benchmark_group("properties");
    group.bench_function("syntax_only", |b| {
        b.iter(|| serde_json::from_str::<IgnoredAny>(black_box(&json)).unwrap());
    });
    group.bench_function("checked_and_carried", |b| b.iter(|| Properties::parse(black_box(&json)).unwrap()));
    group.bench_function("value_and_back", |b| {
        b.iter(|| serde_json::from_str::<Value>(black_box(&json)).unwrap().to_string());
    });
    group.finish();
}

criterion_group!(benches, batches, one_check);
criterion_main!(benches);
