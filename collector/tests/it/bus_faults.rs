//! RabbitMQ killed and paused in the middle of everything: what was confirmed is delivered, what wasn't is refused, and
//! everything goes on by itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventbucket_collector::bus::{Bus, Error, Hint, RabbitOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bus_server::{RabbitMq, bus, number, numbered, options, soon, stored, take, until};

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
    let mut server = tokio::task::spawn_blocking(RabbitMq::start).await.unwrap();
    let options = RabbitOptions { confirm_timeout: Duration::from_secs(5), ..options(&server) };
    // A queue that RabbitMQ 3.10 made seconds before it was killed never gets its leader back; ending in order writes down
    // that it is there.
    drop(bus(&options).await);
    server.terminate();
    server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .unwrap();
    let (edge, storage, views) = (bus(&options).await, bus(&options).await, bus(&options).await);
    let (mut accepted, mut ear) = (storage.accepted(), views.ranges());
    assert_eq!(soon("a new ear is told to look", ear.recv()).await, Some(Hint::Missed));
    let load = Load::start(&edge);
    let mut delivered = BTreeSet::new();
    for _ in 0..2 {
        load.until_more(200).await;
        let deliveries = take(&mut accepted, 20).await;
        delivered.extend(deliveries.iter().map(number));
        stored(deliveries);
        server.kill();
        load.until_refused().await;
        until("readiness says so", || async { edge.serving().is_err() }).await;
        server = tokio::task::spawn_blocking(move || {
            server.restart();
            server
        })
        .await
        .unwrap();
        assert_eq!(soon("a view is told to look", ear.recv()).await, Some(Hint::Missed));
    }
    load.until_more(200).await;
    let (confirmed, refused) = load.end().await;
    for error in &refused {
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert!(error.retry() >= Some(Duration::from_secs(1)), "{error:?}");
    }
    soon("all that was confirmed is delivered", async {
        while !confirmed.is_subset(&delivered) {
            let deliveries = take(&mut accepted, 1).await;
            delivered.extend(deliveries.iter().map(number));
            stored(deliveries);
        }
    })
    .await;
    edge.serving().unwrap();
    let letters = soon("the dead letters", edge.dead_letters()).await.unwrap().unwrap();
    assert!(letters.list().is_empty());
    letters.close().await;

    // A broker that hangs confirms nothing: who waits is told so in time.
    server.pause();
    let refused = soon("an answer", edge.publish(numbered(1, usize::MAX))).await.unwrap_err();
    assert_eq!(refused.status(), 503, "{refused}");
    server.resume();
    until("it publishes again", || async { edge.publish(numbered(1, usize::MAX)).await.is_ok() }).await;
}
