use eventbucket_protocol::Timestamp;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::output::{Column, Output, Paint, grouped, printable};

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works; somebody should see to it.
    Warning,
    /// It doesn't work, or won't for long.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    area: &'static str,
    level: Level,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// What a project's log looks like.
#[derive(Debug, Serialize)]
pub(super) struct ProjectLine {
    pub name: String,
    pub events: u64,
    pub position: u64,
    /// Events that aren't counted yet; `null` when the counts are missing.
    pub behind: Option<u64>,
    /// Its share of the database, estimated.
    pub bytes: u64,
    /// When the first and the last event that are there arrived.
    pub oldest: Option<String>,
    pub newest: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    status: Level,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub projects: Vec<ProjectLine>,
    /// The newest warnings and errors of the collector, oldest first, as it logged them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warned: Vec<serde_json::Value>,
}

impl Report {
    pub(super) fn new() -> Self {
        let mut report =
            Self { status: Level::Ok, findings: Vec::new(), projects: Vec::new(), warned: Vec::new() };
        report.ok("program", concat!("eventbucket ", env!("CARGO_PKG_VERSION")));
        report
    }

    pub(super) fn ok(&mut self, area: &'static str, found: impl Into<String>) {
        self.findings.push(Finding { area, level: Level::Ok, found: found.into(), remedy: None });
    }

    pub(super) fn warning(
        &mut self,
        area: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(area, Level::Warning, found.into(), remedy.into());
    }

    pub(super) fn problem(
        &mut self,
        area: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(area, Level::Problem, found.into(), remedy.into());
    }

    /// What an error says stands with what to do in one sentence.
    pub(super) fn failed(&mut self, area: &'static str, error: impl ToString) {
        self.add(area, Level::Problem, error.to_string(), String::new());
    }

    fn add(&mut self, area: &'static str, level: Level, found: String, remedy: String) {
        let remedy = Some(remedy).filter(|remedy| !remedy.is_empty());
        self.status = self.status.max(level);
        self.findings.push(Finding { area, level, found, remedy });
    }

    pub(super) fn worst(&self) -> Level {
        self.status
    }

    /// For people.
    pub(super) fn print(&self, output: Output) -> Result<(), Failure> {
        let mut text = String::new();
        for Finding { area, level, found, remedy } in &self.findings {
            let mark = match level {
                Level::Ok => output.paint(Paint::Good, "✓"),
                Level::Warning => output.paint(Paint::Strong, "!"),
                Level::Problem => output.paint(Paint::Bad, "✗"),
            };
            text.push_str(&format!("{mark} {area:<13} {}\n", printable(found)));
            if let Some(remedy) = remedy {
                text.push_str(&format!("{:16}{}\n", "", output.paint(Paint::Faint, &printable(remedy))));
            }
        }
        output.text(&text)?;
        self.print_projects(output)?;
        for line in &self.warned {
            let word = |name: &str| line[name].as_str().unwrap_or_default();
            let text = format!("{} {} {}", word("timestamp"), word("level"), word("message"));
            output.line(&output.paint(Paint::Faint, &printable(&text)))?;
        }
        output.line(&match self.status {
            Level::Ok => output.paint(Paint::Good, "all is well"),
            Level::Warning => output.paint(Paint::Strong, "it works; see to what is marked with !"),
            Level::Problem => output.paint(Paint::Bad, "there is a problem"),
        })
    }

    fn print_projects(&self, output: Output) -> Result<(), Failure> {
        if self.projects.is_empty() {
            return Ok(());
        }
        let columns = [
            Column::Text("project"),
            Column::Figure("events"),
            Column::Figure("position"),
            Column::Figure("not counted"),
            Column::Figure("about"),
            Column::Text("oldest"),
            Column::Text("newest"),
        ];
        let row = |of: &ProjectLine| {
            let time = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
            let behind = of.behind.map_or_else(|| "-".to_owned(), grouped);
            let (events, position) = (grouped(of.events), grouped(of.position));
            vec![
                of.name.clone(),
                events,
                position,
                behind,
                bytes(of.bytes),
                time(&of.oldest),
                time(&of.newest),
            ]
        };
        output.table(&columns, &self.projects.iter().map(row).collect::<Vec<_>>())
    }
}

/// A size for people.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A moment for people and programs.
pub(super) fn moment(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}
