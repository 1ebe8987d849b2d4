//! Breaking a collector on purpose: kills, pauses, cut connections and repeated batches by seed, while clients send; in the
//! end every event must be stored once and counted once.

/// What happens when, as a function of a seed.
mod schedule;

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

/// Reading what there is in the end.
mod truth;

/// What must be true in the end.
mod check;

/// What a run prints.
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::{self, FIRST_ACCOUNT};
use crate::config::{Config, Flags};
use crate::project::ProjectId;
use crate::query;
use crate::shutdown::{Signal, Signals};
use crate::store::NewProject;

use super::failure::{Failure, note};
use super::output::Output;
use check::Complaints;
use clients::{Clients, Resender};
use faults::{Faults, Means};
use report::{Figures, Outcome};
use schedule::{Link, Place, Role, Schedule, Server};
use truth::Servers;
use world::{Addresses, Control, World};

/// How long after the last fault everything must hold.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often it is looked at meanwhile.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(
    after_help = "Starts six processes of this program (two edges, two storage and two insight workers) behind proxies, lets two\n\
    applications send, and breaks things meanwhile: kill -9 and pauses of processes, cut and stalled connections, batches\n\
    sent and delivered again, announcements lost, Redis told late and wiped; with the commands below, kill -9 of the servers too.\n\
    Each schedule of faults follows from its seed and has a project of its own, which stays. Within 90 s of its last fault\n\
    every event must be stored exactly once, positions dense, rollups and live counters equal to a recount, every ledger\n\
    balanced and the dead-letter queue empty.\n\n\
    The servers may hold other data, but give it none that a collector at work uses: what waits in Redis and in the\n\
    broker's announcements is thrown away. The proxies can't stand before amqps://, rediss:// or sslmode=verify-full.\n\n\
    Exit code: 0 when everything held, 1 when something didn't, 2 when it couldn't be tried.\n\n\
    Examples:\n  \
    eventbucket torture --store-url postgres://localhost/test --bus-url amqp://localhost --cache-url redis://localhost\n  \
    eventbucket torture --schedules 500 --json           addresses in EVENTBUCKET_STORE_URL and so on\n  \
    eventbucket torture --only 17                        once more what failed\n  \
    eventbucket torture --kill-redis 'docker kill redis' --start-redis 'docker start redis'"
)]
pub(super) struct TortureArgs {
    /// PostgreSQL database
    #[arg(long, value_name = "URL", env = "EVENTBUCKET_STORE_URL", hide_env_values = true)]
    store_url: String,
    /// RabbitMQ
    #[arg(long, value_name = "URL", env = "EVENTBUCKET_BUS_URL", hide_env_values = true)]
    bus_url: String,
    /// Redis
    #[arg(long, value_name = "URL", env = "EVENTBUCKET_CACHE_URL", hide_env_values = true)]
    cache_url: String,
    /// How many schedules to run; the first that fails ends the run
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "only")]
    schedules: u64,
    /// Seed of the first schedule; the others follow it [default: the time]
    #[arg(long, value_name = "SEED", conflicts_with = "only")]
    seed: Option<u64>,
    /// Run the schedule of this seed alone
    #[arg(long, value_name = "SEED")]
    only: Option<u64>,
    /// Give the edges a spool in this folder, for when the broker is away
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: ControlArgs,
}

/// How the servers are killed and started; the command that starts one returns when it answers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kills of servers, as commands of a shell")]
struct ControlArgs {
    /// Kills PostgreSQL
    #[arg(long, value_name = "CMD", requires = "start_postgres")]
    kill_postgres: Option<String>,
    /// Starts it again and returns when it answers
    #[arg(long, value_name = "CMD", requires = "kill_postgres")]
    start_postgres: Option<String>,
    /// Kills RabbitMQ
    #[arg(long, value_name = "CMD", requires = "start_rabbitmq")]
    kill_rabbitmq: Option<String>,
    /// Starts it again and returns when it answers
    #[arg(long, value_name = "CMD", requires = "kill_rabbitmq")]
    start_rabbitmq: Option<String>,
    /// Kills Redis
    #[arg(long, value_name = "CMD", requires = "start_redis")]
    kill_redis: Option<String>,
    /// Starts it again and returns when it answers
    #[arg(long, value_name = "CMD", requires = "kill_redis")]
    start_redis: Option<String>,
}

impl ControlArgs {
    fn controls(&self) -> BTreeMap<Server, Control> {
        [
            (Server::Postgres, &self.kill_postgres, &self.start_postgres),
            (Server::RabbitMq, &self.kill_rabbitmq, &self.start_rabbitmq),
            (Server::Redis, &self.kill_redis, &self.start_redis),
        ]
        .into_iter()
        .filter_map(|(server, kill, start)| {
            let control = Control { kill: kill.clone()?, start: start.clone()? };
            Some((server, control))
        })
        .collect()
    }
}

/// Nothing could be tried, so nothing is shown; the same as for a wrong use.
const COULD_NOT_TRY: u8 = super::failure::USAGE;

pub(super) async fn run(args: TortureArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.json);
    let mut signals =
        Signals::listen().map_err(|error| Failure::because("listen to signals", error.to_string()))?;
    // What is dropped takes its processes with it.
    let mut torture = tokio::select! {
        torture = Torture::prepare(&args) => torture.map_err(|failure| failure.code(COULD_NOT_TRY))?,
        signal = signals.next() => return Err(interrupted(signal)),
    };
    let figures = tokio::select! {
        figures = torture.run(&args, output) => figures,
        signal = signals.next() => Err(interrupted(signal)),
    };
    torture.world.end().await;
    let figures = figures?;
    figures.print(output)?;
    Ok(ExitCode::from(figures.code()))
}

fn interrupted(signal: Signal) -> Failure {
    Failure::because("finish the run", format!("{signal} received; its processes are ended"))
}

fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The command that runs a schedule again. Addresses may hold passwords: they are left to the variables.
fn replay(args: &TortureArgs, seed: u64) -> String {
    let mut command = format!("eventbucket torture --only {seed}");
    if let Some(folder) = &args.spool {
        command.push_str(&format!(" --spool '{}'", folder.display()));
    }
    for (server, Control { kill, start }) in args.control.controls() {
        let quoted = |text: &str| text.replace('\'', r"'\''");
        command.push_str(&format!(
            " --kill-{server} '{}' --start-{server} '{}'",
            quoted(&kill),
            quoted(&start)
        ));
    }
    format!("{command} (with the same addresses)")
}

/// A run: what is tortured, and the straight way to the servers.
struct Torture {
    world: World,
    means: Means,
    servers: Servers,
}

impl Torture {
    async fn prepare(args: &TortureArgs) -> Result<Self, Failure> {
        let addresses = Addresses {
            store: args.store_url.clone(),
            bus: args.bus_url.clone(),
            cache: args.cache_url.clone(),
        };
        addresses.check().map_err(|cause| Failure::usage("stand between", cause))?;
        let variables = [
            ("EVENTBUCKET_STORE_URL", &args.store_url),
            ("EVENTBUCKET_BUS_URL", &args.bus_url),
            ("EVENTBUCKET_CACHE_URL", &args.cache_url),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.clone()));
        let config = Config::load(&Flags::default(), variables)
            .map_err(|error| Failure::new("read the addresses", error))?;
        let (store, bus, cache) =
            app::servers(&config).await.map_err(|error| Failure::new("use the servers", error))?;
        let program = std::env::current_exe().map_err(|error| Failure::new("find this program", error))?;
        let world = World::start(&program, &addresses, args.control.controls(), args.spool.as_deref()).await;
        let world = world.map_err(|error| Failure::new("start the processes", error))?;
        let resender = Resender::new().map_err(|error| Failure::because("make a client", error))?;
        let means = Means { bus: bus.clone(), cache: cache.clone(), resender: Arc::new(resender) };
        Ok(Self { world, means, servers: Servers { store, bus, cache } })
    }

    /// Runs one schedule after the other, to the first that fails, and audits what they left.
    async fn run(&mut self, args: &TortureArgs, output: Output) -> Result<Figures, Failure> {
        let began = Instant::now();
        let first = args.only.or(args.seed).unwrap_or_else(seed_of_now);
        let schedules = if args.only.is_some() { 1 } else { args.schedules };
        let mut figures = Figures::default();
        let bar = report::bar(schedules);
        for seed in (0..schedules).map(|number| first.wrapping_add(number)) {
            bar.set_message(format!("seed {seed}"));
            let schedule = Schedule::draw(seed, &self.world.killable());
            let outcome = self.try_one(&schedule).await;
            figures.add(&schedule, &outcome);
            bar.suspend(|| report::print(output, &outcome))?;
            bar.inc(1);
            if !outcome.holds {
                figures.failed(seed, replay(args, seed));
                note(&format!("the processes' logs stay in {}", self.world.keep_logs().display()));
                break;
            }
        }
        bar.finish_and_clear();
        let audit_holds = if figures.hold() { Some(self.audit().await?) } else { None };
        figures.ended(began.elapsed(), audit_holds);
        Ok(figures)
    }

    /// Runs one schedule and judges what it left.
    async fn try_one(&mut self, schedule: &Schedule) -> Outcome {
        let faults =
            schedule.steps.iter().map(|step| format!("+{} ms {}", step.pause_ms, step.fault)).collect();
        let mut outcome = Outcome {
            seed: schedule.seed,
            holds: false,
            untried: false,
            faults,
            events: 0,
            received: 0,
            recovery_ms: 0,
            complaints: Vec::new(),
        };
        outcome.complaints = match self.strike_and_judge(schedule, &mut outcome).await {
            Ok(complaints) => complaints,
            Err(reason) => vec![reason],
        };
        outcome.complaints.extend(self.world.take_ends());
        outcome.holds = outcome.complaints.is_empty();
        outcome
    }

    async fn strike_and_judge(
        &mut self,
        schedule: &Schedule,
        outcome: &mut Outcome,
    ) -> Result<Vec<String>, String> {
        let NewProject { project, write_key, .. } = self.new_project(schedule.seed).await?;
        let mut clients = Clients::start(&self.world.edges(), &write_key.text)?;
        let mut faults = Faults::new(&self.world, &self.means, project.id, clients.batches());
        for step in &schedule.steps {
            clients.capture(step.events);
            tokio::time::sleep(Duration::from_millis(step.pause_ms)).await;
            faults.strike(step.fault);
        }
        let mut last_fault = faults.over().await.inspect_err(|_| outcome.untried = true)?;
        self.world.settled().await?;
        if schedule.last_unannounced {
            last_fault = self.capture_unannounced(&mut clients, project.id).await;
        } else {
            clients.capture_last();
        }
        outcome.events = clients.sent().len();
        let complaints = loop {
            let found = self.servers.read(project.id, &clients).await;
            outcome.received = found.as_ref().map_or(0, |found| found.ledger.received);
            let complaints = match found {
                Ok(found) => check::complaints(clients.sent(), &found),
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
    async fn audit(&self) -> Result<bool, Failure> {
        let audit = query::audit(&self.servers.store, Some(&self.servers.cache), |_, _| {}).await;
        audit.map(|audit| audit.holds()).map_err(|error| Failure::new("audit the store", error))
    }
}
