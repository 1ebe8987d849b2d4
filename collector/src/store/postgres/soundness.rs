use std::collections::BTreeSet;

use super::pool::Lease;
use super::project_number;
use crate::project::ProjectId;
use crate::store::Error;

/// The keys without which the promises don't hold. What people added to look faster is left alone.
const KEYS: [&str; 19] = [
    "epoch_pkey",
    "event_block_pkey",
    "event_id_pkey",
    "event_name",
    "event_user",
    "head_pkey",
    "identification_email",
    "identification_link",
    "identification_pkey",
    "identification_seen",
    "ranges_batch",
    "ranges_first",
    "ranges_pkey",
    "retention_pkey",
    "rollup_counts_pkey",
    "rollup_users_pkey",
    "usage_pkey",
    "view_live_pkey",
    "view_state_pkey",
];

/// Finds what differs from the schema that this version makes: a key that is missing or can't be used, a segment without
/// its own, a trigger or a rule that changes what is written.
pub(super) async fn schema(lease: &mut Lease) -> Result<Option<String>, Error> {
    let mut wanted: BTreeSet<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    for row in lease.query("SELECT id FROM segment ORDER BY id", &[]).await? {
        wanted.insert(format!("event_{}_pkey", row.try_get::<_, i32>(0)?));
    }
    let select = "SELECT relname::text FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid
         WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'event'::regclass)
           AND indisvalid AND (indisunique OR relname NOT LIKE '%\\_pkey')";
    let mut found = BTreeSet::new();
    for row in lease.query(select, &[]).await? {
        found.insert(row.try_get::<_, String>(0)?);
    }
    if let Some(missing) = wanted.iter().find(|key| !found.contains(*key)) {
        return Ok(Some(format!("the index {missing} is missing or invalid")));
    }
    let select = "SELECT tgname::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
         WHERE NOT tgisinternal AND relname IN ('event', 'event_id', 'head', 'identification', 'ranges', 'rollup_counts', 'rollup_users', 'usage', 'view_state')
         UNION ALL
         SELECT rulename::text FROM pg_rules WHERE tablename IN ('event', 'event_id', 'head', 'identification', 'ranges', 'rollup_counts', 'rollup_users', 'usage')
         LIMIT 1";
    let row = lease.query_opt(select, &[]).await?;
    row.map(|row| Ok(format!("the trigger or rule {} is not ours", row.try_get::<_, String>(0)?))).transpose()
}

/// Tables whose rows belong to a project, which may live in another database. The log, heads and ranges are not among them: their
/// projects are audited whether they are there or not.
const OF_A_PROJECT: [&str; 6] =
    ["event_block", "view_state", "view_live", "rollup_counts", "rollup_users", "identification"];

/// Finds a row that names a project that isn't there.
pub(super) async fn stray(
    lease: &mut Lease,
    known: impl Iterator<Item = ProjectId>,
) -> Result<Option<String>, Error> {
    let known: Vec<i32> = known.map(project_number).collect();
    for table in OF_A_PROJECT {
        let sql = format!("SELECT project FROM {table} WHERE project <> ALL ($1) LIMIT 1");
        if let Some(row) = lease.query_opt(&sql, &[&known]).await? {
            let project: i32 = row.try_get(0)?;
            return Ok(Some(format!("a row of {table} names project {project}, which isn't there")));
        }
    }
    Ok(None)
}

/// Finds an identity whose range isn't there: its event was never stored, and would be taken for a duplicate for ever. All
/// identities are read once, whatever is set for questions about few.
pub(super) async fn identity_without_range(lease: &mut Lease) -> Result<Option<String>, Error> {
    lease.batch_execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on").await?;
    let select =
        "SELECT event_id.project, event_id.id FROM event_id LEFT JOIN ranges ON ranges.id = event_id.range_id
         WHERE ranges.id IS NULL LIMIT 1";
    let found = lease.query_opt(select, &[]).await?;
    lease.batch_execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off").await?;
    let Some(row) = found else { return Ok(None) };
    let (project, id): (i32, uuid::Uuid) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Some(format!("the identity {id} of project {project} belongs to no range")))
}
