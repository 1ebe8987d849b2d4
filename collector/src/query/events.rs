use eventbucket_protocol::EventId;

use super::{Cursor, Error, Reader};
use crate::project::ProjectId;
use crate::store::{EventFilter, EventOrder, PAGE_BYTES_MAX, StoredEvent};

/// Events on a page when no limit is given.
pub const LIMIT_DEFAULT: usize = 100;

/// Events on a page at most.
pub const LIMIT_MAX: usize = 1_000;

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

/// A page of events.
#[derive(Clone, Debug)]
pub struct EventsPage {
    /// The events, in the order asked for.
    pub events: Vec<StoredEvent>,
    /// Where the next page begins; `None` when there is nothing more.
    pub next: Option<Cursor>,
}

impl Reader {
    /// Lists events.
    ///
    /// # Errors
    /// A limit out of bounds, a cursor from elsewhere, a store that can't be read.
    pub async fn events(&self, project: ProjectId, query: EventsQuery) -> Result<EventsPage, Error> {
        if !(1..=LIMIT_MAX).contains(&query.limit) {
            let message = format!("{} is not between 1 and {LIMIT_MAX}", query.limit);
            return Err(Error::Parameter { name: "limit", message });
        }
        let epoch = self.store.epoch();
        let cursor = query.cursor.map(|text| Cursor::parse(&text, epoch)).transpose()?;
        let mut from = cursor.map(|cursor| cursor.position);
        let mut events = Vec::new();
        let mut bytes = 0;
        loop {
            let order = match query.order {
                Order::Newest => EventOrder::NewestFirst { before: from },
                Order::Position => EventOrder::ByPosition { after: from.unwrap_or(0) },
            };
            let limit = CHUNK_EVENTS.min(query.limit - events.len());
            let page = self.store.events(project, &query.filter, order, limit).await?;
            bytes += page.events.iter().map(|stored| stored.event.size_bytes()).sum::<usize>();
            events.extend(page.events);
            from = page.next;
            if from.is_none() || events.len() >= query.limit || bytes >= PAGE_BYTES_MAX {
                let next = from.map(|position| Cursor::new(position, epoch));
                return Ok(EventsPage { events, next });
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
