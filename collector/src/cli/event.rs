//! Reading events and following them.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use eventbucket_protocol::Timestamp;

use crate::query::{EventsQuery, LIMIT_MAX, Order};
use crate::store::EventFilter;

use super::Access;
use super::document::EventDocument;
use super::failure::Failure;
use super::output::{Column, Output, Paint, printable, printable_json};
use super::source::{Purpose, Source};

/// Characters of properties that a line on a terminal shows; all of them by `event show` or `--json`.
const PREVIEW_CHARS_MAX: usize = 60;

#[derive(Debug, Subcommand)]
pub(super) enum EventCommand {
    /// Watch events arrive
    Tail(TailArgs),
    /// List events, the newest first
    List(ListArgs),
    /// Show one event
    Show(ShowArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Goes on until interrupted, over restarts of the collector too.\n\
    On a pipe each line holds: position, time, name, user, properties; between tabs.\n\n\
    Examples:\n  \
    eventbucket event tail\n  \
    eventbucket event tail --name order_paid --json | jq .properties\n  \
    eventbucket event tail --after 0                               everything from the beginning")]
pub(super) struct TailArgs {
    /// Only events of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only events of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Begin behind this position instead of at the end of the log
    #[arg(long, value_name = "POSITION")]
    after: Option<u64>,
    /// Project, with --data [default: `default`, or the only one]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Args)]
#[command(
    after_help = "On a pipe each line holds: position, time, name, user, properties; between tabs.\n\n\
    Examples:\n  \
    eventbucket event list --limit 20\n  \
    eventbucket event list --user ada --from 2026-01-01T00:00:00Z\n  \
    eventbucket event list --order position --limit 1000 --json    `next` goes into --cursor"
)]
pub(super) struct ListArgs {
    /// Only events of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only events of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only events at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// In which order
    #[arg(long, value_enum, default_value_t = InOrder::Newest)]
    order: InOrder,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = limit)]
    limit: usize,
    /// Where the page before ended: its `next`
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// Project, with --data [default: `default`, or the only one]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    eventbucket event show 01926f3a-7c1e-7d40-8a55-3f0a6a4f1b11\n  \
    eventbucket event show order-4711 --json                       ids of your own work too")]
pub(super) struct ShowArgs {
    /// The event's id, as the application gave it or as it is listed
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
    /// Project, with --data [default: `default`, or the only one]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InOrder {
    /// The newest first
    Newest,
    /// As they stand in the log
    Position,
}

pub(super) async fn run(command: EventCommand) -> Result<ExitCode, Failure> {
    match command {
        EventCommand::Tail(args) => tail(args).await,
        EventCommand::List(args) => list(args).await,
        EventCommand::Show(args) => show(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a time given on the command line.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    Timestamp::from_rfc3339(text)
        .ok_or_else(|| "write a time with its zone, like 2026-01-31T12:00:00Z".to_owned())
}

fn limit(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    parsed.ok_or_else(|| format!("write a number from 1 to {LIMIT_MAX}; --cursor leads on from there"))
}

async fn tail(args: TailArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let filter = EventFilter { name: args.name, user: args.user, ..EventFilter::default() };
    let mut on_event = |event: EventDocument| {
        if output.is_json() {
            return output.document_line(&event);
        }
        if output.is_terminal() {
            output.line(&coloured(output, &event))
        } else {
            output.table(&[], &[row(&event)])
        }
    };
    source.tail(filter, args.after, &mut on_event).await
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let filter = EventFilter { name: args.name, user: args.user, from: args.from, to: args.to };
    let order = match args.order {
        InOrder::Newest => Order::Newest,
        InOrder::Position => Order::Position,
    };
    let page = source.events(EventsQuery { filter, order, cursor: args.cursor, limit: args.limit }).await?;
    if output.is_json() {
        return output.document(&page);
    }
    let columns = ["position", "time", "name", "user", "properties"].map(Column::Text);
    let shown = if output.is_terminal() { preview_row } else { row };
    output.table(&columns, &page.events.iter().map(shown).collect::<Vec<_>>())?;
    match page.next.filter(|_| output.is_terminal()) {
        Some(next) => output.line(&output.paint(Paint::Faint, &format!("more with --cursor {next}"))),
        None => Ok(()),
    }
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let event = source.event(&args.id).await?;
    if output.is_json() {
        return output.document(&event);
    }
    let properties: serde_json::Value =
        serde_json::from_str(event.properties.get()).expect("raw JSON was checked when it was read");
    let properties = serde_json::to_string_pretty(&properties).expect("JSON that was read can be written");
    let fields = [
        ("position", Some(event.position.to_string())),
        ("id", Some(event.id)),
        ("name", Some(event.name)),
        ("description", event.description),
        ("user", event.user),
        ("time", Some(event.time)),
        ("received", Some(event.received)),
        ("skew_ms", event.skew_ms.map(|ms| ms.to_string())),
        ("stream", event.stream),
        ("correlation", event.correlation),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            let name = output.paint(Paint::Faint, &format!("{name:<12}"));
            output.line(&format!("{name}{}", printable(&value)))?;
        }
    }
    let properties = printable_json(&properties);
    output.line(&format!("{}{properties}", output.paint(Paint::Faint, &format!("{:<12}", "properties"))))
}

fn row(event: &EventDocument) -> Vec<String> {
    vec![
        event.position.to_string(),
        event.time.clone(),
        event.name.clone(),
        event.user.clone().unwrap_or_default(),
        event.properties.get().to_owned(),
    ]
}

fn preview_row(event: &EventDocument) -> Vec<String> {
    let mut row = row(event);
    row[4] = preview(&row[4]);
    row
}

fn coloured(output: Output, event: &EventDocument) -> String {
    format!(
        "{} {}  {}  {}  {}",
        output.paint(Paint::Faint, &format!("{:>8}", event.position)),
        output.paint(Paint::Faint, &event.time),
        output.paint(Paint::Strong, &printable(&event.name)),
        printable(event.user.as_deref().unwrap_or("-")),
        printable(&preview(event.properties.get()))
    )
}

fn preview(text: &str) -> String {
    match text.char_indices().nth(PREVIEW_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_cuts_between_characters() {
        assert_eq!(preview("{}"), "{}");
        let long = "ü".repeat(PREVIEW_CHARS_MAX + 1);
        assert_eq!(preview(&long), format!("{}…", "ü".repeat(PREVIEW_CHARS_MAX)));
    }

    #[test]
    fn times_and_limits_say_what_they_take() {
        assert!(moment("2026-01-31").unwrap_err().contains("2026-01-31T12:00:00Z"));
        assert!(moment("2026-01-31T12:00:00+02:00").is_ok());
        assert!(limit("0").is_err() && limit("1001").is_err() && limit("1000").is_ok());
    }
}
