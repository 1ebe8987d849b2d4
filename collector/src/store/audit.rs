use std::collections::BTreeMap;

use eventbucket_protocol::EventId;

use super::batches::BatchPart;
use super::{Backend, Error, Ledger, Store, StoredEvent};
use crate::project::ProjectId;

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
    /// Whether the live generation has had users from its first event on.
    pub has_users: bool,
    /// Sketches of users that differ from a recount.
    pub users_differences: u64,
    /// The first of them, in words.
    pub users_example: Option<String>,
    /// Whether a generation of the identifications is live and says how far it has come.
    pub identified: bool,
    /// The live generation of the identifications.
    pub identified_generation: u64,
    /// The position through which the identifications are applied.
    pub identified_to: u64,
    /// Ids of which the identifications tell other than a walk over the log, and one of them in words.
    pub identification_differences: u64,
    /// The first of them, in words.
    pub identification_example: Option<String>,
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
    /// Rows that a read would refuse, or that no collector would have stored.
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
    /// The first row that tells something else of its batch than its figures, in words.
    pub unlike: Option<String>,
}

/// A `ranges` row; rows are told in the order of their positions.
pub(super) struct RangeRow {
    pub(super) id: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) ledger: Ledger,
    /// `None` for one that others were folded into.
    pub(super) batch: Option<BatchPart>,
}

impl RangeFigures {
    pub(super) fn add(&mut self, row: &RangeRow) {
        let RangeRow { id, first, last, ledger, .. } = row;
        if *first != self.last.saturating_add(1) && self.gap.is_none() {
            self.gap = Some(format!("range {id} begins at {first}, the one before ended at {}", self.last));
        }
        let grown = last.checked_add(1) == first.checked_add(ledger.stored);
        if !(ledger.balances() && grown) && self.unbalanced.is_none() {
            self.unbalanced = Some(format!("range {id} from {first} to {last} says {ledger}"));
        }
        if self.unlike.is_none() {
            let told = |complaint| format!("range {id}: {complaint}");
            self.unlike = row.batch.as_ref().and_then(|batch| batch.complaint(ledger)).map(told);
        }
        self.last = *last;
        self.ledger += *ledger;
    }
}

impl RowFigures {
    /// Notes what a read of a row came to.
    pub(super) fn add_read(&mut self, read: Result<StoredEvent, Error>) -> Result<(), Error> {
        let example = match read {
            Ok(event) => match complaint(&event) {
                None => return Ok(()),
                Some(complaint) => format!("the event at {}: {complaint}", event.position),
            },
            Err(Error::Unreadable { what }) => what.to_string(),
            Err(error) => return Err(error),
        };
        self.unreadable += 1;
        self.unreadable_example.get_or_insert(example);
        Ok(())
    }
}

/// Says what no collector would have stored.
fn complaint(event: &StoredEvent) -> Option<String> {
    let id = &event.event.id;
    let hashed = id.text().map(|text| EventId::from_text(text).uuid());
    if hashed.is_some_and(|hashed| hashed != id.uuid()) {
        return Some(format!("its identity is not that of its text {:?}", id.text().unwrap_or_default()));
    }
    event.event.check().err().map(|reason| reason.message.into_owned())
}

/// Tells of an hour in which a view counts other than the log.
pub(super) fn rollup_example(name: &str, hour: &str, rollup: i64, log: i64) -> String {
    format!("{name:?} in the hour {hour}: the view counts {rollup}, the log {log}")
}

/// The live counters of a project, held against the names of the log one by one.
pub(super) struct LiveCounters<'a> {
    per_name: &'a BTreeMap<String, u64>,
    agreeing: usize,
}

impl<'a> LiveCounters<'a> {
    pub(super) fn new(per_name: &'a BTreeMap<String, u64>) -> Self {
        Self { per_name, agreeing: 0 }
    }

    /// Says where a name's counter differs.
    pub(super) fn differs(&mut self, name: &str, log: u64) -> Option<String> {
        let live = self.per_name.get(name).copied().unwrap_or(0);
        if live != log {
            return Some(format!("{name:?}: the live counter says {live}, the log {log}"));
        }
        self.agreeing += 1;
        None
    }

    /// Says, when all names of the log agreed, that there are counters of others.
    pub(super) fn differ_in_number(&self) -> Option<String> {
        let (live, agreeing) = (self.per_name.len(), self.agreeing);
        (live != agreeing).then(|| format!("{live} names are counted live, {agreeing} are in the log"))
    }
}

/// Names a sketch that differs from a recount.
pub(super) fn users_example(name: &str, hours: i64, start: &str) -> String {
    let span = match hours {
        0 => "of all time".to_owned(),
        1 => format!("of the hour {start}"),
        _ => format!("of the day that begins at {start}"),
    };
    format!("the users of {name:?} {span}: the view's sketch is not that of the log")
}

/// Names an id of which the view tells other than the log.
pub(super) fn identification_example(id: &str) -> String {
    format!("what is kept of the user {id:?} is not what the log says")
}

/// Everything an audit reads, from one snapshot.
#[derive(Clone, Debug, Default)]
pub struct AuditFigures {
    /// By project.
    pub projects: BTreeMap<ProjectId, ProjectFigures>,
    /// What the database looked at of its pages and indexes, in words.
    pub pages: &'static str,
    /// What it complains of there, `None` when it is content.
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
