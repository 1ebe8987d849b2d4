//! What tests of the store start from: a store in a folder of its own, projects, batches.

use eventbucket_collector::bus::message::{Refused, ValidBatch};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{DATABASE_FILE, NewProject, SqliteOptions, Store};
use eventbucket_protocol::{BatchId, Code, Event, EventId, Properties, Timestamp};
use tempfile::TempDir;

use crate::store_postgres::Database;

/// 2024-03-01T12:34:56.789Z.
pub(crate) const NOON: i64 = 1_709_296_496_789;

/// An hour.
pub(crate) const HOUR: i64 = 3_600_000;

pub(crate) fn at(unix_ms: i64) -> Timestamp {
    Timestamp::from_ms(unix_ms).unwrap()
}

/// A store in a folder that goes away with it.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.0.path().join(DATABASE_FILE)
    }

    pub(crate) fn open(&self) -> Store {
        Store::sqlite(SqliteOptions::new(self.file())).unwrap()
    }

    /// A plain connection, to look at the file or to damage it.
    pub(crate) fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.file()).unwrap()
    }
}

/// An empty store, and what keeps it there.
pub(crate) enum Place {
    Sqlite(Folder),
    Postgres(Database),
}

impl Place {
    pub(crate) async fn both() -> [(Self, Store); 2] {
        let (folder, database) = (Folder::new(), Database::new().await);
        let (sqlite, postgres) = (folder.open(), database.open().await);
        [(Self::Sqlite(folder), sqlite), (Self::Postgres(database), postgres)]
    }

    pub(crate) async fn open(&self) -> Store {
        match self {
            Self::Sqlite(folder) => folder.open(),
            Self::Postgres(database) => database.open().await,
        }
    }

    /// Changes what is stored behind the store's back.
    pub(crate) async fn change(&self, sql: &str) {
        match self {
            Self::Sqlite(folder) => folder.sql().execute_batch(sql).unwrap(),
            Self::Postgres(database) => database.sql().await.batch_execute(sql).await.unwrap(),
        }
    }
}

/// Makes a project under an account of its own.
pub(crate) async fn project(store: &Store, name: &str) -> NewProject {
    let account = store.create_account(&format!("{name}@example.com"), "team").await.unwrap();
    store.create_project(account, name).await.unwrap()
}

/// Makes a store with one project.
pub(crate) async fn with_project() -> (Folder, Store, ProjectId) {
    let folder = Folder::new();
    let store = folder.open();
    let id = project(&store, "shop").await.project.id;
    (folder, store, id)
}

pub(crate) fn event(id: &str, name: &str) -> Event {
    Event {
        id: EventId::from_text(id),
        name: name.to_owned(),
        description: None,
        user: None,
        time: at(NOON),
        stream: None,
        correlation: None,
        properties: Properties::default(),
    }
}

pub(crate) fn batch(project: ProjectId, events: Vec<Event>) -> ValidBatch {
    ValidBatch {
        project,
        batch: BatchId::from_text("batch"),
        received: at(NOON + 1),
        skew_ms: None,
        events,
        undated: Vec::new(),
        refused: Vec::new(),
        part: 0,
        parts: 1,
    }
}

/// `count` events with ids that begin with `prefix`, named a, b, c in turn, one a minute.
pub(crate) fn events(prefix: &str, count: usize) -> Vec<Event> {
    let name = |i: usize| ["a", "b", "c"][i % 3];
    let time = |i: usize| at(NOON + i64::try_from(i).unwrap() * 60_000);
    (0..count).map(|i| Event { time: time(i), ..event(&format!("{prefix}{i}"), name(i)) }).collect()
}

/// Applies the views as far as the log goes.
pub(crate) async fn count_all(store: &Store, project: ProjectId) {
    loop {
        let applied = store.apply_counts(project, u64::MAX).await.unwrap();
        if applied.through == applied.from && applied.identified.through == applied.identified.from {
            return;
        }
    }
}

/// Applies the views of every project as far as its log goes.
pub(crate) async fn count_all_projects(store: &Store) {
    for project in store.projects(None).await.unwrap() {
        count_all(store, project.id).await;
    }
}

/// The total of every name.
pub(crate) async fn totals(store: &Store, project: ProjectId) -> Vec<(String, u64)> {
    let rows = store.counts(project, eventbucket_collector::store::CountsQuery::default()).await.unwrap();
    rows.into_iter().map(|row| (row.name, row.count)).collect()
}

/// Waits until a condition holds, looking every few milliseconds, for at most 20 s.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen within 20 s");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// So many refusals, at the first places of a body.
pub(crate) fn refused(count: u32) -> Vec<Refused> {
    (0..count).map(|place| Refused { place, code: Code::InvalidName }).collect()
}
