use std::collections::BTreeMap;

use eventbucket_protocol::Timestamp;

use super::migrate::Part;
use super::pool::{Lease, Pool};
use super::{PostgresOptions, uint};
use crate::store::Error;
use crate::store::look::{PROJECTS_MAX, ProjectFacts, SAMPLE_EVENTS, SchemaFacts, StoreFacts, share_out};

/// What decides whether an answer of the server can be relied on.
const SETTINGS: [&str; 4] = ["fsync", "full_page_writes", "synchronous_commit", "max_connections"];

/// See [`crate::store::Store::look_at_server`].
pub(in crate::store) async fn look(options: PostgresOptions) -> Result<StoreFacts, Error> {
    let log = Pool::new(options.log, 1, None)?;
    let accounts = match options.accounts {
        Some(server) => Pool::new(server, 1, None)?,
        None => log.clone(),
    };
    let lease = session(&accounts).await?;
    let of_accounts = schema(&lease, Part::Accounts).await?;
    let names = if of_accounts.found > 0 { names(&lease).await? } else { BTreeMap::new() };
    drop(lease);
    let lease = session(&log).await?;
    let row = lease
        .query_one("SELECT current_setting('server_version'), pg_database_size(current_database())", &[])
        .await?;
    let (version, bytes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
    let of_log = schema(&lease, Part::Log).await?;
    let mut projects = Vec::new();
    if of_log.found > 0 {
        let mut averages = Vec::new();
        for (number, name) in names.into_iter().take(PROJECTS_MAX) {
            let (facts, average) = project(&lease, number, name).await?;
            projects.push(facts);
            averages.push(average);
        }
        share_out(uint(bytes), &mut projects, &averages);
    }
    let settings = settings(&lease).await?;
    Ok(StoreFacts {
        engine: format!("PostgreSQL {version}"),
        schemas: vec![of_log, of_accounts],
        difference: None,
        bytes: uint(bytes),
        log_bytes: None,
        projects,
        settings,
    })
}

async fn session(pool: &Pool) -> Result<Lease, Error> {
    let lease = pool.lease().await?;
    lease.batch_execute("SET default_transaction_read_only = on").await?;
    Ok(lease)
}

/// The version of a part; 0 where no collector was yet.
async fn schema(lease: &Lease, part: Part) -> Result<SchemaFacts, Error> {
    let is_there = "SELECT to_regclass('schema_version') IS NOT NULL";
    let found: i32 = if lease.query_one(is_there, &[]).await?.try_get(0)? {
        let select = "SELECT version FROM schema_version WHERE part = $1";
        lease.query_opt(select, &[&part.name()]).await?.map_or(Ok(0), |row| row.try_get(0))?
    } else {
        0
    };
    Ok(SchemaFacts { part: part.name(), found: found.unsigned_abs(), known: part.known() })
}

async fn names(lease: &Lease) -> Result<BTreeMap<i32, String>, Error> {
    let rows = lease.query("SELECT id, name FROM project", &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn project(lease: &Lease, number: i32, name: String) -> Result<(ProjectFacts, f64), Error> {
    let select = format!(
        "SELECT coalesce(max(position), 0), coalesce(max(position - dropped), 0),
                max(position) - (SELECT applied_to FROM view_live JOIN view_state USING (view, project, generation)
                                 WHERE view = 'counts' AND project = $1),
                (SELECT received_ms FROM event WHERE project = $1 ORDER BY position LIMIT 1),
                (SELECT received_ms FROM event WHERE project = $1 ORDER BY position DESC LIMIT 1),
                (SELECT avg(bytes)::float8 FROM (SELECT octet_length(properties) + octet_length(name) AS bytes FROM event
                                                 WHERE project = $1 ORDER BY position DESC LIMIT {SAMPLE_EVENTS}) AS newest)
         FROM head WHERE project = $1"
    );
    let row = lease.query_one(&select, &[&number]).await?;
    let moment = |column| Ok::<_, Error>(row.try_get::<_, Option<i64>>(column)?.and_then(Timestamp::from_ms));
    let facts = ProjectFacts {
        name,
        position: uint(row.try_get(0)?),
        events: uint(row.try_get(1)?),
        behind: row.try_get::<_, Option<i64>>(2)?.map(uint),
        bytes: 0,
        oldest: moment(3)?,
        newest: moment(4)?,
    };
    Ok((facts, row.try_get::<_, Option<f64>>(5)?.unwrap_or(0.0)))
}

/// As a session begins with them: this one has raised some for itself.
async fn settings(lease: &Lease) -> Result<Vec<(String, String)>, Error> {
    let select = "SELECT name, reset_val FROM pg_settings WHERE name = ANY($1) ORDER BY name";
    let rows = lease.query(select, &[&SETTINGS.as_slice()]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
