//! What a store, its machine and its collector look like, and what to do about it. Only looks.

/// What was found.
mod report;

/// The configuration.
mod configuration;

/// The folder, its disk and the clock.
mod machine;

/// The log and its projects.
mod log;

/// The other servers.
mod servers;

/// A collector that answers.
mod collector;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::config::{CA_FILE_VARIABLE, Config, Flags, URL_VARIABLE};

use super::failure::{Failure, USAGE};
use super::output::Output;
use super::serve::configuration;
use report::{Level, Report};

#[derive(Debug, Args)]
#[command(
    after_help = "Looks at versions, sizes, free disk, permissions, settings, what isn't counted yet, what waits and what was warned\n\
    of last. It changes nothing and reads little: `eventbucket audit` is what reads everything. Beside a data folder it asks the collector\n\
    that its configuration tells of.\n\n\
    Exit code: 0 when all is well, 1 with warnings, 2 with a problem or when it couldn't look. On a pipe it prints JSON.\n\n\
    Examples:\n  \
    eventbucket doctor                                     the folder ./eventbucket-data and its servers\n  \
    eventbucket doctor --config /etc/eventbucket.toml      whatever that names: folder, PostgreSQL, Redis, RabbitMQ\n  \
    eventbucket doctor --url http://10.0.0.5:4000          a collector on another machine"
)]
pub(super) struct DoctorArgs {
    /// Data folder of a collector on this machine, running or not [default: ./eventbucket-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Configuration file [default: eventbucket.toml in the data folder, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Address of a collector, to ask nothing but that [env: EVENTBUCKET_URL]
    #[arg(long, value_name = "URL", conflicts_with_all = ["data", "config"])]
    url: Option<String>,
    /// Trust the certificates in this PEM file, not the system's [env: EVENTBUCKET_CA_FILE]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DoctorArgs) -> Result<ExitCode, Failure> {
    let ca_file = args.ca_file.or_else(|| std::env::var_os(CA_FILE_VARIABLE).map(PathBuf::from));
    let variable = || std::env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty());
    let url =
        args.url.or_else(|| if args.data.is_none() && args.config.is_none() { variable() } else { None });
    let mut report = Report::new();
    match url {
        Some(url) => {
            collector::ask(&mut report, &url, ca_file.as_deref(), true).await;
        }
        None => {
            let flags = Flags { data: args.data, config: args.config, ..Flags::default() };
            look(&mut report, &flags, ca_file.as_deref()).await;
        }
    }
    let output = Output::new(args.json);
    let printed = if output.is_json() || !output.is_terminal() {
        output.document(&report)
    } else {
        report.print(output)
    };
    // Who reads no further learns by the exit code all the same.
    match printed {
        Err(failure) if !failure.is_silent() => return Err(failure),
        _ => {}
    }
    Ok(match report.worst() {
        Level::Ok => ExitCode::SUCCESS,
        Level::Warning => ExitCode::FAILURE,
        Level::Problem => ExitCode::from(USAGE),
    })
}

/// Looks at everything that a configuration names.
async fn look(report: &mut Report, flags: &Flags, ca_file: Option<&Path>) {
    let config: Config = match configuration(flags) {
        Ok(config) => config,
        Err(failure) => {
            return report.problem("configuration", failure.cause(), "mend it; nothing else was looked at");
        }
    };
    configuration::look(report, &config);
    machine::clock(report);
    let answers = collector::ask_local(report, &config, ca_file).await;
    if config.store.url.is_some() {
        log::server(report, &config, answers).await;
    } else {
        machine::folder(report, &config);
        log::file(report, &config, answers);
        machine::warned(report, &config.data);
    }
    servers::redis(report, &config).await;
    servers::rabbitmq(report, &config).await;
    machine::spool(report, &config);
}
