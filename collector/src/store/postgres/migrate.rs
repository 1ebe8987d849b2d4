use super::pool::Lease;
use crate::store::Error;

/// The lock under which one process at a time upgrades a database: "evbucket" in ASCII.
const LOCK: i64 = 0x6576_6275_636b_6574;

/// A part of the schema that is upgraded by itself, because accounts may live in another database than the log.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Log,
    Accounts,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Accounts => "accounts",
        }
    }

    /// The version that this program makes.
    pub(super) fn known(self) -> u32 {
        u32::try_from(self.migrations().len()).expect("a handful of migrations")
    }

    /// Every migration there ever was, in order; version N is the Nth of its part, whatever number its file has.
    fn migrations(self) -> &'static [&'static str] {
        match self {
            Self::Log => &[
                include_str!("../../../migrations/postgres/0001_log.sql"),
                include_str!("../../../migrations/postgres/0002_users.sql"),
                include_str!("../../../migrations/postgres/0003_retention.sql"),
                include_str!("../../../migrations/postgres/0004_usage.sql"),
                include_str!("../../../migrations/postgres/0006_identifications.sql"),
            ],
            Self::Accounts => &[
                include_str!("../../../migrations/postgres/0001_accounts.sql"),
                include_str!("../../../migrations/postgres/0002_identity.sql"),
                include_str!("../../../migrations/postgres/0005_limits.sql"),
            ],
        }
    }
}

/// Brings a part of the schema to this version, each step in a transaction of its own, one process at a time.
pub(super) async fn migrate(lease: &mut Lease, part: Part) -> Result<(), Error> {
    let known = part.known();
    loop {
        lease.begin().await?;
        // Whoever upgrades a large database may take long, and is waited for.
        lease.batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
        lease.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
        let found = version(lease, part).await?;
        if found > known {
            lease.rollback().await?;
            return Err(Error::NewerSchema { found, known });
        }
        let Some(step) = part.migrations().get(found as usize) else { return lease.commit().await };
        tracing::info!(part = part.name(), version = found + 1, "upgrading the schema of the database");
        lease.batch_execute(step).await?;
        let write = "INSERT INTO schema_version (part, version) VALUES ($1, $2)
             ON CONFLICT (part) DO UPDATE SET version = excluded.version";
        let next = i32::try_from(found + 1).expect("a handful of migrations");
        lease.execute(write, &[&part.name(), &next]).await?;
        lease.commit().await?;
    }
}

async fn version(lease: &mut Lease, part: Part) -> Result<u32, Error> {
    lease
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS schema_version (part text PRIMARY KEY, version integer NOT NULL)",
        )
        .await?;
    let row = lease.query_opt("SELECT version FROM schema_version WHERE part = $1", &[&part.name()]).await?;
    let version: i32 = row.map_or(Ok(0), |row| row.try_get(0))?;
    u32::try_from(version).map_err(|_| Error::corrupt("the schema's version is negative"))
}
