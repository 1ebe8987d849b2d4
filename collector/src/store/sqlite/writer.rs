use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::append::Head;
use super::group::{Member, Message, as_answer, gather, run_member};
use super::job::{Job, Pending, Turn, closed};
use super::place::Place;
use super::{SqliteOptions, open};
use crate::project::ProjectId;
use crate::store::Error;

/// How often the files are looked for while nothing is written: how late `ready` notices that they are gone.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// The pause before the writer is reopened: none after the first failure, then from 100 ms doubling to 5 s while failures
/// follow each other, e.g. on a full disk.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The way to the writer thread.
pub(super) struct Writer {
    messages: Sender<Message>,
    fault: Arc<Mutex<Option<Error>>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, options: SqliteOptions) -> Result<Self, Error> {
        let (messages, receiver) = mpsc::channel();
        let fault = Arc::default();
        let thread = WriterThread {
            connection: Some(connection),
            place: Place::of(&options.file)?,
            moved: false,
            heads: HashMap::new(),
            options,
            failures: 0,
            synced: true,
            reopen_at: Instant::now(),
            fault: Arc::clone(&fault),
        };
        let spawned = thread::Builder::new()
            .name("eventbucket-writer".to_owned())
            .spawn(move || thread.serve(&receiver));
        spawned
            .map_err(|error| Error::unavailable(format!("the writer thread can't be started: {error}")))?;
        Ok(Self { messages, fault })
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        kind: Job,
        work: impl FnMut(&mut Turn<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, outcome) = oneshot::channel();
        let sent = self.messages.send(Message::Job(kind, Box::new(Pending::new(work, answer))));
        sent.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(super) async fn close(&self) -> Result<(), Error> {
        let (answer, outcome) = oneshot::channel();
        // A writer that has ended already has nothing left to do.
        if self.messages.send(Message::Close(answer)).is_err() {
            return Ok(());
        }
        outcome.await.unwrap_or(Ok(()))
    }

    pub(super) fn serving(&self) -> Result<(), Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

struct WriterThread {
    /// `None` between a failure and the reopening.
    connection: Option<Connection>,
    /// Where the files were when they were opened, and whether they were missing there the last time.
    place: Place,
    moved: bool,
    heads: HashMap<ProjectId, Head>,
    options: SqliteOptions,
    /// Failures since the last commit.
    failures: u32,
    /// No sync can have failed since the file was last opened: nothing that failed was more than a full disk.
    synced: bool,
    reopen_at: Instant,
    fault: Arc<Mutex<Option<Error>>>,
}

impl WriterThread {
    fn serve(mut self, messages: &Receiver<Message>) {
        loop {
            let first = match self.wait(messages) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    if self.connection.is_none() {
                        self.reopen();
                    } else {
                        // The fault that this sets is the answer to whoever asks next.
                        let _ = self.look_for_files();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (group, close) = gather(first, messages);
            if !group.is_empty() {
                self.commit(group);
            }
            if let Some(answer) = close {
                self.set_fault(Some(closed()));
                let _ = answer.send(self.close());
                return;
            }
        }
    }

    /// Waits for the next message, until the files are to be looked for, or the closed database to be reopened.
    fn wait(&self, messages: &Receiver<Message>) -> Result<Message, RecvTimeoutError> {
        if self.connection.is_some() {
            return messages.recv_timeout(LOOK_PERIOD);
        }
        messages.recv_timeout(self.reopen_at.saturating_duration_since(Instant::now()))
    }

    /// Runs a group of jobs in one transaction and answers them when it is on disk.
    fn commit(&mut self, mut group: Vec<Member>) {
        if self.connection.is_none() && Instant::now() >= self.reopen_at {
            self.reopen();
        }
        match self.try_commit(&mut group) {
            Ok(()) => {
                self.failures = 0;
                for member in group {
                    member.work.finish(member.failure.map_or(Ok(()), Err));
                }
            }
            Err(error) => {
                if matches!(error, Error::Refused { .. }) && self.roll_back() {
                    return self.commit_apart(group, &error);
                }
                // A lock that wasn't got in time is no failure: nothing was begun. Files that were moved are still open.
                let begun = self.connection.as_ref().is_some_and(|connection| !connection.is_autocommit());
                let harmless = matches!(error, Error::Busy | Error::Moved { .. });
                if self.connection.is_some() && (begun || !harmless) {
                    self.poison(&error);
                }
                let answer = as_answer(error);
                for member in group {
                    member.work.finish(Err(member.failure.unwrap_or_else(|| answer.clone())));
                }
            }
        }
    }

    /// Gives each job of an undone group a transaction of its own, so that only the one that was refused fails.
    fn commit_apart(&mut self, group: Vec<Member>, error: &Error) {
        let alone = group.len() == 1;
        for mut member in group {
            if alone {
                member.work.finish(Err(error.clone()));
            } else {
                member.failure = None;
                self.commit(vec![member]);
            }
        }
    }

    /// Undoes the transaction at hand; says whether the connection can be trusted as before.
    fn roll_back(&mut self) -> bool {
        // The heads were moved by jobs that are undone with it.
        self.heads.clear();
        self.connection.as_ref().is_some_and(|connection| {
            connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok()
        })
    }

    fn try_commit(&mut self, group: &mut [Member]) -> Result<(), Error> {
        // Another process that found one of them missing has made it anew by now: both would write to the same log.
        if self.connection.is_some() {
            self.look_for_files()?;
        }
        let Some(connection) = &self.connection else { return Err(self.current_fault()) };
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let mut turn = Turn { connection, heads: &mut self.heads };
        let ran = catch_unwind(AssertUnwindSafe(|| {
            group.iter_mut().try_for_each(|member| run_member(member, &mut turn))
        }));
        ran.unwrap_or_else(|_| Err(Error::unavailable("a job of the writer panicked")))?;
        connection.execute_batch("COMMIT")?;
        // What was written to files that nobody finds again must not be confirmed.
        self.look_for_files()
    }

    /// Makes sure that the open files are where they were opened. While they aren't, nothing is written; the connection
    /// stays open, and when they are back it goes on as if nothing had been: they are the same files.
    fn look_for_files(&mut self) -> Result<(), Error> {
        let found = self.place.check();
        if self.moved == found.is_ok() {
            self.moved = found.is_err();
            self.set_fault(found.as_ref().err().cloned());
            if let Some(connection) = &self.connection {
                open::leave_log(connection, self.moved)?;
            }
            match &found {
                Ok(()) => tracing::info!("the database is back in its place"),
                Err(error) => self.save_log(error),
            }
        }
        found
    }

    /// A deleted write-ahead log is still open: what it holds is folded into the database while that is possible.
    fn save_log(&self, error: &Error) {
        tracing::error!(%error, "nothing is stored until the files are back");
        let alone = self.place.lacks_log_alone();
        if let Some(connection) = self.connection.as_ref().filter(|_| alone) {
            match open::fold(connection) {
                Ok(()) => {
                    tracing::info!("what the deleted log held is in the database; restart the collector");
                }
                Err(error) => {
                    tracing::error!(%error, "the deleted log could not be folded into the database");
                }
            }
        }
    }

    /// Folds the log into the file and closes it. Files that are not where they were are left as a kill would leave them:
    /// their log may belong to another database by now.
    fn close(&mut self) -> Result<(), Error> {
        match self.connection.take() {
            Some(connection) if !self.moved => open::fold(&connection),
            _ => Ok(()),
        }
    }

    /// After a failure nothing is known of what the connection and the heads hold: both are thrown away.
    fn poison(&mut self, error: &Error) {
        self.connection = None;
        self.synced &= matches!(error, Error::DiskFull);
        self.heads.clear();
        self.failures = self.failures.saturating_add(1);
        let (shortest, longest) = REOPEN_PAUSE;
        let doublings = self.failures.saturating_sub(2).min(16);
        let pause =
            if self.failures < 2 { Duration::ZERO } else { (shortest * (1 << doublings)).min(longest) };
        self.reopen_at = Instant::now() + pause;
        self.set_fault(Some(as_answer(error.clone())));
        tracing::error!(%error, failures = self.failures, ?pause, "a commit failed; the database is reopened");
        if pause.is_zero() {
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        match self.open_again() {
            Ok((connection, place)) => {
                self.connection = Some(connection);
                (self.place, self.moved) = (place, false);
                self.synced = true;
                self.set_fault(None);
                tracing::info!("the database is open again");
            }
            Err(error) => self.poison(&error),
        }
    }

    /// Opens the same file again, never another one that was put in its place. Its log may be another: the last to close a
    /// database removes it.
    fn open_again(&self) -> Result<(Connection, Place), Error> {
        self.place.database.check()?;
        let connection = open::again(&self.options, self.synced)?;
        self.place.database.check()?;
        Ok((connection, Place::of(&self.options.file)?))
    }

    fn set_fault(&self, fault: Option<Error>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    fn current_fault(&self) -> Error {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(closed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn writer(folder: &tempfile::TempDir) -> Writer {
        let options = SqliteOptions::new(folder.path().join("test.db"));
        Writer::start(open::create(&options).unwrap(), options).unwrap()
    }

    async fn insert(writer: &Writer, id: i64) -> Result<(), Error> {
        let sql = "INSERT INTO event_block VALUES (1, ?1, 0, 0)";
        writer.run(Job::Other, move |turn| Ok(turn.connection.execute(sql, [id]).map(drop)?)).await
    }

    #[tokio::test]
    async fn what_waits_shares_one_commit() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(folder.path().join("test.db"));
        let mut connection = open::create(&options).unwrap();
        let commits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&commits);
        let count = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            false
        };
        connection.commit_hook(Some(count)).unwrap();
        let writer = Arc::new(Writer::start(connection, options).unwrap());
        let (release, held) = mpsc::channel::<()>();
        let hold = move |_: &mut Turn<'_>| held.recv().map_err(|_| closed());
        let mut jobs = vec![tokio::spawn({
            let writer = Arc::clone(&writer);
            async move { writer.run(Job::Other, hold).await }
        })];
        for id in 0..50 {
            let writer = Arc::clone(&writer);
            jobs.push(tokio::spawn(async move { insert(&writer, id).await }));
        }
        // The test has one thread: once each task had its turn, all jobs are with the writer.
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        for job in jobs {
            job.await.unwrap().unwrap();
        }
        let commits = commits.load(Ordering::SeqCst);
        assert!((1..=2).contains(&commits), "{commits} commits for 51 jobs");
    }

    #[tokio::test]
    async fn a_job_that_panics_undoes_its_group_and_the_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let writer = writer(&folder);
        insert(&writer, 1).await.unwrap();
        let panics = |turn: &mut Turn<'_>| -> Result<(), Error> {
            turn.connection.execute("DELETE FROM event_block", [])?;
            panic!("as a bug would");
        };
        let told = writer.run(Job::Other, panics).await.unwrap_err();
        assert!(told.to_string().contains("panicked"), "{told}");
        insert(&writer, 2).await.unwrap();
        let count = |turn: &mut Turn<'_>| {
            Ok(turn
                .connection
                .query_row("SELECT count(*) FROM event_block", [], |row| row.get::<_, i64>(0))?)
        };
        assert_eq!(writer.run(Job::Other, count).await.unwrap(), 2);
        writer.serving().unwrap();
    }

    #[tokio::test]
    async fn a_closed_writer_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let writer = writer(&folder);
        insert(&writer, 1).await.unwrap();
        writer.serving().unwrap();
        writer.close().await.unwrap();
        writer.close().await.unwrap();
        assert!(writer.serving().is_err());
        assert!(matches!(insert(&writer, 2).await, Err(Error::Unavailable { .. })));
    }
}
