//! The examples as a user runs them, against a collector.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod flights;
mod programs;

use std::path::Path;
use std::process::Command;

use eventbucket_collector::app::{self, Running};
use eventbucket_collector::config::{Config, Flags};
use eventbucket_collector::store::NewProject;

/// Cargo builds examples beside the tests.
fn example(name: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    Command::new(this.parent().unwrap().parent().unwrap().join("examples").join(name))
}

/// A collector with these variables, and the project of its first start.
async fn collector(variables: &[(&str, String)], data: &Path) -> (Running, NewProject) {
    let flags = Flags {
        data: Some(data.to_str().unwrap().to_owned()),
        listen: Some("127.0.0.1:0".to_owned()),
        ..Flags::default()
    };
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let mut running = app::start(&Config::load(&flags, variables).unwrap()).await.unwrap();
    let made = running.take_first_start().unwrap();
    (running, made)
}
