//! Projects, their keys and limits.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use crate::project::{KeyKind, LimitsChange, OwnLimit, Project};

use super::Access;
use super::document::{LimitsDocument, ProjectsDocument};
use super::failure::Failure;
use super::output::{Column, Output, Paint, grouped, printable};
use super::source::{Purpose, Source};

#[derive(Debug, Subcommand)]
pub(super) enum ProjectCommand {
    /// Make a project with a write key and a secret key, which are shown this once
    Create(CreateArgs),
    /// List projects
    List(ListArgs),
    /// Replace a project's write key or secret key by a new one, which is shown this once
    RotateKey(RotateKeyArgs),
    /// Change what one project may send, or show it
    Limits(LimitsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "On a pipe: project id, name, write key, secret key; between tabs.\n\n\
    Examples:\n  \
    eventbucket project create shop\n  \
    eventbucket project create shop --json | jq -r .write_key\n  \
    eventbucket project create shop --url http://10.0.0.5:4000     key in EVENTBUCKET_KEY")]
pub(super) struct CreateArgs {
    /// Its name, unique within the account
    name: String,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Args)]
#[command(
    after_help = "On a pipe each line holds: project id, name, events, created, events a second, events a day; \
    between tabs. The last two are the project's own limits: a number, none, or default, which is what the configuration \
    sets for all.\n\n\
    Examples:\n  \
    eventbucket project list\n  \
    eventbucket project list --data /var/lib/eventbucket --json"
)]
pub(super) struct ListArgs {
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Args)]
#[command(after_help = "The keys of that kind that there were stop working within a second.\n\n\
    Examples:\n  \
    eventbucket project rotate-key shop --kind secret\n  \
    eventbucket project rotate-key shop --kind write --browser     a key for web pages\n  \
    eventbucket project rotate-key shop --kind write --browser=false\n  \
    eventbucket project rotate-key shop --kind write --store-url postgres://db/log --cache-url redis://cache")]
pub(super) struct RotateKeyArgs {
    /// The project's name
    name: String,
    /// Which key
    #[arg(long, value_enum)]
    kind: Kind,
    /// Let web pages of any origin send with the new write key, or not [default: as with the old key]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    browser: Option<bool>,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A limit is a number of events, `none`, or `default`, which is what `[limits]` of the configuration \
    sets for all projects. What isn't named stays. Every edge goes by it within two seconds.\n\
    On a pipe: project id, name, events a second, events a day; between tabs.\n\n\
    Examples:\n  \
    eventbucket project limits 7 --rate 500 --quota 10000000\n  \
    eventbucket project limits shop --rate none            no rate, whatever the configuration says\n  \
    eventbucket project limits shop --quota default\n  \
    eventbucket project limits shop                        shows them\n  \
    eventbucket project limits shop --rate 500 --store-url postgres://db/log --cache-url redis://cache"
)]
pub(super) struct LimitsArgs {
    /// The project's id, or its name
    #[arg(value_name = "ID")]
    project: String,
    /// Events a second over all edges; ten seconds' worth may come at once
    #[arg(long, value_name = "N|default|none")]
    rate: Option<OwnLimit>,
    /// Events a day, by UTC
    #[arg(long, value_name = "N|default|none")]
    quota: Option<OwnLimit>,
    #[command(flatten)]
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// May send events and nothing else
    Write,
    /// May read and manage
    Secret,
}

pub(super) async fn run(command: ProjectCommand) -> Result<ExitCode, Failure> {
    match command {
        ProjectCommand::Create(args) => create(args).await,
        ProjectCommand::List(args) => list(args).await,
        ProjectCommand::RotateKey(args) => rotate_key(args).await,
        ProjectCommand::Limits(args) => limits(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, None, Purpose::Manage).await?;
    let made = source.create_project(&args.name).await?;
    if output.is_json() {
        return output.document_once(&made);
    }
    let id = made.project_id;
    if !output.is_terminal() {
        let fields = [made.name.as_str(), &made.write_key, &made.secret_key].map(printable);
        return output.once(&format!("{id}\t{}\n", fields.join("\t")));
    }
    let strong = |text: &str| output.paint(Paint::Strong, &printable(text));
    output.once(&format!(
        "project     {} ({id})\nwrite key   {}\nsecret key  {}\n{}\n",
        strong(&made.name),
        strong(&made.write_key),
        strong(&made.secret_key),
        output.paint(Paint::Faint, "The keys are stored hashed and can't be shown again.")
    ))
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let projects = Source::open(&args.access, None, Purpose::Look).await?.projects().await?;
    if output.is_json() {
        return output.document(&ProjectsDocument { projects });
    }
    let figure = |count: u64| if output.is_terminal() { grouped(count) } else { count.to_string() };
    let rows: Vec<Vec<String>> = projects
        .into_iter()
        .map(|project| {
            let [rate, quota] = shown(&output, &project);
            vec![project.id.to_string(), project.name, figure(project.events), project.created, rate, quota]
        })
        .collect();
    let columns = [
        Column::Figure("id"),
        Column::Text("name"),
        Column::Figure("events"),
        Column::Text("created"),
        Column::Figure("rate"),
        Column::Figure("quota"),
    ];
    output.table(&columns, &rows)
}

async fn rotate_key(args: RotateKeyArgs) -> Result<(), Failure> {
    if args.browser == Some(true) && args.kind == Kind::Secret {
        let cause = "--browser is for write keys: a secret key has no place in a web page";
        return Err(Failure::usage("rotate the key", cause));
    }
    let output = Output::new(args.access.json);
    let kind = match args.kind {
        Kind::Write => KeyKind::Write,
        Kind::Secret => KeyKind::Secret,
    };
    let source = Source::open(&args.access, None, Purpose::Manage).await?;
    let made = source.rotate_key(&args.name, kind, args.browser).await?;
    if output.is_json() {
        return output.document_once(&made);
    }
    let key = output.paint(Paint::Strong, &printable(&made.key));
    if !output.is_terminal() {
        return output.once(&format!("{key}\n"));
    }
    let hint = output.paint(Paint::Faint, "The key is stored hashed and can't be shown again.");
    output.once(&format!("{key}\n{hint}\n"))
}

async fn limits(args: LimitsArgs) -> Result<(), Failure> {
    let output = Output::new(args.access.json);
    let change = LimitsChange { events_per_s: args.rate, events_per_day: args.quota };
    let shows = change == LimitsChange::default();
    let purpose = if shows { Purpose::Look } else { Purpose::Manage };
    let source = Source::open(&args.access, None, purpose).await?;
    let mut project = meant(source.projects().await?, &args.project)?;
    if !shows {
        project.limits = source.set_limits(project.id, change).await?.limits;
    }
    if output.is_json() {
        return output.document(&LimitsDocument { project_id: project.id, limits: project.limits });
    }
    let [rate, quota] = shown(&output, &project);
    let columns =
        [Column::Figure("id"), Column::Text("name"), Column::Figure("rate"), Column::Figure("quota")];
    output.table(&columns, &[vec![project.id.to_string(), project.name, rate, quota]])
}

/// Finds a project by its id, else by its name.
fn meant(mut projects: Vec<Project>, text: &str) -> Result<Project, Failure> {
    let by_id = projects.iter().position(|project| project.id.to_string() == text);
    let found = by_id.or_else(|| projects.iter().position(|project| project.name == text));
    found.map(|at| projects.swap_remove(at)).ok_or_else(|| {
        Failure::because("find the project", format!("there is none with the id or the name {text:?}"))
            .remedy("`eventbucket project list` shows those there are")
    })
}

/// Both limits as a person or a program reads them.
fn shown(output: &Output, project: &Project) -> [String; 2] {
    [project.limits.events_per_s, project.limits.events_per_day].map(|limit| match limit {
        OwnLimit::Events(events) if output.is_terminal() => grouped(events.get()),
        limit => limit.to_string(),
    })
}
