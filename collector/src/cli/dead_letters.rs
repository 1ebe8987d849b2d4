//! Messages that nobody could process: they wait in the broker until somebody decides.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::app;
use crate::bus::{DeadLetter, DeadLetters};
use crate::config::{CA_FILE_VARIABLE, Flags, KEY_VARIABLE, URL_VARIABLE};
use crate::query::{LetterDeed, LetterShape, WholeLetterShape};

use super::failure::Failure;
use super::output::{Column, Output, grouped};
use super::remote::Remote;
use super::{serve, source};

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List them, the oldest first
    #[command(
        after_help = "Nothing is taken: what is looked at is put back. By the broker's address all there are, over \
        --url those of the key's project.\n\n\
        Examples:\n  \
        eventbucket dead-letters list --config /etc/eventbucket.toml\n  \
        eventbucket dead-letters list --url https://events.example.com\n  \
        EVENTBUCKET_BUS_URL=amqp://user:password@host eventbucket dead-letters list --json"
    )]
    List(PlaceArgs),
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

/// Where: the broker of the configuration's `[bus] url`, or a collector.
#[derive(Debug, Args)]
pub(super) struct PlaceArgs {
    /// Configuration file [default: eventbucket.toml in the data folder, if there is one] [env: EVENTBUCKET_CONFIG]
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<String>,
    /// Address of a collector, like http://127.0.0.1:4000 [env: EVENTBUCKET_URL, where no `bus.url` is set]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Secret key for --url; better in EVENTBUCKET_KEY, where other users of this machine can't see it
    #[arg(long, value_name = "KEY", conflicts_with = "config")]
    key: Option<String>,
    /// Trust the certificates in this PEM file, not the system's, with --url [env: EVENTBUCKET_CA_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    ca_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct OneArgs {
    /// Its id, as `list` shows it
    id: String,
    #[command(flatten)]
    place: PlaceArgs,
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
    place: PlaceArgs,
}

/// What was done to how many.
#[derive(Debug, Serialize)]
struct DoneDocument {
    messages: usize,
}

/// Where the letters are.
enum Place {
    /// The broker has all there are.
    Broker(Box<DeadLetters>),
    /// A collector shows those of a project.
    Remote(Remote),
}

pub(super) async fn run(command: DeadLettersCommand) -> Result<ExitCode, Failure> {
    let args = match &command {
        DeadLettersCommand::List(place) => place,
        DeadLettersCommand::Show(args) => &args.place,
        DeadLettersCommand::Replay(args) | DeadLettersCommand::Discard(args) => &args.place,
    };
    let (output, mut place) = (Output::new(args.json), open(args).await?);
    let done = match &command {
        DeadLettersCommand::List(_) => place.list().await.and_then(|letters| list(output, &letters)),
        DeadLettersCommand::Show(args) => place.show(output, &args.id).await,
        DeadLettersCommand::Replay(args) => place.deal(output, args, LetterDeed::Replay).await,
        DeadLettersCommand::Discard(args) => place.deal(output, args, LetterDeed::Discard).await,
    };
    if let Place::Broker(walk) = place {
        // Whatever came of it, the rest is put back.
        walk.close().await;
    }
    done.map(|()| ExitCode::SUCCESS)
}

async fn open(args: &PlaceArgs) -> Result<Place, Failure> {
    let variables = source::variables()?;
    let variable = |wanted: &str| {
        let found = variables.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value.clone())
    };
    let remote = |url: &str| {
        let key = args.key.clone().or_else(|| variable(KEY_VARIABLE));
        let ca_file = args.ca_file.clone().or_else(|| variable(CA_FILE_VARIABLE).map(PathBuf::from));
        Remote::new(url, key, ca_file.as_deref()).map(Place::Remote)
    };
    if let Some(url) = &args.url {
        return remote(url);
    }
    let config = serve::configuration(&Flags { config: args.config.clone(), ..Flags::default() })?;
    match (app::dead_letters(&config).await, variable(URL_VARIABLE)) {
        (Ok(Some(letters)), _) => Ok(Place::Broker(Box::new(letters))),
        (Ok(None), Some(url)) if args.config.is_none() => remote(&url),
        (Ok(None), _) => Err(Failure::usage("find the dead letters", "this collector has no RabbitMQ")
            .remedy("name it by [bus] url in the configuration or by EVENTBUCKET_BUS_URL, or a collector by --url")),
        (Err(error), _) => Err(Failure::new("take hold of the dead letters", error)),
    }
}

impl Place {
    async fn list(&mut self) -> Result<Vec<LetterShape>, Failure> {
        match self {
            Self::Broker(walk) => {
                let mut letters = Vec::new();
                while let Some(letter) = next(walk).await? {
                    letters.push(LetterShape::from(&letter));
                }
                Ok(letters)
            }
            Self::Remote(remote) => remote.dead_letters().await,
        }
    }

    async fn show(&mut self, output: Output, id: &str) -> Result<(), Failure> {
        match self {
            Self::Broker(walk) => {
                let letter = named(walk, &[id.to_owned()]).await?.remove(0);
                output.document(&WholeLetterShape::from(&letter))
            }
            Self::Remote(remote) => output.document(&remote.dead_letter(id).await?),
        }
    }

    /// Does the same to some or all, the named being found before anything is done to the first of them. What this version
    /// can't read can't be replayed: it stays, and holds up none behind it.
    async fn deal(&mut self, output: Output, args: &ManyArgs, deed: LetterDeed) -> Result<(), Failure> {
        let (mut messages, mut unreadable) = (0, Vec::new());
        let mut stays = |letter: &DeadLetter| {
            let stays = deed == LetterDeed::Replay && letter.events.is_none();
            unreadable.extend(stays.then(|| letter.id.clone()));
            stays
        };
        match self {
            Self::Broker(walk) if args.all => {
                while let Some(letter) = next(walk).await? {
                    if !stays(&letter) {
                        dealt_with(walk, &letter, deed).await?;
                        messages += 1;
                    }
                }
            }
            Self::Broker(walk) => {
                for letter in named(walk, &args.ids).await? {
                    if !stays(&letter) {
                        dealt_with(walk, &letter, deed).await?;
                        messages += 1;
                    }
                }
            }
            // A collector shows those alone that it can read.
            Self::Remote(remote) => {
                let there: Vec<String> =
                    remote.dead_letters().await?.into_iter().map(|letter| letter.id).collect();
                if let Some(missing) = args.ids.iter().find(|id| !there.contains(id)) {
                    return Err(no_letter(missing));
                }
                for id in if args.all { &there } else { &args.ids } {
                    remote.deal_with_dead_letter(id, deed).await?;
                    messages += 1;
                }
            }
        }
        told(output, deed, messages)?;
        if unreadable.is_empty() { Ok(()) } else { Err(cannot_be_read(&unreadable)) }
    }
}

fn told(output: Output, deed: LetterDeed, messages: usize) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(&DoneDocument { messages });
    }
    let what = if deed == LetterDeed::Replay { "are on their way to the store again" } else { "are gone" };
    output.line(&format!("{} messages {what}", grouped(messages as u64)))
}

/// Ids that one failure names: what fits a screen.
const NAMED_MAX: usize = 10;

fn cannot_be_read(ids: &[String]) -> Failure {
    let more = if ids.len() > NAMED_MAX { ", …" } else { "" };
    let named = ids[..ids.len().min(NAMED_MAX)].join(", ");
    let cause = format!("this version can't read {} of them, which stay: {named}{more}", ids.len());
    Failure::because("replay every message", cause)
        .remedy("`list` says why; replay them with a newer eventbucket, or discard them")
}

async fn next(walk: &mut DeadLetters) -> Result<Option<DeadLetter>, Failure> {
    walk.next().await.map_err(|error| Failure::new("take hold of the dead letters", error))
}

/// Finds those that are named, and keeps no other in memory.
async fn named(walk: &mut DeadLetters, ids: &[String]) -> Result<Vec<DeadLetter>, Failure> {
    let mut found: Vec<DeadLetter> = Vec::new();
    while let Some(letter) = next(walk).await? {
        if ids.contains(&letter.id) {
            found.push(letter);
        }
    }
    match ids.iter().find(|id| !found.iter().any(|letter| letter.id == **id)) {
        Some(missing) => Err(no_letter(missing)),
        None => Ok(found),
    }
}

fn no_letter(id: &str) -> Failure {
    Failure::because("find the message", format!("no dead letter has the id {id:?}"))
        .remedy("`eventbucket dead-letters list` shows those there are")
}

async fn dealt_with(walk: &mut DeadLetters, letter: &DeadLetter, deed: LetterDeed) -> Result<(), Failure> {
    let (what, dealt) = match deed {
        LetterDeed::Replay => ("replay", walk.replay(letter).await),
        LetterDeed::Discard => ("discard", walk.discard(letter).await),
        LetterDeed::Show => return Ok(()),
    };
    dealt.map_err(|error| Failure::new(format!("{what} {}", letter.id), error))
}

fn list(output: Output, letters: &[LetterShape]) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(&letters);
    }
    let columns = [
        Column::Text("ID"),
        Column::Text("TIME"),
        Column::Text("PROJECTS"),
        Column::Figure("EVENTS"),
        Column::Figure("BYTES"),
        Column::Text("REASON"),
    ];
    let rows: Vec<Vec<String>> = letters
        .iter()
        .map(|letter| {
            let projects: Vec<String> = letter.projects.iter().map(ToString::to_string).collect();
            let events = letter.events.map_or_else(|| "?".to_owned(), |events| grouped(events as u64));
            vec![
                letter.id.clone(),
                letter.time.clone().unwrap_or_default(),
                projects.join(","),
                events,
                grouped(letter.bytes as u64),
                letter.reason.clone(),
            ]
        })
        .collect();
    output.table(&columns, &rows)
}
