//! Who the users are, and what they did.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use crate::query::{UserLookup, UsersQuery};

use super::Access;
use super::document::{UserDocument, UserProfileDocument};
use super::event::{limit, more, page_of};
use super::failure::Failure;
use super::output::{Column, Output, Paint, printable, printable_json};
use super::source::{Purpose, Source};

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// List users, the last seen first
    List(ListArgs),
    /// Show what is known of one user
    Show(ShowArgs),
    /// List the events of a user and its linked ids, the newest first
    Timeline(TimelineArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "On a pipe each line holds: id, email, events, first seen, last seen, linked ids; between tabs.\n\n\
    Examples:\n  \
    eventbucket user list --limit 20\n  \
    eventbucket user list --search ada                             ids and emails that begin so\n  \
    eventbucket user list --email ada@example.com --json"
)]
pub(super) struct ListArgs {
    /// Only the user with this id, or to whom it is linked
    #[arg(long, value_name = "ID", conflicts_with_all = ["email", "search", "cursor"], value_parser = NonEmptyStringValueParser::new())]
    id: Option<String>,
    /// Only users with exactly this email
    #[arg(long, value_name = "EMAIL", conflicts_with_all = ["search", "cursor"], value_parser = NonEmptyStringValueParser::new())]
    email: Option<String>,
    /// Only users whose id, linked id or email begins so
    #[arg(long, value_name = "TEXT", conflicts_with = "cursor", value_parser = NonEmptyStringValueParser::new())]
    search: Option<String>,
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
    eventbucket user show u-17\n  \
    eventbucket user show u-17 --json | jq .traits.plan.value")]
pub(super) struct ShowArgs {
    /// The user's id, or one that is linked to it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
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
    eventbucket user timeline u-17\n  \
    eventbucket user timeline u-17 --limit 1000 --json             `next` goes into --cursor"
)]
pub(super) struct TimelineArgs {
    /// The user's id, or one that is linked to it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
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

pub(super) async fn run(command: UserCommand) -> Result<ExitCode, Failure> {
    match command {
        UserCommand::List(args) => list(args).await,
        UserCommand::Show(args) => show(args).await,
        UserCommand::Timeline(args) => timeline(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let id = args.id.map(UserLookup::Id);
    let lookup = id.or(args.email.map(UserLookup::Email)).or(args.search.map(UserLookup::Beginning));
    let page = source.users(UsersQuery { lookup, cursor: args.cursor, limit: args.limit }).await?;
    if output.is_json() {
        return output.document(&page);
    }
    let columns = [
        Column::Text("id"),
        Column::Text("email"),
        Column::Figure("events"),
        Column::Text("first seen"),
        Column::Text("last seen"),
        Column::Figure("linked"),
    ];
    output.table(&columns, &page.users.into_iter().map(row).collect::<Vec<_>>())?;
    more(output, page.next)
}

fn row(user: UserDocument) -> Vec<String> {
    let UserDocument { id, email, events, first_seen, last_seen, links, .. } = user;
    vec![id, email.unwrap_or_default(), events.to_string(), first_seen, last_seen, links.to_string()]
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    let user = source.user(&args.id).await?;
    if output.is_json() {
        return output.document(&user);
    }
    profile(output, &user)
}

fn profile(output: Output, user: &UserProfileDocument) -> Result<(), Failure> {
    let field = |name: &str, value: &str| {
        output.line(&format!("{}{value}", output.paint(Paint::Faint, &format!("{name:<12}"))))
    };
    field("id", &printable(&user.id))?;
    field("identified", if user.identified { "yes" } else { "no" })?;
    if let Some(email) = &user.email {
        field("email", &printable(email))?;
    }
    field("events", &user.events.to_string())?;
    field("first seen", &user.first_seen)?;
    field("last seen", &user.last_seen)?;
    for (name, one) in &user.traits {
        let told = format!("{} = {}", printable(name), printable_json(one.value.get()));
        let when = format!("  {}, event {}", one.time.as_deref().unwrap_or_default(), one.position);
        field("trait", &format!("{told}{}", output.paint(Paint::Faint, &when)))?;
    }
    for linked in &user.ids {
        let when = output.paint(Paint::Faint, &format!("  event {}", linked.position));
        field("linked id", &format!("{}{when}", printable(&linked.id)))?;
    }
    for refusal in &user.refused {
        let id = refusal.id.as_deref().map(|id| format!(" {}", printable(id))).unwrap_or_default();
        let when = output.paint(Paint::Faint, &format!("  event {}", refusal.position));
        field("refused", &format!("{}{id}{when}", refusal.reason))?;
    }
    Ok(())
}

async fn timeline(args: TimelineArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Look).await?;
    page_of(output, source.timeline(&args.id, args.cursor, args.limit).await?)
}
