//! Counts by name and hour.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use eventbucket_protocol::Timestamp;

use crate::store::{CountsBy, CountsQuery};

use super::Access;
use super::event::moment;
use super::failure::Failure;
use super::output::{Column, Output, Paint, grouped};
use super::source::{Purpose, Source};

#[derive(Debug, Args)]
#[command(after_help = "On a pipe each line holds: name, hour where asked for, count; between tabs.\n\n\
    Examples:\n  \
    eventbucket count                                          every name with its total\n  \
    eventbucket count --name order_paid --by hour              one name, hour by hour\n  \
    eventbucket count --from 2026-01-01T00:00:00Z --json       for a program\n  \
    eventbucket count --url http://10.0.0.5:4000               another machine, key in EVENTBUCKET_KEY")]
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
    /// One line a name and hour
    Hour,
}

pub(super) async fn run(args: CountArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let by = match args.by {
        By::Total => CountsBy::Total,
        By::Hour => CountsBy::Hour,
    };
    let query = CountsQuery { name: args.name, from_hour: args.from, to_hour: args.to, by };
    let document = source.counts(query).await?;
    if output.is_json() {
        return output.document(&document).map(|()| ExitCode::SUCCESS);
    }
    let figure = |count: u64| if output.is_terminal() { grouped(count) } else { count.to_string() };
    let rows: Vec<Vec<String>> = document
        .counts
        .iter()
        .map(|row| {
            let hour = row.hour.clone().into_iter();
            std::iter::once(row.name.clone()).chain(hour).chain([figure(row.count)]).collect()
        })
        .collect();
    let total = [Column::Text("name"), Column::Figure("count")];
    let hourly = [Column::Text("name"), Column::Text("hour"), Column::Figure("count")];
    output.table(if by == CountsBy::Hour { &hourly } else { &total }, &rows)?;
    if output.is_terminal() {
        let note = format!(
            "counted through position {} of {}",
            grouped(document.applied_to),
            grouped(document.position)
        );
        output.line(&output.paint(Paint::Faint, &note))?;
    }
    Ok(ExitCode::SUCCESS)
}
