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
    /// Whether there is a head row.
    pub head_known: bool,
    /// The position of the head row.
    pub head: u64,
    /// The running totals of the head row.
    pub head_ledger: Ledger,
    /// What a walk over the `ranges` rows found.
    pub ranges: RangeFigures,
    /// Whether a generation of the counts is live and says how far it has come.
    pub live: bool,
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
#[derive(Clone, Debug, Default)]
pub struct RowFigures {
    /// The position through which rows were dropped because of their age.
    pub dropped: u64,
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
    /// Rows that a read would refuse.
    pub unreadable: u64,
    /// The first of them, in words.
    pub unreadable_example: Option<String>,
    /// Rows that a filter by time would miss, because their block of positions doesn't say that it holds their time.
    pub hidden: u64,
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
    /// What the database's own check of its pages and indexes complains of, `None` when it is content.
    pub damage: Option<String>,
    /// The first difference between the file's schema and the one that this version makes, in words.
    pub schema: Option<String>,
    /// The first row that names another that isn't there, in words.
    pub reference: Option<String>,
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
            Backend::Postgres(postgres) => postgres.audit_figures(counters, progress).await,
        }
    }
}
