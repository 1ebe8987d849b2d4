//! RabbitMQ killed and paused in the middle of everything: what was confirmed is delivered, what wasn't is refused, and
//! everything goes on by itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eventbucket_collector::bus::{Bus, Error, Hint, RabbitOptions};
use eventbucket_servers::RabbitMq;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bus_dead_letters::letters;
use crate::bus_fixture::{
    Direct, broken, bus, number, numbered, options, own, settled, shared, soon, stored, take, take_and_store,
    until,
};

/// Publishers at once.
const PUBLISHERS: usize = 8;

type Numbers = Arc<Mutex<BTreeSet<usize>>>;

/// Publishes batches until cancelled, each number once, and notes which were confirmed and which errors came.
struct Load {
    stop: CancellationToken,
    confirmed: Numbers,
    refused: Arc<Mutex<Vec<Error>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(bus: &Bus) -> Self {
        let load = Self {
            stop: CancellationToken::new(),
            confirmed: Numbers::default(),
            refused: Arc::default(),
            tasks: Vec::new(),
        };
        let tasks = (0..PUBLISHERS).map(|publisher| {
            let (bus, stop) = (bus.clone(), load.stop.clone());
            let (confirmed, refused) = (Arc::clone(&load.confirmed), Arc::clone(&load.refused));
            tokio::spawn(async move {
                for step in 0.. {
                    if stop.is_cancelled() {
                        return;
                    }
                    let number = step * PUBLISHERS + publisher;
                    match bus.publish(numbered(u32::try_from(publisher).unwrap() + 1, number)).await {
                        Ok(_) => drop(confirmed.lock().unwrap().insert(number)),
                        Err(error) => {
                            refused.lock().unwrap().push(error);
                            // A client waits too before it sends again, only longer.
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            })
        });
        Self { tasks: tasks.collect(), ..load }
    }

    fn confirmed(&self) -> usize {
        self.confirmed.lock().unwrap().len()
    }

    async fn until_more(&self, more: usize) {
        let goal = self.confirmed() + more;
        until("batches are confirmed", || async { self.confirmed() >= goal }).await;
    }

    async fn until_refused(&self) {
        self.refused.lock().unwrap().clear();
        until("batches are refused", || async { !self.refused.lock().unwrap().is_empty() }).await;
    }

    async fn end(self) -> (BTreeSet<usize>, Vec<Error>) {
        self.stop.cancel();
        for task in self.tasks {
            soon("every publish ends", task).await.unwrap();
        }
        (self.confirmed.lock().unwrap().clone(), self.refused.lock().unwrap().clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_loses_nothing_it_confirmed_and_everything_goes_on_by_itself() {
    let server = own().await;
    let options = RabbitOptions { confirm_timeout: Duration::from_secs(5), ..options(&server) };
    let mut server = settled(server, &options).await;
    let (edge, storage, views) = (bus(&options).await, bus(&options).await, bus(&options).await);
    let (mut accepted, mut ear) = (storage.accepted(), views.ranges());
    assert_eq!(soon("a new ear is told to look", ear.recv()).await, Some(Hint::Missed));
    let load = Load::start(&edge);
    let mut delivered = BTreeSet::new();
    for _ in 0..2 {
        load.until_more(200).await;
        delivered.extend(take_and_store(&mut accepted, 20).await);
        server.kill().unwrap();
        load.until_refused().await;
        until("readiness says so", || async { edge.serving().is_err() }).await;
        server = broken(server, RabbitMq::restart).await;
        assert_eq!(soon("a view is told to look", ear.recv()).await, Some(Hint::Missed));
    }
    load.until_more(200).await;
    let (confirmed, refused) = load.end().await;
    for error in &refused {
        assert!(matches!(error, Error::Unavailable { .. } | Error::Away { .. }), "{error:?}");
        assert!(error.retry() >= Some(Duration::from_secs(1)), "{error:?}");
    }
    soon("all that was confirmed is delivered", async {
        while !confirmed.is_subset(&delivered) {
            delivered.extend(take_and_store(&mut accepted, 1).await);
        }
    })
    .await;
    edge.serving().unwrap();
    let (walk, held) = letters(&edge).await;
    assert!(held.is_empty(), "{held:?}");
    walk.close().await;

    // A broker that hangs confirms nothing: who waits is told so in time.
    server.pause().unwrap();
    let refused = soon("an answer", edge.publish(numbered(1, usize::MAX))).await.unwrap_err();
    assert_eq!(refused.status(), 503, "{refused}");
    server.resume().unwrap();
    until("it publishes again", || async { edge.publish(numbered(1, usize::MAX)).await.is_ok() }).await;
}

/// Has the queues that end like this stand still, or go on.
async fn do_to_queues(what: &'static str, name: String) {
    let found = format!("[N || N <- erlang:registered(), lists:suffix(\"{name}\", atom_to_list(N))]");
    let words = format!("[begin sys:{what}(N), N end || N <- {found}].");
    let done = tokio::task::spawn_blocking(move || shared().control(&["eval", &words])).await.unwrap();
    assert!(done.as_ref().is_ok_and(|queues| queues.contains(&name)), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_confirms_nothing_holds_up_nobody_elses_batches() {
    let options = RabbitOptions { confirm_timeout: Duration::from_secs(2), ..options(shared()) };
    let edge = bus(&options).await;
    for project in [1, 2] {
        edge.publish(numbered(project, 0)).await.unwrap();
    }
    // As when the queue has lost its leader. Project 1 is of the queue 1, project 2 of the queue 0.
    do_to_queues("suspend", format!("{}.accepted.1", options.prefix)).await;
    let stands = CancellationToken::new();
    let others = tokio::spawn({
        let (edge, stands) = (edge.clone(), stands.clone());
        async move {
            let mut count = 0;
            while !stands.is_cancelled() {
                count += 1;
                edge.publish(numbered(2, count)).await.expect("the others' queue works");
            }
            count
        }
    });
    let late = join_all((1..=20).map(|number| edge.publish(numbered(1, number))));
    for answer in soon("an answer", late).await {
        assert_eq!(answer.unwrap_err().status(), 503);
    }
    // Then it is known: nobody waits for it any more, but for one at a time who tries.
    let refused = soon("they are refused at once", async {
        loop {
            let before = Instant::now();
            let refused = edge.publish(numbered(1, 21)).await.unwrap_err();
            if before.elapsed() < options.confirm_timeout / 2 {
                return refused;
            }
        }
    })
    .await;
    assert!(refused.retry() > Some(Duration::from_secs(1)), "{refused:?}");
    edge.serving().expect("the others are served");
    until("it is tried again", || async {
        let before = Instant::now();
        edge.publish(numbered(1, 22)).await.unwrap_err();
        before.elapsed() > options.confirm_timeout / 2
    })
    .await;
    do_to_queues("resume", format!("{}.accepted.1", options.prefix)).await;
    until("it publishes again", || async { edge.publish(numbered(1, 23)).await.is_ok() }).await;
    stands.cancel();
    assert!(others.await.unwrap() > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_waits_for_a_confirm_hears_at_once_that_the_connection_died() {
    const BATCHES: usize = 300;
    let server = own().await;
    // Nobody hears of it by waiting.
    let options = RabbitOptions { confirm_timeout: Duration::from_secs(3_600), ..options(&server) };
    let mut server = settled(server, &options).await;
    let edge = bus(&options).await;
    edge.publish(numbered(1, 0)).await.unwrap();
    // The broker hangs: what is sent now is under way, the rest waits in line.
    server.pause().unwrap();
    let publish = |number: usize| {
        let edge = edge.clone();
        async move { edge.publish(numbered(u32::try_from(number % 7).unwrap() + 1, number)).await }
    };
    let mut pending = Box::pin(join_all((1..=BATCHES).map(publish)));
    assert!((&mut pending).now_or_never().is_none(), "all stand in line");
    server.kill().unwrap();
    let answers = soon("every answer", pending).await;
    assert_eq!(answers.len(), BATCHES);
    // A process that is stopped may still finish what one of its threads was at.
    let refused: Vec<Error> = answers.into_iter().filter_map(Result::err).collect();
    assert!(refused.len() > BATCHES / 2, "{} of {BATCHES}", refused.len());
    for error in refused {
        assert!(
            matches!(error, Error::Unavailable { .. } | Error::Away { .. }) && error.retry().is_some(),
            "{error:?}"
        );
    }
    // Nothing of them is left in line: what comes next goes alone, and finds all the room there was.
    let server = broken(server, RabbitMq::restart).await;
    until("it publishes again", || async { edge.publish(numbered(1, BATCHES + 1)).await.is_ok() }).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_after_its_connection_acknowledges_nothing_on_the_next() {
    let server = own().await;
    let options = RabbitOptions { hold_max: Duration::from_millis(500), writers: 1, ..options(&server) };
    let (storage, direct) = (bus(&options).await, Direct::to(&server, &options).await);
    storage.publish(numbered(1, 0)).await.unwrap();
    let mut accepted = storage.accepted();
    let held = take(&mut accepted, 1).await;
    until("the broker has it back", || async { direct.accepted().await == 1 }).await;
    // Somebody else stores it meanwhile, so that the next connection's first tag is another batch's.
    assert_eq!(direct.drain().await.len(), 1);
    storage.publish(numbered(1, 1)).await.unwrap();
    stored(held);
    let next = take(&mut accepted, 1).await;
    assert_eq!(number(&next[0]), 1);
    drop((storage, accepted));
    until("it is the broker's still", || async { direct.accepted().await == 1 }).await;
    // An acknowledgement of a tag that the connection never gave out would have cost it its channel.
    let said = server.log().unwrap();
    assert!(!said.contains("unknown delivery tag"), "{said}");
    drop(next);
}
