use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};
use uuid::Uuid;

use super::pool::Lease;
use super::segments::{Span, spans};
use super::{BLOCK_BITS, Postgres, int, project_number, uint};
use crate::project::ProjectId;
use crate::store::batches::{BatchPart, stored_before};
use crate::store::ranges::USAGE_DAYS_MAX;
use crate::store::{Error, EventFilter, EventOrder, EventPage, Ledger, PAGE_BYTES_MAX, StoredEvent};

/// Rows asked for at once: 100 of the largest, 256 KiB each, are 25 MiB on their way.
const ROWS_AT_ONCE: usize = 100;

/// Blocks asked for at once: they hold a million positions.
const BLOCKS_AT_ONCE: i64 = 256;

/// The order in which [`read_event`] takes them.
pub(super) const COLUMNS: &str = "position, id, id_text, name, time_ms, skew_ms, received_ms, user_id, stream, correlation, \
                                  description, properties";

/// The highest position there can be: one more is still below 2^63.
pub(super) const POSITION_MAX: u64 = (1 << 62) - 1;

type Values<'v> = Vec<&'v (dyn ToSql + Sync)>;

impl Postgres {
    pub(in crate::store) async fn head(&self, project: ProjectId) -> Result<u64, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.log.lease().await?;
        let seen = self.0.epoch.before_reading([project].into_iter());
        let select = lease.prepared("SELECT position FROM head WHERE project = $1").await?;
        let row = lease.query_opt(&select, &[&project_number(project)]).await?;
        let head = row.map_or(Ok(0), |row| row.try_get(0).map(uint))?;
        if seen.is_ahead_of(project, head) {
            self.0.epoch.renew(&lease).await?;
        }
        self.0.epoch.saw(project, head);
        Ok(head)
    }

    pub(in crate::store) async fn ledger(&self, project: Option<ProjectId>) -> Result<Ledger, Error> {
        if let Some(project) = project {
            self.ensure(&[project]).await?;
        }
        let mut lease = self.0.log.lease().await?;
        let select = "SELECT coalesce(sum(received), 0)::int8, coalesce(sum(stored), 0)::int8,
                    coalesce(sum(duplicate), 0)::int8, coalesce(sum(quarantined), 0)::int8, coalesce(sum(rejected), 0)::int8
             FROM head WHERE $1::int4 IS NULL OR project = $1";
        let select = lease.prepared(select).await?;
        let row = lease.query_one(&select, &[&project.map(project_number)]).await?;
        read_ledger(&row, 0)
    }

    pub(in crate::store) async fn received_since(&self, project: ProjectId, day: i64) -> Result<u64, Error> {
        let mut lease = self.0.log.lease().await?;
        let select = "SELECT coalesce(sum(received), 0)::int8 FROM usage WHERE project = $1 AND day >= $2";
        let select = lease.prepared(select).await?;
        let row = lease.query_one(&select, &[&project_number(project), &day]).await?;
        Ok(uint(row.try_get(0)?))
    }

    /// By the database's clock: one that is wrong by years must not take the month's days with it. A project at a time, so that
    /// only what goes is looked at.
    pub(in crate::store) async fn forget_usage(&self) -> Result<u64, Error> {
        let mut lease = self.0.log.lease().await?;
        let delete = "DELETE FROM usage USING head WHERE usage.project = head.project
             AND usage.day < floor(extract(epoch FROM now()) / 86400)::int8 - $1";
        let delete = lease.prepared(delete).await?;
        Ok(lease.execute(&delete, &[&USAGE_DAYS_MAX]).await?)
    }

    pub(in crate::store) async fn event(
        &self,
        project: ProjectId,
        id: Uuid,
    ) -> Result<Option<StoredEvent>, Error> {
        let mut lease = self.0.log.lease().await?;
        let select =
            "SELECT first, verdicts, place FROM event_id JOIN ranges ON ranges.id = event_id.range_id
             WHERE event_id.project = $1 AND event_id.id = $2";
        let select = lease.prepared(select).await?;
        let number = project_number(project);
        let Some(row) = lease.query_opt(&select, &[&number, &id]).await? else { return Ok(None) };
        let (first, place) = (uint(row.try_get(0)?), uint(row.try_get::<_, i32>(2)?.into()));
        let position = first + stored_before(row.try_get(1)?, place)?;
        let holds = |span: &Span| (span.first..=span.last).contains(&position);
        let Some(span) = spans(&mut lease, project).await?.into_iter().find(holds) else { return Ok(None) };
        let sql =
            format!("SELECT {COLUMNS} FROM event_{} WHERE project = $1 AND position = $2", span.segment);
        let select = lease.prepared(&sql).await?;
        let row = lease.query_opt(&select, &[&number, &int(position)]).await?;
        row.map(|row| read_event(&row, project)).transpose()
    }

    /// The parts of a batch in their order, each as it was first stored.
    pub(in crate::store) async fn batch(
        &self,
        project: ProjectId,
        batch: BatchId,
    ) -> Result<Vec<BatchPart>, Error> {
        let mut lease = self.0.log.lease().await?;
        let select =
            "SELECT DISTINCT ON (part) part, parts, received - rejected, verdicts, refused FROM ranges
             WHERE project = $1 AND batch = $2 ORDER BY part, first, last, id";
        let select = lease.prepared(select).await?;
        let rows = lease.query(&select, &[&project_number(project), &batch.uuid()]).await?;
        let read = |row: Row| {
            Ok(BatchPart {
                part: small(row.try_get(0)?),
                parts: small(row.try_get(1)?),
                events: uint(row.try_get(2)?),
                verdicts: row.try_get(3)?,
                refused: row.try_get(4)?,
            })
        };
        rows.into_iter().map(read).collect()
    }

    pub(in crate::store) async fn events(
        &self,
        project: ProjectId,
        filter: &EventFilter,
        order: EventOrder,
        limit: usize,
    ) -> Result<EventPage, Error> {
        let (first, last) = match order {
            EventOrder::ByPosition { after } => (after.saturating_add(1), POSITION_MAX),
            EventOrder::NewestFirst { before } => {
                (1, before.unwrap_or(POSITION_MAX).saturating_sub(1).min(POSITION_MAX))
            }
        };
        let mut lease = self.0.log.lease().await?;
        let mut spans = spans(&mut lease, project).await?;
        let newest_first = matches!(order, EventOrder::NewestFirst { .. });
        if newest_first {
            spans.reverse();
        }
        let limit = limit.max(1);
        let mut reading = Reading { project, filter, newest_first, limit, page: Page::default() };
        for span in spans {
            let span = Span { first: span.first.max(first), last: span.last.min(last), ..span };
            if span.first <= span.last && reading.span(&mut lease, span).await? == Progress::Full {
                break;
            }
        }
        Ok(EventPage { events: reading.page.events, next: reading.page.next })
    }
}

#[derive(Default)]
struct Page {
    events: Vec<StoredEvent>,
    bytes: usize,
    next: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Open,
    Full,
}

struct Reading<'f> {
    project: ProjectId,
    filter: &'f EventFilter,
    newest_first: bool,
    limit: usize,
    page: Page,
}

impl Reading<'_> {
    fn is_timed(&self) -> bool {
        self.filter.from.is_some() || self.filter.to.is_some()
    }

    /// The times asked for: from, inclusive, and to, exclusive.
    fn times(&self) -> (i64, i64) {
        let (from, to) = (self.filter.from, self.filter.to);
        (from.map_or(i64::MIN, Timestamp::ms), to.map_or(i64::MAX, Timestamp::ms))
    }

    async fn span(&mut self, lease: &mut Lease, span: Span) -> Result<Progress, Error> {
        if self.is_timed() && self.filter.name.is_none() && self.filter.user.is_none() {
            self.blocks(lease, span).await
        } else {
            self.rows(lease, span).await
        }
    }

    /// Visits the blocks of a span that overlap the time, in order; neighbours as one.
    async fn blocks(&mut self, lease: &mut Lease, span: Span) -> Result<Progress, Error> {
        let direction = if self.newest_first { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT block FROM event_block
             WHERE project = $1 AND block BETWEEN $2 AND $3 AND to_ms >= $4 AND from_ms < $5
             ORDER BY block {direction} LIMIT {BLOCKS_AT_ONCE}"
        );
        let select = lease.prepared(&sql).await?;
        let (number, (from, to)) = (project_number(self.project), self.times());
        let (mut low, mut high) = (int(span.first >> BLOCK_BITS), int(span.last >> BLOCK_BITS));
        loop {
            let rows = lease.query(&select, &[&number, &low, &high, &from, &to]).await?;
            let blocks: Vec<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            for run in blocks.chunk_by(|one, next| one.abs_diff(*next) == 1) {
                let (one, other) = (uint(run[0]), uint(run[run.len() - 1]));
                let first = (one.min(other) << BLOCK_BITS).max(span.first);
                let last = (((one.max(other) + 1) << BLOCK_BITS) - 1).min(span.last);
                if self.rows(lease, Span { first, last, ..span }).await? == Progress::Full {
                    return Ok(Progress::Full);
                }
            }
            match blocks.last() {
                Some(last) if self.newest_first => high = last - 1,
                Some(last) => low = last + 1,
                None => return Ok(Progress::Open),
            }
        }
    }

    /// Reads the rows of a span until the page is full.
    async fn rows(&mut self, lease: &mut Lease, mut span: Span) -> Result<Progress, Error> {
        let select = lease.prepared(&self.sql(span.segment)).await?;
        let (number, (from, to)) = (project_number(self.project), self.times());
        while span.first <= span.last {
            // One more than fits tells whether there is a next page.
            let wanted = (self.limit + 1 - self.page.events.len()).min(ROWS_AT_ONCE);
            let (first, last, limit) = (int(span.first), int(span.last), wanted as i64);
            let mut values: Values<'_> = vec![&number, &first, &last, &limit];
            values.extend(self.filter.user.as_ref().map(|user| user as &(dyn ToSql + Sync)));
            values.extend(self.filter.name.as_ref().map(|name| name as &(dyn ToSql + Sync)));
            if self.is_timed() {
                values.extend([&from as &(dyn ToSql + Sync), &to]);
            }
            let rows = lease.query(&select, &values).await?;
            for row in &rows {
                if self.page.events.len() >= self.limit || self.page.bytes >= PAGE_BYTES_MAX {
                    self.page.next = self.page.events.last().map(|last| last.position);
                    return Ok(Progress::Full);
                }
                let event = read_event(row, self.project)?;
                let position = event.position;
                self.page.bytes += event.event.size_bytes();
                self.page.events.push(event);
                if self.newest_first { span.last = position - 1 } else { span.first = position + 1 }
            }
            if rows.len() < wanted {
                break;
            }
        }
        Ok(Progress::Open)
    }

    /// Each way to filter has an index that ends with the position, so a later page doesn't walk over earlier ones.
    fn sql(&self, segment: i32) -> String {
        let mut value = 4;
        let mut next = || {
            value += 1;
            format!("${value}")
        };
        let mut conditions = String::from("project = $1 AND position >= $2 AND position <= $3");
        if self.filter.user.is_some() {
            conditions.push_str(&format!(" AND user_id = {}", next()));
        }
        if self.filter.name.is_some() {
            conditions.push_str(&format!(" AND name = {}", next()));
        }
        if self.is_timed() {
            let time = "corrected_ms(time_ms, skew_ms)";
            conditions.push_str(&format!(" AND {time} >= {} AND {time} < {}", next(), next()));
        }
        let direction = if self.newest_first { "DESC" } else { "ASC" };
        format!(
            "SELECT {COLUMNS} FROM event_{segment} WHERE {conditions} ORDER BY position {direction} LIMIT $4"
        )
    }
}

/// Reads five figures of a ledger from a column on.
pub(super) fn read_ledger(row: &Row, from: usize) -> Result<Ledger, Error> {
    let number =
        |column| -> Result<u64, Error> { Ok(row.try_get::<_, Option<i64>>(from + column)?.map_or(0, uint)) };
    Ok(Ledger {
        received: number(0)?,
        stored: number(1)?,
        duplicate: number(2)?,
        quarantined: number(3)?,
        rejected: number(4)?,
    })
}

/// Reads a row of [`COLUMNS`]. What the collector wrote can always be read; a row that somebody else changed is named by its
/// position, and never passed on half understood.
pub(super) fn read_event(row: &Row, project: ProjectId) -> Result<StoredEvent, Error> {
    let position = uint(row.try_get(0)?);
    parts(row, position).map_err(|what| {
        Error::unreadable(format!("the event at position {position} of project {project}: {what}"))
    })
}

fn parts(row: &Row, position: u64) -> Result<StoredEvent, String> {
    let properties: &str = column(row, 11, "properties")?;
    Ok(StoredEvent {
        position,
        received: time(row, 6, "received_ms")?,
        skew_ms: column(row, 5, "skew_ms")?,
        event: Event {
            id: EventId::from_parts(column(row, 1, "id")?, column(row, 2, "id_text")?),
            name: column(row, 3, "name")?,
            description: column(row, 10, "description")?,
            user: column(row, 7, "user_id")?,
            time: time(row, 4, "time_ms")?,
            stream: column(row, 8, "stream")?,
            correlation: column(row, 9, "correlation")?,
            properties: Properties::parse(properties)
                .map_err(|reason| format!("its properties can't be used: {}", reason.message))?,
        },
    })
}

fn column<'r, T: FromSql<'r>>(row: &'r Row, index: usize, name: &str) -> Result<T, String> {
    row.try_get(index).map_err(|error| format!("its {name} can't be used: {error}"))
}

fn time(row: &Row, index: usize, name: &str) -> Result<Timestamp, String> {
    let ms = column(row, index, name)?;
    Timestamp::from_ms(ms).ok_or_else(|| format!("its {name} is {ms}, which is no time"))
}

/// A part's number; one that was tampered with is none.
pub(super) fn small(number: i32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}
