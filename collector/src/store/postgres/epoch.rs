use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::connection::Connection;
use crate::project::ProjectId;
use crate::store::Error;

/// What tells one history of a server from another: its identifier, and the timeline that a restore to a point in time or
/// the promotion of a replica begins.
const HISTORY: &str = "
    SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
    FROM pg_control_system()";

/// Identifier and timeline of a server that tells neither, as some hosted ones do: then a head that went back is the only sign.
const UNTOLD: (i64, i64) = (0, 0);

/// Says whether a server doesn't tell its history: a right that is missing, a function that is missing or not supported.
/// Anything else is about the moment. So is a recovery: it ends with another timeline, which whoever connected just before
/// would never see.
fn is_untold(error: &tokio_postgres::Error) -> bool {
    let untold =
        [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_FUNCTION, SqlState::FEATURE_NOT_SUPPORTED];
    error.code().is_some_and(|code| untold.contains(code))
}

/// The log's epoch as this process knows it, with the furthest head of each project that it has seen. A database that was
/// restored to an earlier state shows as another history or as a head that went back.
#[derive(Default)]
pub(super) struct Epoch {
    id: Mutex<Uuid>,
    ready: AtomicBool,
    seen: Mutex<HashMap<ProjectId, u64>>,
}

/// Heads that were seen before a question was asked; what the answer may not fall behind.
pub(super) struct Seen(HashMap<ProjectId, u64>);

impl Seen {
    /// Says whether a head is behind one that was seen.
    pub(super) fn is_ahead_of(&self, project: ProjectId, head: u64) -> bool {
        self.0.get(&project).is_some_and(|seen| *seen > head)
    }
}

impl Epoch {
    pub(super) fn id(&self) -> Uuid {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, id: Uuid) {
        let known = std::mem::replace(&mut *self.id.lock().unwrap_or_else(PoisonError::into_inner), id);
        if known != id && !known.is_nil() {
            tracing::warn!(epoch = %id, "the log has a new epoch: the database was restored or another server took over");
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Says that the tables are there, and looks for the first time.
    pub(super) async fn open(&self, connection: &Connection) -> Result<(), Error> {
        self.ready.store(true, Ordering::Release);
        self.look(connection).await
    }

    /// Reads the epoch, and renews it when the server has another history than when it was written.
    pub(super) async fn look(&self, connection: &Connection) -> Result<(), Error> {
        if !self.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let (system, timeline): (i64, i64) = match connection.query_one(HISTORY, &[]).await {
            Ok(row) => (row.try_get(0)?, row.try_get(1)?),
            Err(error) if is_untold(&error) => UNTOLD,
            Err(error) => return Err(error.into()),
        };
        // What isn't told is no other history: two roles with different rights would renew the epoch in turns.
        let renew = "INSERT INTO epoch (id, system_identifier, timeline) VALUES (gen_random_uuid(), $1, $2)
             ON CONFLICT (only_row) DO UPDATE
             SET id = excluded.id, system_identifier = $1, timeline = $2, created_at = now()
             WHERE (epoch.system_identifier, epoch.timeline) <> ($1, $2) AND ($1, $2) <> (0::int8, 0::int8)";
        connection.execute(renew, &[&system, &timeline]).await?;
        self.reload(connection).await
    }

    /// Takes the epoch that the log has now.
    pub(super) async fn reload(&self, connection: &Connection) -> Result<(), Error> {
        let row = connection.query_one("SELECT id FROM epoch", &[]).await?;
        self.set(row.try_get(0)?);
        Ok(())
    }

    /// Takes what was seen of these projects so far, before their heads are read and on the connection that reads them: as
    /// long as it is there, the server has no other history.
    pub(super) fn before_reading(&self, projects: impl Iterator<Item = ProjectId>) -> Seen {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Seen(projects.filter_map(|project| Some((project, *seen.get(&project)?))).collect())
    }

    /// Takes what was seen of every project so far, before their heads are read.
    pub(super) fn before_reading_all(&self) -> Seen {
        Seen(self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Notes a head that is committed.
    pub(super) fn saw(&self, project: ProjectId, head: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(project).or_default();
        *known = head.max(*known);
    }

    /// Renews the epoch because a head went back. Of several processes that notice, one does it.
    pub(super) async fn renew(&self, connection: &Connection) -> Result<(), Error> {
        let renew = "UPDATE epoch SET id = gen_random_uuid(), created_at = now() WHERE id = $1";
        connection.execute(renew, &[&self.id()]).await?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.reload(connection).await
    }
}
