//! The proof that everything stored agrees with itself.

use std::process::ExitCode;

use clap::Args;

use super::Access;
use super::document::{AuditDocument, CheckDocument};
use super::failure::{FAILED, Failure, USAGE};
use super::output::{Output, Paint, grouped, printable};
use super::progress;
use super::source::{Purpose, Source};

/// Nothing could be looked at, so nothing is proven; the same as for a wrong use.
const COULD_NOT_LOOK: u8 = USAGE;

#[derive(Debug, Args)]
#[command(
    after_help = "Counts everything from independent sources and holds the figures against each other: the rows of the log,\n\
    its head, the ranges of the batches, the ledger, the counts; over --url the live counters too.\n\n\
    Exit code: 0 when everything holds, 1 when something doesn't, 2 when it couldn't be looked at.\n\n\
    Examples:\n  \
    eventbucket audit                                   the folder ./eventbucket-data, running or not\n  \
    eventbucket audit --json                            for a program\n  \
    eventbucket audit --url http://10.0.0.5:4000        another machine, key in EVENTBUCKET_KEY"
)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    access: Access,
}

pub(super) async fn run(args: AuditArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.access.json);
    let document = look(&args.access).await.map_err(|failure| failure.code(COULD_NOT_LOOK))?;
    let printed =
        if output.is_json() { output.document(&document) } else { output.text(&written(output, &document)) };
    // Who reads no further learns by the exit code all the same whether everything holds.
    match printed {
        Err(failure) if !failure.is_silent() => return Err(failure),
        _ => {}
    }
    Ok(if document.holds() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn look(access: &Access) -> Result<AuditDocument, Failure> {
    let source = Source::open(access, None, Purpose::Look).await?;
    let (bar, on_progress) = progress::of(&source, "auditing");
    let document = source.audit(on_progress).await;
    bar.finish_and_clear();
    document
}

/// On a terminal a block a project; on a pipe a line a check: project, check, `holds` or `fails`, the figures.
fn written(output: Output, document: &AuditDocument) -> String {
    let of_projects = document.projects.iter().map(|project| {
        let figures = format!(
            "{} stored, position {}, counted through {}",
            grouped(project.stored),
            grouped(project.position),
            grouped(project.applied_to)
        );
        (project.name.as_str(), figures, &project.checks)
    });
    let of_store =
        (!document.store.is_empty()).then(|| ("store", "the file itself".to_owned(), &document.store));
    let mut text = String::new();
    for (name, figures, checks) in of_projects.chain(of_store) {
        if output.is_terminal() {
            let head = output.paint(Paint::Strong, &printable(name));
            text.push_str(&format!("{head}  {}\n", output.paint(Paint::Faint, &figures)));
        }
        text.extend(checks.iter().map(|check| line(output, name, check)));
    }
    if output.is_terminal() {
        let verdict = if document.holds() {
            output.paint(Paint::Good, "everything holds")
        } else {
            output.paint(Paint::Bad, "something does not hold")
        };
        text.push_str(&format!("{verdict}\n"));
    }
    text
}

fn line(output: Output, project: &str, check: &CheckDocument) -> String {
    let (name, detail) = (printable(&check.name), printable(&check.detail));
    if output.is_terminal() {
        let mark =
            if check.holds { output.paint(Paint::Good, "✓") } else { output.paint(Paint::Bad, "✗") };
        return format!("  {mark} {name:<28} {detail}\n");
    }
    let verdict = if check.holds { "holds" } else { "fails" };
    format!("{}\t{name}\t{verdict}\t{detail}\n", printable(project))
}
