//! The store on Postgres: several collectors may share it, and people may query it with plain SQL.

/// Appends batches to the log.
mod append;

/// The walks of an audit.
mod audit;

/// One connection.
mod connection;

/// The view "counts".
mod counts;

/// The log's epoch.
mod epoch;

/// Reads the log.
mod events;

/// What a failure means.
mod failure;

/// Looks at a server from outside.
pub(super) mod look;

/// Makes and upgrades the schema.
mod migrate;

/// The view "identifications": who the users are.
mod identifications;

/// How a server is reached.
mod options;

/// Reads pages of the log.
mod page;

/// A few connections.
mod pool;

/// Reads the view "identifications".
mod profiles;

/// Accounts, projects and keys.
mod projects;

/// New generations of the views.
mod rebuild;

/// Drops old events.
mod retention;

/// The parts of the log that are dropped as a whole.
mod segments;

/// What an audit asks of the database itself.
mod soundness;

/// Forgets the identities of what was dropped.
mod sweep;

/// Encrypted connections.
mod tls;

/// How many different users the view "counts" has seen.
mod users;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::project::ProjectId;
use crate::store::Error;
use crate::store::generations::View;
use append::RangeIds;
use epoch::Epoch;
use migrate::Part;
pub use options::PostgresOptions;
use options::READ_CONNECTIONS;
use pool::Pool;
use segments::Segments;

/// Bits of a position within its block: 4,096 positions share one pair of times.
const BLOCK_BITS: u32 = 12;

#[derive(Clone)]
pub(super) struct Postgres(Arc<Shared>);

struct Shared {
    log: Pool,
    /// For what people ask: events, counts, audits. However slow they are, the others go on.
    reads: Pool,
    accounts: Pool,
    epoch: Arc<Epoch>,
    identity: Uuid,
    segments: Segments,
    range_ids: RangeIds,
    /// Projects that exist and whose head was made.
    ensured: Mutex<HashSet<ProjectId>>,
    /// An audit reads everything: one at a time.
    auditing: tokio::sync::Mutex<()>,
}

impl Postgres {
    pub(super) async fn connect(options: PostgresOptions) -> Result<Self, Error> {
        let epoch = Arc::new(Epoch::default());
        let log = Pool::new(options.log, options.connections, Some(Arc::clone(&epoch)))?;
        let reads = log.for_reads(READ_CONNECTIONS);
        let accounts = match options.accounts {
            Some(server) => Pool::new(server, options.connections.div_ceil(2), None)?,
            None => log.clone(),
        };
        let mut lease = log.lease().await?;
        let version: i32 = lease.query_one("SHOW server_version_num", &[]).await.and_then(server_version)?;
        if version < SERVER_VERSION_MIN {
            let found = version / 10_000;
            let what = format!("the server is PostgreSQL {found}, but 14 is the oldest that can be used");
            return Err(Error::Address { what: what.into() });
        }
        migrate::migrate(&mut lease, Part::Log).await?;
        epoch.open(&lease).await?;
        drop(lease);
        let mut lease = accounts.lease().await?;
        migrate::migrate(&mut lease, Part::Accounts).await?;
        let identity = lease.query_one("SELECT id FROM identity", &[]).await?.try_get(0)?;
        drop(lease);
        Ok(Self(Arc::new(Shared {
            log,
            reads,
            accounts,
            epoch,
            segments: Segments::new(options.segment_look),
            identity,
            range_ids: RangeIds::default(),
            ensured: Mutex::default(),
            auditing: tokio::sync::Mutex::default(),
        })))
    }

    pub(super) fn serving(&self) -> Result<(), Error> {
        self.0.log.reachable()?;
        self.0.accounts.reachable()
    }

    pub(super) fn epoch(&self) -> Uuid {
        self.0.epoch.id()
    }

    pub(super) fn identity(&self) -> Uuid {
        self.0.identity
    }

    pub(super) fn close(&self) {
        self.0.log.close();
        self.0.reads.close();
        self.0.accounts.close();
    }

    /// Makes the heads and the first generation of the views of projects that have none yet, once it is sure that the
    /// projects exist.
    async fn ensure(&self, projects: &[ProjectId]) -> Result<(), Error> {
        let unknown: Vec<ProjectId> = {
            let ensured = self.0.ensured.lock().unwrap_or_else(PoisonError::into_inner);
            projects.iter().copied().filter(|project| !ensured.contains(project)).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        self.require_projects(&unknown).await?;
        let numbers: Vec<i32> = unknown.iter().map(|project| project_number(*project)).collect();
        let mut lease = self.0.log.lease().await?;
        let ensure = lease.prepared(ENSURE).await?;
        lease.execute(&ensure, &[&numbers, &View::ALL.map(View::name).as_slice()]).await?;
        self.0.ensured.lock().unwrap_or_else(PoisonError::into_inner).extend(unknown);
        Ok(())
    }

    fn forget(&self, projects: &[ProjectId]) {
        let mut ensured = self.0.ensured.lock().unwrap_or_else(PoisonError::into_inner);
        projects.iter().for_each(|project| {
            ensured.remove(project);
        });
    }
}

/// SQL functions with a body of standard SQL came with 14, which is also the oldest release that is still maintained.
const SERVER_VERSION_MIN: i32 = 140_000;

fn server_version(row: tokio_postgres::Row) -> Result<i32, tokio_postgres::Error> {
    Ok(row.try_get::<_, &str>(0)?.parse().unwrap_or(0))
}

/// Sorted, so that two processes that meet new projects at once don't wait for each other in a ring.
const ENSURE: &str = "
    WITH made AS (
        INSERT INTO head (project) SELECT project FROM unnest($1::int4[]) AS wanted (project) ORDER BY project
        ON CONFLICT DO NOTHING RETURNING project
    ), state AS (
        INSERT INTO view_state (view, project, generation, applied_to, has_users)
        SELECT view, project, 1, 0, true FROM made CROSS JOIN unnest($2::text[]) AS of (view)
        ON CONFLICT DO NOTHING
    )
    INSERT INTO view_live (view, project, generation)
    SELECT view, project, 1 FROM made CROSS JOIN unnest($2::text[]) AS of (view) ON CONFLICT DO NOTHING";

/// Postgres has no unsigned integers; projects are numbered from 1 by an `integer` of its own.
fn project_number(project: ProjectId) -> i32 {
    i32::try_from(project.0).unwrap_or(i32::MAX)
}

/// Nothing that is counted here reaches 2^63.
fn int(value: u64) -> i64 {
    i64::try_from(value).expect("counts and positions stay below 2^63")
}

/// What is counted is never negative; a damaged row that says so reads as nothing and fails its checks.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn project_id(number: i32) -> ProjectId {
    ProjectId(u32::try_from(number).unwrap_or(0))
}
