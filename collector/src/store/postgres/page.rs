use std::pin::pin;

use futures_util::StreamExt as _;
use tokio_postgres::types::ToSql;

use super::events::{COLUMNS, POSITION_MAX, column, read_event};
use super::pool::Lease;
use super::segments::{Span, spans};
use super::{BLOCK_BITS, Postgres, int, project_number, uint};
use crate::project::ProjectId;
use crate::store::page::{OpenPage, Progress, Row, runs};
use crate::store::{Error, EventFilter, EventOrder, EventPage};

/// Rows asked for at once. They come as a stream, so that however large they are only a few wait here.
const ROWS_AT_ONCE: usize = 1_024;

/// Blocks asked for at once: they hold a million positions.
const BLOCKS_AT_ONCE: usize = 256;

impl Postgres {
    pub(in crate::store) async fn events(
        &self,
        project: ProjectId,
        filter: &EventFilter,
        order: EventOrder,
        limit: usize,
    ) -> Result<EventPage, Error> {
        let mut page = OpenPage::new(project, filter, limit);
        let Some((first, last)) = filter.span(order, POSITION_MAX) else { return Ok(page.finish()) };
        let reading = Reading { project, filter, newest_first: order.is_newest_first() };
        let mut lease = self.0.reads.lease().await?;
        lease.begin_as("BEGIN READ ONLY").await?;
        let mut spans = spans(&mut lease, project).await?;
        if reading.newest_first {
            spans.reverse();
        }
        for span in spans {
            let span = Span { first: span.first.max(first), last: span.last.min(last), ..span };
            if span.first <= span.last && reading.span(&mut lease, &mut page, span).await? == Progress::Full {
                break;
            }
        }
        lease.commit().await?;
        Ok(page.finish())
    }
}

struct Reading<'f> {
    project: ProjectId,
    filter: &'f EventFilter,
    newest_first: bool,
}

impl Reading<'_> {
    async fn span(&self, lease: &mut Lease, page: &mut OpenPage<'_>, span: Span) -> Result<Progress, Error> {
        if self.filter.is_timed() {
            self.blocks(lease, page, span).await
        } else {
            self.rows(lease, page, span).await
        }
    }

    /// Visits the blocks of a span that overlap the time, in order; neighbours as one.
    async fn blocks(
        &self,
        lease: &mut Lease,
        page: &mut OpenPage<'_>,
        mut span: Span,
    ) -> Result<Progress, Error> {
        let sql = format!(
            "SELECT block FROM event_block
             WHERE project = $1 AND block BETWEEN $2 AND $3 AND to_ms >= $4 AND from_ms < $5
             ORDER BY block {} LIMIT {BLOCKS_AT_ONCE}",
            self.direction()
        );
        let select = lease.prepared(&sql).await?;
        let (number, (from, to)) = (project_number(self.project), self.filter.times());
        loop {
            let (low, high) = (int(span.first >> BLOCK_BITS), int(span.last >> BLOCK_BITS));
            let found = lease.query(&select, &[&number, &low, &high, &from, &to]).await?;
            let blocks: Vec<u64> =
                found.iter().map(|row| row.try_get(0).map(uint)).collect::<Result<_, _>>()?;
            for run in runs(&blocks, BLOCK_BITS, (span.first, span.last)) {
                let progress = self.rows(lease, page, Span { first: run.0, last: run.1, ..span }).await?;
                let end = if self.newest_first { run.0 } else { run.1 };
                if progress == Progress::Full || page.passed(end) == Progress::Full {
                    return Ok(Progress::Full);
                }
                if self.newest_first { span.last = end.saturating_sub(1) } else { span.first = end + 1 }
            }
            if blocks.len() < BLOCKS_AT_ONCE || span.first > span.last {
                return Ok(Progress::Open);
            }
        }
    }

    /// Reads the rows of a span until the page is full.
    async fn rows(
        &self,
        lease: &mut Lease,
        page: &mut OpenPage<'_>,
        mut span: Span,
    ) -> Result<Progress, Error> {
        let select = lease.prepared(&self.sql(span.segment)).await?;
        let number = project_number(self.project);
        while span.first <= span.last {
            let wanted = page.rows_wanted().min(ROWS_AT_ONCE);
            let (first, last, limit) = (int(span.first), int(span.last), wanted as i64);
            let mut values: Vec<&(dyn ToSql + Sync)> = vec![&number, &first, &last, &limit];
            match &self.filter.user {
                Some(user) => values.push(user),
                None => values.extend(self.filter.names.iter().map(|name| name as &(dyn ToSql + Sync))),
            }
            let mut rows = pin!(lease.query_raw(&select, values).await?);
            let mut seen = 0;
            while let Some(row) = rows.next().await {
                let row = row?;
                let looked = self.looked(&row)?;
                if page.look(&looked, || read_event(&row, self.project))? == Progress::Full {
                    return Ok(Progress::Full);
                }
                let position = looked.position;
                if self.newest_first {
                    span.last = position.saturating_sub(1);
                } else {
                    span.first = position + 1;
                }
                seen += 1;
            }
            if seen < wanted {
                break;
            }
        }
        Ok(Progress::Open)
    }

    fn looked<'r>(&self, row: &'r tokio_postgres::Row) -> Result<Row<'r>, Error> {
        let position = uint(row.try_get(0)?);
        let read = || {
            Ok(Row {
                position,
                name: column(row, 3, "name")?,
                time_ms: column(row, 4, "time_ms")?,
                skew_ms: column(row, 5, "skew_ms")?,
                received_ms: column(row, 6, "received_ms")?,
                properties: column(row, 11, "properties")?,
            })
        };
        read().map_err(|what: String| {
            Error::unreadable(format!("the event at position {position} of project {}: {what}", self.project))
        })
    }

    fn direction(&self) -> &'static str {
        if self.newest_first { "DESC" } else { "ASC" }
    }

    /// Each way to filter has an index that ends with the position, so a later page doesn't walk over earlier ones. Of several
    /// names each gives as many rows as all together, and they are merged.
    fn sql(&self, segment: i32) -> String {
        let order = format!("ORDER BY position {} LIMIT $4", self.direction());
        let walk = |condition: &str| {
            format!(
                "SELECT {COLUMNS} FROM event_{segment}
                 WHERE project = $1 AND position >= $2 AND position <= $3{condition} {order}"
            )
        };
        match (&self.filter.user, self.filter.names.len()) {
            (Some(_), _) => walk(" AND user_id = $5"),
            (None, 0) => walk(""),
            (None, 1) => walk(" AND name = $5"),
            (None, names) => {
                let walks: Vec<String> = (5..5 + names)
                    .map(|parameter| format!("({})", walk(&format!(" AND name = ${parameter}"))))
                    .collect();
                format!("SELECT * FROM ({}) AS merged {order}", walks.join(" UNION ALL "))
            }
        }
    }
}
