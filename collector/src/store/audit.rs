use std::collections::BTreeMap;

use crate::project::ProjectId;

use super::{Backend, Error, Ledger, Store};

/// The live counters to hold against a recount: their `applied_to` and the count of each name.
pub type CountersToCheck = BTreeMap<ProjectId, (u64, BTreeMap<String, u64>)>;

/// What one snapshot of the store says about one project, from sources that don't know of each other.
#[derive(Clone, Debug, Default)]
pub struct ProjectFigures {
    /// The project's name; empty when rows belong to a project that isn't there.
    pub name: String,
    /// Whether the project's own row exists.
    pub known: bool,
    /// What a walk over the rows of the log found.
    pub rows: RowFigures,
    /// The position of the head row.
    pub head: u64,
    /// The running totals of the head row.
    pub head_ledger: Ledger,
    /// What a walk over the `ranges` rows found.
    pub ranges: RangeFigures,
    /// The live generation of the counts and its `applied_to`.
    pub generation: u64,
    /// The position through which the counts are applied.
    pub applied_to: u64,
    /// Name and hour pairs whose rollup differs from a recount, and one of them in words.
    pub rollup_differences: u64,
    /// The first difference, in words.
    pub rollup_example: Option<String>,
    /// The sum over the rollup.
    pub rollup_sum: u64,
    /// The first live counter that differs from a recount, in words; `None` when all agree.
    pub counters_example: Option<String>,
}

/// What a walk over the rows of a project's log found.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowFigures {
    /// How many rows there are.
    pub count: u64,
    /// The lowest position.
    pub first: u64,
    /// The highest position.
    pub last: u64,
    /// How many different ids.
    pub ids: u64,
    /// Rows whose key names another project than the row does.
    pub misplaced: u64,
}

/// What a walk over a project's `ranges` rows found.
#[derive(Clone, Debug, Default)]
pub struct RangeFigures {
    /// The sums over the rows.
    pub ledger: Ledger,
    /// The last position of the last row.
    pub last: u64,
    /// The first row that doesn't begin where the one before ended, in words.
    pub gap: Option<String>,
    /// The first row whose own figures don't add up, in words.
    pub unbalanced: Option<String>,
}

/// Everything an audit reads, from one snapshot.
#[derive(Clone, Debug, Default)]
pub struct AuditFigures {
    /// By project.
    pub projects: BTreeMap<ProjectId, ProjectFigures>,
    /// What the database's own check of its pages complains of, `None` when it is content.
    pub damage: Option<String>,
}

/// The figures of an audit; the judgement over them is in [`crate::query::audit()`].
impl Store {
    /// Walks over everything that is stored, in one snapshot and bounded memory. `progress` is told positions: done, total.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn audit_figures(
        &self,
        counters: CountersToCheck,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<AuditFigures, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.audit_figures(counters, progress).await,
        }
    }
}
