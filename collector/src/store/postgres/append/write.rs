use std::collections::BTreeMap;
use std::pin::pin;

use bytes::Bytes;
use eventbucket_protocol::Verdict;
use eventbucket_protocol::codec::encode;
use futures_util::SinkExt;
use futures_util::future::{join, try_join};
use uuid::Uuid;

use super::plan::{Culprits, Digest, Head, Identities, Known, KnownCulprits, Outcome};
use super::rows::{COLUMNS, Rows, stored};
use crate::bus::message::ValidBatch;
use crate::project::ProjectId;
use crate::store::batches::{refused_text, verdicts_text};
use crate::store::postgres::pool::Lease;
use crate::store::postgres::segments::BEGIN_APPEND;
use crate::store::postgres::{BLOCK_BITS, int, project_id, project_number, uint};
use crate::store::{Appended, Error};

/// Only in a transaction that [`BEGIN_APPEND`] began. It is sent before that is answered; where the server refused to begin,
/// cancelled just then or out of memory, this would be a transaction of its own and commit identities without their events.
const INSERT_IDENTITIES: &str = "
    INSERT INTO event_id (project, place, id, range_id, digest)
    SELECT * FROM unnest($1::int4[], $2::int4[], $3::uuid[], $4::int8[], $5::int8[])
    WHERE current_setting('eventbucket.append', true) = 'begun'
    ON CONFLICT DO NOTHING";

/// Those that were there before: an identity of this append leads to its own range and place.
const SELECT_KNOWN: &str = "
    SELECT known.project, known.id, known.digest
    FROM unnest($1::int4[], $2::int4[], $3::uuid[], $4::int8[]) AS sent (project, place, id, range_id)
    JOIN event_id AS known ON known.project = sent.project AND known.id = sent.id
    WHERE known.range_id <> sent.range_id OR known.place <> sent.place";

/// In the order of the projects, so that two writers never wait for each other. The newest segment is the open one, and
/// stays it until the append ends.
const LOCK_HEADS: &str = "
    SELECT project, segment, position, EXISTS (SELECT FROM quarantine WHERE quarantine.project = head.project),
           (SELECT max(id) FROM segment)
    FROM head WHERE project = ANY($1) ORDER BY project FOR UPDATE OF head";

/// With what they add to their projects' days.
const INSERT_RANGES: &str = "
    WITH added AS (
        INSERT INTO ranges (id, project, part, parts, first, last, batch, received_ms, received, stored, duplicate,
                            quarantined, rejected, verdicts, refused)
        SELECT * FROM unnest($1::int8[], $2::int4[], $3::int4[], $4::int4[], $5::int8[], $6::int8[], $7::uuid[], $8::int8[],
                             $9::int8[], $10::int8[], $11::int8[], $12::int8[], $13::int8[], $14::text[], $15::text[])
        RETURNING project, received_ms, received
    )
    INSERT INTO usage AS known (project, day, received)
    SELECT project, floor(received_ms / 86400000.0)::int8, sum(received) FROM added GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (project, day) DO UPDATE SET received = known.received + excluded.received";

/// Those of an append's ranges that are as it wrote them.
const COUNT_WRITTEN: &str = "
    SELECT count(*)
    FROM unnest($1::int8[], $2::int4[], $3::int4[], $4::int8[], $5::int8[], $6::uuid[], $7::text[])
         AS sent (id, project, part, first, last, batch, verdicts)
    JOIN ranges AS known ON known.id = sent.id
    WHERE (known.project, known.part, known.first, known.last, known.batch)
        = (sent.project, sent.part, sent.first, sent.last, sent.batch)
      AND known.verdicts IS NOT DISTINCT FROM sent.verdicts";

const UPDATE_HEADS: &str = "
    UPDATE head SET segment = $2, position = head.position + grown.stored, received = head.received + grown.received,
                    stored = head.stored + grown.stored, duplicate = head.duplicate + grown.duplicate,
                    quarantined = head.quarantined + grown.quarantined, rejected = head.rejected + grown.rejected
    FROM unnest($1::int4[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[])
         AS grown (project, received, stored, duplicate, quarantined, rejected)
    WHERE head.project = grown.project";

const UPSERT_BLOCKS: &str = "
    INSERT INTO event_block AS known (project, block, from_ms, to_ms)
    SELECT * FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[])
    ON CONFLICT (project, block) DO UPDATE
    SET from_ms = least(known.from_ms, excluded.from_ms), to_ms = greatest(known.to_ms, excluded.to_ms)
    WHERE excluded.from_ms < known.from_ms OR excluded.to_ms > known.to_ms";

const INSERT_SPANS: &str = "
    INSERT INTO segment_project (project, segment, first)
    SELECT project, $2, first FROM unnest($1::int4[], $3::int8[]) AS begun (project, first)";

const INSERT_QUARANTINE: &str = "
    INSERT INTO quarantine (project, id, batch, received_ms, reason, event) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT DO NOTHING";

const DELETE_QUARANTINED: &str = "
    DELETE FROM quarantine USING unnest($1::int4[], $2::uuid[]) AS stored (project, id)
    WHERE quarantine.project = stored.project AND quarantine.id = stored.id";

/// Begins the transaction and takes the identities. Returns those that were taken before.
pub(super) async fn take_identities(lease: &mut Lease, pieces: &[Identities]) -> Result<Known, Error> {
    let insert = lease.prepared(INSERT_IDENTITIES).await?;
    lease.will_begin();
    let Some((first, rest)) = pieces.split_first() else {
        lease.begin_as(BEGIN_APPEND).await?;
        return Ok(Known::new());
    };
    let taken = {
        // Sent together, in this order.
        let (begin, columns) = (lease.batch_execute(BEGIN_APPEND), first.columns());
        let (begun, taken) = join(begin, lease.execute(&insert, &columns)).await;
        begun?;
        taken?
    };
    let mut known = Known::new();
    find_known(lease, first, taken, &mut known).await?;
    for piece in rest {
        let taken = lease.execute(&insert, &piece.columns()).await?;
        find_known(lease, piece, taken, &mut known).await?;
    }
    Ok(known)
}

async fn find_known(
    lease: &mut Lease,
    sent: &Identities,
    taken: u64,
    known: &mut Known,
) -> Result<(), Error> {
    let missing = sent.ids.len() - usize::try_from(taken).unwrap_or(usize::MAX).min(sent.ids.len());
    if missing == 0 {
        return Ok(());
    }
    let select = lease.prepared(SELECT_KNOWN).await?;
    let rows = lease.query(&select, &[&sent.projects, &sent.places, &sent.ids, &sent.range_ids]).await?;
    if rows.len() != missing {
        // Between the two statements an old identity went with its retention: it is new now.
        return Err(Error::unavailable("identities changed while they were read"));
    }
    for row in rows {
        let key: (i32, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        known.insert(key, Digest(row.try_get(2)?));
    }
    Ok(())
}

impl Identities {
    fn columns(&self) -> [&(dyn tokio_postgres::types::ToSql + Sync); 5] {
        [&self.projects, &self.places, &self.ids, &self.range_ids, &self.digests]
    }
}

/// The heads of an append's projects, and the segment that new events go to.
#[derive(Default)]
pub(super) struct Heads {
    pub(super) of: BTreeMap<ProjectId, Head>,
    pub(super) open_segment: Option<i32>,
}

/// Locks the heads of these projects; one that isn't there is left out.
pub(super) async fn lock_heads(lease: &mut Lease, projects: &[ProjectId]) -> Result<Heads, Error> {
    let lock = lease.prepared(LOCK_HEADS).await?;
    let numbers: Vec<i32> = projects.iter().map(|project| project_number(*project)).collect();
    let mut heads = Heads::default();
    for row in lease.query(&lock, &[&numbers]).await? {
        let (segment, position) = (row.try_get(1)?, uint(row.try_get(2)?));
        let head = Head { segment, position, has_quarantined: row.try_get(3)? };
        heads.of.insert(project_id(row.try_get(0)?), head);
        heads.open_segment = row.try_get(4)?;
    }
    Ok(heads)
}

/// Writes everything that the outcome says, but doesn't commit.
pub(super) async fn write(
    lease: &mut Lease,
    batches: &[ValidBatch],
    range_ids: &[i64],
    outcome: &Outcome,
    segment: i32,
) -> Result<(), Error> {
    insert_ranges(lease, batches, range_ids, outcome).await?;
    write_heads(lease, outcome, segment).await?;
    write_blocks(lease, batches, outcome).await?;
    if outcome.entries.iter().any(|entry| entry.stored > 0) {
        copy_events(lease, batches, outcome, segment).await?;
    }
    Ok(())
}

async fn copy_events(
    lease: &mut Lease,
    batches: &[ValidBatch],
    outcome: &Outcome,
    segment: i32,
) -> Result<(), Error> {
    let sql = format!("COPY event_{segment} ({COLUMNS}) FROM STDIN (FORMAT binary)");
    let copy = lease.prepared(&sql).await?;
    let mut sink = pin!(lease.copy_in::<Bytes>(&copy).await?);
    let mut rows = Rows::new(segment);
    for (batch, appended) in batches.iter().zip(&outcome.appended) {
        for (place, position) in stored(appended) {
            if let Some(piece) = rows.add(batch, place, position) {
                sink.feed(piece).await?;
            }
        }
    }
    sink.feed(rows.end()).await?;
    sink.finish().await?;
    Ok(())
}

async fn insert_ranges(
    lease: &mut Lease,
    batches: &[ValidBatch],
    range_ids: &[i64],
    outcome: &Outcome,
) -> Result<(), Error> {
    let insert = lease.prepared(INSERT_RANGES).await?;
    let projects: Vec<i32> = batches.iter().map(|batch| project_number(batch.project)).collect();
    let part: Vec<i32> = batches.iter().map(|batch| batch.part.into()).collect();
    let parts: Vec<i32> = batches.iter().map(|batch| batch.parts.into()).collect();
    let position =
        |of: fn(&Appended) -> u64| -> Vec<i64> { outcome.appended.iter().map(|one| int(of(one))).collect() };
    let (first, last) = (position(|one| one.range.first), position(|one| one.range.last));
    let ids: Vec<Uuid> = batches.iter().map(|batch| batch.batch.uuid()).collect();
    let received_ms: Vec<i64> = batches.iter().map(|batch| batch.received.ms()).collect();
    let figure = |of: fn(&crate::store::Ledger) -> u64| -> Vec<i64> {
        outcome.entries.iter().map(|entry| int(of(entry))).collect()
    };
    let (received, stored) = (figure(|of| of.received), figure(|of| of.stored));
    let (duplicate, quarantined) = (figure(|of| of.duplicate), figure(|of| of.quarantined));
    let rejected = figure(|of| of.rejected);
    let verdicts: Vec<Option<String>> =
        outcome.appended.iter().map(|one| verdicts_text(&one.verdicts)).collect();
    let refused: Vec<Option<String>> = batches.iter().map(|batch| refused_text(&batch.refused)).collect();
    lease
        .execute(
            &insert,
            &[
                &range_ids,
                &projects,
                &part,
                &parts,
                &first,
                &last,
                &ids,
                &received_ms,
                &received,
                &stored,
                &duplicate,
                &quarantined,
                &rejected,
                &verdicts,
                &refused,
            ],
        )
        .await?;
    Ok(())
}

/// Says whether every range of an append is there as it was written.
pub(super) async fn are_there(
    lease: &mut Lease,
    batches: &[ValidBatch],
    range_ids: &[i64],
    appended: &[Appended],
) -> Result<bool, Error> {
    let projects: Vec<i32> = batches.iter().map(|batch| project_number(batch.project)).collect();
    let part: Vec<i32> = batches.iter().map(|batch| batch.part.into()).collect();
    let ids: Vec<Uuid> = batches.iter().map(|batch| batch.batch.uuid()).collect();
    let (first, last): (Vec<i64>, Vec<i64>) =
        appended.iter().map(|one| (int(one.range.first), int(one.range.last))).unzip();
    let verdicts: Vec<Option<String>> = appended.iter().map(|one| verdicts_text(&one.verdicts)).collect();
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&range_ids, &projects, &part, &first, &last, &ids, &verdicts];
    let written: i64 = lease.query_one(COUNT_WRITTEN, &values).await?.try_get(0)?;
    Ok(usize::try_from(written).is_ok_and(|written| written == batches.len()))
}

async fn write_heads(lease: &mut Lease, outcome: &Outcome, segment: i32) -> Result<(), Error> {
    let update = lease.prepared(UPDATE_HEADS).await?;
    let insert = lease.prepared(INSERT_SPANS).await?;
    let projects: Vec<i32> = outcome.projects.keys().map(|project| project_number(*project)).collect();
    let figure = |of: fn(&crate::store::Ledger) -> u64| -> Vec<i64> {
        outcome.projects.values().map(|growth| int(of(&growth.ledger))).collect()
    };
    let (received, stored) = (figure(|of| of.received), figure(|of| of.stored));
    let (duplicate, quarantined) = (figure(|of| of.duplicate), figure(|of| of.quarantined));
    let rejected = figure(|of| of.rejected);
    let entering = outcome.projects.iter().filter(|(_, growth)| growth.before.segment < segment);
    let (begun, firsts): (Vec<i32>, Vec<i64>) =
        entering.map(|(project, growth)| (project_number(*project), int(growth.before.position + 1))).unzip();
    let heads: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&projects, &segment, &received, &stored, &duplicate, &quarantined, &rejected];
    if begun.is_empty() {
        lease.execute(&update, &heads).await?;
    } else {
        let spans: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&begun, &segment, &firsts];
        try_join(lease.execute(&update, &heads), lease.execute(&insert, &spans)).await?;
    }
    Ok(())
}

/// Widens the times of the blocks that got new events.
async fn write_blocks(lease: &mut Lease, batches: &[ValidBatch], outcome: &Outcome) -> Result<(), Error> {
    let mut blocks: BTreeMap<(i32, u64), (i64, i64)> = BTreeMap::new();
    for (batch, appended) in batches.iter().zip(&outcome.appended) {
        let project = project_number(batch.project);
        for (place, position) in stored(appended) {
            let skew_ms = batch.skew_ms_at(place).unwrap_or(0);
            let time_ms = batch.events[place].time.shifted(skew_ms).ms();
            let times = blocks.entry((project, position >> BLOCK_BITS)).or_insert((time_ms, time_ms));
            *times = (times.0.min(time_ms), times.1.max(time_ms));
        }
    }
    if blocks.is_empty() {
        return Ok(());
    }
    let upsert = lease.prepared(UPSERT_BLOCKS).await?;
    let (projects, numbers): (Vec<i32>, Vec<i64>) =
        blocks.keys().map(|(project, block)| (*project, int(*block))).unzip();
    let (from_ms, to_ms): (Vec<i64>, Vec<i64>) = blocks.values().copied().unzip();
    lease.execute(&upsert, &[&projects, &numbers, &from_ms, &to_ms]).await?;
    Ok(())
}

/// Keeps the events that the database refuses, each as the protocol writes it. Returns those that were kept before. The heads
/// are locked, so no two writers keep the same one.
pub(super) async fn keep_aside(
    lease: &mut Lease,
    batches: &[ValidBatch],
    culprits: &Culprits,
) -> Result<KnownCulprits, Error> {
    let mut known = KnownCulprits::new();
    for (culprit @ (batch, place), reason) in culprits {
        let insert = lease.prepared(INSERT_QUARANTINE).await?;
        let (batch, event) = (&batches[*batch], &batches[*batch].events[*place]);
        let mut encoded = Vec::new();
        encode::event(event, &mut encoded);
        let (project, id) = (project_number(batch.project), event.id.uuid());
        let (of, received_ms) = (batch.batch.uuid(), batch.received.ms());
        if lease.execute(&insert, &[&project, &id, &of, &received_ms, reason, &encoded]).await? == 0 {
            known.insert(*culprit);
        }
    }
    Ok(known)
}

/// Takes events that are in the log now out of quarantine.
pub(super) async fn release(
    lease: &mut Lease,
    batches: &[ValidBatch],
    outcome: &Outcome,
) -> Result<(), Error> {
    let (mut projects, mut ids) = (Vec::new(), Vec::new());
    for (batch, appended) in batches.iter().zip(&outcome.appended) {
        if !outcome.projects[&batch.project].before.has_quarantined {
            continue;
        }
        for (place, event) in batch.events.iter().enumerate() {
            let quarantined = matches!(appended.verdicts[place], Verdict::Quarantined(_));
            let aside = appended.aside.binary_search_by_key(&place, |aside| aside.0).is_ok();
            if !quarantined && !aside {
                projects.push(project_number(batch.project));
                ids.push(event.id.uuid());
            }
        }
    }
    if !ids.is_empty() {
        let delete = lease.prepared(DELETE_QUARANTINED).await?;
        lease.execute(&delete, &[&projects, &ids]).await?;
    }
    Ok(())
}
