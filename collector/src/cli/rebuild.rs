//! Computing the views anew.

use std::process::ExitCode;

use clap::Args;

use super::Access;
use super::failure::Failure;
use super::output::{Output, grouped};
use super::progress;
use super::source::{Purpose, Source};

#[derive(Debug, Args)]
#[command(
    after_help = "The new counts and users grow beside the live ones, which go on answering until the switch.\n\n\
    Examples:\n  \
    eventbucket rebuild                                        the project `default` of ./eventbucket-data\n  \
    eventbucket rebuild --data /var/lib/eventbucket --project shop\n  \
    eventbucket rebuild --url http://10.0.0.5:4000 --json      another machine, key in EVENTBUCKET_KEY"
)]
pub(super) struct RebuildArgs {
    /// Project, with --data [default: `default`, or the only one]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    #[command(flatten)]
    access: Access,
}

pub(super) async fn run(args: RebuildArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.access.json);
    let source = Source::open(&args.access, args.project.as_deref(), Purpose::Manage).await?;
    let (bar, on_progress) = progress::of(&source, "rebuilding");
    let document = source.rebuild(on_progress).await;
    bar.finish_and_clear();
    let document = document?;
    if output.is_json() {
        output.document(&document)?;
    } else {
        output.line(&format!(
            "generation {} of the counts is live, through position {}",
            document.generation,
            grouped(document.applied_to)
        ))?;
        if let Some(who) = document.identifications {
            output.line(&format!(
                "generation {} of the identifications is live, through position {}",
                who.generation,
                grouped(who.applied_to)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
