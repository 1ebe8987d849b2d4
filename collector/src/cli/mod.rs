//! The command line: `eventbucket serve` and the commands that read and manage, beside a running collector or over HTTP.

/// Starting the collector.
mod serve;

/// What a start prints: where the page is, the keys, lines to paste.
mod welcome;

/// Projects, their keys and limits.
mod project;

/// Reading events and following them.
mod event;

/// Who the users are, and what they did.
mod user;

/// Counts by name and hour.
mod count;

/// The proof that everything stored agrees with itself.
mod audit;

/// Computing the views anew.
mod rebuild;

/// Breaking a collector on purpose, to see that nothing is lost.
mod torture;

/// Copying the database, and putting a copy back.
mod backup;

/// What a store and its collector look like, and what to do about it.
mod doctor;

/// Messages that nobody could process.
mod dead_letters;

/// Whether a collector takes batches now.
mod health;

/// Where commands read from: a data folder or a collector's URL.
mod source;

/// A data folder, beside a collector that may be running.
mod folder;

/// A collector, over HTTP.
mod remote;

/// Whom a collector's certificate must come from.
mod certificates;

/// The live tail over HTTP.
mod follow;

/// What travels between source and output: the API's documents.
mod document;

/// What commands print: tables on a terminal, tab-separated lines on a pipe, JSON when asked.
mod output;

/// A bar on stderr while something long runs.
mod progress;

/// What a command says when it couldn't.
mod failure;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use failure::Failure;
use output::Output;

/// Stores each event exactly once, counts it exactly once, and can prove both.
#[derive(Debug, Parser)]
#[command(
    name = "eventbucket",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Without a command it serves: `eventbucket` is `eventbucket serve`.\n\n\
        Examples:\n  \
        eventbucket                                       start with everything at its default\n  \
        eventbucket serve --data /var/lib/eventbucket     keep everything in that folder\n  \
        eventbucket event tail                            watch events arrive\n  \
        eventbucket count --by hour --json                counts for a program\n  \
        eventbucket audit                                 prove that everything is counted once"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the collector
    Serve(serve::ServeArgs),
    /// Print a commented configuration file with every key at its default
    Config,
    /// Make and list projects, renew their keys, set their limits
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// Read events and watch them arrive
    #[command(subcommand)]
    Event(event::EventCommand),
    /// List users, show one, read what one did
    #[command(subcommand)]
    User(user::UserCommand),
    /// Count events by name, or by name and hour
    Count(count::CountArgs),
    /// Prove that log, positions, ledger and counts agree
    Audit(audit::AuditArgs),
    /// Compute counts and users anew beside the live ones, then switch
    Rebuild(rebuild::RebuildArgs),
    /// Explain a store and its collector: versions, sizes, risks, and what to do
    Doctor(doctor::DoctorArgs),
    /// Copy the database while the collector runs
    Backup(backup::BackupArgs),
    /// Put a copy in the place of the database
    Restore(backup::RestoreArgs),
    /// List, show, replay and discard the messages that nobody could process
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Say whether a collector takes batches now
    Health(health::HealthArgs),
    /// Kill, pause and cut a collector on your servers, and check that every event is stored and counted once
    Torture(torture::TortureArgs),
}

/// Which collector a command is about, and how it prints.
#[derive(Clone, Debug, Default, Args)]
struct Access {
    /// Data folder of a collector on this machine, running or not [default: ./eventbucket-data]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["url", "key"], help_heading = "Which collector")]
    data: Option<String>,
    /// Address of a collector, like http://127.0.0.1:4000 [env: EVENTBUCKET_URL]
    #[arg(long, value_name = "URL", help_heading = "Which collector")]
    url: Option<String>,
    /// PostgreSQL that collectors keep their log in, for what needs no key [env: EVENTBUCKET_STORE_URL]
    #[arg(long, value_name = "URL", conflicts_with_all = ["data", "url", "key"], help_heading = "Which collector")]
    store_url: Option<String>,
    /// Redis of the same collectors, so that they hear at once of a key that is replaced [env: EVENTBUCKET_CACHE_URL]
    #[arg(long, value_name = "URL", conflicts_with_all = ["data", "url", "key"], help_heading = "Which collector")]
    cache_url: Option<String>,
    /// Secret key for --url; better in EVENTBUCKET_KEY, where other users of this machine can't see it
    #[arg(long, value_name = "KEY", help_heading = "Which collector")]
    key: Option<String>,
    /// Trust the certificates in this PEM file, not the system's, with --url [env: EVENTBUCKET_CA_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "data", help_heading = "Which collector")]
    ca_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the program and returns its exit code: 0 for success, 1 when it couldn't, 2 when it was asked the wrong way or
/// stdout took nothing.
pub async fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli).await {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => serve::run(args).await,
        Command::Config => Output::plain().text(&crate::config::example()).map(|()| ExitCode::SUCCESS),
        Command::Project(command) => project::run(command).await,
        Command::Event(command) => event::run(command).await,
        Command::User(command) => user::run(command).await,
        Command::Count(args) => count::run(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Rebuild(args) => rebuild::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Backup(args) => backup::back_up(args).await,
        Command::Restore(args) => backup::restore(args).await,
        Command::Health(args) => health::run(args).await,
        Command::DeadLetters(command) => dead_letters::run(command).await,
        Command::Torture(args) => torture::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_serve_with_its_flags() {
        let cli = Cli::try_parse_from(["eventbucket", "--listen", "127.0.0.1:0"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.listen.as_deref(), Some("127.0.0.1:0"));
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        let mut command = Cli::command();
        command.build();
        let mut waiting: Vec<clap::Command> = command.get_subcommands().cloned().collect();
        while let Some(command) = waiting.pop() {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            if command.get_name() == "help" {
                continue;
            }
            let inner: Vec<_> =
                command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let expected =
                !inner.is_empty() || examples.contains("Examples:") && examples.contains("eventbucket ");
            assert!(expected || command.get_name() == "config", "`{name}` shows no example");
            waiting.extend(inner);
        }
    }
}
