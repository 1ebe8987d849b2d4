//! The dead letters of a bus on RabbitMQ: nothing gets there but what nobody can process, and nothing gets lost there.

use eventbucket_collector::bus::{Bus, DeadLetter, DeadLetters, RabbitOptions};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::workers;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};

use crate::bus_fixture::{
    Direct, batch_of, bus, number, numbered, options, shared, soon, stored, take, until, url,
};
use crate::harness::{Ran, eventbucket, run};
use crate::store_fixture::{events, project};
use crate::store_postgres::Database;

/// A message of a version that nobody here reads.
const FROM_THE_FUTURE: &[u8] = &[250, 1, 2, 3];

/// Puts bytes where accepted batches go.
async fn smuggle(direct: &Direct, bytes: &[u8]) {
    let (channel, mode) = (direct.channel().await, BasicProperties::default().with_delivery_mode(2));
    let options = BasicPublishOptions::default();
    channel.basic_publish(direct.named("accepted"), "0".into(), options, bytes, mode).await.unwrap();
    // The broker has it when it answers what comes behind it.
    channel.close(200, "done".into()).await.unwrap();
}

/// Walks over all dead letters, which stay hidden until the walk is closed.
pub(crate) async fn letters(bus: &Bus) -> (DeadLetters, Vec<DeadLetter>) {
    let walking = async {
        let (mut walk, mut letters) = (bus.dead_letters().await.unwrap().unwrap(), Vec::new());
        while let Some(letter) = walk.next().await.unwrap() {
            letters.push(letter);
        }
        (walk, letters)
    };
    soon("the dead letters", walking).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_goes_to_the_dead_letters_and_the_rest_passes() {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    smuggle(&direct, FROM_THE_FUTURE).await;
    smuggle(&direct, b"").await;
    smuggle(&direct, &[1, 0xc1]).await;
    for project in 1..=10 {
        bus.publish(numbered(project, 5)).await.unwrap();
    }
    let mut accepted = bus.accepted();
    stored(take(&mut accepted, 10).await);
    until("they are dead letters", || async { direct.look("dead").await.unwrap().0 == 3 }).await;
    let (walk, held) = letters(&bus).await;
    let reasons: Vec<String> = held.iter().map(|letter| letter.reason.clone()).collect();
    assert!(reasons[0].contains("version 250"), "{reasons:?}");
    assert!(reasons[1].contains("empty") && reasons[2].contains("can't be read"), "{reasons:?}");
    assert_eq!(held[0].message(), FROM_THE_FUTURE);
    walk.close().await;
    assert_eq!(direct.accepted().await, 0);
}

/// How many connections for burying the broker's log tells of in a virtual host.
fn burying_connections(host: &str) -> usize {
    let of_host = format!("granted access to vhost '{host}'");
    let log = shared().log().unwrap();
    log.lines().filter(|line| line.contains("eventbucket bury") && line.contains(&of_host)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_buried_goes_over_one_connection_and_over_another_when_that_is_lost() {
    const HOST: &str = "buried";
    let address = tokio::task::spawn_blocking(|| shared().vhost(HOST).unwrap()).await.unwrap();
    let options = RabbitOptions { url: url(&address), ..options(shared()) };
    let bus = bus(&options).await;
    for number in 0..5 {
        soon("it is buried", bus.bury(&numbered(1, number), "on purpose")).await.unwrap();
    }
    until("the log tells of it", || async { burying_connections(HOST) == 1 }).await;
    let close = ["close_all_connections", "--vhost", HOST, "on purpose"];
    tokio::task::spawn_blocking(move || shared().control(&close).unwrap()).await.unwrap();
    until("it is buried", || async { bus.bury(&numbered(1, 5), "on purpose").await.is_ok() }).await;
    until("the log tells of it", || async { burying_connections(HOST) >= 2 }).await;
    let (walk, letters) = letters(&bus).await;
    let batches: Vec<_> = letters.iter().map(|letter| letter.batches[0].batch).collect();
    assert_eq!(batches[..6], std::array::from_fn::<_, 6, _>(|number| numbered(1, number).batch));
    walk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_waits_at_its_source_while_there_is_no_queue_for_it() {
    let options = options(shared());
    let direct = Direct::to(shared(), &options).await;
    let one = bus(&options).await;
    let mut accepted = one.accepted();
    // Whoever connects declares the queue again, so all connections stand before it goes.
    for queue in ["accepted.0", "accepted.1"] {
        until("it is consumed from", || async { direct.look(queue).await.unwrap().1 == 1 }).await;
    }
    let channel = direct.channel().await;
    channel.queue_delete(direct.named("dead"), QueueDeleteOptions::default()).await.unwrap();
    smuggle(&direct, FROM_THE_FUTURE).await;
    for project in 1..=4 {
        one.publish(numbered(project, 0)).await.unwrap();
    }
    // Those behind it in both shards show that it has been refused.
    stored(take(&mut accepted, 4).await);
    // Every start declares the queue again.
    let two = bus(&options).await;
    until("it arrives", || async { direct.look("dead").await.unwrap().0 == 1 }).await;
    drop((one, two));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_looked_at_without_loss_replayed_and_discarded() {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    for (number, reason) in [(1, "first reason"), (2, "second reason"), (3, "third reason")] {
        bus.bury(&numbered(9, number), reason).await.unwrap();
    }
    let (walk, held) = letters(&bus).await;
    let of = |letter: &DeadLetter| (letter.reason.clone(), letter.projects.clone(), letter.events);
    let seen: Vec<_> = held.iter().map(of).collect();
    let expected = |reason: &str| (reason.to_owned(), vec![9], Some(1));
    assert_eq!(seen, ["first reason", "second reason", "third reason"].map(expected));
    assert!(held.iter().all(|letter| letter.time.is_some()));
    walk.close().await;
    until("they are back", || async { direct.look("dead").await.unwrap().0 == 3 }).await;

    let (mut walk, held) = letters(&bus).await;
    walk.replay(&held[0]).await.unwrap();
    walk.discard(&held[2]).await.unwrap();
    // A process that dies here loses nothing.
    drop(walk);
    until("one is left", || async { direct.look("dead").await.unwrap().0 == 1 }).await;
    let (walk, held) = letters(&bus).await;
    assert_eq!(held[0].reason, "second reason");
    walk.close().await;
    let replayed = take(&mut bus.accepted(), 1).await;
    assert_eq!(number(&replayed[0]), 1);
    stored(replayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_buried_twice_is_one_letter_and_what_is_put_back_meanwhile_is_not_met_again() {
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    for _ in 0..3 {
        bus.bury(&numbered(9, 1), "the same").await.unwrap();
    }
    bus.bury(&numbered(9, 2), "another").await.unwrap();
    let (walk, held) = letters(&bus).await;
    let found: Vec<_> = held.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(found, ["the same", "another"]);
    walk.close().await;
    until("the copies are gone", || async { direct.look("dead").await.unwrap().0 == 2 }).await;

    let mut walk = bus.dead_letters().await.unwrap().unwrap();
    walk.next().await.unwrap().unwrap();
    bus.bury(&numbered(9, 3), "meanwhile").await.unwrap();
    assert_eq!(walk.next().await.unwrap().unwrap().reason, "another");
    assert!(walk.next().await.unwrap().is_none());
    walk.close().await;
    until("nothing is lost", || async { direct.look("dead").await.unwrap().0 == 3 }).await;
}

/// Puts bytes that nobody here reads behind the dead letters that are there.
async fn leave_unreadable(direct: &Direct) {
    let (channel, mode) = (direct.channel().await, BasicProperties::default().with_delivery_mode(2));
    let (queue, options) = (direct.named("dead"), BasicPublishOptions::default());
    channel.basic_publish("".into(), queue, options, FROM_THE_FUTURE, mode).await.unwrap();
    channel.close(200, "done".into()).await.unwrap();
}

/// Runs `eventbucket dead-letters` against the shared broker.
async fn command(words: &[&str]) -> Ran {
    let mut command = eventbucket(&["dead-letters"]);
    command.args(words).env("EVENTBUCKET_BUS_URL", shared().url());
    tokio::task::spawn_blocking(move || run(command)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_lists_shows_replays_and_discards() {
    // The prefix that the command uses; no other test does.
    let options = RabbitOptions::new(url(&shared().url()));
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    for (number, reason) in [(1, "first reason"), (2, "second reason")] {
        bus.bury(&numbered(9, number), reason).await.unwrap();
    }
    let listed = command(&["list", "--json"]).await.json();
    let reasons: Vec<&str> =
        listed.as_array().unwrap().iter().map(|l| l["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["first reason", "second reason"]);
    let id = |place: usize| listed[place]["id"].as_str().unwrap().to_owned();
    let plain = command(&["list"]).await;
    assert!(plain.stdout.lines().count() == 2 && plain.stdout.contains(&id(1)), "{plain:?}");

    let shown = command(&["show", &id(0)]).await.json();
    assert_eq!(shown["batches"][0]["events"][0]["id"], "event-1");
    command(&["show", "nonsense"]).await.assert_failed(1, &["nonsense", "dead-letters list"]);

    assert_eq!(command(&["replay", &id(0), "--json"]).await.json()["messages"], 1);
    let mut accepted = bus.accepted();
    let replayed = take(&mut accepted, 1).await;
    assert_eq!(number(&replayed[0]), 1);
    stored(replayed);
    // What a newer version wrote stays, and holds up nothing behind it.
    leave_unreadable(&direct).await;
    bus.bury(&numbered(9, 3), "third reason").await.unwrap();
    let all = command(&["replay", "--all", "--json"]).await;
    assert!(all.code == 1 && all.stderr.contains("can't read 1 of them"), "{all:?}");
    let done: serde_json::Value = serde_json::from_str(&all.stdout).unwrap();
    assert!(all.stderr.contains("discard") && done["messages"] == 2, "{all:?}");
    let behind = take(&mut accepted, 2).await;
    assert_eq!(behind.iter().map(number).sum::<usize>(), 2 + 3);
    stored(behind);
    assert_eq!(command(&["discard", "--all", "--json"]).await.json()["messages"], 1);
    until("none is left", || async { direct.look("dead").await.unwrap().0 == 0 }).await;
    assert_eq!(command(&["list"]).await.stdout, "");
    let without = tokio::task::spawn_blocking(|| run(eventbucket(&["dead-letters", "list"]))).await.unwrap();
    without.assert_failed(2, &["[bus] url", "EVENTBUCKET_BUS_URL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_puts_what_the_store_refuses_aside_and_stores_everything_else() {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    let sql = database.sql().await;
    sql.batch_execute("ALTER TABLE event ADD CONSTRAINT no_poison CHECK (name <> 'poison')").await.unwrap();
    let options = options(shared());
    let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
    let mut poisoned = events("x", 20);
    poisoned[7].name = "poison".into();
    // All of them wait before storage starts, so they share transactions.
    bus.publish(batch_of(shop.0, 1, events("a", 5))).await.unwrap();
    bus.publish(batch_of(shop.0, 2, poisoned)).await.unwrap();
    bus.publish(batch_of(999, 3, events("lost", 3))).await.unwrap();
    bus.publish(batch_of(shop.0, 4, events("b", 5))).await.unwrap();

    let cancel = tokio_util::sync::CancellationToken::new();
    let storage =
        tokio::spawn(workers::storage::run(bus.clone(), store.clone(), Cache::memory(), cancel.clone()));
    until("the rest is stored", || async { store.head(shop).await.unwrap() == 29 }).await;
    until("the culprits are dead letters", || async { direct.look("dead").await.unwrap().0 == 2 }).await;
    bus.close();
    soon("storage ends", storage).await.unwrap();
    assert_eq!(direct.accepted().await, 0, "nothing comes again");
    let ledger = store.ledger(Some(shop)).await.unwrap();
    assert_eq!((ledger.received, ledger.stored, ledger.quarantined, ledger.duplicate), (30, 29, 1, 0));
    let kept = sql.query("SELECT reason FROM quarantine", &[]).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].get::<_, &str>(0).contains("no_poison"));

    let (walk, held) = letters(&bus).await;
    let found = |project: ProjectId| {
        let letter = held.iter().find(|letter| letter.projects == [project.0]);
        letter.unwrap_or_else(|| panic!("{held:?}"))
    };
    let (culprit, unknown) = (found(shop), found(ProjectId(999)));
    assert_eq!((culprit.events, culprit.batches[0].events[0].name.as_str()), (Some(1), "poison"));
    assert!(culprit.reason.contains("no_poison"), "{}", culprit.reason);
    assert_eq!(unknown.events, Some(3));
    assert!(unknown.reason.contains("no project 999"), "{}", unknown.reason);
    walk.close().await;
}
