use super::pool::Lease;
use super::retention::Fence;
use crate::store::Error;

/// How much longer than the event its identity is kept at least: the longest that a spool may hold an event back and send
/// it again.
const IDENTITY_DAYS: i32 = 7;

/// How much longer it may take: one walk over all identities serves whatever was dropped within a day.
const SWEEP_DAYS: i32 = 1;

/// Pages of identities looked at in one transaction: 8 MiB, about 80,000 identities, 0.1 s.
const SWEEP_PAGES: i64 = 1_024;

/// Ranges folded in one transaction: about 50 ms.
const FOLD_RANGES: i64 = 5_000;

/// Forgets the identities of events that were dropped long enough ago, and folds their ranges into one a project. What is cut
/// short goes on with the next call; when nothing is due nothing is looked at.
pub(super) async fn forget_identities(lease: &mut Lease, fence: Fence) -> Result<u64, Error> {
    if !begin(lease, fence).await? {
        return Ok(0);
    }
    let mut forgotten = 0;
    while let Some(some) = sweep(lease, fence).await? {
        forgotten += some;
    }
    let cuts = "SELECT project, max(position) FROM dropped WHERE at < (SELECT sweep_before FROM retention)
         GROUP BY project ORDER BY project";
    for cut in lease.query(cuts, &[]).await? {
        let (project, position) = (cut.try_get(0)?, cut.try_get(1)?);
        let mut folded = Folded::default();
        while fold(lease, fence, (project, position), &mut folded).await? {}
    }
    fence.begin(lease).await?;
    lease.execute("DELETE FROM dropped WHERE at < (SELECT sweep_before FROM retention)", &[]).await?;
    lease.execute("UPDATE retention SET sweep_before = NULL, sweep_page = 0", &[]).await?;
    lease.commit().await?;
    Ok(forgotten)
}

/// Says whether there is something to forget: what an earlier call began with, or what has become due since.
async fn begin(lease: &mut Lease, fence: Fence) -> Result<bool, Error> {
    fence.begin(lease).await?;
    let begin = "UPDATE retention SET sweep_before = now() - make_interval(days => $1::int4), sweep_page = 0
         WHERE sweep_before IS NULL AND EXISTS (
             SELECT FROM dropped WHERE at < now() - make_interval(days => $1::int4 + $2::int4))";
    lease.execute(begin, &[&IDENTITY_DAYS, &SWEEP_DAYS]).await?;
    let under_way =
        lease.query_one("SELECT sweep_before IS NOT NULL FROM retention", &[]).await?.try_get(0)?;
    lease.commit().await?;
    Ok(under_way)
}

/// Looks at some pages of identities, in the order in which they lie: what is stored meanwhile is young wherever it comes to
/// lie. Returns how many were forgotten, `None` behind the last page.
async fn sweep(lease: &mut Lease, fence: Fence) -> Result<Option<u64>, Error> {
    fence.begin(lease).await?;
    let place = "SELECT sweep_page, pg_relation_size('event_id') / current_setting('block_size')::int8 FROM retention";
    let row = lease.query_one(place, &[]).await?;
    let (page, pages): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    if page >= pages {
        lease.commit().await?;
        return Ok(None);
    }
    let next = page + SWEEP_PAGES;
    let sweep = format!(
        "DELETE FROM event_id USING ranges, (
             SELECT project, max(position) AS position FROM dropped
             WHERE at < (SELECT sweep_before FROM retention) GROUP BY project) AS cut
         WHERE event_id.ctid >= '({page},0)' AND event_id.ctid < '({next},0)'
           AND ranges.id = event_id.range_id AND cut.project = event_id.project AND ranges.last <= cut.position"
    );
    let forgotten = lease.execute(&sweep, &[]).await?;
    lease.execute("UPDATE retention SET sweep_page = $1", &[&next]).await?;
    lease.commit().await?;
    Ok(Some(forgotten))
}

/// The range that others were folded into: through which position, and its number, when there is one.
#[derive(Default)]
struct Folded {
    last: i64,
    id: Option<i64>,
}

/// Replaces some of a project's oldest ranges by one with their sums, so that the ledger goes on balancing; says whether
/// there may be more. What was removed before is not looked at again: until the next vacuum it lies in the way.
async fn fold(
    lease: &mut Lease,
    fence: Fence,
    (project, cut): (i32, i64),
    folded: &mut Folded,
) -> Result<bool, Error> {
    fence.begin(lease).await?;
    let fold = lease
        .prepared(
            "WITH gone AS (
                 DELETE FROM ranges WHERE id = ANY ($4::int8 || ARRAY(
                     SELECT id FROM ranges WHERE project = $1 AND first > $3 AND first <= $2 AND last <= $2
                     ORDER BY first, last LIMIT $5)) RETURNING *
             ), folded AS (
                 INSERT INTO ranges (id, project, part, parts, first, last, batch, received_ms, received, stored, duplicate,
                                     quarantined, rejected)
                 SELECT max(id), $1, 0, 1, 1, max(last), '00000000-0000-0000-0000-000000000000', max(received_ms),
                        sum(received), sum(stored), sum(duplicate), sum(quarantined), sum(rejected)
                 FROM gone HAVING count(*) > 0
                 RETURNING id, last
             )
             SELECT id, last, (SELECT count(*) FROM gone) FROM folded",
        )
        .await?;
    let row = lease.query_opt(&fold, &[&project, &cut, &folded.last, &folded.id, &FOLD_RANGES]).await?;
    lease.commit().await?;
    let Some(row) = row else { return Ok(false) };
    *folded = Folded { id: row.try_get(0)?, last: row.try_get(1)? };
    Ok(row.try_get::<_, i64>(2)? >= FOLD_RANGES)
}
