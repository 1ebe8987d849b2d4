use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};

use crate::store::Error;

/// Says of a failure whether it is about the data, about the moment, or about the database.
impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(told) = error.as_db_error() else { return without_answer(error) };
        let (code, message) = (told.code(), told.message());
        if *code == SqlState::DISK_FULL {
            return Self::DiskFull;
        }
        if let Some(error) = about_our_keys(told) {
            return error;
        }
        match &code.code()[..2] {
            // Data exceptions and broken constraints: the same value will be refused again.
            "22" | "23" => Self::Refused { what: message.into() },
            // Connection, transaction rollback, resources, operator intervention, locks, i/o.
            "08" | "40" | "53" | "57" | "58" => Self::unavailable(message),
            _ if is_about_the_moment(code) => Self::unavailable(message),
            _ if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED => {
                Self::corrupt(message)
            }
            _ => Self::Postgres { what: message.into(), code: code.code().into() },
        }
    }
}

/// Keys that are made of numbers which the log gives out itself: whatever is twice there, no event is to blame. A restored
/// database gives out numbers of ranges that a running process took before; others are free.
fn about_our_keys(told: &DbError) -> Option<Error> {
    let (table, key) = (told.table()?, told.constraint()?);
    if *told.code() != SqlState::UNIQUE_VIOLATION || key.strip_suffix("_pkey") != Some(table) {
        return None;
    }
    match table {
        "ranges" => {
            Some(Error::unavailable("the number of a range is in use already: the database was restored"))
        }
        "segment" | "segment_project" => Some(Error::corrupt(told.message())),
        _ if is_segment(table) => Some(Error::corrupt(told.message())),
        _ => None,
    }
}

fn is_segment(table: &str) -> bool {
    table.strip_prefix("event_").is_some_and(|number| number.parse::<i32>().is_ok())
}

/// Locks that weren't given in time, a session that was idle too long, a server that became a replica.
fn is_about_the_moment(code: &SqlState) -> bool {
    *code == SqlState::LOCK_NOT_AVAILABLE
        || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

fn without_answer(error: tokio_postgres::Error) -> Error {
    let source = error.source();
    if error.is_closed() || matches!(source, Some(source) if source.is::<std::io::Error>()) {
        return Error::unavailable(in_full(&error));
    }
    let text = in_full(&error);
    if text.contains("deserializing column") { Error::unreadable(text) } else { Error::unavailable(text) }
}

/// An error with everything that led to it; the driver's own text names the first step alone.
pub(super) fn in_full(error: &tokio_postgres::Error) -> String {
    if let Some(told) = error.as_db_error() {
        return told.message().to_owned();
    }
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
