mod compare;
mod walk;

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;

use super::counts::COUNTS;
use super::events::{read_ledger, small};
use super::pool::Lease;
use super::{Postgres, project_id, soundness, uint};
use crate::project::ProjectId;
use crate::store::audit::RangeRow;
use crate::store::batches::BatchPart;
use crate::store::generations::View;
use crate::store::{AuditFigures, CountersToCheck, Error, ProjectFigures};
use walk::Walk;

/// The server looks at every page that it reads; indexes are for its extension amcheck.
const PAGES: &str = "every page of the log could be read";

/// What a walk adds up goes to temporary tables of the database: memory stays bounded on both sides however long the log
/// is. The connection, and the tables with it, is closed at the end.
const TEMPORARY: &str = "
    SET statement_timeout = 0;
    SET idle_in_transaction_session_timeout = 0;
    CREATE TEMP TABLE audit_recount (
        name text COLLATE \"C\", hour_ms bigint, count bigint NOT NULL, PRIMARY KEY (name, hour_ms)
    );
    CREATE TEMP TABLE audit_users (LIKE rollup_users INCLUDING STORAGE INCLUDING INDEXES);
    CREATE TEMP TABLE audit_identification (LIKE identification INCLUDING DEFAULTS INCLUDING INDEXES)";

impl Postgres {
    pub(in crate::store) async fn audit_figures(
        &self,
        counters: CountersToCheck,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<AuditFigures, Error> {
        let _alone = self.0.auditing.lock().await;
        let mut lease = self.0.reads.lease().await?;
        lease.will_begin();
        lease.batch_execute(TEMPORARY).await?;
        // One snapshot for everything, taken by its first question; collectors may go on writing beside it.
        lease.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT").await?;
        // Projects may be in another database. Those that are made from now on have nothing in the snapshot.
        let mut projects = BTreeMap::new();
        for project in self.projects_by(&mut lease, None).await? {
            let figures = ProjectFigures { name: project.name, known: true, ..ProjectFigures::default() };
            projects.insert(project.id, figures);
        }
        let mut progress = progress;
        match figures(&mut lease, projects, &counters, &mut progress).await {
            // The server finds it while the walk reads; nothing else can be said then.
            Err(Error::Corrupt { what }) => {
                Ok(AuditFigures { damage: Some(what.to_string()), ..AuditFigures::default() })
            }
            figures => figures,
        }
    }
}

async fn figures(
    lease: &mut Lease,
    mut projects: BTreeMap<ProjectId, ProjectFigures>,
    counters: &CountersToCheck,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<AuditFigures, Error> {
    read_heads(lease, &mut projects).await?;
    read_ranges(lease, &mut projects).await?;
    let segments = segments_of_rows(lease).await?;
    for project in segments.keys() {
        projects.entry(*project).or_default();
    }
    let total = projects.values().map(|figures| figures.head).sum();
    let (mut done, mut reference) = (0, None);
    progress(done, total);
    for (project, figures) in &mut projects {
        let of_project = segments.get(project).cloned().unwrap_or_default();
        let mut walk = Walk {
            lease: &mut *lease,
            project: *project,
            figures,
            reference: &mut reference,
            sealed: [0; 2],
        };
        let mut report = |rows| {
            done += rows;
            progress(done, total);
        };
        walk.run(&of_project, counters.get(project), &mut report).await?;
    }
    let schema = soundness::schema(lease).await?;
    let known = projects.iter().filter(|(_, figures)| figures.known).map(|(id, _)| *id);
    let mut reference = reference.or(soundness::stray(lease, known).await?);
    if reference.is_none() {
        reference = soundness::identity_without_range(lease).await?;
    }
    Ok(AuditFigures { projects, pages: PAGES, damage: None, schema, reference })
}

/// Reads every head row and the state of its live counts. Missing rows read as zeros and fail the checks.
async fn read_heads(
    lease: &mut Lease,
    projects: &mut BTreeMap<ProjectId, ProjectFigures>,
) -> Result<(), Error> {
    let select = "SELECT head.project, position, received, stored, duplicate, quarantined, rejected,
                view_live.generation, view_state.applied_to, dropped, view_state.has_users, who.generation, who_state.applied_to
         FROM head
         LEFT JOIN view_live ON view_live.view = $1 AND view_live.project = head.project
         LEFT JOIN view_state ON view_state.view = $1 AND view_state.project = head.project
                             AND view_state.generation = view_live.generation
         LEFT JOIN view_live AS who ON who.view = $2 AND who.project = head.project
         LEFT JOIN view_state AS who_state ON who_state.view = $2 AND who_state.project = head.project
                             AND who_state.generation = who.generation";
    for row in lease.query(select, &[&COUNTS, &View::Identifications.name()]).await? {
        let figures = projects.entry(project_id(row.try_get(0)?)).or_default();
        let number =
            |column| -> Result<u64, Error> { Ok(row.try_get::<_, Option<i64>>(column)?.map_or(0, uint)) };
        figures.head_known = true;
        figures.head = number(1)?;
        figures.head_ledger = read_ledger(&row, 2)?;
        figures.live = number(7)? > 0 && row.try_get::<_, Option<i64>>(8)?.is_some();
        (figures.generation, figures.applied_to) = (number(7)?, number(8)?);
        figures.rows.dropped = number(9)?;
        figures.has_users = row.try_get::<_, Option<bool>>(10)?.unwrap_or(false);
        figures.identified = row.try_get::<_, Option<i64>>(12)?.is_some();
        (figures.identified_generation, figures.identified_to) = (number(11)?, number(12)?);
    }
    // A project's head is made with its first use; one without any has nothing to check.
    for figures in projects.values_mut().filter(|figures| !figures.head_known) {
        (figures.head_known, figures.live, figures.generation) = (true, true, 1);
        (figures.has_users, figures.identified, figures.identified_generation) = (true, true, 1);
    }
    Ok(())
}

async fn read_ranges(
    lease: &mut Lease,
    projects: &mut BTreeMap<ProjectId, ProjectFigures>,
) -> Result<(), Error> {
    let select =
        "SELECT received, stored, duplicate, quarantined, rejected, project, id, first, last, part, parts, verdicts, refused,
                first = 1 AND batch = '00000000-0000-0000-0000-000000000000'
         FROM ranges ORDER BY project, first, last";
    let none: [&(dyn ToSql + Sync); 0] = [];
    let mut rows = pin!(lease.query_raw(select, none).await?);
    while let Some(row) = rows.try_next().await? {
        let ledger = read_ledger(&row, 0)?;
        let number = |column| -> Result<u64, Error> { Ok(uint(row.try_get(column)?)) };
        let batch = BatchPart {
            part: small(row.try_get(9)?),
            parts: small(row.try_get(10)?),
            events: ledger.received.saturating_sub(ledger.rejected),
            verdicts: row.try_get(11)?,
            refused: row.try_get(12)?,
        };
        let batch = (!row.try_get::<_, bool>(13)?).then_some(batch);
        let range = RangeRow { id: number(6)?, first: number(7)?, last: number(8)?, ledger, batch };
        projects.entry(project_id(row.try_get(5)?)).or_default().ranges.add(&range);
    }
    Ok(())
}

/// Finds which segments hold rows of which project, by jumping from each project to the next.
async fn segments_of_rows(lease: &mut Lease) -> Result<BTreeMap<ProjectId, Vec<i32>>, Error> {
    let mut found: BTreeMap<ProjectId, Vec<i32>> = BTreeMap::new();
    for row in lease.query("SELECT id FROM segment ORDER BY id", &[]).await? {
        let segment: i32 = row.try_get(0)?;
        let sql = format!("SELECT min(project) FROM event_{segment} WHERE project > $1");
        let next = lease.prepared(&sql).await?;
        let mut after = i32::MIN;
        while let Some(project) = lease.query_one(&next, &[&after]).await?.try_get(0)? {
            found.entry(project_id(project)).or_default().push(segment);
            after = project;
        }
    }
    Ok(found)
}
