use std::path::Path;

use eventbucket_protocol::Timestamp;

use super::{Error, PostgresOptions, Store, postgres, sqlite};

/// Projects that are told of one by one: enough for a screen, and each costs a few reads by key.
pub(super) const PROJECTS_MAX: usize = 1_000;

/// What a store looks like from outside: read without changing anything, and without reading everything.
#[derive(Clone, Debug)]
pub struct StoreFacts {
    /// The database and its version.
    pub engine: String,
    /// The parts of the schema.
    pub schemas: Vec<SchemaFacts>,
    /// The first difference from the schema that this version makes, in words.
    pub difference: Option<String>,
    /// What the database takes on its disk.
    pub bytes: u64,
    /// What its write-ahead log takes; `None` where the server sees to that.
    pub log_bytes: Option<u64>,
    /// Each project, in the order of their numbers, up to 1,000.
    pub projects: Vec<ProjectFacts>,
    /// Settings of a server, as new sessions find them.
    pub settings: Vec<(String, String)>,
}

/// A part of a schema.
#[derive(Clone, Debug)]
pub struct SchemaFacts {
    /// Which part.
    pub part: &'static str,
    /// The version that is there.
    pub found: u32,
    /// The version that this program knows.
    pub known: u32,
}

/// What a project's log looks like.
#[derive(Clone, Debug)]
pub struct ProjectFacts {
    /// Its name.
    pub name: String,
    /// The last position.
    pub position: u64,
    /// How many events are there.
    pub events: u64,
    /// How many of them are not counted yet; `None` when no generation of the counts is live.
    pub behind: Option<u64>,
    /// Its share of the database, estimated from its newest events.
    pub bytes: u64,
    /// When its first and its last event that are there arrived.
    pub oldest: Option<Timestamp>,
    /// When its last event arrived.
    pub newest: Option<Timestamp>,
}

/// Events of each project that its share of the database is estimated from.
pub(super) const SAMPLE_EVENTS: i64 = 200;

/// Shares out the bytes of a database by what the events of each project take on average.
pub(super) fn share_out(bytes: u64, projects: &mut [ProjectFacts], averages: &[f64]) {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let weigh = |(of, average): (&ProjectFacts, &f64)| of.events as f64 * average;
    let weights: Vec<f64> = projects.iter().zip(averages).map(weigh).collect();
    let sum: f64 = weights.iter().sum();
    for (of, weight) in projects.iter_mut().zip(weights) {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate, of no more than all"
        )]
        let share = if sum > 0.0 { (bytes as f64 * weight / sum) as u64 } else { 0 };
        of.bytes = share;
    }
}

/// Looking at a store that others may be using.
impl Store {
    /// Looks at a database in a file.
    ///
    /// # Errors
    /// When there is none, it isn't ours, is newer than this program, or can't be read.
    pub fn look(database: &Path) -> Result<StoreFacts, Error> {
        sqlite::look::look(database)
    }

    /// Looks at a server, in sessions that can't write.
    ///
    /// # Errors
    /// When it can't be reached or read.
    pub async fn look_at_server(options: PostgresOptions) -> Result<StoreFacts, Error> {
        postgres::look::look(options).await
    }
}
