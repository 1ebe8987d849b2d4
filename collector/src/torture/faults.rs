//! Carrying out faults. Each runs beside the next one; they are over when all are waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::cache::Cache;
use crate::project::ProjectId;
use crate::store::Store;

use super::ageing::{Ageing, Past};
use super::clients::{Batches, Clients, Resender, as_accepted};
use super::fault::Fault;
use super::proxy::Staller;
use super::schedule::{Link, Place, Role, Server};
use super::world::{Backup, World};

/// How long something that a fault asks of a server or an edge may take: it may be away for the whole schedule.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);

/// The pause between two wipes of one fault.
const WIPE_PERIOD: Duration = Duration::from_millis(30);

/// How long a PostgreSQL that was put back may take until it tells how much it holds.
const TELL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it is waited for events to be stored that a restore undoes: storage may have to find PostgreSQL again first, and
/// there may be none any more.
const GROWTH_TIMEOUT: Duration = Duration::from_secs(6);

/// The pause between two questions for that.
const TELL_PERIOD: Duration = Duration::from_millis(20);

/// What faults need beside the world.
pub(super) struct Means {
    pub(super) store: Store,
    pub(super) bus: Bus,
    pub(super) cache: Cache,
    pub(super) resender: Arc<Resender>,
    pub(super) ageing: Ageing,
    pub(super) backup: Option<Backup>,
}

/// The faults under way in one schedule.
pub(super) struct Faults<'a> {
    world: &'a World,
    means: &'a Means,
    project: ProjectId,
    batches: Arc<Batches>,
    captured: Arc<AtomicUsize>,
    past: Arc<Past>,
    under_way: JoinSet<Result<(), String>>,
    killing: Vec<Server>,
    /// Taken by who has PostgreSQL stopped and started.
    postgres: Arc<Mutex<()>>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(world: &'a World, means: &'a Means, project: ProjectId, clients: &Clients) -> Self {
        Self {
            world,
            means,
            project,
            batches: clients.batches(),
            captured: clients.captured(),
            past: Arc::default(),
            under_way: JoinSet::new(),
            killing: Vec::new(),
            postgres: Arc::default(),
        }
    }

    /// Lets one begin.
    pub(super) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(place) => self.world.process(place).kill(),
            Fault::Pause(place, ms) => self.world.process(place).pause(Duration::from_millis(ms)),
            Fault::Cut(link) => self.world.cut(link),
            Fault::Stall(link, ms) => {
                let stall = self.world.stall(link);
                self.under_way.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    drop(stall);
                    Ok(())
                });
            }
            Fault::Resend { edge, which, times } => self.resend(edge, which, times),
            Fault::Redeliver { which } => self.redeliver(which),
            Fault::PurgeRanges => {
                let bus = self.means.bus.clone();
                // A broker that is away has nothing to lose.
                self.ask(async move { bus.forget_ranges().await.unwrap_or(()) });
            }
            Fault::TellLate { insight, wait_ms, hold_ms } => self.tell_late(insight, wait_ms, hold_ms),
            Fault::WipeCache(times) => {
                let cache = self.means.cache.clone();
                self.ask(async move {
                    for _ in 0..times {
                        // A Redis that is away has nothing to forget.
                        let _ = cache.wipe().await;
                        tokio::time::sleep(WIPE_PERIOD).await;
                    }
                });
            }
            Fault::KillServer(server, ms) => self.kill_server(server, Duration::from_millis(ms)),
            Fault::NextSegment => self.next_segment(),
            Fault::DropOld { cut_ms } => self.ask(self.means.ageing.clone().drop_old(cut_ms)),
            Fault::Restore(ms) => self.restore(Duration::from_millis(ms)),
        }
    }

    /// A worker asks Redis, counts in PostgreSQL, and tells Redis: it is held up at the second until the third is.
    fn tell_late(&mut self, insight: usize, wait_ms: u64, hold_ms: u64) {
        let place = Place { role: Role::Insight, number: insight };
        let counting = self.world.stall(Link::Server(place, Server::Postgres));
        let telling = self.world.stallers(Link::Server(place, Server::Redis));
        self.under_way.spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            let telling: Vec<_> = telling.iter().map(Staller::stall).collect();
            drop(counting);
            tokio::time::sleep(Duration::from_millis(hold_ms)).await;
            drop(telling);
            Ok(())
        });
    }

    fn resend(&mut self, edge: usize, which: u64, times: u64) {
        let Some(attempt) = self.batches.pick(which) else { return };
        let (resender, edge) = (Arc::clone(&self.means.resender), self.world.edges()[edge].clone());
        self.ask(async move { resender.resend(attempt, &edge, times).await });
    }

    fn redeliver(&mut self, which: u64) {
        let batch = self.batches.pick(which).and_then(|attempt| as_accepted(&attempt, self.project));
        let (Some(batch), bus) = (batch, self.means.bus.clone()) else { return };
        // One that isn't confirmed may be delivered all the same, or not: both are right.
        self.ask(async move { drop(bus.publish(batch).await) });
    }

    fn ask(&mut self, question: impl Future<Output = ()> + Send + 'static) {
        self.under_way.spawn(async move {
            let _ = tokio::time::timeout(ASK_TIMEOUT, question).await;
            Ok(())
        });
    }

    fn kill_server(&mut self, server: Server, down: Duration) {
        // One that is down can't be killed again.
        if self.killing.contains(&server) {
            return;
        }
        let Some(control) = self.world.control(server) else { return };
        self.killing.push(server);
        let postgres = (server == Server::Postgres).then(|| Arc::clone(&self.postgres));
        self.under_way.spawn(async move {
            let _turn = match &postgres {
                Some(postgres) => Some(postgres.lock().await),
                None => None,
            };
            control.strike(down).await
        });
    }

    fn next_segment(&mut self) {
        let (ageing, past) = (self.means.ageing.clone(), Arc::clone(&self.past));
        let captured = Arc::clone(&self.captured);
        self.under_way.spawn(async move {
            // One that nobody has heard of may have begun all the same.
            let _ = tokio::time::timeout(ASK_TIMEOUT, ageing.next_segment()).await;
            past.segment_began(captured.load(Ordering::Acquire));
            Ok(())
        });
    }

    /// PostgreSQL's state is kept now, and comes back so long after more was stored, while everything else goes on.
    fn restore(&mut self, back: Duration) {
        let Some(backup) = self.means.backup.clone() else { return };
        let (store, project) = (self.means.store.clone(), self.project);
        let (postgres, past) = (Arc::clone(&self.postgres), Arc::clone(&self.past));
        self.under_way.spawn(async move {
            let turn = postgres.lock().await;
            backup.save().await?;
            drop(turn);
            let saved = stored(&store, project).await?;
            // What stands still would lose nothing.
            let _ = tokio::time::timeout(GROWTH_TIMEOUT, grown(&store, project, saved)).await;
            tokio::time::sleep(back).await;
            let _turn = postgres.lock().await;
            let before = stored(&store, project).await?;
            backup.restore().await?;
            past.was_undone(before.saturating_sub(stored(&store, project).await?));
            Ok(())
        });
    }

    /// Waits until the last fault is over, and says when it was and what they did to the log. What the collector does about
    /// them isn't waited for.
    pub(super) async fn over(mut self) -> Result<(Instant, Arc<Past>), String> {
        while let Some(ended) = self.under_way.join_next().await {
            ended.map_err(|error| error.to_string())??;
        }
        Ok((Instant::now(), self.past))
    }
}

/// Waits until more of a project's events are stored.
async fn grown(store: &Store, project: ProjectId, than: u64) -> Result<(), String> {
    while stored(store, project).await? <= than {
        tokio::time::sleep(TELL_PERIOD).await;
    }
    Ok(())
}

/// How many events of a project are stored. Heads are not asked for: who sees one go back renews the epoch, and that is the
/// collector's own business.
async fn stored(store: &Store, project: ProjectId) -> Result<u64, String> {
    let began = Instant::now();
    loop {
        match store.ledger(Some(project)).await {
            Ok(ledger) => return Ok(ledger.stored),
            Err(error) if began.elapsed() > TELL_TIMEOUT => {
                return Err(format!("postgres doesn't tell what it holds: {error}"));
            }
            Err(_) => tokio::time::sleep(TELL_PERIOD).await,
        }
    }
}
