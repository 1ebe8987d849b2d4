//! The log with the real statements, but one transaction a call: no thread and no sync, so that a simulation decides what
//! happens when. Restoring a backup is what it is for people: the file of then, with an epoch of its own.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use super::append::{self, Head};
use super::job::Turn;
use super::{counts, events, follow, int, open, page, projects, rebuild, uint};
use crate::bus::message::ValidBatch;
use crate::project::{AccountId, ProjectId};
use crate::store::generations::View;
use crate::store::projects::now;
use crate::store::{
    Appended, Applied, CountTotals, Error, EventFilter, EventOrder, Ledger, StoredEvent, ViewProgress,
    ViewState,
};

/// An event of this name is refused, as what a database can't hold is.
const REFUSED: &str = "
    CREATE TRIGGER refuse BEFORE INSERT ON event WHEN new.name = 'poison'
    BEGIN SELECT raise(ABORT, 'poison'); END";

/// A log at rest.
pub(crate) struct Kept(Vec<u8>);

/// A log in a file of its own.
pub(crate) struct Scratch {
    folder: TempDir,
    connection: Option<Connection>,
    heads: HashMap<ProjectId, Head>,
    epoch: Uuid,
}

/// Everything about one project, read past whatever the workers use.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) events: Vec<StoredEvent>,
    pub(crate) head: u64,
    pub(crate) ledger: Ledger,
    /// First and last of every `ranges` row, and its ledger.
    pub(crate) ranges: Vec<(u64, u64, Ledger)>,
    pub(crate) state: ViewState,
    pub(crate) rollup: BTreeMap<(String, i64), u64>,
    /// Sketches of users as they are kept, by name, how many hours they cover (0 for all time) and where those begin.
    pub(crate) users: BTreeMap<(String, i16, i64), Vec<u8>>,
}

impl Scratch {
    /// Makes a log with so many projects, numbered from 1.
    pub(crate) fn blank(projects: u32) -> Kept {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("log");
        let mut connection = Connection::open(&file).expect("a file in it");
        open::migrate(&mut connection).expect("the schema of this version");
        connection.execute_batch(REFUSED).expect("a trigger");
        connection.execute("INSERT INTO account VALUES (1, 'a@b.c', 'team', 0)", []).expect("an account");
        for number in 0..projects {
            projects::insert_project(&connection, AccountId(1), &format!("project {number}"), now())
                .expect("a project");
        }
        drop(connection);
        Kept(std::fs::read(file).expect("the file"))
    }

    /// Begins with what was kept.
    pub(crate) fn from(kept: &Kept, epoch: Uuid) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut log = Self { folder, connection: None, heads: HashMap::new(), epoch };
        log.restore(kept, epoch);
        log
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What a backup would copy now.
    pub(crate) fn keep(&self) -> Kept {
        Kept(std::fs::read(self.file()).expect("the log's file"))
    }

    /// Puts a backup in the place of the log.
    pub(crate) fn restore(&mut self, kept: &Kept, epoch: Uuid) {
        self.connection = None;
        std::fs::write(self.file(), &kept.0).expect("room for the log");
        self.connection = Some(open_scratch(&self.file()));
        self.heads.clear();
        self.epoch = epoch;
    }

    pub(crate) fn epoch(&self) -> Uuid {
        self.epoch
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("the log is open between calls")
    }

    fn write<T>(&mut self, work: impl FnOnce(&mut Turn<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let connection = self.connection.as_ref().expect("the log is open between calls");
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let outcome = work(&mut Turn { connection, heads: &mut self.heads });
        match &outcome {
            Ok(_) => connection.execute_batch("COMMIT")?,
            Err(_) => {
                self.heads.clear();
                connection.execute_batch("ROLLBACK")?;
            }
        }
        outcome
    }

    pub(crate) fn quarantine(&mut self, batch: &ValidBatch, what: &str) -> Result<Appended, Error> {
        self.write(|turn| append::quarantine(turn, batch, what))
    }

    /// As the writer does: all in one transaction, or each by itself when one of them is refused.
    pub(crate) fn append_each(&mut self, batches: &[ValidBatch]) -> Vec<Result<Appended, Error>> {
        match self.write(|turn| append::append(turn, batches)) {
            Ok(appended) => appended.into_iter().map(Ok).collect(),
            Err(error) if batches.len() > 1 && error.concerns_one_batch() => {
                batches.iter().flat_map(|batch| self.append_each(std::slice::from_ref(batch))).collect()
            }
            Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    pub(crate) fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        counts::view_progress(self.connection())
    }

    pub(crate) fn apply_counts(&mut self, project: ProjectId, through: u64) -> Result<Applied, Error> {
        self.write(|turn| follow::apply(turn.connection, project, through))
    }

    pub(crate) fn went_back(
        &mut self,
        project: ProjectId,
        epoch: Uuid,
        seen: ViewState,
    ) -> Result<bool, Error> {
        let went_back = epoch == self.epoch && counts::is_behind(self.connection(), project, &seen)?;
        if went_back {
            self.epoch = Uuid::from_u128(self.epoch.as_u128().wrapping_add(1));
        }
        Ok(went_back)
    }

    pub(crate) fn count_totals(&self, project: ProjectId, names_max: usize) -> Result<CountTotals, Error> {
        counts::count_totals(self.connection(), project, names_max)
    }

    pub(crate) fn begin_rebuild(&mut self, project: ProjectId) -> Result<u64, Error> {
        self.write(|turn| rebuild::begin(turn.connection, View::Counts, project))
    }

    /// Says whether the generation is live.
    pub(crate) fn rebuild_step(&mut self, project: ProjectId, generation: u64) -> Result<bool, Error> {
        self.write(|turn| Ok(rebuild::step(turn.connection, View::Counts, project, generation)?.live))
    }

    /// Says whether there may be more to sweep.
    pub(crate) fn sweep(&mut self, project: ProjectId) -> Result<bool, Error> {
        self.write(|turn| rebuild::sweep(turn.connection, View::Counts, project))
    }

    /// Says whether an event is in the log.
    pub(crate) fn holds(&self, project: ProjectId, id: Uuid) -> bool {
        events::find(self.connection(), project, id).expect("the log can be read").is_some()
    }

    /// Reads everything about a project.
    pub(crate) fn contents(&self, project: ProjectId) -> Result<Contents, Error> {
        let connection = self.connection();
        let (mut all, mut next) = (Vec::new(), Some(0));
        while let Some(after) = next {
            let order = EventOrder::ByPosition { after };
            let page = page::page(connection, project, &EventFilter::default(), order, usize::MAX)?;
            (next, all) = (page.next, [all, page.events].concat());
        }
        let Head { position, ledger } = Head::read(connection, project)?;
        let state = counts::live_state(connection, project)?;
        let mut select = connection.prepare_cached(
            "SELECT first, last, received, stored, duplicate, quarantined, rejected FROM ranges WHERE project = ?1 ORDER BY id",
        )?;
        let ranges = select.query_map([project.0], |row| {
            let number = |column| row.get(column).map(uint);
            let ledger = Ledger {
                received: number(2)?,
                stored: number(3)?,
                duplicate: number(4)?,
                quarantined: number(5)?,
                rejected: number(6)?,
            };
            Ok((number(0)?, number(1)?, ledger))
        })?;
        let ranges = ranges.collect::<Result<_, _>>()?;
        let mut select = connection.prepare_cached(
            "SELECT name, hour_ms, count FROM rollup_counts WHERE project = ?1 AND generation = ?2",
        )?;
        let rollup = select.query_map((project.0, int(state.generation)), |row| {
            Ok(((row.get(0)?, row.get(1)?), row.get(2).map(uint)?))
        })?;
        let rollup = rollup.collect::<Result<_, _>>()?;
        let mut select = connection.prepare_cached(
            "SELECT name, hours, start_ms, sketch FROM rollup_users WHERE project = ?1 AND generation = ?2",
        )?;
        let users = select.query_map((project.0, int(state.generation)), |row| {
            Ok(((row.get(0)?, row.get(1)?, row.get(2)?), row.get(3)?))
        })?;
        let users = users.collect::<Result<_, _>>()?;
        Ok(Contents { events: all, head: position, ledger, ranges, state, rollup, users })
    }
}

fn open_scratch(file: &Path) -> Connection {
    let connection = Connection::open(file).expect("the log's file");
    // A simulated crash is no power cut: nothing is asked of the disk.
    let pragmas = "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
                   PRAGMA foreign_keys = ON";
    connection.execute_batch(pragmas).expect("settings of SQLite");
    connection.set_prepared_statement_cache_capacity(64);
    connection
}
