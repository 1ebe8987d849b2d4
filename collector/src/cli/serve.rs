//! Starting the collector.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::app::{self, Running};
use crate::bus;
use crate::config::{self, Config, Flags, Role};
use crate::edge::Tls;
use crate::shutdown::Signals;
use crate::telemetry::logs;

use super::failure::{FAILED, Failure, note};
use super::folder::refuse_file;
use super::output::Output;
use super::welcome::Welcome;

#[derive(Debug, Default, Args)]
#[command(
    after_help = "Nothing has to be configured. What is, comes from flags, then EVENTBUCKET_* variables, then one TOML file.\n\
    SIGTERM and Ctrl-C stop it gracefully, a second one at once.\n\n\
    Examples:\n  \
    eventbucket serve\n  \
    eventbucket serve --data /var/lib/eventbucket --listen 0.0.0.0:4000\n  \
    eventbucket serve --roles edge,query --config /etc/eventbucket.toml\n  \
    eventbucket serve --config /etc/eventbucket.toml --check-config\n  \
    EVENTBUCKET_LOG=debug eventbucket serve"
)]
pub(super) struct ServeArgs {
    /// Folder that holds everything the collector keeps [default: ./eventbucket-data] [env: EVENTBUCKET_DATA]
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<String>,
    /// Address to listen on [default: 127.0.0.1:4000] [env: EVENTBUCKET_LISTEN]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<String>,
    /// What this process does, of edge, storage, insight, notify and query [default: all of them] [env: EVENTBUCKET_ROLES]
    #[arg(long, value_name = "LIST")]
    pub(super) roles: Option<String>,
    /// Configuration file [default: eventbucket.toml in the data folder, if there is one] [env: EVENTBUCKET_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Print the effective configuration with where each value came from, and end
    #[arg(long)]
    check_config: bool,
    /// Print the configuration as JSON
    #[arg(long, requires = "check_config")]
    json: bool,
}

pub(super) async fn run(args: ServeArgs) -> Result<ExitCode, Failure> {
    let (check, json) = (args.check_config, args.json);
    let flags = Flags { config: args.config, data: args.data, listen: args.listen, roles: args.roles };
    let config = configuration(&flags)?;
    if check {
        config.tls.as_ref().map(Tls::load).transpose().map_err(|error| Failure::new("offer TLS", error))?;
        show(&config, Output::new(json))?;
        return Ok(ExitCode::SUCCESS);
    }
    let kept = logs::install(&config.log);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    refuse_file(&config.data)?;
    if SystemTime::now() < UNIX_EPOCH {
        let cause = "this machine's clock stands before 1970, and ids begin with the time";
        return Err(Failure::because("start", cause).remedy("set the clock"));
    }
    let mut signals =
        Signals::listen().map_err(|error| Failure::because("listen to signals", error.to_string()))?;
    let mut running = app::start(&config).await.map_err(|error| starting(&config, error))?;
    if config.store.url.is_none() {
        kept.keep_in(&config.data);
    }
    let welcome = Welcome::new(&config, running.address(), running.take_first_start());
    if let Err(failure) = welcome.print() {
        running.stop().await.map_err(|error| Failure::new("close the store", error))?;
        return Err(failure);
    }
    until_stopped(running, &mut signals, farewell(&config)).await
}

/// What is true of everything that was acknowledged when it has stopped: behind a broker it needn't be stored yet.
fn farewell(config: &Config) -> &'static str {
    match (&config.bus.url, config.edge.spool.as_ref().filter(|_| config.roles.has(Role::Edge))) {
        (None, _) => "stopped; everything acknowledged is stored",
        (Some(_), None) => "stopped; everything acknowledged is stored or waits in RabbitMQ",
        (Some(_), Some(_)) => "stopped; everything acknowledged is stored or waits in RabbitMQ or the spool",
    }
}

/// Reads the configuration: flags, then variables, then the file.
pub(super) fn configuration(flags: &Flags) -> Result<Config, Failure> {
    let mut variables = Vec::new();
    // A name that isn't Unicode can't be one of ours.
    for (name, value) in
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
    {
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if config::is_variable(&name) => {
                let cause = format!("the variable {name} is not UTF-8");
                return Err(Failure::usage("read the configuration", cause));
            }
            Err(_) => {}
        }
    }
    Config::load(flags, variables).map_err(|error: config::Error| {
        Failure::new("read the configuration", error)
            .remedy("`eventbucket config` prints every key with its default")
    })
}

fn show(config: &Config, output: Output) -> Result<(), Failure> {
    for warning in config.warnings() {
        note(warning);
    }
    if output.is_json() { output.document(&config.to_json()) } else { output.text(&config.to_toml()) }
}

fn starting(config: &Config, error: app::Error) -> Failure {
    let what = match &error {
        app::Error::Bind { address, .. } => format!("listen on {address}"),
        app::Error::Tls(_) => "offer TLS".to_owned(),
        app::Error::Bus(bus::Error::Spool { .. }) => "open the spool".to_owned(),
        app::Error::Bus(_) => "use RabbitMQ".to_owned(),
        app::Error::Cache(_) => "use Redis".to_owned(),
        _ if config.store.url.is_some() => "use PostgreSQL".to_owned(),
        _ => format!("open the data folder {}", config.data.display()),
    };
    Failure::new(what, error)
}

/// Serves until a signal, or until a part of it ends that shouldn't.
async fn until_stopped(
    running: Running,
    signals: &mut Signals,
    farewell: &'static str,
) -> Result<ExitCode, Failure> {
    // Both are cancel-safe.
    let broken = tokio::select! {
        signal = signals.next() => {
            tracing::info!("{signal} received: finishing what is in flight; a second one ends at once");
            None
        }
        stage = running.broken() => {
            tracing::error!(stage, "a stage ended by itself; stopping");
            Some(stage)
        }
    };
    // The signal branch ends the process, so a cut stop is what was asked for.
    tokio::select! {
        stopped = running.stop() => stopped.map_err(|error| Failure::new("close the store", error))?,
        signal = signals.next() => {
            tracing::warn!("{signal} received again: ending at once; everything acknowledged is on disk");
            std::process::exit(i32::from(FAILED));
        }
    }
    match broken {
        None => {
            tracing::info!("{farewell}");
            Ok(ExitCode::SUCCESS)
        }
        Some(stage) => {
            let cause = format!("its {stage} stage ended by itself; the log above says why");
            Err(Failure::because("keep the collector running", cause))
        }
    }
}
