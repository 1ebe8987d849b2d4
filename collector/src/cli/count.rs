//! Counts of events and users by name, hour and day.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use eventbucket_protocol::Timestamp;

use crate::insight::STANDARD_ERROR;
use crate::store::{CountsBy, CountsQuery};

use super::Access;
use super::document::CountsDocument;
use super::event::moment;
use super::failure::Failure;
use super::output::{Column, Output, Paint, grouped};
use super::source::{Purpose, Source};

#[derive(Debug, Args)]
#[command(
    after_help = "On a pipe each line holds: name, hour or day where asked for, events, different users; between tabs.\n\n\
    Examples:\n  \
    eventbucket count                                          every name with its total\n  \
    eventbucket count --name order_paid --by hour              one name, hour by hour\n  \
    eventbucket count --by day --from 2026-01-01T00:00:00Z     every name, day by day (UTC)\n  \
    eventbucket count --from 2026-01-01T00:00:00Z --json       for a program\n  \
    eventbucket count --url http://10.0.0.5:4000               another machine, key in EVENTBUCKET_KEY"
)]
pub(super) struct CountArgs {
    /// Count only events of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only hours from this one on (RFC 3339, a full hour)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// Only hours before this one
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// How fine
    #[arg(long, value_enum, default_value_t = By::Total)]
    by: By,
    /// Leave out how many different users there are: quicker, and for any number of names
    #[arg(long)]
    no_users: bool,
    /// Project, with --data [default: `default`, or the only one]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// One line a name
    Total,
    /// One line a name and day (UTC)
    Day,
    /// One line a name and hour
    Hour,
}

/// What is shown instead of users when they are not known.
const UNKNOWN: &str = "-";

pub(super) async fn run(args: CountArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let by = match args.by {
        By::Total => CountsBy::Total,
        By::Day => CountsBy::Day,
        By::Hour => CountsBy::Hour,
    };
    let query =
        CountsQuery { name: args.name, from_hour: args.from, to_hour: args.to, by, users: !args.no_users };
    let document = source.counts(query).await?;
    if output.is_json() {
        return output.document(&document).map(|()| ExitCode::SUCCESS);
    }
    let figure = |count: u64| if output.is_terminal() { grouped(count) } else { count.to_string() };
    let rows: Vec<Vec<String>> = document
        .counts
        .iter()
        .map(|row| {
            let start = row.day.clone().or_else(|| row.hour.clone());
            let users = row.users.map_or_else(|| UNKNOWN.to_owned(), figure);
            std::iter::once(row.name.clone()).chain(start).chain([figure(row.count), users]).collect()
        })
        .collect();
    let start = match by {
        CountsBy::Total => None,
        CountsBy::Day => Some(Column::Text("day")),
        CountsBy::Hour => Some(Column::Text("hour")),
    };
    let figures = [Column::Figure("count"), Column::Figure("users")];
    let columns: Vec<Column> = std::iter::once(Column::Text("name")).chain(start).chain(figures).collect();
    output.table(&columns, &rows)?;
    if output.is_terminal() {
        let note = note(&document, !args.no_users);
        output.line(&output.paint(Paint::Faint, &note))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn note(document: &CountsDocument, asked: bool) -> String {
    let (applied_to, position) = (grouped(document.applied_to), grouped(document.position));
    let users = match document.users {
        Some(users) => {
            let percent = 100.0 * STANDARD_ERROR;
            format!("{} users in all, estimates to {percent:.1} % (standard error)", grouped(users))
        }
        None if !asked => "users were not asked for".to_owned(),
        None => "users are not known until `eventbucket rebuild`".to_owned(),
    };
    format!("{users}; counted through position {applied_to} of {position}")
}
