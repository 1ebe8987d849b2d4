//! Proves that what is stored agrees with itself: rows, head, ranges, rollups and live counters are counted each by
//! itself and held against each other.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cache::Cache;
use crate::project::ProjectId;
use crate::store::{CountersToCheck, Error, ProjectFigures, Store};

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// Each project by itself.
    pub projects: Vec<ProjectAudit>,
    /// What concerns the whole store.
    pub store: Vec<Check>,
}

impl Audit {
    /// Says whether everything holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        let of_projects = self.projects.iter().flat_map(|project| &project.checks);
        of_projects.chain(&self.store).all(|check| check.holds)
    }
}

/// What an audit found in one project.
#[derive(Clone, Debug, Serialize)]
pub struct ProjectAudit {
    /// The project.
    pub project_id: ProjectId,
    /// Its name.
    pub name: String,
    /// Rows of the log, counted one by one.
    pub stored: u64,
    /// The position in the head row.
    pub position: u64,
    /// The position through which the counts are applied.
    pub applied_to: u64,
    /// What was held against what.
    pub checks: Vec<Check>,
}

/// One thing that must hold.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// A stable name for programs.
    pub name: &'static str,
    /// Whether it does.
    pub holds: bool,
    /// The figures, for people.
    pub detail: String,
}

impl Check {
    fn new(name: &'static str, holds: bool, detail: impl Into<String>) -> Self {
        Self { name, holds, detail: detail.into() }
    }
}

/// Audits every project, and the live counters too when a cache is given. Works beside a running collector: everything is
/// read from one snapshot. `progress` is told positions: done, total.
///
/// # Errors
/// When the store can't be read.
pub async fn audit(
    store: &Store,
    cache: Option<&Cache>,
    progress: impl Fn(u64, u64) + Send + 'static,
) -> Result<Audit, Error> {
    // Counters first: they never run ahead of the store, so the snapshot that follows contains all they contain.
    let counters = live_counters(store, cache).await?;
    let checked: Vec<ProjectId> = counters.keys().copied().collect();
    let figures = store.audit_figures(counters, progress).await?;
    let judge = |(id, figures): (&ProjectId, &ProjectFigures)| ProjectAudit {
        project_id: *id,
        name: figures.name.clone(),
        stored: figures.rows.count,
        position: figures.head,
        applied_to: figures.applied_to,
        checks: checks(figures, checked.contains(id)),
    };
    let damage = figures.damage.as_deref();
    let pages = Check::new("pages_are_sound", damage.is_none(), damage.unwrap_or("every page can be read"));
    Ok(Audit { projects: figures.projects.iter().map(judge).collect(), store: vec![pages] })
}

async fn live_counters(store: &Store, cache: Option<&Cache>) -> Result<CountersToCheck, Error> {
    let mut counters = BTreeMap::new();
    let Some(cache) = cache else { return Ok(counters) };
    for project in store.projects(None).await? {
        if let Some(live) = cache.counters(project.id).await {
            counters.insert(project.id, (live.applied_to, live.per_name));
        }
    }
    Ok(counters)
}

fn checks(figures: &ProjectFigures, counters: bool) -> Vec<Check> {
    let mut checks = vec![
        belongs(figures),
        dense(figures),
        unique(figures),
        head(figures),
        contiguous(figures),
        ranges(figures),
        balance(figures),
        totals(figures),
        applied(figures),
        rollup(figures),
    ];
    if counters {
        let example = figures.counters_example.as_deref();
        let detail = example.unwrap_or("every live counter equals a recount of the log");
        checks.push(Check::new("counters_equal_recount", example.is_none(), detail));
    }
    checks
}

fn belongs(figures: &ProjectFigures) -> Check {
    let misplaced = figures.rows.misplaced;
    let detail = match (figures.known, misplaced) {
        (false, _) => format!("{} rows belong to a project that doesn't exist", figures.rows.count),
        (true, 0) => "every row belongs to the project its key names".to_owned(),
        (true, _) => format!("{misplaced} rows carry another project than their key names"),
    };
    Check::new("rows_belong", figures.known && misplaced == 0, detail)
}

fn dense(figures: &ProjectFigures) -> Check {
    let rows = figures.rows;
    let holds = if rows.count == 0 { rows.last == 0 } else { rows.first == 1 && rows.last == rows.count };
    let detail = format!("{} rows hold positions {} to {}", rows.count, rows.first, rows.last);
    Check::new("positions_are_dense", holds, detail)
}

fn unique(figures: &ProjectFigures) -> Check {
    let rows = figures.rows;
    let detail = format!("{} rows have {} different ids", rows.count, rows.ids);
    Check::new("ids_are_unique", rows.ids == rows.count, detail)
}

fn head(figures: &ProjectFigures) -> Check {
    let holds = figures.head == figures.rows.count && figures.head_ledger.stored == figures.rows.count;
    let detail = format!(
        "the head is at {} and counts {} stored; the log has {} rows",
        figures.head, figures.head_ledger.stored, figures.rows.count
    );
    Check::new("head_equals_rows", holds, detail)
}

fn contiguous(figures: &ProjectFigures) -> Check {
    let gap = figures.ranges.gap.as_deref();
    let detail = gap.unwrap_or("each range begins where the one before ended");
    Check::new("ranges_are_contiguous", gap.is_none(), detail)
}

fn ranges(figures: &ProjectFigures) -> Check {
    let (sum, last, rows) = (figures.ranges.ledger.stored, figures.ranges.last, figures.rows.count);
    let detail = format!("the ranges count {sum} stored and end at {last}; the log has {rows} rows");
    Check::new("ranges_equal_rows", sum == rows && last == rows, detail)
}

fn balance(figures: &ProjectFigures) -> Check {
    let ledger = figures.ranges.ledger;
    let detail = figures.ranges.unbalanced.clone().unwrap_or_else(|| {
        format!(
            "received {} = stored {} + duplicate {} + quarantined {} + rejected {}",
            ledger.received, ledger.stored, ledger.duplicate, ledger.quarantined, ledger.rejected
        )
    });
    Check::new("ledger_balances", figures.ranges.unbalanced.is_none() && ledger.balances(), detail)
}

fn totals(figures: &ProjectFigures) -> Check {
    let (rows, head) = (figures.ranges.ledger, figures.head_ledger);
    let detail = if rows == head {
        format!("the running totals equal the sum of the ranges: {} received", rows.received)
    } else {
        format!("the running totals {head:?} differ from the sum of the ranges {rows:?}")
    };
    Check::new("ledger_totals_equal_ranges", rows == head, detail)
}

fn applied(figures: &ProjectFigures) -> Check {
    let (applied_to, head) = (figures.applied_to, figures.head);
    let detail = format!("the counts are applied through {applied_to} of {head}");
    Check::new("applied_within_log", applied_to <= head, detail)
}

fn rollup(figures: &ProjectFigures) -> Check {
    let holds = figures.rollup_differences == 0 && figures.rollup_sum == figures.applied_to;
    let detail = match &figures.rollup_example {
        Some(example) => format!("{} differ, e.g. {example}", figures.rollup_differences),
        None => format!(
            "generation {} counts {} events through position {}",
            figures.generation, figures.rollup_sum, figures.applied_to
        ),
    };
    Check::new("counts_equal_recount", holds, detail)
}
