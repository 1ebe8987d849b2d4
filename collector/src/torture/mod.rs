//! Breaking a collector on purpose: kills, pauses, cut connections and repeated batches by seed, while clients send; in the
//! end every event must be stored once and counted once.

/// What happens when, as a function of a seed.
mod schedule;

/// What can go wrong.
mod fault;

/// Connections that can be cut.
mod proxy;

/// A process that is kept running.
mod process;

/// What ends with this process.
mod group;

/// Everything that is tortured.
mod world;

/// Who sends meanwhile.
mod clients;

/// Carrying out faults.
mod faults;

/// What time does to a log.
mod ageing;

/// Reading what there is in the end.
mod truth;

/// What must be true in the end.
mod check;

/// What became of a schedule, and of all.
mod outcome;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::app::{self, FIRST_ACCOUNT};
use crate::config::{Config, Flags};
use crate::project::ProjectId;
use crate::query::{self, Reader};
use crate::store::NewProject;

use ageing::Ageing;
use check::{Complaints, Expected, Found};
use clients::{Clients, Resender};
use faults::{Faults, Means};
pub(crate) use outcome::{Figures, Outcome};
pub(crate) use schedule::Server;
use schedule::{Allowed, Link, Place, Role, Schedule};
use truth::Servers;
use world::World;
pub(crate) use world::{Addresses, Backup, Control};

/// How long after the last fault everything must hold.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often it is looked at meanwhile.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// What is to be tortured.
pub(crate) struct Plan {
    /// The servers.
    pub(crate) addresses: Addresses,
    /// How those are killed and started that may be.
    pub(crate) controls: BTreeMap<Server, Control>,
    /// How PostgreSQL is put back to an earlier state, where it may be.
    pub(crate) backup: Option<Backup>,
    /// Whether everything may be dropped that isn't in the newest segment, whosever it is.
    pub(crate) drops: bool,
    /// The folder of the edges' spools, where they have some.
    pub(crate) spool: Option<PathBuf>,
}

/// Why nothing could be tried: what was being done, as "verb the noun", and what came of it.
pub(crate) struct Error {
    pub(crate) what: &'static str,
    pub(crate) cause: Box<dyn std::error::Error + Send + Sync>,
}

/// What a failure while doing `what` is told as.
fn while_doing<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: &'static str,
) -> impl FnOnce(E) -> Error {
    move |cause| Error { what, cause: cause.into() }
}

/// A run: what is tortured, and the straight way to the servers.
pub(crate) struct Torture {
    world: World,
    means: Means,
    servers: Servers,
}

impl Torture {
    /// Starts the processes, and waits until all serve. Dropped, it takes them with it.
    pub(crate) async fn prepare(plan: &Plan) -> Result<Self, Error> {
        let Plan { addresses, controls, backup, drops, spool } = plan;
        addresses.check().map_err(while_doing("stand between"))?;
        let variables = Server::ALL.map(|server| addresses.variable(server));
        let config = Config::load(&Flags::default(), variables).map_err(while_doing("read the addresses"))?;
        let (store, bus, cache) = app::servers(&config).await.map_err(while_doing("use the servers"))?;
        let program = std::env::current_exe().map_err(while_doing("find this program"))?;
        let world = World::start(&program, addresses, controls.clone(), spool.as_deref()).await;
        let world = world.map_err(while_doing("start the processes"))?;
        let resender = Resender::new().map_err(while_doing("make a client"))?;
        let mut ageing = Ageing::new(store.clone());
        if *drops {
            ageing = ageing.dropping(addresses).await.map_err(while_doing("use the store a second time"))?;
        }
        let means = Means {
            store: store.clone(),
            bus: bus.clone(),
            cache: cache.clone(),
            resender: Arc::new(resender),
            ageing,
            backup: backup.clone(),
        };
        let reader = Reader::new(store.clone(), cache.clone());
        Ok(Self { world, means, servers: Servers { store, bus, cache, reader } })
    }

    /// Runs the schedule of a seed and judges what it left.
    pub(crate) async fn try_one(&mut self, seed: u64) -> Outcome {
        let allowed = Allowed {
            kills: self.world.killable(),
            drops: self.means.ageing.can_drop(),
            restores: self.means.backup.is_some(),
        };
        let schedule = Schedule::draw(seed, &allowed);
        let mut outcome = Outcome::of(&schedule);
        outcome.complaints = match self.strike_and_judge(&schedule, &mut outcome).await {
            Ok(complaints) => complaints,
            Err(reason) => vec![reason],
        };
        outcome.complaints.extend(self.world.take_ends());
        outcome.holds = outcome.complaints.is_empty();
        outcome
    }

    /// Leaves the processes' logs where they are, and says where.
    pub(crate) fn keep_logs(&mut self) -> &Path {
        self.world.keep_logs()
    }

    /// Ends every process, and waits until they are gone.
    pub(crate) async fn end(&mut self) {
        self.world.end().await;
    }

    async fn strike_and_judge(
        &mut self,
        schedule: &Schedule,
        outcome: &mut Outcome,
    ) -> Result<Vec<String>, String> {
        let NewProject { project, write_key, .. } = self.new_project(schedule.seed).await?;
        let mut clients = Clients::start(&self.world.edges(), &write_key.text)?;
        let epoch = self.servers.store.epoch();
        let mut faults = Faults::new(&self.world, &self.means, project.id, &clients);
        for step in &schedule.steps {
            clients.capture(step.events);
            tokio::time::sleep(Duration::from_millis(step.pause_ms)).await;
            faults.strike(step.fault);
        }
        let (mut last_fault, past) = faults.over().await.inspect_err(|_| outcome.untried = true)?;
        self.world.settled().await?;
        outcome.undone = past.undone();
        let put_back = schedule.restores();
        if put_back {
            self.send_all_again(&clients).await?;
        }
        if schedule.drops() {
            self.drop_all_old().await?;
        }
        if schedule.last_unannounced {
            last_fault = self.capture_unannounced(&mut clients, project.id).await;
        } else {
            clients.capture_last();
        }
        outcome.events = clients.sent().len();
        let expected = Expected {
            sent: clients.sent(),
            droppable: clients.first(past.droppable()),
            epoch_before: put_back.then_some(epoch),
        };
        let complaints = loop {
            let found = self.servers.read(project.id, &clients).await;
            outcome.received = found.as_ref().map_or(0, |found| found.ledger.received);
            outcome.dropped = found.as_ref().map_or(0, Found::dropped);
            let complaints = match found {
                Ok(found) => check::complaints(&expected, &found),
                Err(reason) => Complaints { texts: vec![reason], lasting: false },
            };
            let late = last_fault.elapsed() > PATIENCE;
            if complaints.texts.is_empty() || complaints.lasting || late {
                break complaints.texts;
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        };
        outcome.recovery_ms = u64::try_from(last_fault.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(complaints)
    }

    /// Sends every batch again, as applications would that learn of a restore: what is gone has to be stored once more, what
    /// isn't is a duplicate.
    async fn send_all_again(&self, clients: &Clients) -> Result<(), String> {
        let (batches, edges) = (clients.batches().all(), self.world.edges());
        let sending = self.means.resender.resend_until_taken(batches, &edges);
        tokio::time::timeout(PATIENCE, sending).await.map_err(|_| {
            let seconds = PATIENCE.as_secs();
            format!("the batches that were sent again after a restore are not all taken within {seconds} s")
        })
    }

    /// Drops once more what is old, which nothing is in the way of any longer.
    async fn drop_all_old(&self) -> Result<(), String> {
        let dropping = self.means.ageing.drop_all_old();
        tokio::time::timeout(PATIENCE, dropping)
            .await
            .map_err(|_| format!("old events could not be dropped within {} s", PATIENCE.as_secs()))
    }

    /// Captures the last events while no insight worker hears of them, and loses what was announced: only the log knows.
    async fn capture_unannounced(&self, clients: &mut Clients, project: ProjectId) -> Instant {
        let deaf = Place::of(Role::Insight).map(|place| Link::Server(place, Server::RabbitMq));
        let stalls: Vec<_> = deaf
            .flat_map(|link| {
                let stall = self.world.stall(link);
                // What they were given goes back to the broker.
                self.world.cut(link);
                stall
            })
            .collect();
        clients.capture_last();
        let (began, sent) = (Instant::now(), clients.sent().len() as u64);
        // What isn't stored by then is the judge's business.
        while began.elapsed() < PATIENCE / 2 && self.servers.store.head(project).await.unwrap_or(0) < sent {
            tokio::time::sleep(LOOK_PERIOD).await;
        }
        // Storing comes before announcing, by milliseconds.
        tokio::time::sleep(LOOK_PERIOD).await;
        // A broker that can't be asked has lost nothing: then the workers hear of it.
        let _ = self.servers.bus.forget_ranges().await;
        drop(stalls);
        Instant::now()
    }

    async fn new_project(&self, seed: u64) -> Result<NewProject, String> {
        let name = format!("torture {seed} {}", Uuid::now_v7());
        let made = self.servers.store.create_project(FIRST_ACCOUNT, &name).await;
        made.map_err(|error| format!("no project can be made: {error}"))
    }

    /// The audit of everything in the store, other projects included.
    pub(crate) async fn audit(&self) -> Result<bool, Error> {
        let audit = query::audit(&self.servers.store, Some(&self.servers.cache), |_, _| {}).await;
        audit.map(|audit| audit.holds()).map_err(while_doing("audit the store"))
    }
}
