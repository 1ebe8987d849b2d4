//! Breaking a collector on purpose, to see that nothing is lost: what `torture` is told, and what it prints.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::shutdown::{Signal, Signals};
use crate::torture::{Addresses, Backup, Control, Error, Figures, Outcome, Plan, Server, Torture};

use super::failure::{FAILED, Failure, USAGE, note};
use super::output::{Output, Paint, grouped};

/// Nothing could be tried, so nothing is shown; the same as for a wrong use.
const COULD_NOT_TRY: u8 = USAGE;

/// How often an unmoving bar shows that a schedule is under way.
const TICK: Duration = Duration::from_millis(120);

#[derive(Debug, Args)]
#[command(
    after_help = "Starts six processes of this program (two edges, two storage and two insight workers) behind proxies, lets two\n\
    applications send, and breaks things meanwhile: kill -9 and pauses of processes, cut and stalled connections, batches\n\
    sent and delivered again, announcements lost, Redis told late and wiped, segments of the log begun; with the commands below,\n\
    kill -9 of the servers, and PostgreSQL put back to an earlier state; with --drop-old, old events dropped. Each schedule of faults follows from its seed and has a project of its own, which stays. Within 90 s of its last fault\n\
    every event must be stored exactly once (in the log, or dropped and counted), positions dense, rollups, users and live\n\
    counters equal to a recount, every ledger balanced and the dead-letter queue empty.\n\n\
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
    /// Drop old events, too: everything in this database that isn't in the newest segment, other projects' included
    #[arg(long)]
    drop_old: bool,
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
    /// Keeps a copy of all that PostgreSQL holds, and returns when it answers (again)
    #[arg(long, value_name = "CMD", requires = "restore_postgres")]
    save_postgres: Option<String>,
    /// Puts that copy back, as a new timeline, and returns when it answers
    #[arg(long, value_name = "CMD", requires = "save_postgres")]
    restore_postgres: Option<String>,
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

    fn backup(&self) -> Option<Backup> {
        Some(Backup { save: self.save_postgres.clone()?, restore: self.restore_postgres.clone()? })
    }
}

impl TortureArgs {
    fn plan(&self) -> Plan {
        let addresses = Addresses {
            store: self.store_url.clone(),
            bus: self.bus_url.clone(),
            cache: self.cache_url.clone(),
        };
        Plan {
            addresses,
            controls: self.control.controls(),
            backup: self.control.backup(),
            drops: self.drop_old,
            spool: self.spool.clone(),
        }
    }
}

pub(super) async fn run(args: TortureArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.json);
    let mut signals =
        Signals::listen().map_err(|error| Failure::because("listen to signals", error.to_string()))?;
    let plan = args.plan();
    // What is dropped takes its processes with it.
    let mut torture = tokio::select! {
        torture = Torture::prepare(&plan) => torture.map_err(|error| failed(error).code(COULD_NOT_TRY))?,
        signal = signals.next() => return Err(interrupted(signal)),
    };
    let figures = tokio::select! {
        figures = try_all(&mut torture, &args, output) => figures,
        signal = signals.next() => Err(interrupted(signal)),
    };
    torture.end().await;
    let figures = figures?;
    print_figures(output, &figures)?;
    Ok(ExitCode::from(code(&figures)))
}

fn failed(Error { what, cause }: Error) -> Failure {
    Failure::new(what, &*cause)
}

fn interrupted(signal: Signal) -> Failure {
    Failure::because("finish the run", format!("{signal} received; its processes are ended"))
}

/// Runs one schedule after the other, to the first that fails, and audits what they left.
async fn try_all(torture: &mut Torture, args: &TortureArgs, output: Output) -> Result<Figures, Failure> {
    let began = Instant::now();
    let first = args.only.or(args.seed).unwrap_or_else(seed_of_now);
    let schedules = if args.only.is_some() { 1 } else { args.schedules };
    let mut figures = Figures::default();
    let bar = bar(schedules);
    for seed in (0..schedules).map(|number| first.wrapping_add(number)) {
        bar.set_message(format!("seed {seed}"));
        let outcome = torture.try_one(seed).await;
        figures.add(&outcome);
        bar.suspend(|| print_outcome(output, &outcome))?;
        bar.inc(1);
        if !outcome.holds {
            figures.failed(seed, replay(args, seed));
            note(&format!("the processes' logs stay in {}", torture.keep_logs().display()));
            break;
        }
    }
    bar.finish_and_clear();
    let audit_holds = if figures.hold() { Some(torture.audit().await.map_err(failed)?) } else { None };
    figures.ended(began.elapsed(), audit_holds);
    Ok(figures)
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
    if args.drop_old {
        command.push_str(" --drop-old");
    }
    let quoted = |text: &str| text.replace('\'', r"'\''");
    if let Some(Backup { save, restore }) = args.control.backup() {
        let (save, restore) = (quoted(&save), quoted(&restore));
        command.push_str(&format!(" --save-postgres '{save}' --restore-postgres '{restore}'"));
    }
    for (server, Control { kill, start }) in args.control.controls() {
        command.push_str(&format!(
            " --kill-{server} '{}' --start-{server} '{}'",
            quoted(&kill),
            quoted(&start)
        ));
    }
    format!("{command} (with the same addresses)")
}

/// What it comes to: everything held, something didn't, or it couldn't be tried.
fn code(figures: &Figures) -> u8 {
    match (figures.hold(), figures.untried) {
        (true, _) => 0,
        (false, 0) => FAILED,
        (false, _) => COULD_NOT_TRY,
    }
}

/// A bar on stderr while the schedules run; nothing at all unless stderr is a terminal.
fn bar(schedules: u64) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(schedules), target);
    let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {eta}");
    bar.set_style(style.expect("the template is part of the program"));
    if terminal {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// One line a schedule; what doesn't hold, and the faults that led there, below it.
fn print_outcome(output: Output, outcome: &Outcome) -> Result<(), Failure> {
    if output.is_json() {
        return output.document_line(outcome);
    }
    let (word, mark) = match (outcome.holds, outcome.untried) {
        (true, _) => ("holds", output.paint(Paint::Good, "✓")),
        (false, true) => ("untried", output.paint(Paint::Bad, "✗")),
        (false, false) => ("fails", output.paint(Paint::Bad, "✗")),
    };
    let (faults, events) = (outcome.faults.len(), grouped(outcome.events as u64));
    if output.is_terminal() {
        let detail =
            format!("{faults:>2} faults  {events:>6} events  {:>5.1} s", seconds(outcome.recovery_ms));
        output.line(&format!("{mark} seed {:<12} {}", outcome.seed, output.paint(Paint::Faint, &detail)))?;
    } else {
        output.line(&format!("{}\t{word}\t{faults}\t{events}\t{}", outcome.seed, outcome.recovery_ms))?;
    }
    if outcome.holds {
        return Ok(());
    }
    for fault in &outcome.faults {
        output.line(&format!("  fault: {fault}"))?;
    }
    outcome.complaints.iter().try_for_each(|complaint| output.line(&format!("  {word}: {complaint}")))
}

#[expect(clippy::cast_precision_loss, reason = "a schedule takes minutes, not aeons")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

fn print_figures(output: Output, figures: &Figures) -> Result<(), Failure> {
    if output.is_json() {
        return output.document_line(figures);
    }
    let faults: Vec<String> =
        figures.faults.iter().map(|(kind, count)| format!("{} {kind}", grouped(*count))).collect();
    output.line(&format!(
        "{} of {} schedules held in {} s",
        figures.held, figures.schedules, figures.seconds
    ))?;
    let once = if figures.held == figures.schedules { "each stored once" } else { "captured" };
    output.line(&format!(
        "{} events, {once}; {} received with what was repeated",
        grouped(figures.events),
        grouped(figures.received)
    ))?;
    if figures.dropped + figures.undone > 0 {
        output.line(&format!(
            "{} dropped as old and still counted, {} stored again after PostgreSQL was put back",
            grouped(figures.dropped),
            grouped(figures.undone)
        ))?;
    }
    output.line(&format!("faults: {}", faults.join(", ")))?;
    if !figures.recoveries_ms.is_empty() {
        output.line(&format!(
            "everything held {:.1} s after the last fault in the median, {:.1} s at most",
            seconds(figures.recovery_ms_median),
            seconds(figures.recovery_ms_max)
        ))?;
    }
    if let Some(holds) = figures.audit_holds {
        let word = if holds { "holds" } else { "FAILS: `eventbucket audit --url …` tells what" };
        output.line(&format!("the audit of the whole store {word}"))?;
    }
    match &figures.replay {
        Some(replay) => output.line(&format!("replay with: {replay}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_could_not_be_carried_out_is_no_failure_of_the_collector() {
        let code =
            |schedules, held, untried| code(&Figures { schedules, held, untried, ..Figures::default() });
        assert_eq!([code(1, 1, 0), code(1, 0, 0), code(1, 0, 1)], [0, 1, 2]);
    }
}
