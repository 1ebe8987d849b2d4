//! Reading what there is in the end: from the servers themselves, past every process and proxy.

use eventbucket_protocol::Timestamp;

use crate::bus::Bus;
use crate::cache::Cache;
use crate::project::ProjectId;
use crate::query::{self, Reader};
use crate::store::{CountRow, CountsBy, CountsQuery, Error, EventFilter, EventOrder, Store, StoredEvent};

use super::check::{Found, Logged};
use super::clients::{Clients, Sent};

/// Events read at once.
const PAGE_EVENTS: usize = 1_000;

/// The servers, without anything between.
pub(super) struct Servers {
    pub(super) store: Store,
    pub(super) bus: Bus,
    pub(super) cache: Cache,
    /// What the API answers from.
    pub(super) reader: Reader,
}

impl Servers {
    /// Reads everything about a project once the clients have nothing left to do.
    pub(super) async fn read(&self, project: ProjectId, clients: &Clients) -> Result<Found, String> {
        let deliveries = clients.flush().await;
        let said = |error: Error| format!("the store can't be read: {error}");
        let log = self.log(project).await.map_err(said)?;
        let hours = self.counts(project, CountsBy::Hour).await.map_err(said)?;
        let totals = self.counts(project, CountsBy::Total).await.map_err(said)?;
        let hour_users = self.users(project, CountsBy::Hour).await?;
        let total_users = self.users(project, CountsBy::Total).await?;
        let counters = self.cache.counters(project).await;
        Ok(Found {
            log,
            head: self.store.head(project).await.map_err(said)?,
            ledger: self.store.ledger(Some(project)).await.map_err(said)?,
            view: self.store.view_state(project).await.map_err(said)?,
            hours: hours
                .into_iter()
                .map(|row| ((row.name, row.start.map_or(0, Timestamp::ms)), row.count))
                .collect(),
            totals: totals.into_iter().map(|row| (row.name, row.count)).collect(),
            hour_users: hour_users
                .into_iter()
                .map(|row| ((row.name, row.hour.map_or(0, Timestamp::ms)), row.users))
                .collect(),
            total_users: total_users.into_iter().map(|row| (row.name, row.users)).collect(),
            epoch_is_current: counters.as_ref().is_some_and(|live| live.epoch == self.store.epoch()),
            counters,
            dead_letters: self.dead_letters().await?,
            deliveries,
            epoch: self.store.epoch(),
        })
    }

    async fn log(&self, project: ProjectId) -> Result<Vec<Logged>, Error> {
        let (mut log, mut after) = (Vec::new(), Some(0));
        while let Some(position) = after {
            let order = EventOrder::ByPosition { after: position };
            let page = self.store.events(project, &EventFilter::default(), order, PAGE_EVENTS).await?;
            log.extend(page.events.into_iter().map(logged));
            after = page.next;
        }
        Ok(log)
    }

    async fn counts(&self, project: ProjectId, by: CountsBy) -> Result<Vec<CountRow>, Error> {
        self.store.counts(project, CountsQuery { by, ..CountsQuery::default() }).await
    }

    /// Different users as the API tells them.
    async fn users(&self, project: ProjectId, by: CountsBy) -> Result<Vec<query::CountRow>, String> {
        let query = CountsQuery { by, users: true, ..CountsQuery::default() };
        let counts = self.reader.counts(project, query).await;
        counts.map(|counts| counts.rows).map_err(|error| format!("the users can't be read: {error}"))
    }

    async fn dead_letters(&self) -> Result<usize, String> {
        let said = |error: crate::bus::Error| format!("the dead letters can't be read: {error}");
        let Some(mut letters) = self.bus.dead_letters().await.map_err(said)? else { return Ok(0) };
        let mut count = 0;
        while letters.next().await.map_err(said)?.is_some() {
            count += 1;
        }
        letters.close().await;
        Ok(count)
    }
}

fn logged(stored: StoredEvent) -> Logged {
    let event = Sent { name: stored.event.name, time_ms: stored.event.time.ms(), user: stored.event.user };
    Logged { position: stored.position, id: stored.event.id.to_string(), event }
}
