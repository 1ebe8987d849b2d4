//! Kills at random while events flow: the collector and the application, each by SIGKILL, behind a proxy that loses
//! answers. In the end everything that was confirmed is stored once and counted once.

mod client;
mod proxy;
mod truth;

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::Collector;
use crate::random::{Random, rounds};
use client::{Client, Finished};
use proxy::Proxy;

/// Of a hundred answers the proxy loses so many while the kills go on.
const LOSS_PERCENT: u32 = 20;

fn address_of(collector: &Collector) -> SocketAddr {
    collector.url().strip_prefix("http://").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_lost_answers_neither_lose_nor_double_an_event() {
    if client::is_child() {
        return client::run();
    }
    let kills = rounds("FAULTS_KILLS", 60);
    let seed = rounds("FAULTS_SEED", u64::from(std::process::id()));
    println!("replay with FAULTS_SEED={seed} FAULTS_KILLS={kills}");
    let mut random = Random::new(seed);
    let mut collector = Collector::start();
    let proxy = Proxy::start(address_of(&collector), LOSS_PERCENT, seed).await;
    let spool = tempfile::tempdir().unwrap();
    let key = collector.keys().write.clone();
    let mut client = Client::start(proxy.address, &key, spool.path());

    let (mut collector_kills, mut client_kills) = (0, 0);
    for _ in 0..kills {
        // The pace of the faults, not a wait for anything: from the middle of a start to many batches later.
        tokio::time::sleep(Duration::from_millis(5 + random.below(250))).await;
        if random.percent(50) {
            collector.kill();
            collector.restart();
            proxy.lead_to(address_of(&collector));
            collector_kills += 1;
        } else {
            client.kill();
            client.restart(proxy.address, &key, spool.path());
            client_kills += 1;
        }
    }
    proxy.heal();
    let Finished { confirmed, attempted, reached, ledger } = client.finish();
    println!(
        "{collector_kills} kills of the collector, {client_kills} of the application, {} answers lost; {} events \
         captured at least, {} of them confirmed on disk",
        proxy.lost(),
        attempted,
        confirmed.len()
    );
    assert!(confirmed.len() > 100, "too few events to show anything");
    assert!(proxy.lost() > 0, "the proxy lost nothing");
    assert_eq!(ledger.get("balances").map(String::as_str), Some("true"), "{ledger:?}");
    assert_eq!(ledger.get("pending").map(String::as_str), Some("0"), "{ledger:?}");
    let figure = |name: &str| ledger[name].parse::<u64>().unwrap();
    assert_eq!((figure("dropped"), figure("rejected")), (0, 0), "{ledger:?}");
    truth::check(&collector, &confirmed, attempted, &reached).await;
}
