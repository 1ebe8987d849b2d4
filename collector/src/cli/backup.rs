//! Copying a data folder's database, and putting a copy back.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::without_password;
use crate::store::{self, Backup, DATABASE_FILE, Restored, Store};

use super::document::{BackupDocument, RestoredDocument};
use super::failure::Failure;
use super::folder::refuse_file;
use super::output::{Column, Output, Paint, grouped, printable};
use super::progress;
use super::source::{Keeper, keeper};

#[derive(Debug, Args)]
#[command(
    after_help = "Works beside a running collector, which goes on storing: the copy holds everything that was confirmed before it began.\n\
    It is on disk and was checked when the command says so; otherwise there is no file. The configuration is not part of it.\n\
    A store on PostgreSQL is copied by PostgreSQL's own tools; the command says how.\n\n\
    On a pipe: the file, its bytes, its schema, then each project with its events and its last position; between tabs.\n\n\
    Examples:\n  \
    eventbucket backup --to /backup/events-2026-01-31.db                            the folder ./eventbucket-data\n  \
    eventbucket backup --data /var/lib/eventbucket --to /backup/events.db --json    for a program"
)]
pub(super) struct BackupArgs {
    /// New file for the copy
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The collector on the folder has to be stopped. The copy is checked first and copied, not moved. The log gets a new\n\
    epoch: whoever has seen later events of it notices. A kill at any moment leaves what was there, or the copy.\n\n\
    Examples:\n  \
    eventbucket restore --from /backup/events.db --data /var/lib/eventbucket\n  \
    eventbucket restore --from /backup/events.db --replace      what is in ./eventbucket-data is kept under another name"
)]
pub(super) struct RestoreArgs {
    /// Copy that `eventbucket backup` made
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Put it in the place of a database that is there, which is kept beside it
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Where the events are kept.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// Data folder of a collector on this machine [default: ./eventbucket-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// PostgreSQL that collectors keep their log in [env: EVENTBUCKET_STORE_URL]
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    store_url: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn back_up(args: BackupArgs) -> Result<ExitCode, Failure> {
    const WHAT: &str = "back up the store";
    let BackupArgs { to, place } = args;
    let output = Output::new(place.json);
    let folder = match keeper(place.data.as_deref(), place.store_url.as_deref())? {
        Keeper::Folder(folder) => folder,
        Keeper::Server { store_url, accounts_url } => {
            let how = [Some(store_url), accounts_url].into_iter().flatten().map(|url| dump(&url));
            return Err(Failure::usage(WHAT, IN_POSTGRES).remedy(how.collect::<Vec<_>>().join("\n  ")));
        }
    };
    refuse_file(&folder)?;
    let (bar, on_progress) = progress::of_bytes("copying");
    let made = blocking(move || Store::back_up(&folder.join(DATABASE_FILE), &to, &*on_progress)).await;
    bar.finish_and_clear();
    let made = made.map_err(|error| Failure::new(WHAT, error))?;
    if output.is_json() {
        output.document(&BackupDocument::from(made))?;
    } else {
        tell(output, &made, "checked and on disk")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(args: RestoreArgs) -> Result<ExitCode, Failure> {
    const WHAT: &str = "restore the copy";
    let RestoreArgs { from, replace, place } = args;
    let output = Output::new(place.json);
    let folder = match keeper(place.data.as_deref(), place.store_url.as_deref())? {
        Keeper::Folder(folder) => folder,
        Keeper::Server { store_url, .. } => {
            return Err(Failure::usage(WHAT, IN_POSTGRES).remedy(undump(&store_url)));
        }
    };
    refuse_file(&folder)?;
    let (bar, on_progress) = progress::of_bytes("restoring");
    let done = blocking(move || Store::restore(&from, &folder, replace, &*on_progress)).await;
    bar.finish_and_clear();
    let done = done.map_err(|error| Failure::new(WHAT, error))?;
    if output.is_json() {
        output.document(&RestoredDocument::from(done))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Restored { database, replaced } = done;
    tell(output, &database, "restored, under a new epoch")?;
    if let Some(replaced) = replaced {
        let replaced = printable(&replaced.display().to_string());
        if output.is_terminal() {
            output
                .line(&format!("what was there before is kept as {replaced}; delete it when all is well"))?;
        } else {
            output.line(&format!("replaced\t{replaced}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Copying takes as long as the disk does.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, store::Error> {
    tokio::task::spawn_blocking(work).await.expect("copying doesn't panic and isn't cancelled")
}

fn tell(output: Output, made: &Backup, done: &str) -> Result<(), Failure> {
    let Backup { file, bytes, schema, projects } = made;
    let file = printable(&file.display().to_string());
    if !output.is_terminal() {
        output.text(&format!("file\t{file}\nbytes\t{bytes}\nschema\t{schema}\n"))?;
        let lines = projects.iter().map(|project| {
            format!("project\t{}\t{}\t{}\n", printable(&project.name), project.events, project.position)
        });
        return output.text(&lines.collect::<String>());
    }
    let rows: Vec<Vec<String>> = projects
        .iter()
        .map(|project| vec![project.name.clone(), grouped(project.events), grouped(project.position)])
        .collect();
    output.table(&[Column::Text("project"), Column::Figure("events"), Column::Figure("position")], &rows)?;
    let done = output.paint(Paint::Good, done);
    output.line(&format!("{file}: {} bytes, schema {schema}; {done}", grouped(*bytes)))
}

const IN_POSTGRES: &str = "the log is in PostgreSQL, whose own tools copy it, while collectors run; the password is asked for, or in \
    ~/.pgpass";

/// How a database is copied: its tables as of one moment, or the whole server with what point-in-time recovery needs.
fn dump(url: &str) -> String {
    let url = quoted(&without_password(url));
    format!(
        "pg_dump --format=custom --file=eventbucket.dump --dbname={url}\n  \
         or the whole server: pg_basebackup --pgdata=eventbucket-base --wal-method=stream --progress --dbname={url}"
    )
}

fn undump(url: &str) -> String {
    let url = quoted(&without_password(url));
    format!(
        "stop the collectors, then: pg_restore --clean --if-exists --single-transaction --dbname={url} eventbucket.dump\n  \
         and, before they start, a new epoch: psql --command='UPDATE epoch SET id = gen_random_uuid()' {url}"
    )
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_copy_a_server_is_a_line_for_a_shell_without_the_password() {
        let text = dump("postgres://ann:geheim@h:6432/d?sslmode=require&password=geheim");
        assert!(text.contains("--dbname='postgres://ann@h:6432/d?sslmode=require'\n"), "{text}");
        assert!(!text.contains("geheim"));
        assert_eq!(quoted("a'b"), r"'a'\''b'");
    }
}
