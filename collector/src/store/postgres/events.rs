use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use super::segments::{Span, spans};
use super::{Postgres, int, project_number, uint};
use crate::project::ProjectId;
use crate::store::batches::{BatchPart, stored_before};
use crate::store::ranges::USAGE_DAYS_MAX;
use crate::store::{Error, Ledger, StoredEvent};

/// The order in which [`read_event`] takes them.
pub(super) const COLUMNS: &str = "position, id, id_text, name, time_ms, skew_ms, received_ms, user_id, stream, correlation, \
                                  description, properties";

/// The highest position there can be: one more is still below 2^63.
pub(super) const POSITION_MAX: u64 = (1 << 62) - 1;

impl Postgres {
    pub(in crate::store) async fn head(&self, project: ProjectId) -> Result<u64, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.reads.lease().await?;
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
        let mut lease = self.0.reads.lease().await?;
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
        let mut lease = self.0.reads.lease().await?;
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
        let mut lease = self.0.reads.lease().await?;
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

pub(super) fn column<'r, T: FromSql<'r>>(row: &'r Row, index: usize, name: &str) -> Result<T, String> {
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
