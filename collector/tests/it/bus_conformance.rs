//! What every bus must do, whatever carries it. Each rule gets two processes' ends of one empty bus; in one process they are
//! the same. What only a broker does is in the other `bus_` files.

use std::collections::BTreeMap;
use std::pin::Pin;

use eventbucket_collector::bus::message::{Published, Refused, StoredRange, ValidBatch};
use eventbucket_collector::bus::{self, Bus, Delivery, Error, Hint, RangeReceiver};
use eventbucket_collector::project::ProjectId;
use eventbucket_protocol::{BatchId, Code, Event, Properties, Verdict};
use futures_util::future::join_all;
use tokio::task::JoinHandle;

use crate::bus_fixture::{batch_of, number, numbered, options, shared, soon, stored, take};
use crate::store_fixture::{NOON, at, event};

/// An empty bus as two processes see it: one publishes and listens, the other stores and announces.
struct Ends {
    edge: Bus,
    storage: Bus,
}

type Rule = fn(Ends) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The rules by name.
const RULES: [(&str, Rule); 9] = [
    ("a batch arrives as it was published", |ends| Box::pin(a_batch_arrives_as_it_was(ends))),
    ("a batch is never answered with a verdict it can't have", |ends| {
        Box::pin(verdicts_are_of_the_kind(ends))
    }),
    ("a project's batches arrive in their order", |ends| Box::pin(order_is_kept(ends))),
    ("every batch of many projects and publishers arrives once", |ends| Box::pin(each_arrives_once(ends))),
    ("a take is bounded by events and batches, and one batch always fits", |ends| {
        Box::pin(takes_are_bounded(ends))
    }),
    ("who stops waiting leaves the batch on its way", |ends| Box::pin(who_leaves_is_served(ends))),
    ("the receiving ends are there once", |ends| Box::pin(ends_are_there_once(ends))),
    ("a closed bus takes nothing in, and gives out what it holds", |ends| Box::pin(a_closed_bus_ends(ends))),
    ("what is announced is heard once", |ends| Box::pin(ranges_are_heard(ends))),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_within_a_process_conforms() {
    for (name, rule) in RULES {
        eprintln!("{name}");
        let bus = Bus::in_process(bus::Limits::default());
        rule(Ends { edge: bus.clone(), storage: bus }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_on_rabbitmq_conforms() {
    for (name, rule) in RULES {
        eprintln!("{name}");
        let options = options(shared());
        let (edge, storage) = (Bus::rabbitmq(options.clone()).await, Bus::rabbitmq(options).await);
        rule(Ends { edge: edge.unwrap(), storage: storage.unwrap() }).await;
    }
}

/// Publishes beside the test: within a process that ends when the batch is stored.
fn publishing(bus: &Bus, batch: ValidBatch) -> JoinHandle<Result<Published, Error>> {
    let bus = bus.clone();
    tokio::spawn(async move { bus.publish(batch).await })
}

async fn verdicts(publishing: JoinHandle<Result<Published, Error>>) -> Vec<Verdict> {
    soon("an answer", publishing).await.unwrap().unwrap().verdicts
}

async fn a_batch_arrives_as_it_was(Ends { edge, storage }: Ends) {
    let full = Event {
        description: Some("Ada paid".into()),
        user: Some("ada".into()),
        time: at(-1),
        stream: Some("order".into()),
        correlation: Some("req-1".into()),
        properties: Properties::parse(r#"{"amount":1.10,"ünï":[null,{"a":"\""}]}"#).unwrap(),
        ..event("0193a000-0000-7000-8000-000000000001", "paid")
    };
    let sent = ValidBatch {
        batch: BatchId::from_text("a text of its own"),
        received: at(NOON + 5),
        skew_ms: Some(-90_000),
        undated: vec![1],
        refused: vec![
            Refused { place: 0, code: Code::TooDeep },
            Refused { place: 3, code: Code::InvalidName },
        ],
        ..batch_of(7, 0, vec![full, event("bare", "b")])
    };
    let waiting = publishing(&edge, sent.clone());
    let taken = take(&mut storage.accepted(), 1).await;
    let got = &taken[0].batch;
    assert_eq!((got.project, got.batch, got.received), (sent.project, sent.batch, sent.received));
    assert_eq!((got.skew_ms, &got.undated, &got.refused), (sent.skew_ms, &sent.undated, &sent.refused));
    assert_eq!((got.part, got.parts, &got.events), (0, 1, &sent.events));
    stored(taken);
    verdicts(waiting).await;
}

/// A bus that answers when the batch is stored hands on what storage says; one that only queues says no more than that.
async fn verdicts_are_of_the_kind(Ends { edge, storage }: Ends) {
    let waiting = publishing(&edge, batch_of(1, 0, vec![event("x", "a"), event("x", "a")]));
    let [delivery]: [Delivery; 1] = take(&mut storage.accepted(), 1).await.try_into().ok().unwrap();
    let decided = vec![Verdict::Stored, Verdict::Duplicate { differs: false }];
    delivery.ticket.answer(Ok(Published { verdicts: decided.clone() }));
    let expected = if edge.is_durable() { vec![Verdict::Accepted; 2] } else { decided };
    assert_eq!(verdicts(waiting).await, expected);
    assert_eq!(edge.is_durable(), storage.is_durable());
}

async fn order_is_kept(Ends { edge, storage }: Ends) {
    const BATCHES: usize = 60;
    let mut accepted = storage.accepted();
    let mut waiting = Vec::new();
    let mut seen = Vec::new();
    for first in (0..BATCHES).step_by(20) {
        // Polled in their order, so published in it.
        let some = (first..first + 20).map(|number| edge.publish(numbered(1, number)));
        let publisher = join_all(some);
        let taker = async {
            while seen.len() < first + 20 {
                let deliveries = take(&mut accepted, 1).await;
                seen.extend(deliveries.iter().map(number));
                stored(deliveries);
            }
        };
        let (answers, ()) = soon("all arrive", async { tokio::join!(publisher, taker) }).await;
        waiting.extend(answers);
    }
    assert!(waiting.iter().all(Result::is_ok), "{waiting:?}");
    assert_eq!(seen, (0..BATCHES).collect::<Vec<_>>());
}

async fn each_arrives_once(Ends { edge, storage }: Ends) {
    const PROJECTS: u32 = 12;
    const BATCHES: usize = 25;
    let waiting: Vec<_> = (1..=PROJECTS)
        .flat_map(|project| (0..BATCHES).map(move |number| (project, number)))
        .map(|(project, number)| publishing(&edge, numbered(project, number)))
        .collect();
    let mut accepted = storage.accepted();
    let mut seen: BTreeMap<(u32, usize), usize> = BTreeMap::new();
    while seen.len() < waiting.len() {
        let deliveries = take(&mut accepted, 1).await;
        for delivery in &deliveries {
            *seen.entry((delivery.batch.project.0, number(delivery))).or_default() += 1;
        }
        stored(deliveries);
    }
    for one in waiting {
        assert_eq!(verdicts(one).await.len(), 1);
    }
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
}

async fn takes_are_bounded(Ends { edge, storage }: Ends) {
    let batch = |number: usize, events: usize| {
        batch_of(1, number, (0..events).map(|i| event(&format!("event-{number}-{i}"), "a")).collect())
    };
    let sizes = [3, 3, 3, 40, 1, 1, 1, 1];
    let waiting: Vec<_> =
        sizes.iter().enumerate().map(|(number, events)| publishing(&edge, batch(number, *events))).collect();
    let mut accepted = storage.accepted();
    let mut left = sizes.len();
    while left > 0 {
        let next = accepted.iter_mut().map(|end| Box::pin(end.next(7, 2)));
        let (taken, _, _) = soon("a batch", futures_util::future::select_all(next)).await;
        let taken = taken.unwrap();
        let events: usize = taken.iter().map(|delivery| delivery.batch.events.len()).sum();
        assert!((1..=2).contains(&taken.len()), "{} batches", taken.len());
        assert!(events <= 7 || taken.len() == 1, "{events} events in {} batches", taken.len());
        left -= taken.len();
        stored(taken);
    }
    for one in waiting {
        verdicts(one).await;
    }
}

async fn who_leaves_is_served(Ends { edge, storage }: Ends) {
    let mut leaving = Box::pin(edge.publish(numbered(1, 0)));
    // It is on its way with the first look at it.
    assert!(futures_util::poll!(&mut leaving).is_pending());
    drop(leaving);
    let taken = take(&mut storage.accepted(), 1).await;
    assert_eq!(number(&taken[0]), 0);
    stored(taken);
}

async fn ends_are_there_once(Ends { storage, .. }: Ends) {
    assert!(!storage.accepted().is_empty());
    assert!(storage.accepted().is_empty());
}

async fn a_closed_bus_ends(Ends { edge, storage }: Ends) {
    let mut accepted = storage.accepted();
    let waiting = publishing(&edge, numbered(1, 0));
    let held = take(&mut accepted, 1).await;
    for bus in [&edge, &storage] {
        bus.close();
        let refused = bus.publish(numbered(1, 1)).await.unwrap_err();
        assert!(matches!(refused, Error::Closed), "{refused}");
        assert_eq!(refused.status(), 503);
        assert!(refused.retry().is_some());
    }
    stored(held);
    verdicts(waiting).await;
    for end in &mut accepted {
        assert!(soon("the end", end.next(10, 10)).await.is_none());
    }
    soon("nothing is left open", storage.finish()).await;
}

async fn ranges_are_heard(Ends { edge, storage }: Ends) {
    let mut ear = edge.ranges();
    if edge.is_durable() {
        // A listener that comes to a queue doesn't know what was in it before.
        assert_eq!(soon("a first word", ear.recv()).await, Some(Hint::Missed));
    }
    let range = |project: u32| StoredRange { project: ProjectId(project), first: 4, last: 5 };
    let empty = StoredRange { project: ProjectId(99), first: 6, last: 5 };
    storage.announce(&(1..=20).map(range).chain([empty]).collect::<Vec<_>>());
    let mut heard: Vec<u32> =
        soon("all ranges", hear(&mut ear, 20)).await.iter().map(|range| range.project.0).collect();
    heard.sort_unstable();
    assert_eq!(heard, (1..=20).collect::<Vec<_>>(), "each once, and none that is empty");
}

/// The next ranges there are.
async fn hear(ear: &mut RangeReceiver, count: usize) -> Vec<StoredRange> {
    let mut heard = Vec::new();
    while heard.len() < count {
        if let Some(Hint::Range(range)) = ear.recv().await {
            heard.push(range);
        }
    }
    heard
}
