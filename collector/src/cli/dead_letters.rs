//! Messages that nobody could process: they wait in the broker until somebody decides.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use eventbucket_protocol::Event;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::app;
use crate::bus::{DeadLetter, DeadLetters};
use crate::config::Flags;

use super::failure::Failure;
use super::output::{Column, Output, grouped};
use super::serve;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List them, the oldest first
    #[command(after_help = "Nothing is taken: what is looked at is put back.\n\n\
        Examples:\n  \
        eventbucket dead-letters list --config /etc/eventbucket.toml\n  \
        EVENTBUCKET_BUS_URL=amqp://user:password@host eventbucket dead-letters list --json")]
    List(BrokerArgs),
    /// Show one with everything in it, as JSON
    #[command(after_help = "Examples:\n  eventbucket dead-letters show 3f2a90c1d4e5")]
    Show(OneArgs),
    /// Put them back into the way to the store; what is stored already is a duplicate then
    #[command(after_help = "A message is taken off only when the broker has confirmed its copy.\n\n\
        Examples:\n  \
        eventbucket dead-letters replay 3f2a90c1d4e5\n  \
        eventbucket dead-letters replay --all")]
    Replay(ManyArgs),
    /// Throw them away for good
    #[command(after_help = "Examples:\n  eventbucket dead-letters discard 3f2a90c1d4e5")]
    Discard(ManyArgs),
}

/// Which broker: `[bus] url` of the configuration.
#[derive(Debug, Args)]
pub(super) struct BrokerArgs {
    /// Configuration file [default: eventbucket.toml in the data folder, if there is one] [env: EVENTBUCKET_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct OneArgs {
    /// Its id, as `list` shows it
    id: String,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ManyArgs {
    /// Their ids, as `list` shows them
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All there are
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// A message in a list.
#[derive(Debug, Serialize)]
struct LetterDocument<'a> {
    id: String,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    bytes: usize,
    projects: &'a [u32],
    /// Missing when the message can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<usize>,
}

/// A message with everything in it.
#[derive(Debug, Serialize)]
struct WholeDocument<'a> {
    #[serde(flatten)]
    letter: LetterDocument<'a>,
    batches: Vec<BatchDocument<'a>>,
}

#[derive(Debug, Serialize)]
struct BatchDocument<'a> {
    project_id: u32,
    batch_id: String,
    received: String,
    part: u16,
    parts: u16,
    events: Vec<EventDocument<'a>>,
}

#[derive(Debug, Serialize)]
struct EventDocument<'a> {
    id: String,
    name: &'a str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<&'a str>,
    properties: Option<&'a RawValue>,
}

/// What was done to how many.
#[derive(Debug, Serialize)]
struct DoneDocument {
    messages: usize,
}

pub(super) async fn run(command: DeadLettersCommand) -> Result<ExitCode, Failure> {
    let broker = match &command {
        DeadLettersCommand::List(broker) => broker,
        DeadLettersCommand::Show(args) => &args.broker,
        DeadLettersCommand::Replay(args) | DeadLettersCommand::Discard(args) => &args.broker,
    };
    let (output, letters) = (Output::new(broker.json), open(broker).await?);
    let done = match &command {
        DeadLettersCommand::List(_) => list(output, &letters),
        DeadLettersCommand::Show(args) => show(output, &letters, &args.id),
        DeadLettersCommand::Replay(args) => replay(output, &letters, args).await,
        DeadLettersCommand::Discard(args) => discard(output, &letters, args).await,
    };
    // Whatever came of it, the rest is put back.
    letters.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn open(broker: &BrokerArgs) -> Result<DeadLetters, Failure> {
    let config = serve::configuration(&Flags { config: broker.config.clone(), ..Flags::default() })?;
    match app::dead_letters(&config).await {
        Ok(Some(letters)) => Ok(letters),
        Ok(None) => Err(Failure::usage("find the dead letters", "this collector has no RabbitMQ")
            .remedy("name it by [bus] url in the configuration or by EVENTBUCKET_BUS_URL")),
        Err(error) => Err(Failure::new("take hold of the dead letters", error)),
    }
}

fn list(output: Output, letters: &DeadLetters) -> Result<(), Failure> {
    let documents: Vec<LetterDocument<'_>> = letters.list().iter().map(document).collect();
    if output.is_json() {
        return output.document(&documents);
    }
    let columns = [
        Column::Text("ID"),
        Column::Text("TIME"),
        Column::Text("PROJECTS"),
        Column::Figure("EVENTS"),
        Column::Figure("BYTES"),
        Column::Text("REASON"),
    ];
    let rows: Vec<Vec<String>> = documents
        .into_iter()
        .map(|letter| {
            let projects: Vec<String> = letter.projects.iter().map(ToString::to_string).collect();
            let events = letter.events.map_or_else(|| "?".to_owned(), |events| grouped(events as u64));
            vec![
                letter.id,
                letter.time.unwrap_or_default(),
                projects.join(","),
                events,
                grouped(letter.bytes as u64),
                letter.reason.to_owned(),
            ]
        })
        .collect();
    output.table(&columns, &rows)
}

fn show(output: Output, letters: &DeadLetters, id: &str) -> Result<(), Failure> {
    let letter = named(letters, id)?;
    let batches = letter.batches.iter().map(|batch| BatchDocument {
        project_id: batch.project.0,
        batch_id: batch.batch.to_string(),
        received: batch.received.to_string(),
        part: batch.part,
        parts: batch.parts,
        events: batch.events.iter().map(event).collect(),
    });
    output.document(&WholeDocument { letter: document(letter), batches: batches.collect() })
}

async fn replay(output: Output, letters: &DeadLetters, args: &ManyArgs) -> Result<(), Failure> {
    let chosen = chosen(letters, args)?;
    for letter in &chosen {
        let replayed = letters.replay(letter).await;
        replayed.map_err(|error| Failure::new(format!("replay {}", letter.id), error))?;
    }
    done(output, chosen.len(), "are on their way to the store again")
}

async fn discard(output: Output, letters: &DeadLetters, args: &ManyArgs) -> Result<(), Failure> {
    let chosen = chosen(letters, args)?;
    for letter in &chosen {
        let discarded = letters.discard(letter).await;
        discarded.map_err(|error| Failure::new(format!("discard {}", letter.id), error))?;
    }
    done(output, chosen.len(), "are gone")
}

fn done(output: Output, messages: usize, what: &str) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(&DoneDocument { messages });
    }
    output.line(&format!("{} messages {what}", grouped(messages as u64)))
}

/// Those that were named, before anything is done to the first of them.
fn chosen<'a>(letters: &'a DeadLetters, args: &ManyArgs) -> Result<Vec<&'a DeadLetter>, Failure> {
    if args.all {
        return Ok(letters.list().iter().collect());
    }
    args.ids.iter().map(|id| named(letters, id)).collect()
}

fn named<'a>(letters: &'a DeadLetters, id: &str) -> Result<&'a DeadLetter, Failure> {
    let found = letters.list().iter().find(|letter| letter.id == id);
    found.ok_or_else(|| {
        Failure::because("find the message", format!("no dead letter has the id {id:?}"))
            .remedy("`eventbucket dead-letters list` shows those there are")
    })
}

fn document(letter: &DeadLetter) -> LetterDocument<'_> {
    LetterDocument {
        id: letter.id.clone(),
        reason: &letter.reason,
        time: letter.time.map(|time| time.to_string()),
        bytes: letter.message().len(),
        projects: &letter.projects,
        events: letter.events,
    }
}

fn event(event: &Event) -> EventDocument<'_> {
    EventDocument {
        id: event.id.to_string(),
        name: &event.name,
        time: event.time.to_string(),
        user: event.user.as_deref(),
        description: event.description.as_deref(),
        stream: event.stream.as_deref(),
        correlation: event.correlation.as_deref(),
        properties: serde_json::from_str(event.properties.as_json()).ok(),
    }
}
