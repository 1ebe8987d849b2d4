use eventbucket_protocol::Timestamp;

use super::{Error, EventFilter, EventPage, PAGE_BYTES_MAX, StoredEvent};
use crate::project::ProjectId;

/// Events that are looked at for one page: at 1 to 5 us each a few milliseconds, after which others have their turn.
pub const LOOKED_AT_MAX: usize = 4_096;

/// Bytes of properties that are looked at for one page: as many as a page may hold.
const LOOKED_AT_BYTES_MAX: usize = PAGE_BYTES_MAX;

/// What asking the database once more costs, in events looked at: 32 of 3 us.
const QUESTION_EVENTS: usize = 32;

/// What of a row decides whether it belongs on the page. The database has seen to its user, and to its name where that is the
/// only thing asked for.
pub(super) struct Row<'r> {
    pub(super) position: u64,
    pub(super) name: &'r str,
    pub(super) time_ms: i64,
    pub(super) skew_ms: Option<i64>,
    pub(super) received_ms: i64,
    pub(super) properties: &'r str,
}

/// Whether a page takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Full,
}

/// A page while it is filled: the same rules on both stores decide what is on it and when it ends.
pub(super) struct OpenPage<'f> {
    project: ProjectId,
    filter: &'f EventFilter,
    limit: usize,
    events: Vec<StoredEvent>,
    bytes: usize,
    looked_at: usize,
    looked_at_bytes: usize,
    /// Everything up to here was looked at.
    through: Option<u64>,
    received_ms: Option<i64>,
    progress: Progress,
}

impl<'f> OpenPage<'f> {
    pub(super) fn new(project: ProjectId, filter: &'f EventFilter, limit: usize) -> Self {
        Self {
            project,
            filter,
            limit: limit.max(1),
            events: Vec::new(),
            bytes: 0,
            looked_at: 0,
            looked_at_bytes: 0,
            through: None,
            received_ms: None,
            progress: Progress::Open,
        }
    }

    /// How many rows to ask for: one more than fits tells whether there is a next page. As many again as were looked at
    /// already, once few of them belonged on it.
    pub(super) fn rows_wanted(&self) -> usize {
        let fit = self.limit.saturating_sub(self.events.len());
        let fit = if self.filter.is_sieve() { fit.max(self.looked_at) } else { fit };
        fit.min(LOOKED_AT_MAX.saturating_sub(self.looked_at)) + 1
    }

    /// Looks at the next row; the whole event is read when it belongs on the page.
    pub(super) fn look(
        &mut self,
        row: &Row<'_>,
        event: impl FnOnce() -> Result<StoredEvent, Error>,
    ) -> Result<Progress, Error> {
        let taken = self.events.len() >= self.limit || self.bytes >= PAGE_BYTES_MAX;
        if taken || self.is_spent() {
            self.progress = Progress::Full;
            return Ok(Progress::Full);
        }
        self.looked_at += 1;
        self.looked_at_bytes += row.properties.len();
        if self.belongs(row)? {
            let event = event()?;
            self.bytes += event.event.size_bytes();
            self.events.push(event);
        }
        (self.through, self.received_ms) = (Some(row.position), Some(row.received_ms));
        Ok(Progress::Open)
    }

    /// Notes that everything up to a position was looked at. More may be asked for while there is work left.
    pub(super) fn passed(&mut self, position: u64) -> Progress {
        self.through = Some(position);
        self.looked_at += QUESTION_EVENTS;
        if self.is_spent() {
            self.progress = Progress::Full;
        }
        self.progress
    }

    fn is_spent(&self) -> bool {
        self.looked_at >= LOOKED_AT_MAX || self.looked_at_bytes >= LOOKED_AT_BYTES_MAX
    }

    fn belongs(&self, row: &Row<'_>) -> Result<bool, Error> {
        let filter = self.filter;
        if !filter.names.is_empty() && !filter.names.contains(row.name) {
            return Ok(false);
        }
        if filter.is_timed() {
            let time = self.readable(row, Timestamp::from_ms(row.time_ms).ok_or("its time is none"))?;
            let (from, to) = filter.times();
            if !(from..to).contains(&time.shifted(row.skew_ms.unwrap_or(0)).ms()) {
                return Ok(false);
            }
        }
        for condition in &filter.conditions {
            if !self.readable(row, condition.is_met_by(row.properties))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn readable<T, E: std::fmt::Display>(&self, row: &Row<'_>, read: Result<T, E>) -> Result<T, Error> {
        let (position, project) = (row.position, self.project);
        read.map_err(|what| {
            Error::unreadable(format!("the event at position {position} of project {project}: {what}"))
        })
    }

    pub(super) fn finish(self) -> EventPage {
        EventPage {
            events: self.events,
            next: self.through.filter(|_| self.progress == Progress::Full),
            looked_to: self.received_ms.and_then(Timestamp::from_ms),
        }
    }
}

/// Joins blocks that lie side by side, in either order, to runs of positions within a span.
pub(super) fn runs(blocks: &[u64], bits: u32, (first, last): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let neighbours = blocks.chunk_by(|one, next| one.abs_diff(*next) == 1);
    neighbours.map(move |run| {
        let (one, other) = (run[0], run[run.len() - 1]);
        ((one.min(other) << bits).max(first), (((one.max(other) + 1) << bits) - 1).min(last))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EventOrder;

    #[test]
    fn a_page_may_hold_what_the_filter_the_order_and_the_log_allow() {
        let filter = |after, before| EventFilter { after, before, ..EventFilter::default() };
        let newest = |before| EventOrder::NewestFirst { before };
        let by_position = |after| EventOrder::ByPosition { after };
        for (filter, order, span) in [
            (filter(0, None), newest(None), Some((1, 99))),
            (filter(0, None), by_position(7), Some((8, 99))),
            (filter(3, Some(9)), newest(None), Some((4, 8))),
            (filter(3, Some(9)), newest(Some(6)), Some((4, 5))),
            (filter(3, Some(9)), newest(Some(u64::MAX)), Some((4, 8))),
            (filter(3, Some(9)), by_position(1), Some((4, 8))),
            (filter(3, Some(9)), by_position(8), None),
            (filter(3, Some(4)), newest(None), None),
            (filter(0, Some(0)), newest(None), None),
            (filter(u64::MAX, None), by_position(0), None),
            (filter(0, Some(u64::MAX)), newest(Some(0)), None),
        ] {
            assert_eq!(filter.span(order, 99), span, "{filter:?} {order:?}");
        }
    }

    #[test]
    fn blocks_become_runs_within_the_span_in_their_order() {
        let found = |blocks: &[u64], span| runs(blocks, 4, span).collect::<Vec<_>>();
        assert_eq!(found(&[0, 1, 2, 5], (3, 90)), [(3, 47), (80, 90)]);
        assert_eq!(found(&[5, 2, 1, 0], (3, 90)), [(80, 90), (3, 47)]);
        assert_eq!(found(&[], (1, 2)), []);
    }
}
