use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::job::{Job, Turn, Work};
use crate::store::{Error, TRANSACTION_BATCHES_MAX, TRANSACTION_EVENTS_MAX};

/// What the writer thread is sent.
pub(super) enum Message {
    Job(Job, Box<dyn Work>),
    Close(oneshot::Sender<Result<(), Error>>),
}

/// A job of the group at hand, with its own failure if it had one.
pub(super) struct Member {
    pub(super) kind: Job,
    pub(super) work: Box<dyn Work>,
    pub(super) failure: Option<Error>,
}

/// Takes everything that waits, up to the bounds of one transaction or until the store is to be closed.
pub(super) fn gather(
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
        let full = events >= TRANSACTION_EVENTS_MAX || group.len() >= TRANSACTION_BATCHES_MAX;
        next = if full { None } else { messages.try_recv().ok() };
    }
    (group, None)
}

/// Runs one job. An error is returned when the transaction as a whole can't be trusted any more.
pub(super) fn run_member(member: &mut Member, turn: &mut Turn<'_>) -> Result<(), Error> {
    let savepoint = member.kind == Job::Other;
    if savepoint {
        turn.connection.execute_batch("SAVEPOINT job")?;
    }
    let outcome = member.work.run(turn);
    match outcome {
        Err(error) if concerns_all(&error) || !savepoint && may_be_half_done(&error) => {
            return Err(error);
        }
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

/// An append has no savepoint: what it fails with after its heads were read leaves half of it in the transaction.
fn may_be_half_done(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::Unreadable { .. })
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
            | Error::Refused { .. }
            | Error::CountsMissing(_)
            | Error::Unreadable { .. }
    )
}

/// What a client is told: causes that mend themselves or that people can mend by name, everything else in words.
pub(super) fn as_answer(error: Error) -> Error {
    match error {
        Error::DiskFull | Error::Busy | Error::Moved { .. } | Error::Unavailable { .. } => error,
        other => Error::unavailable(other.to_string()),
    }
}
