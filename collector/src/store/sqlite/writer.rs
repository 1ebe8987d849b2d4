use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::append::Head;
use super::job::{Job, Pending, Turn, Work, closed};
use super::{SqliteOptions, open};
use crate::project::ProjectId;
use crate::store::Error;

/// Events in one transaction, over all appends that wait: where SQLite's speed levels off.
const TRANSACTION_EVENTS_MAX: usize = 10_000;

/// Jobs in one transaction: bounds how long the first of them waits for the last.
const TRANSACTION_JOBS_MAX: usize = 256;

/// The pause before the writer is reopened: none after the first failure, then from 100 ms doubling to 5 s while failures
/// follow each other, e.g. on a full disk.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The way to the writer thread.
pub(super) struct Writer {
    messages: Sender<Message>,
    fault: Arc<Mutex<Option<Error>>>,
}

enum Message {
    Job(Job, Box<dyn Work>),
    Close(oneshot::Sender<Result<(), Error>>),
}

impl Writer {
    pub(super) fn start(connection: Connection, options: SqliteOptions) -> Result<Self, Error> {
        let (messages, receiver) = mpsc::channel();
        let fault = Arc::default();
        let thread = WriterThread {
            connection: Some(connection),
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
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Error> + Send + 'static,
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

/// A job of the group at hand, with its own failure if it had one.
struct Member {
    kind: Job,
    work: Box<dyn Work>,
    failure: Option<Error>,
}

struct WriterThread {
    /// `None` between a failure and the reopening.
    connection: Option<Connection>,
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
                    self.reopen();
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
                let folded = self.connection.take().map_or(Ok(()), |connection| open::fold(&connection));
                let _ = answer.send(folded);
                return;
            }
        }
    }

    /// Waits for the next message, but while the writer is closed only until it is to be reopened.
    fn wait(&self, messages: &Receiver<Message>) -> Result<Message, RecvTimeoutError> {
        if self.connection.is_some() {
            return messages.recv().map_err(|_| RecvTimeoutError::Disconnected);
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
                // A lock that wasn't got in time is no failure: nothing was begun.
                let begun = self.connection.as_ref().is_some_and(|connection| !connection.is_autocommit());
                if self.connection.is_some() && (begun || !matches!(error, Error::Busy)) {
                    self.poison(&error);
                }
                let answer = as_answer(error);
                for member in group {
                    member.work.finish(Err(member.failure.unwrap_or_else(|| answer.clone())));
                }
            }
        }
    }

    fn try_commit(&mut self, group: &mut [Member]) -> Result<(), Error> {
        let Some(connection) = &self.connection else { return Err(self.current_fault()) };
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let mut turn = Turn { connection, heads: &mut self.heads };
        let ran = catch_unwind(AssertUnwindSafe(|| {
            group.iter_mut().try_for_each(|member| run_member(member, &mut turn))
        }));
        ran.unwrap_or_else(|_| Err(Error::unavailable("a job of the writer panicked")))?;
        connection.execute_batch("COMMIT")?;
        Ok(())
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
        match open::again(&self.options, self.synced) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.synced = true;
                self.set_fault(None);
                tracing::info!("the database is open again");
            }
            Err(error) => self.poison(&error),
        }
    }

    fn set_fault(&self, fault: Option<Error>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    fn current_fault(&self) -> Error {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(closed)
    }
}

/// Takes everything that waits, up to the bounds of one transaction or until the store is to be closed.
fn gather(
    first: Message,
    messages: &Receiver<Message>,
) -> (Vec<Member>, Option<oneshot::Sender<Result<(), Error>>>) {
    let (mut group, mut events, mut next) = (Vec::new(), 0, Some(first));
    while let Some(message) = next {
        match message {
            Message::Job(kind, work) => {
                events += if let Job::Append { events } = kind { events } else { 0 };
                group.push(Member { kind, work, failure: None });
            }
            Message::Close(answer) => return (group, Some(answer)),
        }
        let full = events >= TRANSACTION_EVENTS_MAX || group.len() >= TRANSACTION_JOBS_MAX;
        next = if full { None } else { messages.try_recv().ok() };
    }
    (group, None)
}

/// Runs one job. An error is returned when the transaction as a whole can't be trusted any more.
fn run_member(member: &mut Member, turn: &mut Turn<'_>) -> Result<(), Error> {
    let savepoint = member.kind == Job::Other;
    if savepoint {
        turn.connection.execute_batch("SAVEPOINT job")?;
    }
    let outcome = member.work.run(turn);
    match outcome {
        Err(error) if concerns_all(&error) => return Err(error),
        Err(error) => {
            member.failure = Some(error);
            if savepoint {
                turn.connection.execute_batch("ROLLBACK TO job; RELEASE job")?;
            }
        }
        Ok(()) if savepoint => turn.connection.execute_batch("RELEASE job")?,
        Ok(()) => {}
    }
    Ok(())
}

/// Tells a failure of the file from a request that can't be met.
fn concerns_all(error: &Error) -> bool {
    !matches!(
        error,
        Error::UnknownProject(_)
            | Error::Taken { .. }
            | Error::InvalidName(_)
            | Error::TooManyProjects
            | Error::TooManyRows { .. }
    )
}

/// What a client is told: causes that mend themselves or that people can mend by name, everything else in words.
fn as_answer(error: Error) -> Error {
    match error {
        Error::DiskFull | Error::Busy | Error::Unavailable { .. } => error,
        other => Error::unavailable(other.to_string()),
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
