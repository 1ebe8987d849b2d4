use std::time::Duration;

use eventbucket_protocol::{EventId, Timestamp};
use tokio::time::Instant;

use super::{Cursor, Error, Reader};
use crate::project::ProjectId;
use crate::store::{CONDITIONS_MAX, EventFilter, EventOrder, NAMES_MAX, PAGE_BYTES_MAX, StoredEvent};

/// Events on a page when no limit is given.
pub const LIMIT_DEFAULT: usize = 100;

/// Events on a page at most.
pub const LIMIT_MAX: usize = 1_000;

/// How long events are looked for that no index leads to: with the last few thousand that are looked at in one go (10 ms) and
/// the answer's way a page comes within 50 ms.
const LOOKING_MAX: Duration = Duration::from_millis(30);

/// Events read from the store in one go: 64 of the largest (256 KiB) are 16 MiB.
pub(super) const CHUNK_EVENTS: usize = 64;

/// In which order events are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    Newest,
    /// As they stand in the log.
    Position,
}

/// Which page of events.
#[derive(Clone, Debug)]
pub struct EventsQuery {
    /// Which events.
    pub filter: EventFilter,
    /// In which order.
    pub order: Order,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// How many, 1 to [`LIMIT_MAX`].
    pub limit: usize,
}

impl Default for EventsQuery {
    fn default() -> Self {
        Self { filter: EventFilter::default(), order: Order::Newest, cursor: None, limit: LIMIT_DEFAULT }
    }
}

/// Refuses a filter that costs too much.
pub(super) fn check(filter: &EventFilter) -> Result<(), Error> {
    let counted =
        [("name", filter.names.len(), NAMES_MAX), ("where", filter.conditions.len(), CONDITIONS_MAX)];
    match counted.into_iter().find(|(_, given, max)| given > max) {
        Some((name, given, max)) => Err(Error::Parameter {
            name,
            message: format!("is given {given} times, at most {max} are taken"),
        }),
        None => Ok(()),
    }
}

/// A page of events.
#[derive(Clone, Debug)]
pub struct EventsPage {
    /// The events, in the order asked for.
    pub events: Vec<StoredEvent>,
    /// Where the next page begins; `None` when there is nothing more.
    pub next: Option<Cursor>,
    /// The position through which everything was looked at. By position and without a next page that is the end of the log
    /// as it was then: what comes later stands behind it.
    pub through: u64,
    /// When the event arrived that was looked at last.
    pub looked_to: Option<Timestamp>,
}

impl Reader {
    /// Lists events. With a filter that no index serves a page ends when enough was looked at, also when it holds few events or
    /// none; [`EventsPage::next`] goes on from there.
    ///
    /// # Errors
    /// A limit out of bounds, too many names or conditions, a cursor from elsewhere, a store that can't be read.
    pub async fn events(&self, project: ProjectId, query: EventsQuery) -> Result<EventsPage, Error> {
        if !(1..=LIMIT_MAX).contains(&query.limit) {
            let message = format!("{} is not between 1 and {LIMIT_MAX}", query.limit);
            return Err(Error::Parameter { name: "limit", message });
        }
        check(&query.filter)?;
        let epoch = self.store.epoch();
        let cursor = query.cursor.map(|text| Cursor::parse(&text, epoch)).transpose()?;
        let mut from = cursor.map(|cursor| cursor.position);
        // Read first: what arrives from now on lies behind it, and on a later page.
        let head = self.store.head(project).await?;
        if query.order == Order::Position && from.is_some_and(|from| from > head) {
            return Err(Error::beyond(from.unwrap_or_default(), head));
        }
        let (mut events, mut bytes, mut looked_to) = (Vec::new(), 0, None);
        let end = Instant::now() + LOOKING_MAX;
        loop {
            let order = match query.order {
                Order::Newest => EventOrder::NewestFirst { before: from },
                Order::Position => EventOrder::ByPosition { after: from.unwrap_or(0) },
            };
            let limit = CHUNK_EVENTS.min(query.limit - events.len());
            let page = self.store.events(project, &query.filter, order, limit).await?;
            bytes += page.events.iter().map(|stored| stored.event.size_bytes()).sum::<usize>();
            events.extend(page.events);
            looked_to = page.looked_to.or(looked_to);
            from = page.next;
            let full = events.len() >= query.limit || bytes >= PAGE_BYTES_MAX;
            if from.is_none() || full || query.filter.is_sieve() && Instant::now() >= end {
                let last = events.last().map_or(0, |last: &StoredEvent| last.position);
                let through = from.unwrap_or(match query.order {
                    Order::Newest => 1,
                    Order::Position => head.max(last),
                });
                let next = from.map(|position| Cursor::new(position, epoch));
                return Ok(EventsPage { events, next, through, looked_to });
            }
        }
    }

    /// Finds one event by its id as a client wrote it.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for another project's event.
    pub async fn event(&self, project: ProjectId, id: &str) -> Result<StoredEvent, Error> {
        let found = self.store.event(project, EventId::from_text(id).uuid()).await?;
        found.ok_or_else(|| Error::NotFound(format!("there is no event {id:?} in this project")))
    }
}
