//! Taking batches from RabbitMQ: a message is the broker's until everything in it is stored, order within a project
//! survives a handover, and giving back costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use eventbucket_collector::bus::message::StoredRange;
use eventbucket_collector::bus::{Delivery, Error, Hint, RabbitOptions, RangeReceiver};
use eventbucket_collector::project::ProjectId;
use futures_util::future::join_all;

use crate::bus_fixture::{Direct, bus, number, numbered, options, shared, soon, stored, take, until};

/// The kills that a message must survive.
const KILLS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_done_with_only_when_every_batch_in_it_is_stored() {
    let options = options(shared());
    let direct = Direct::to(shared(), &options).await;
    let first = bus(&options).await;
    join_all((0..50).map(|number| first.publish(numbered(1, number)))).await;
    let mut taken = take(&mut first.accepted(), 50).await;
    let kept = taken.pop().unwrap();
    stored(taken);
    drop(kept);
    first.finish().await;
    until("it is given back, the others are acknowledged", || async { direct.accepted().await == 1 }).await;

    let second = bus(&options).await;
    let mut of_second = second.accepted();
    let mut again = take(&mut of_second, 1).await;
    while again.iter().all(|delivery| number(delivery) != 49) {
        again.extend(take(&mut of_second, 1).await);
    }
    stored(again);
    second.finish().await;
    assert_eq!(direct.accepted().await, 0, "nothing comes a third time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_has_one_consumer_and_keeps_its_order_through_a_handover() {
    const BATCHES: usize = 60;
    let options = options(shared());
    let publisher = bus(&options).await;
    let (one, two) = (bus(&options).await, bus(&options).await);
    let (mut of_one, mut of_two) = (one.accepted(), two.accepted());
    for number in 0..BATCHES / 2 {
        publisher.publish(numbered(1, number)).await.unwrap();
    }
    // Whichever was first has the project; the other gets nothing of it.
    let (one_has, first) = tokio::select! {
        deliveries = take(&mut of_one, 1) => (true, deliveries),
        deliveries = take(&mut of_two, 1) => (false, deliveries),
    };
    let stored_first = first.len();
    check_order(&first, 0);
    stored(first);
    let (holder, mut ends_of_holder, heir, mut ends_of_heir) =
        if one_has { (one, of_one, two, of_two) } else { (two, of_two, one, of_one) };
    for number in BATCHES / 2..BATCHES {
        publisher.publish(numbered(1, number)).await.unwrap();
    }
    let held = tokio::select! {
        _ = take(&mut ends_of_heir, 1) => panic!("a second consumer is active"),
        held = take(&mut ends_of_holder, 1) => held,
    };
    check_order(&held, stored_first);
    drop((holder, ends_of_holder, held));

    let mut seen = Vec::new();
    while seen.last() != Some(&(BATCHES - 1)) {
        let deliveries = take(&mut ends_of_heir, 1).await;
        seen.extend(deliveries.iter().map(number));
        stored(deliveries);
    }
    assert!(seen[0] <= stored_first, "from the oldest that wasn't stored: {seen:?}");
    assert_eq!(seen, (seen[0]..BATCHES).collect::<Vec<_>>(), "in order");
    drop(heir);
}

fn check_order(deliveries: &[Delivery], from: usize) {
    let numbers: Vec<usize> = deliveries.iter().map(number).collect();
    assert_eq!(numbers, (from..from + numbers.len()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_projects_are_taken_by_the_writers_of_one_process() {
    let options = RabbitOptions { shards: 8, writers: 3, ..options(shared()) };
    let bus = bus(&options).await;
    let published = join_all((1..=40).map(|project| bus.publish(numbered(project, 0)))).await;
    assert!(published.iter().all(Result::is_ok));
    let mut accepted = bus.accepted();
    assert_eq!(accepted.len(), 3);
    assert!(bus.accepted().is_empty(), "the receiving ends are there once");
    let deliveries = take(&mut accepted, 40).await;
    let projects: BTreeSet<u32> = deliveries.iter().map(|delivery| delivery.batch.project.0).collect();
    assert_eq!(projects, (1..=40).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_ten_times_sends_nothing_to_the_dead_letters() {
    let options = options(shared());
    let direct = Direct::to(shared(), &options).await;
    bus(&options).await.publish(numbered(1, 0)).await.unwrap();
    for _ in 0..KILLS {
        let bus = bus(&options).await;
        let taken = take(&mut bus.accepted(), 1).await;
        drop((bus, taken));
    }
    assert_eq!(direct.look("dead").await.unwrap().0, 0);
    let last = bus(&options).await;
    stored(take(&mut last.accepted(), 1).await);
    until("it is acknowledged", || async { direct.accepted().await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_too_long_goes_back_to_the_broker_and_is_taken_again() {
    let options = RabbitOptions { hold_max: Duration::from_millis(500), ..options(shared()) };
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    bus.publish(numbered(1, 3)).await.unwrap();
    let mut accepted = bus.accepted();
    let held = take(&mut accepted, 1).await;
    until("the broker has it back", || async { direct.accepted().await == 1 }).await;
    // The store is back: what was held is stored, and comes once more, as a duplicate.
    stored(held);
    let again = take(&mut accepted, 1).await;
    assert_eq!(number(&again[0]), 3);
    stored(again);
    until("it is acknowledged", || async { direct.accepted().await == 0 }).await;
    assert_eq!(direct.look("dead").await.unwrap().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_bus_takes_nothing_in_and_ends_when_what_it_holds_is_answered() {
    let options = options(shared());
    let (one, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    let mut accepted = one.accepted();
    one.publish(numbered(1, 0)).await.unwrap();
    let held = take(&mut accepted, 1).await;
    one.close();
    let refused = one.publish(numbered(1, 1)).await.unwrap_err();
    assert!(matches!(refused, Error::Closed), "{refused}");
    stored(held);
    for end in &mut accepted {
        assert!(soon("the end", end.next(10, 10)).await.is_none());
    }
    // What is published elsewhere from now on waits for somebody else.
    let two = bus(&options).await;
    two.publish(numbered(1, 2)).await.unwrap();
    let mut of_two = two.accepted();
    assert_eq!(
        number(&take(&mut of_two, 1).await[0]),
        2,
        "the answered one is acknowledged, the other free to take"
    );
    assert_eq!(direct.look("dead").await.unwrap().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_reach_the_views_of_another_process_once() {
    let options = options(shared());
    let storage = bus(&options).await;
    let views = [bus(&options).await, bus(&options).await];
    let mut ears: Vec<RangeReceiver> = views.iter().map(eventbucket_collector::bus::Bus::ranges).collect();
    for ear in &mut ears {
        assert_eq!(soon("a new ear is told to look", ear.recv()).await, Some(Hint::Missed));
    }
    let range = |project: u32| StoredRange { project: ProjectId(project), first: 1, last: 5 };
    let empty = StoredRange { project: ProjectId(99), first: 6, last: 5 };
    storage.announce(&(1..=20).map(range).chain([empty]).collect::<Vec<_>>());
    let mut heard: BTreeMap<u32, usize> = BTreeMap::new();
    soon("all ranges", async {
        while heard.len() < 20 {
            let (hint, _, _) =
                futures_util::future::select_all(ears.iter_mut().map(|ear| Box::pin(ear.recv()))).await;
            if let Some(Hint::Range(heard_range)) = hint {
                assert_eq!(heard_range, range(heard_range.project.0));
                *heard.entry(heard_range.project.0).or_default() += 1;
            }
        }
    })
    .await;
    assert!(heard.values().all(|times| *times == 1), "{heard:?}");
}
