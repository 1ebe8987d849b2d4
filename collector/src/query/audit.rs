//! Proves that what is stored agrees with itself: rows, head, ranges, rollups and live counters are counted each by
//! itself and held against each other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cache::Cache;
use crate::project::ProjectId;
use crate::store::{CountersToCheck, Error, ProjectFigures, RowFigures, Store, ViewProgress};

/// How long an audit waits for counts that don't move: three looks of the worker that follows the log, one a second.
const COUNTS_PATIENCE: Duration = Duration::from_secs(3);

/// How often it looks.
const COUNTS_LOOK_PERIOD: Duration = Duration::from_millis(50);

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
    let stored = wait_for_counts(store).await?;
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
        checks: checks(figures, stored.get(id).copied(), checked.contains(id)),
    };
    let of_store = |name, complaint: Option<&str>, content| {
        Check::new(name, complaint.is_none(), complaint.unwrap_or(content))
    };
    let store = vec![
        of_store("pages_are_sound", figures.damage.as_deref(), figures.pages),
        of_store(
            "schema_is_ours",
            figures.schema.as_deref(),
            "tables and indexes are as this version makes them",
        ),
        of_store(
            "references_hold",
            figures.reference.as_deref(),
            "every key and project names one that is there",
        ),
    ];
    Ok(Audit { projects: figures.projects.iter().map(judge).collect(), store })
}

/// Waits until everything that is stored now is counted, as long as the counts move, and returns each project's head.
async fn wait_for_counts(store: &Store) -> Result<BTreeMap<ProjectId, u64>, Error> {
    let mut seen = store.view_progress().await?;
    let stored: BTreeMap<ProjectId, u64> = seen.iter().map(|of| (of.project, of.head)).collect();
    let mut moved = Instant::now();
    let behind = |of: &ViewProgress| stored.get(&of.project).is_some_and(|head| of.applied_to() < *head);
    while seen.iter().any(behind) && moved.elapsed() < COUNTS_PATIENCE {
        tokio::time::sleep(COUNTS_LOOK_PERIOD).await;
        let now = store.view_progress().await?;
        let state = |of: &ViewProgress| (of.state, of.identified_to);
        if now.iter().zip(&seen).any(|(now, before)| state(now) != state(before)) {
            moved = Instant::now();
        }
        seen = now;
    }
    Ok(stored)
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

fn checks(figures: &ProjectFigures, stored_before: Option<u64>, counters: bool) -> Vec<Check> {
    let mut checks = vec![
        readable(figures),
        belongs(figures),
        dense(figures),
        unique(figures),
        head(figures),
        contiguous(figures),
        ranges(figures),
        balance(figures),
        verdicts(figures),
        totals(figures),
        blocks(figures),
        live(figures),
        current(figures, stored_before),
        applied(figures),
        rollup(figures),
        users(figures),
        identified(figures, stored_before),
        identifications(figures),
    ];
    if counters {
        let example = figures.counters_example.as_deref();
        let detail = example.unwrap_or("every live counter equals a recount of the log");
        checks.push(Check::new("counters_equal_recount", example.is_none(), detail));
    }
    checks
}

fn readable(figures: &ProjectFigures) -> Check {
    let RowFigures { count, unreadable, unreadable_example, .. } = &figures.rows;
    let detail = match unreadable_example {
        Some(example) => format!("{unreadable} of {count} rows can't be read, e.g. {example}"),
        None => format!("{count} rows were read as a page of events is"),
    };
    Check::new("rows_can_be_read", *unreadable == 0, detail)
}

fn blocks(figures: &ProjectFigures) -> Check {
    let hidden = figures.rows.hidden;
    let detail = match hidden {
        0 => "the blocks that serve filters by time cover every event".to_owned(),
        _ => format!("{hidden} events lie outside of the time their block says: filters by time miss them"),
    };
    Check::new("blocks_cover_times", hidden == 0, detail)
}

fn live(figures: &ProjectFigures) -> Check {
    let detail = if figures.live {
        format!("generation {} of the counts is the live one", figures.generation)
    } else {
        "no generation of the counts is live; `eventbucket rebuild` computes them anew".to_owned()
    };
    Check::new("counts_are_live", figures.live, detail)
}

/// Everything that was stored when the audit began is counted; what arrives during an audit may be counted after it.
fn current(figures: &ProjectFigures, stored_before: Option<u64>) -> Check {
    let (applied_to, head) = (figures.applied_to, figures.head);
    let holds = applied_to >= stored_before.unwrap_or(head).min(head);
    let behind = head.saturating_sub(applied_to);
    let detail = match (holds, behind) {
        (true, 0) => "everything stored is counted".to_owned(),
        (true, _) => {
            format!("everything stored before the audit is counted; {behind} events arrived during it")
        }
        (false, _) => format!(
            "{behind} stored events are not counted and nothing is counting them; a running collector does, or \
             `eventbucket rebuild`"
        ),
    };
    Check::new("counts_are_current", holds, detail)
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
    let rows = &figures.rows;
    let holds = match rows.count {
        0 => rows.last == 0,
        count => rows.first == rows.dropped + 1 && rows.last == rows.dropped + count,
    };
    let mut detail = format!("{} rows hold positions {} to {}", rows.count, rows.first, rows.last);
    if rows.dropped > 0 {
        detail.push_str(&format!("; those through {} were dropped because of their age", rows.dropped));
    }
    Check::new("positions_are_dense", holds, detail)
}

fn unique(figures: &ProjectFigures) -> Check {
    let rows = &figures.rows;
    let detail = format!("{} rows have {} different ids", rows.count, rows.ids);
    Check::new("ids_are_unique", rows.ids == rows.count, detail)
}

fn head(figures: &ProjectFigures) -> Check {
    let rows = figures.rows.dropped + figures.rows.count;
    let holds = figures.head_known && figures.head == rows && figures.head_ledger.stored == rows;
    let detail = if figures.head_known {
        let (head, stored) = (figures.head, figures.head_ledger.stored);
        format!("the head is at {head} and counts {stored} stored; the log has {rows} rows")
    } else {
        format!("there is no head row; the log has {rows} rows")
    };
    Check::new("head_equals_rows", holds, detail)
}

fn contiguous(figures: &ProjectFigures) -> Check {
    let gap = figures.ranges.gap.as_deref();
    let detail = gap.unwrap_or("each range begins where the one before ended");
    Check::new("ranges_are_contiguous", gap.is_none(), detail)
}

fn ranges(figures: &ProjectFigures) -> Check {
    let (sum, last) = (figures.ranges.ledger.stored, figures.ranges.last);
    let rows = figures.rows.dropped + figures.rows.count;
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

fn verdicts(figures: &ProjectFigures) -> Check {
    let unlike = figures.ranges.unlike.as_deref();
    let detail = unlike.unwrap_or("what each range tells of its batch agrees with its figures");
    Check::new("verdicts_agree", unlike.is_none(), detail)
}

fn totals(figures: &ProjectFigures) -> Check {
    let (rows, head) = (figures.ranges.ledger, figures.head_ledger);
    let detail = if rows == head {
        format!("the running totals equal the sum of the ranges: {} received", rows.received)
    } else {
        format!("the running totals ({head}) differ from the sum of the ranges ({rows})")
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

fn users(figures: &ProjectFigures) -> Check {
    let detail = match &figures.users_example {
        Some(example) => format!("{} differ, e.g. {example}", figures.users_differences),
        None if figures.has_users => {
            "every sketch of users equals that of a recount, byte for byte".to_owned()
        }
        None => "users of earlier events were not counted by an earlier version; `eventbucket rebuild` does"
            .to_owned(),
    };
    Check::new("users_equal_recount", figures.users_differences == 0, detail)
}

/// As for the counts: what was stored when the audit began is in the view.
fn identified(figures: &ProjectFigures, stored_before: Option<u64>) -> Check {
    let (identified_to, head) = (figures.identified_to, figures.head);
    let reached = (stored_before.unwrap_or(head).min(head)..=head).contains(&identified_to);
    let detail = if figures.identified {
        format!("the identifications are applied through {identified_to} of {head}")
    } else {
        "no generation of the identifications is live; a running collector makes one, or `eventbucket rebuild`"
            .to_owned()
    };
    Check::new("identifications_are_current", figures.identified && reached, detail)
}

fn identifications(figures: &ProjectFigures) -> Check {
    let detail = match &figures.identification_example {
        Some(example) => format!("{} differ, e.g. {example}", figures.identification_differences),
        None => "every user equals what a walk over the log makes of it, byte for byte".to_owned(),
    };
    Check::new("identifications_equal_recount", figures.identification_differences == 0, detail)
}
