//! Carrying out faults. Each runs beside the next one; they are over when all are waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::cache::Cache;
use crate::project::ProjectId;

use super::clients::{Batches, Resender, as_accepted};
use super::proxy::Staller;
use super::schedule::{Fault, Link, Place, Role, Server};
use super::world::World;

/// How long something that a fault asks of a server or an edge may take: it may be away for the whole schedule.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);

/// The pause between two wipes of one fault.
const WIPE_PERIOD: Duration = Duration::from_millis(30);

/// What faults need beside the world.
pub(super) struct Means {
    pub(super) bus: Bus,
    pub(super) cache: Cache,
    pub(super) resender: Arc<Resender>,
}

/// The faults under way in one schedule.
pub(super) struct Faults<'a> {
    world: &'a World,
    means: &'a Means,
    project: ProjectId,
    batches: Arc<Batches>,
    under_way: JoinSet<Result<(), String>>,
    killing: Vec<Server>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(world: &'a World, means: &'a Means, project: ProjectId, batches: Arc<Batches>) -> Self {
        Self { world, means, project, batches, under_way: JoinSet::new(), killing: Vec::new() }
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
        self.under_way.spawn(async move { control.strike(down).await });
    }

    /// Waits until the last fault is over, and says when it was. What the collector does about them isn't waited for.
    pub(super) async fn over(mut self) -> Result<Instant, String> {
        while let Some(ended) = self.under_way.join_next().await {
            ended.map_err(|error| error.to_string())??;
        }
        Ok(Instant::now())
    }
}
