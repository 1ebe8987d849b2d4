use std::collections::BTreeMap;

use eventbucket_protocol::Timestamp;
use uuid::Uuid;

use crate::insight::{self, Grain, Sketch};
use crate::project::ProjectId;

use super::generations::View;
use super::{Backend, Error, Store};

/// How far the live generation of a view has come in one project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewState {
    /// The live generation; a rebuild makes the next one.
    pub generation: u64,
    /// The last position whose effect the view contains.
    pub applied_to: u64,
}

impl ViewState {
    /// Says whether the view, over a log with that head, lies behind one that was seen in this state. A log only grows, and
    /// generations follow each other, so one that does was restored to an earlier state.
    pub(crate) fn is_behind(&self, head: u64, seen: &Self) -> bool {
        self.generation < seen.generation || head < seen.applied_to
    }
}

/// How far the views of a project have come, beside the head of the log they follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewProgress {
    /// The project.
    pub project: ProjectId,
    /// The state of the counts.
    pub state: ViewState,
    /// How far the identifications have come.
    pub identified_to: u64,
    /// The last position of the log.
    pub head: u64,
}

impl ViewProgress {
    /// How far all views have come.
    #[must_use]
    pub fn applied_to(&self) -> u64 {
        self.state.applied_to.min(self.identified_to)
    }
}

/// How far a view has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// `applied_to` before.
    pub from: u64,
    /// `applied_to` after; equal to `from` when there was nothing to do.
    pub through: u64,
}

/// What one step added to the counts, and how far it moved the identifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The generation it went to.
    pub generation: u64,
    /// `applied_to` before the step.
    pub from: u64,
    /// `applied_to` after it; equal to `from` when there was nothing to do.
    pub through: u64,
    /// How many events of each name lay in between.
    pub per_name: Vec<(String, u64)>,
    /// The identifications follow the same log and may lie elsewhere in it.
    pub identified: Moved,
}

/// Which counts to read.
#[derive(Clone, Debug, Default)]
pub struct CountsQuery {
    /// Only this name.
    pub name: Option<String>,
    /// Only hours that begin at or after this.
    pub from_hour: Option<Timestamp>,
    /// Only hours that begin before this.
    pub to_hour: Option<Timestamp>,
    /// How fine.
    pub by: CountsBy,
    /// Whether users are wanted too: their sketches cost far more to read than counts.
    pub users: bool,
}

/// Sketches read for one answer: 20,000 of at most 3 KiB are 60 MiB, merged in about a tenth of a second, one at a time.
pub(super) const SKETCHES_MAX: usize = 20_000;

/// How fine counts are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountsBy {
    /// One row a name.
    #[default]
    Total,
    /// One row a name and day, in UTC.
    Day,
    /// One row a name and hour.
    Hour,
}

impl CountsBy {
    /// The beginning of the row that an hour belongs to.
    fn start_of(self, hour_ms: i64) -> Option<i64> {
        match self {
            Self::Total => None,
            Self::Day => Some(Grain::Day.start_of(hour_ms)),
            Self::Hour => Some(hour_ms),
        }
    }
}

/// A count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountRow {
    /// The events' name.
    pub name: String,
    /// The beginning of the hour or of the day, where these were asked for.
    pub start: Option<Timestamp>,
    /// How many there are.
    pub count: u64,
}

/// How many different users there were, estimated from sketches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserCounts {
    /// By name, and by the beginning of the hour or of the day, where these were asked for. Without users there is no row.
    pub rows: BTreeMap<(String, Option<Timestamp>), u64>,
    /// Over all rows: each user once.
    pub total: u64,
}

/// Merges sketches, which come in the order of their names and beginnings, into one a row and one over all.
#[derive(Debug)]
pub(super) struct UserMerge {
    by: CountsBy,
    row: Option<((String, Option<Timestamp>), Sketch)>,
    total: Sketch,
    counts: UserCounts,
    sketches: usize,
}

impl UserMerge {
    pub(super) fn new(by: CountsBy) -> Self {
        Self { by, row: None, total: Sketch::default(), counts: UserCounts::default(), sketches: 0 }
    }

    pub(super) fn add(&mut self, name: &str, start_ms: i64, sketch: &[u8]) -> Result<(), Error> {
        self.sketches += 1;
        if self.sketches > SKETCHES_MAX {
            return Err(Error::TooManyRows { limit: SKETCHES_MAX });
        }
        let sketch = read_sketch(sketch, name)?;
        self.total.merge(&sketch);
        let start = self.by.start_of(start_ms).and_then(Timestamp::from_ms);
        match &mut self.row {
            Some(((of, from), row)) if of == name && *from == start => {
                row.merge(&sketch);
            }
            _ => {
                self.end_row();
                self.row = Some(((name.to_owned(), start), sketch));
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> UserCounts {
        self.end_row();
        self.counts.total = self.total.estimate();
        self.counts
    }

    fn end_row(&mut self) {
        if let Some((of, row)) = self.row.take() {
            self.counts.rows.insert(of, row.estimate());
        }
    }
}

/// Reads a sketch as it is kept. One that was changed by hand stops what would build on it.
pub(super) fn read_sketch(bytes: &[u8], name: &str) -> Result<Sketch, Error> {
    Sketch::from_bytes(bytes).map_err(|error| {
        Error::unreadable(format!("the users of {name:?}: {error}; `eventbucket rebuild` counts them anew"))
    })
}

/// Pieces that a span is cut into: hours, days, hours.
pub(super) const PIECES_MAX: usize = 3;

/// The cells that answer a question, in pieces of one grain: how many hours the cells of each cover, and between which
/// beginnings they lie. Pieces that aren't needed are empty.
pub(super) fn piece_bounds(query: &CountsQuery) -> ([i16; PIECES_MAX], [i64; PIECES_MAX], [i64; PIECES_MAX]) {
    let largest = match query.by {
        CountsBy::Total => Grain::Ever,
        CountsBy::Day => Grain::Day,
        CountsBy::Hour => Grain::Hour,
    };
    let (mut hours, mut low, mut high) = ([0; PIECES_MAX], [0; PIECES_MAX], [0; PIECES_MAX]);
    let (from_ms, to_ms) = (query.from_hour.map(Timestamp::ms), query.to_hour.map(Timestamp::ms));
    for (at, piece) in insight::pieces(from_ms, to_ms, largest).into_iter().enumerate() {
        (hours[at], low[at], high[at]) = (piece.grain.hours(), piece.from_ms, piece.to_ms);
    }
    (hours, low, high)
}

/// The counts of all names with the state they belong to, read in one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountTotals {
    /// The state.
    pub state: ViewState,
    /// How many events of each name; empty and `complete` false when there are more names than were asked for.
    pub per_name: BTreeMap<String, u64>,
    /// Whether all names are there.
    pub complete: bool,
}

/// The view "counts": events and different users per name and hour.
impl Store {
    /// Reads how far the counts of a project have come.
    ///
    /// # Errors
    /// [`Error::UnknownProject`]; [`Error::CountsMissing`] when somebody removed them.
    pub async fn view_state(&self, project: ProjectId) -> Result<ViewState, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.view_state(project).await,
            Backend::Postgres(postgres) => postgres.view_state(project).await,
        }
    }

    /// Reads how far the counts of every project have come, and how far its log.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.view_progress().await,
            Backend::Postgres(postgres) => postgres.view_progress().await,
        }
    }

    /// Adds what lies behind each view's `applied_to`, up to `through`, the head, or 50,000 positions, whichever comes first:
    /// to the counts and, in the same transaction, to the identifications. The new `applied_to` is part of it too, so nothing is
    /// ever added twice. Nothing is done for a project that somebody else keeps for longer, as a rebuild does.
    ///
    /// # Errors
    /// When the store can't be written.
    pub async fn apply_counts(&self, project: ProjectId, through: u64) -> Result<Applied, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.apply_counts(project, through).await,
            Backend::Postgres(postgres) => postgres.apply_counts(project, through).await,
        }
    }

    /// Holds what somebody has seen of a project's log, while it had that epoch, against what is there now. A log that is behind
    /// it was restored to an earlier state although nothing else shows it: it gets a new epoch, and the answer is `true`.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn went_back(&self, project: ProjectId, epoch: Uuid, seen: ViewState) -> Result<bool, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.went_back(project, epoch, seen).await,
            Backend::Postgres(postgres) => postgres.went_back(project, epoch, seen).await,
        }
    }

    /// Reads counts, by name and hour.
    ///
    /// # Errors
    /// [`Error::TooManyRows`] over 100,000 of them.
    pub async fn counts(&self, project: ProjectId, query: CountsQuery) -> Result<Vec<CountRow>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.counts(project, query).await,
            Backend::Postgres(postgres) => postgres.counts(project, &query).await,
        }
    }

    /// Estimates how many different users there were: what [`Store::counts`] gives for the same question counts their events.
    /// `None` while the live generation lacks users of events that were counted by an earlier version.
    ///
    /// # Errors
    /// [`Error::TooManyRows`] over 20,000 sketches; [`Error::Unreadable`] for those that somebody changed.
    pub async fn users(&self, project: ProjectId, query: CountsQuery) -> Result<Option<UserCounts>, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.users(project, query).await,
            Backend::Postgres(postgres) => postgres.users(project, &query).await,
        }
    }

    /// Reads the total of every name, up to `names_max` of them: what live counters start from.
    ///
    /// # Errors
    /// [`Error::UnknownProject`].
    pub async fn count_totals(&self, project: ProjectId, names_max: usize) -> Result<CountTotals, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.count_totals(project, names_max).await,
            Backend::Postgres(postgres) => postgres.count_totals(project, names_max).await,
        }
    }

    /// Computes a new generation of the counts beside the live one, then makes it the live one and removes the old.
    /// After a kill at any moment the next call goes on where this one was. `progress` is told positions: done, total.
    ///
    /// # Errors
    /// When the store can't be written; the live generation is untouched then.
    pub async fn rebuild_counts(
        &self,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        self.rebuild(View::Counts, project, progress).await
    }

    /// As [`Store::rebuild_counts`], for the identifications.
    ///
    /// # Errors
    /// When the store can't be written; the live generation is untouched then.
    pub async fn rebuild_identifications(
        &self,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        self.rebuild(View::Identifications, project, progress).await
    }

    async fn rebuild(
        &self,
        view: View,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.rebuild(view, project, progress).await,
            Backend::Postgres(postgres) => postgres.rebuild(view, project, progress).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_sketches_are_merged_than_one_answer_may_have() {
        let mut ada = Sketch::default();
        ada.insert(b"ada");
        let (sketch, mut merge) = (ada.to_bytes(), UserMerge::new(CountsBy::Total));
        for number in 0..SKETCHES_MAX {
            merge.add(&format!("name-{number}"), 0, &sketch).unwrap();
        }
        let refused = merge.add("one more", 0, &sketch);
        assert!(matches!(refused, Err(Error::TooManyRows { limit: SKETCHES_MAX })), "{refused:?}");
    }
}
