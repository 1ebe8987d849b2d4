use std::collections::HashMap;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::append::Head;
use crate::project::ProjectId;
use crate::store::Error;

/// What kind of job it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Appends to the log. It finds out whether it can be done before it writes, so that it needs no savepoint, which would
    /// copy every page it changes.
    Append {
        /// How many events.
        events: usize,
    },
    /// Anything else: its failure is undone by itself and is its own.
    Other,
}

/// What a job works with: the connection within the transaction, and the heads as this process left them.
pub(super) struct Turn<'w> {
    pub(super) connection: &'w Connection,
    pub(super) heads: &'w mut HashMap<ProjectId, Head>,
}

/// A job that is run within a transaction, and told afterwards what became of the transaction.
pub(super) trait Work: Send {
    /// Does the job, without committing. It is done again when its transaction was undone for another job's sake.
    fn run(&mut self, turn: &mut Turn<'_>) -> Result<(), Error>;
    /// Answers whoever asked, when it is known whether the transaction is on disk.
    fn finish(self: Box<Self>, outcome: Result<(), Error>);
}

/// A job between its sender and its answer.
pub(super) struct Pending<T, F> {
    work: F,
    result: Option<T>,
    answer: oneshot::Sender<Result<T, Error>>,
}

impl<T, F> Pending<T, F> {
    pub(super) fn new(work: F, answer: oneshot::Sender<Result<T, Error>>) -> Self {
        Self { work, result: None, answer }
    }
}

impl<T, F> Work for Pending<T, F>
where
    T: Send,
    F: FnMut(&mut Turn<'_>) -> Result<T, Error> + Send,
{
    fn run(&mut self, turn: &mut Turn<'_>) -> Result<(), Error> {
        self.result = None;
        self.result = Some((self.work)(turn)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), Error>) {
        let Self { result, answer, .. } = *self;
        // Whoever asked may have stopped waiting.
        let _ = answer.send(outcome.and_then(|()| result.ok_or_else(closed)));
    }
}

/// The answer of a writer that has ended.
pub(super) fn closed() -> Error {
    Error::unavailable("the store is closed")
}
