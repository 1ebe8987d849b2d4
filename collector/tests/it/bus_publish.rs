//! Publishing to RabbitMQ: a confirm means that the batch is in a queue and on disk, and nothing else is answered as one.

use std::time::Duration;

use eventbucket_collector::bus::{Bus, Error, RabbitOptions};
use eventbucket_protocol::{Event, Properties, Verdict};
use futures_util::future::join_all;
use lapin::options::QueueDeleteOptions;

use crate::bus_fixture::{
    Direct, address, batch_of, bus, number, numbered, options, queues, shared, soon, stored, take,
    take_and_store, until, url,
};
use crate::store_fixture::event;

/// What one message holds at most.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// What RabbitMQ says of a queue's arguments.
fn arguments_of<'a>(queues: &'a [(String, String)], name: &str) -> &'a str {
    let found = queues.iter().find(|(queue, _)| queue == name);
    found.map_or_else(|| panic!("there is no queue {name}: {queues:?}"), |(_, arguments)| arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_declares_every_queue_with_every_rule_before_anything_is_published() {
    let options = options(shared());
    // This one takes nothing and publishes nothing: the topology is there all the same.
    let _bus = bus(&options).await;
    let queues = tokio::task::spawn_blocking(|| queues(shared())).await.unwrap();
    for shard in 0..options.shards {
        let accepted = arguments_of(&queues, &format!("{}.accepted.{shard}", options.prefix));
        for rule in [
            "true",
            "{\"x-queue-type\",\"quorum\"}",
            "{\"x-overflow\",\"reject-publish\"}",
            "{\"x-dead-letter-strategy\",\"at-least-once\"}",
            "{\"x-single-active-consumer\",true}",
            "{\"x-delivery-limit\",100}",
            &format!("{{\"x-dead-letter-exchange\",\"{}.dead\"}}", options.prefix),
            &format!("{{\"x-max-length-bytes\",{}}}", options.queue_bytes_max),
        ] {
            assert!(accepted.contains(rule), "{rule} is not in {accepted}");
        }
        let ranges = arguments_of(&queues, &format!("{}.stored.insight.{shard}", options.prefix));
        for rule in ["{\"x-queue-type\",\"quorum\"}", "{\"x-single-active-consumer\",true}"] {
            assert!(ranges.contains(rule), "{rule} is not in {ranges}");
        }
    }
    let dead = arguments_of(&queues, &format!("{}.dead", options.prefix));
    assert!(dead.contains("{\"x-queue-type\",\"quorum\"}"), "{dead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_different_numbers_of_shards_find_out() {
    let options = options(shared());
    let _bus = bus(&options).await;
    let other = RabbitOptions { shards: options.shards + 1, ..options };
    let Err(refused) = Bus::rabbitmq(other).await else { panic!("it started") };
    let said = refused.to_string();
    assert!(said.contains("other settings") && said.contains("[bus]"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_broker_or_with_a_wrong_password_says_what_to_do_and_no_password() {
    let wrong = address(shared(), "geheim");
    for (address, part) in [("amqp://guest:geheim@127.0.0.1:1/%2f", "is away"), (&wrong, "refused the user")]
    {
        let started = soon("an answer", Bus::rabbitmq(RabbitOptions::new(url(address)))).await;
        let Err(refused) = started else { panic!("it started") };
        let said = refused.to_string();
        assert!(said.contains(part) && said.contains("[bus] url"), "{said}");
        assert!(!format!("{said} {refused:?}").contains("geheim"), "{said}");
        assert_eq!(refused.status(), 503);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_batch_is_in_the_queue_of_its_shard_to_be_kept_on_disk() {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    let published = bus.publish(numbered(1, 7)).await.unwrap();
    assert_eq!(published.verdicts, [Verdict::Accepted]);
    assert_eq!(direct.accepted().await, 1);
    let messages = direct.drain().await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].properties.delivery_mode(), &Some(2), "persistent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_finds_no_queue_is_refused_and_the_queues_come_back() {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    bus.publish(numbered(1, 0)).await.unwrap();
    let channel = direct.channel().await;
    for queue in ["accepted.0", "accepted.1"] {
        channel.queue_delete(direct.named(queue), QueueDeleteOptions::default()).await.unwrap();
    }
    let refused = bus.publish(numbered(1, 1)).await.unwrap_err();
    assert_eq!(refused.status(), 503, "{refused}");
    assert!(refused.retry() >= Some(Duration::from_secs(1)), "{refused}");
    until("it publishes again", || async { bus.publish(numbered(1, 2)).await.is_ok() }).await;
    assert_eq!(number(&take(&mut bus.accepted(), 1).await[0]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_what_comes_and_keeps_what_it_has_promised() {
    let options = RabbitOptions { queue_bytes_max: 2_000, ..options(shared()) };
    let bus = bus(&options).await;
    let mut promised = Vec::new();
    let refused = soon("the queue is full", async {
        for number in 0.. {
            match bus.publish(numbered(1, number)).await {
                Ok(_) => promised.push(number),
                Err(refused) => return refused,
            }
        }
        unreachable!("the numbers don't end")
    })
    .await;
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    assert_eq!((refused.status(), refused.retry()), (429, Some(Duration::from_secs(30))), "nobody takes any");
    let mut accepted = bus.accepted();
    let mut delivered = Vec::new();
    // When some are taken it is time for what was refused sooner.
    soon("the time follows the queue's speed", async {
        loop {
            match bus.publish(numbered(1, promised.len())).await {
                Ok(_) => promised.push(promised.len()),
                Err(refused) if refused.retry() < Some(Duration::from_secs(30)) => return,
                Err(_) => {
                    delivered.extend(take_and_store(&mut accepted, 1).await);
                }
            }
        }
    })
    .await;
    let left = promised.len() - delivered.len();
    delivered.extend(take_and_store(&mut accepted, left).await);
    assert_eq!(delivered[..promised.len()], promised, "from the oldest on");
    until("there is room again", || async { bus.publish(numbered(1, 1_000_000)).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_sixteen_mebibytes_travels_in_parts_that_fit() {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(200 * 1024));
    let properties = || Properties::parse(&large).unwrap();
    let events: Vec<Event> = (0..80)
        .map(|i| Event { properties: properties(), ..event(&format!("event-{i}"), "large") })
        .collect();
    assert_eq!(
        bus.publish(batch_of(1, 0, events.clone())).await.unwrap().verdicts,
        vec![Verdict::Accepted; 80]
    );

    let messages = direct.drain().await;
    let sizes: Vec<usize> = messages.iter().map(|message| message.data.len()).collect();
    assert!(sizes.len() >= 16 && sizes.iter().all(|bytes| *bytes <= MESSAGE_BYTES_MAX), "{sizes:?}");

    bus.publish(batch_of(1, 0, events.clone())).await.unwrap();
    let mut accepted = bus.accepted();
    let mut back: Vec<Event> = Vec::new();
    let mut parts = Vec::new();
    while back.len() < events.len() {
        let deliveries = take(&mut accepted, 1).await;
        for delivery in &deliveries {
            parts.push((delivery.batch.part, delivery.batch.parts));
            back.extend(delivery.batch.events.iter().cloned());
        }
        stored(deliveries);
    }
    let count = u16::try_from(parts.len()).unwrap();
    assert_eq!(parts, (0..count).map(|part| (part, count)).collect::<Vec<_>>());
    assert_eq!(back, events);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_events_that_come_together_share_messages_and_each_is_confirmed() {
    const SINGLES: usize = 1_000;
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    let published = join_all((0..SINGLES).map(|number| bus.publish(numbered(1, number)))).await;
    assert!(published.iter().all(Result::is_ok), "{published:?}");
    let messages = direct.accepted().await;
    assert!((1..=SINGLES / 20).contains(&(messages as usize)), "{messages} messages");
    let delivered = take_and_store(&mut bus.accepted(), SINGLES).await;
    assert_eq!(delivered, (0..SINGLES).collect::<Vec<_>>(), "in the order in which they came");
}
