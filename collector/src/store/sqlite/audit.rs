use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::Connection;

use super::append::BLOCK_BITS;
use super::counts::{COUNTS, hour_sql};
use super::events::{COLUMNS, CORRECTED_MS, read_event};
use super::{
    POSITION_BITS, Sqlite, compare, follow, identifications, int, key, open, position, soundness, uint, users,
};
use crate::project::ProjectId;
use crate::store::audit::RangeRow;
use crate::store::batches::BatchPart;
use crate::store::generations::View;
use crate::store::{AuditFigures, CountersToCheck, Error, Ledger, ProjectFigures, RowFigures};

/// Positions walked between two reports of progress: about 50 ms.
const SLICE: u64 = 50_000;

/// Bytes of a batch's id.
const ID_BYTES: u32 = 16;

/// What a walk adds up goes to temporary tables, which SQLite moves to a file of its own when they outgrow 16 MiB: memory
/// stays bounded however long the log is.
const TEMPORARY: &str = "
    PRAGMA temp_store = FILE;
    CREATE TEMP TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMP TABLE recount (name TEXT, hour_ms INTEGER, count INTEGER, PRIMARY KEY (name, hour_ms)) WITHOUT ROWID;
    CREATE TEMP TABLE recount_users (project INTEGER, generation INTEGER, hours INTEGER, start_ms INTEGER, name TEXT,
                                     sketch BLOB, PRIMARY KEY (project, generation, hours, start_ms, name));
    CREATE TEMP TABLE recount_identification (project INTEGER, generation INTEGER, user_id TEXT, linked_to TEXT,
        linked_at INTEGER, identified INTEGER, links INTEGER, events INTEGER, first_ms INTEGER, last_ms INTEGER,
        last_position INTEGER, email TEXT, traits TEXT, refused TEXT, PRIMARY KEY (project, generation, user_id));
    PRAGMA temp.cache_size = -16384;
";

/// What the walk makes of the ids that events carry.
pub(super) const RECOUNT_IDENTIFICATION: &str = "temp.recount_identification";

impl Sqlite {
    pub(in crate::store) async fn audit_figures(
        &self,
        counters: CountersToCheck,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<AuditFigures, Error> {
        // The scan goes on when whoever asked has gone, and keeps its turn until it ends.
        let alone = Arc::clone(&self.0.auditing).lock_owned().await;
        let shared = Arc::clone(&self.0);
        let audit = move || {
            let _alone = alone;
            let connection = open::reader(&shared.options)?;
            connection.execute_batch(TEMPORARY)?;
            // One snapshot for everything; a collector may go on writing beside it.
            let snapshot = connection.unchecked_transaction()?;
            figures(&snapshot, &counters, &progress)
        };
        let task = tokio::task::spawn_blocking(audit);
        task.await.unwrap_or_else(|_| Err(Error::unavailable("the audit was cut off")))
    }
}

fn figures(
    snapshot: &Connection,
    counters: &CountersToCheck,
    progress: &dyn Fn(u64, u64),
) -> Result<AuditFigures, Error> {
    let mut projects = known_projects(snapshot)?;
    read_ranges(snapshot, &mut projects)?;
    for project in projects_of_rows(snapshot)? {
        projects.entry(project).or_default();
    }
    let total = projects.values().map(|figures| figures.head).sum();
    let mut done = 0;
    progress(done, total);
    for (project, figures) in &mut projects {
        let mut report = |rows| {
            done += rows;
            progress(done, total);
        };
        walk(snapshot, *project, figures, counters.get(project), &mut report)?;
    }
    Ok(AuditFigures {
        projects,
        pages: "every page can be read, and every index agrees with its table",
        damage: soundness::damage(snapshot)?,
        schema: soundness::schema(snapshot)?,
        reference: soundness::reference(snapshot)?,
    })
}

/// Reads every project with its head row and the state of its live counts. Missing rows read as zeros and fail the checks.
fn known_projects(snapshot: &Connection) -> Result<BTreeMap<ProjectId, ProjectFigures>, Error> {
    let mut select = snapshot.prepare(
        "SELECT project.id, name, head.position, received, stored, duplicate, quarantined, rejected,
                view_live.generation, view_state.applied_to, view_state.has_users, who.generation, who_state.applied_to
         FROM project
         LEFT JOIN head ON head.project = project.id
         LEFT JOIN view_live ON view_live.view = ?1 AND view_live.project = project.id
         LEFT JOIN view_state ON view_state.view = ?1 AND view_state.project = project.id
                             AND view_state.generation = view_live.generation
         LEFT JOIN view_live AS who ON who.view = ?2 AND who.project = project.id
         LEFT JOIN view_state AS who_state ON who_state.view = ?2 AND who_state.project = project.id
                             AND who_state.generation = who.generation",
    )?;
    let rows = select.query_map([COUNTS, View::Identifications.name()], |row| {
        let number = |column| row.get::<_, Option<i64>>(column).map(|value| uint(value.unwrap_or(0)));
        let figures = ProjectFigures {
            name: row.get(1)?,
            known: true,
            head_known: row.get::<_, Option<i64>>(2)?.is_some(),
            head: number(2)?,
            head_ledger: Ledger {
                received: number(3)?,
                stored: number(4)?,
                duplicate: number(5)?,
                quarantined: number(6)?,
                rejected: number(7)?,
            },
            live: number(8)? > 0 && row.get::<_, Option<i64>>(9)?.is_some(),
            generation: number(8)?,
            applied_to: number(9)?,
            has_users: number(10)? > 0,
            identified: row.get::<_, Option<i64>>(12)?.is_some(),
            identified_generation: number(11)?,
            identified_to: number(12)?,
            ..ProjectFigures::default()
        };
        Ok((ProjectId(row.get(0)?), figures))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read_ranges(
    snapshot: &Connection,
    projects: &mut BTreeMap<ProjectId, ProjectFigures>,
) -> Result<(), Error> {
    let mut select = snapshot.prepare(
        "SELECT project, id, first, last, received, stored, duplicate, quarantined, rejected, part, parts,
                verdicts, refused, length(batch)
         FROM ranges ORDER BY id",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let figures = projects.entry(ProjectId(row.get(0)?)).or_default();
        let number = |column| row.get(column).map(uint);
        let ledger = Ledger {
            received: number(4)?,
            stored: number(5)?,
            duplicate: number(6)?,
            quarantined: number(7)?,
            rejected: number(8)?,
        };
        let batch = BatchPart {
            part: row.get(9)?,
            parts: row.get(10)?,
            events: ledger.received.saturating_sub(ledger.rejected),
            verdicts: row.get(11)?,
            refused: row.get(12)?,
        };
        let range =
            RangeRow { id: number(1)?, first: number(2)?, last: number(3)?, ledger, batch: Some(batch) };
        figures.ranges.add(&range);
        if row.get::<_, Option<u32>>(13)? != Some(ID_BYTES) {
            let what = format!("range {}: its batch id is not {ID_BYTES} bytes", range.id);
            figures.ranges.unlike.get_or_insert(what);
        }
    }
    Ok(())
}

/// Finds which projects the keys of the log name, by jumping from each to the next.
fn projects_of_rows(snapshot: &Connection) -> Result<BTreeSet<ProjectId>, Error> {
    let mut next = snapshot.prepare("SELECT min(key) FROM event WHERE key >= ?1")?;
    let (mut found, mut from) = (BTreeSet::new(), i64::MIN);
    while let Some(key) = next.query_row([from], |row| row.get::<_, Option<i64>>(0))? {
        let project = key >> POSITION_BITS;
        let id = u32::try_from(project)
            .map_err(|_| Error::corrupt(format!("row {key} of the log belongs to no project")))?;
        found.insert(ProjectId(id));
        // The largest keys there can be are those of the last project.
        let Some(next) = (project + 1).checked_mul(1 << POSITION_BITS) else { break };
        from = next;
    }
    Ok(found)
}

/// Walks over the rows of one project in slices; stops where the counts are applied to and where the live counters are,
/// to hold both against what was counted so far.
fn walk(
    snapshot: &Connection,
    project: ProjectId,
    figures: &mut ProjectFigures,
    counters: Option<&(u64, BTreeMap<String, u64>)>,
    report: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    snapshot.execute_batch(
        "DELETE FROM temp.seen; DELETE FROM temp.recount; DELETE FROM temp.recount_users;
                        DELETE FROM temp.recount_identification",
    )?;
    let end = (1 << POSITION_BITS) - 1;
    let mut stops = BTreeSet::from([figures.applied_to.min(end), figures.identified_to.min(end), end]);
    stops.extend(counters.map(|(applied_to, _)| (*applied_to).min(end)));
    let mut after = key(project, 0) - 1;
    for stop in stops {
        while let Some(last) = next_slice(snapshot, after, key(project, stop))? {
            report(walk_slice(snapshot, project, figures, after, last)?);
            after = last;
        }
        if stop == figures.applied_to {
            compare::rollup(snapshot, project, figures)?;
            compare::users(snapshot, project, figures)?;
        }
        if stop == figures.identified_to {
            compare::identifications(snapshot, project, figures)?;
        }
        if let Some((applied_to, per_name)) = counters
            && stop == *applied_to
        {
            figures.counters_example = compare::counters(snapshot, per_name)?;
        }
    }
    Ok(())
}

/// Returns the last key of the next slice behind `after`, which begins at the next row there is; `None` at the end.
fn next_slice(snapshot: &Connection, after: i64, stop: i64) -> Result<Option<i64>, Error> {
    let mut next = snapshot.prepare_cached("SELECT min(key) FROM event WHERE key > ?1 AND key <= ?2")?;
    let first: Option<i64> = next.query_row([after, stop], |row| row.get(0))?;
    Ok(first.map(|first| first.saturating_add(int(SLICE - 1)).min(stop)))
}

/// Counts the rows of a slice from the table itself, not from an index, and returns how many there are.
fn walk_slice(
    snapshot: &Connection,
    project: ProjectId,
    figures: &mut ProjectFigures,
    after: i64,
    last: i64,
) -> Result<u64, Error> {
    let rows = &mut figures.rows;
    let mut select = snapshot.prepare_cached(
        "SELECT count(*), min(key), max(key), sum(project <> ?3) FROM event NOT INDEXED WHERE key > ?1 AND key <= ?2",
    )?;
    let (count, low, high, misplaced): (i64, i64, i64, i64) = select
        .query_row((after, last, project.0), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    if rows.count == 0 {
        rows.first = position(low);
    }
    rows.last = position(high);
    rows.count += uint(count);
    rows.misplaced += uint(misplaced);
    read_rows(snapshot, rows, after, last)?;
    rows.hidden += hidden(snapshot, project, after, last)?;
    let mut seen = snapshot.prepare_cached(
        "INSERT OR IGNORE INTO temp.seen SELECT id FROM event NOT INDEXED WHERE key > ?1 AND key <= ?2",
    )?;
    rows.ids += seen.execute([after, last])? as u64;
    let mut recount = snapshot.prepare_cached(&format!(
        "INSERT INTO temp.recount
         SELECT name, {}, count(*) FROM event NOT INDEXED WHERE key > ?1 AND key <= ?2 GROUP BY 1, 2
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
        hour_sql()
    ))?;
    recount.execute([after, last])?;
    if position(last) <= figures.applied_to {
        let tally = follow::tallied(snapshot, after, last)?;
        users::add(snapshot, "temp.recount_users", project, figures.generation, tally)?;
    }
    let mut gathered = after;
    while position(last) <= figures.identified_to && gathered < last {
        let (gathering, through) = follow::gather(snapshot, gathered, last)?;
        identifications::add(
            snapshot,
            RECOUNT_IDENTIFICATION,
            project,
            figures.identified_generation,
            gathering,
        )?;
        gathered = key(project, through);
    }
    Ok(uint(count))
}

/// Reads every row of a slice as a read would.
fn read_rows(snapshot: &Connection, figures: &mut RowFigures, after: i64, last: i64) -> Result<(), Error> {
    let sql = format!("SELECT {COLUMNS} FROM event NOT INDEXED WHERE key > ?1 AND key <= ?2");
    let mut select = snapshot.prepare_cached(&sql)?;
    let mut rows = select.query([after, last])?;
    while let Some(row) = rows.next()? {
        figures.add_read(read_event(row))?;
    }
    Ok(())
}

/// Counts the rows of a slice whose block doesn't say that it holds their time.
fn hidden(snapshot: &Connection, project: ProjectId, after: i64, last: i64) -> Result<u64, Error> {
    let position_mask = (1_u64 << POSITION_BITS) - 1;
    let sql = format!(
        "SELECT count(*) FROM event NOT INDEXED LEFT JOIN event_block
                ON event_block.project = ?3 AND event_block.block = (event.key & {position_mask}) >> {BLOCK_BITS}
         WHERE event.key > ?1 AND event.key <= ?2
           AND ({CORRECTED_MS} BETWEEN event_block.from_ms AND event_block.to_ms) IS NOT TRUE"
    );
    let mut select = snapshot.prepare_cached(&sql)?;
    Ok(uint(select.query_row((after, last, project.0), |row| row.get(0))?))
}
