//! Reading events and following them.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use eventbucket_protocol::Timestamp;

use crate::query::{EventsQuery, LIMIT_MAX, Order};
use crate::store::{Condition, EventFilter, PAGE_BYTES_MAX};

use super::Access;
use super::document::{EventDocument, EventsDocument};
use super::failure::Failure;
use super::output::{Column, Output, Paint, printable, printable_json};
use super::source::{Purpose, Source};

/// Characters of properties, and of a name or a user, that a line on a terminal shows: a UUID is one of 36. All of them are
/// shown by `event show` or `--json`.
const PREVIEW_CHARS_MAX: usize = 60;
const NAME_PREVIEW_CHARS_MAX: usize = 40;

/// How conditions are written, for the help of both commands that take them.
const CONDITIONS_HELP: &str = "Conditions on properties (--where, up to 8):\n  \
    plan=pro   plan!=pro   price>10   price<=9.5   note~sale (contains)   coupon (is there)\n  \
    address.city=Porto      a.b is the key b in a; a list stands for each of its elements\n  \
    zip='\"4000\"'            the text 4000; without quotes numbers, true, false and null are themselves\n  \
    'utm\\.source=x'        a backslash takes . = ! ~ < > \\ for a part of the key";

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
#[command(after_help = format!("Goes on until interrupted, over restarts of the collector too.\n\
    On a pipe each line holds: position, time, name, user, properties; between tabs.\n\n\
    {CONDITIONS_HELP}\n\n\
    Examples:\n  \
    eventbucket event tail\n  \
    eventbucket event tail --name order_paid --json | jq .properties\n  \
    eventbucket event tail --where 'price>100'\n  \
    eventbucket event tail --after 0                               everything from the beginning"))]
pub(super) struct TailArgs {
    /// Only events of this name; several times for one of several
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Only events of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only events with such a property; several times for all of several
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<Condition>,
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
#[command(after_help = format!("On a pipe each line holds: position, time, name, user, properties; between tabs.\n\n\
    {CONDITIONS_HELP}\n\n\
    Examples:\n  \
    eventbucket event list --limit 20\n  \
    eventbucket event list --user ada --from 2026-01-01T00:00:00Z\n  \
    eventbucket event list --name order_paid --name order_refunded --where 'price>100' --where plan=pro\n  \
    eventbucket event list --order position --limit 1000 --json    `next` goes into --cursor"))]
pub(super) struct ListArgs {
    /// Only events of this name; several times for one of several
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Only events of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only events at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// Only events with such a property; several times for all of several
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<Condition>,
    /// Only events behind this position
    #[arg(long, value_name = "POSITION", default_value_t = 0, hide_default_value = true)]
    after: u64,
    /// Only events in front of this position
    #[arg(long, value_name = "POSITION")]
    before: Option<u64>,
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

pub(super) fn limit(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    parsed.ok_or_else(|| format!("write a number from 1 to {LIMIT_MAX}; --cursor leads on from there"))
}

async fn tail(args: TailArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let filter = EventFilter {
        names: args.name.into_iter().collect(),
        user: args.user,
        conditions: args.conditions,
        ..EventFilter::default()
    };
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
    let filter = EventFilter {
        names: args.name.into_iter().collect(),
        user: args.user,
        from: args.from,
        to: args.to,
        after: args.after,
        before: args.before,
        conditions: args.conditions,
    };
    let order = match args.order {
        InOrder::Newest => Order::Newest,
        InOrder::Position => Order::Position,
    };
    let page = found(&source, EventsQuery { filter, order, cursor: args.cursor, limit: args.limit }).await?;
    page_of(output, page)
}

/// Prints a page of events.
pub(super) fn page_of(output: Output, page: EventsDocument) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(&page);
    }
    let columns = ["position", "time", "name", "user", "properties"].map(Column::Text);
    let shown = if output.is_terminal() { preview_row } else { row };
    output.table(&columns, &page.events.iter().map(shown).collect::<Vec<_>>())?;
    more(output, page.next)
}

/// Says on a terminal where the next page begins.
pub(super) fn more(output: Output, next: Option<String>) -> Result<(), Failure> {
    match next.filter(|_| output.is_terminal()) {
        Some(next) => output.line(&output.paint(Paint::Faint, &format!("more with --cursor {next}"))),
        None => Ok(()),
    }
}

/// Asks until there are as many events as wanted: where few fit the filter, a page may hold less or none.
async fn found(source: &Source, mut query: EventsQuery) -> Result<EventsDocument, Failure> {
    let (mut found, limit) = (source.events(query.clone()).await?, query.limit);
    loop {
        let bytes: usize = found.events.iter().map(|event| event.properties.get().len()).sum();
        let full = found.events.len() >= limit || bytes >= PAGE_BYTES_MAX;
        let Some(next) = found.next.clone().filter(|_| !full) else { return Ok(found) };
        (query.cursor, query.limit) = (Some(next), limit - found.events.len());
        let page = source.events(query.clone()).await?;
        found = EventsDocument { events: [found.events, page.events].concat(), ..page };
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
    for (field, chars_max) in
        [(2, NAME_PREVIEW_CHARS_MAX), (3, NAME_PREVIEW_CHARS_MAX), (4, PREVIEW_CHARS_MAX)]
    {
        row[field] = preview(&row[field], chars_max);
    }
    row
}

fn coloured(output: Output, event: &EventDocument) -> String {
    let row = preview_row(event);
    format!(
        "{} {}  {}  {}  {}",
        output.paint(Paint::Faint, &format!("{:>8}", row[0])),
        output.paint(Paint::Faint, &row[1]),
        output.paint(Paint::Strong, &row[2]),
        if row[3].is_empty() { "-" } else { &row[3] },
        row[4]
    )
}

/// The beginning of a text, with what would steer a terminal made visible.
fn preview(text: &str, chars_max: usize) -> String {
    let text = printable(text);
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_cuts_between_characters() {
        assert_eq!(preview("{}", 60), "{}");
        assert_eq!(preview(&"ü".repeat(61), 60), format!("{}…", "ü".repeat(60)));
    }

    #[test]
    fn whatever_an_event_holds_takes_one_line_and_steers_nothing() {
        let hostile = [
            "<script>alert(1)</script>".to_owned(),
            "\u{202e}txet\u{2066}".to_owned(),
            "\u{1b}]0;title\u{7}\u{1b}[2J\r\n\t\u{9b}31m\u{0}".to_owned(),
            "👩\u{200d}🚀🏳️\u{200d}🌈".to_owned(),
            "x".repeat(10_000),
            "\u{301}".repeat(10_000),
            "\u{1b}".repeat(10_000),
        ];
        for text in hostile {
            let properties = serde_json::json!({ &text: text }).to_string();
            let event = serde_json::json!({ "position": 1, "id": text, "name": text, "user": text,
                "time": "2026-01-31T12:00:00.000Z", "received": "2026-01-31T12:00:00.000Z", "properties": {} });
            let mut event: EventDocument = serde_json::from_str(&event.to_string()).unwrap();
            event.properties = serde_json::value::RawValue::from_string(properties).unwrap();
            let line = coloured(Output::plain(), &event);
            assert!(!line.contains(char::is_control) && !line.contains(['\u{202e}', '\u{2066}']), "{line:?}");
            let most = 8 + 24 + 2 * NAME_PREVIEW_CHARS_MAX + PREVIEW_CHARS_MAX;
            assert!(line.chars().count() <= most + 10, "{line:?}");
            assert_eq!(
                preview_row(&event)[2..].iter().filter(|field| field.contains(char::is_control)).count(),
                0
            );
        }
    }

    #[test]
    fn times_and_limits_say_what_they_take() {
        assert!(moment("2026-01-31").unwrap_err().contains("2026-01-31T12:00:00Z"));
        assert!(moment("2026-01-31T12:00:00+02:00").is_ok());
        assert!(limit("0").is_err() && limit("1001").is_err() && limit("1000").is_ok());
    }
}
