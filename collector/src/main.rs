//! `eventbucket`: the collector and the commands that read and manage it.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    eventbucket_collector::cli::run().await
}
