//! PostgreSQL is gone while events go on: what each process holds, and how fast what waited is stored afterwards.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::load::{Answers, BATCH_EVENTS, Requests, send_paced};
use crate::speed;
use crate::stack::Servers;

/// Projects, so that all queues are used.
const PROJECTS: usize = 50;

/// Events a second that go on being sent.
const PACE: f64 = 10_000.0;

/// How long PostgreSQL is gone unless it is said otherwise.
const OUTAGE_S: u64 = 600;

/// How long events flow before and after.
const CALM: Duration = Duration::from_secs(10);

/// How often is looked how far the log is.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) async fn measure(servers: &mut Servers) {
    let seconds = std::env::var("OUTAGE_S").map_or(OUTAGE_S, |text| text.parse().unwrap());
    let gone = Duration::from_secs(seconds);
    let stack = servers.stack(PROJECTS, &[]).await;
    speed::warm_up(&stack, 0).await;
    println!("\noutage: {PACE:.0} events/s, PostgreSQL gone for {seconds} s");
    let answers = Arc::new(Answers::default());
    // What is sent must outlast the draining: an eighth of the outage is what eight times the pace takes.
    let time = CALM + gone + gone / 2 + CALM;
    let requests = Requests::new(speed::write_keys(&stack), 1);
    let (address, sent) = (stack.edge.address.clone(), Arc::clone(&answers));
    let sending =
        tokio::spawn(async move { send_paced(&address, requests, (PACE, time), &sent, None).await });
    tokio::time::sleep(CALM).await;
    servers.postgres.kill().unwrap();
    tokio::time::sleep(gone).await;
    servers.postgres.restart().unwrap();
    let log = Log::open(&stack.store_url).await;
    let (start, before) = (Instant::now(), log.stored().await);
    let accepted = || answers.taken.load(Ordering::Relaxed) + (PROJECTS * BATCH_EVENTS) as u64;
    println!(
        "  {} events wait in the broker; refused requests: {}",
        accepted() - before,
        answers.refused.load(Ordering::Relaxed)
    );
    let mut last = before;
    while accepted() - last > (PACE as u64) / 2 {
        assert!(!sending.is_finished(), "events ended before what waited was stored");
        tokio::time::sleep(LOOK).await;
        last = log.stored().await;
    }
    let drained = (last - before) as f64 / start.elapsed().as_secs_f64();
    println!(
        "  drained in {:.1} s: {drained:.0} stored/s, {:.1} times what goes on coming in",
        start.elapsed().as_secs_f64(),
        drained / PACE
    );
    println!("  highest memory, MiB: {}", stack.memory());
    sending.abort();
}

/// The database, asked past the collector.
struct Log(tokio_postgres::Client);

impl Log {
    async fn open(store_url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(store_url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        Self(client)
    }

    /// Events in the log.
    async fn stored(&self) -> u64 {
        let row = self.0.query_one("SELECT coalesce(sum(position), 0)::int8 FROM head", &[]).await.unwrap();
        row.get::<_, i64>(0).unsigned_abs()
    }
}
