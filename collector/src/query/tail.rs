use std::time::Duration;

use super::events::{CHUNK_EVENTS, check};
use super::{Error, Reader};
use crate::bus::message::position_announced;
use crate::cache::{Tail as Announced, TailReceiver};
use crate::project::ProjectId;
use crate::store::{EventFilter, EventOrder, Store, StoredEvent};

/// How late a lost announcement shows at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Events as they are stored, read from the log by position. What is announced only wakes it: a reader that is slow lags
/// behind the log and loses nothing.
pub struct Tail {
    store: Store,
    announced: TailReceiver,
    project: ProjectId,
    filter: EventFilter,
    after: u64,
}

impl Reader {
    /// Follows the log from behind a position, or from its head.
    ///
    /// # Errors
    /// [`Error::Cursor`] when the position lies beyond the head: then it is of another log. [`Error::Parameter`] when the filter
    /// has too many names or conditions.
    pub async fn tail(
        &self,
        project: ProjectId,
        filter: EventFilter,
        after: Option<u64>,
    ) -> Result<Tail, Error> {
        check(&filter)?;
        // Listening begins before the head is read, so nothing falls in between.
        let announced = self.cache.subscribe_tail();
        let head = self.store.head(project).await?;
        let after = after.unwrap_or(head);
        if after > head {
            return Err(Error::beyond(after, head));
        }
        Ok(Tail { store: self.store.clone(), announced, project, filter, after })
    }
}

impl Tail {
    /// The position through which everything was returned or filtered out.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.after
    }

    /// Waits for events. Cancel-safe: the position moves only when events are returned, and each call begins by looking
    /// at the log.
    ///
    /// # Errors
    /// When the store can't be read; the next call goes on from the same position.
    pub async fn next(&mut self) -> Result<Vec<StoredEvent>, Error> {
        loop {
            let head = self.store.head(self.project).await?;
            while self.after < head {
                let order = EventOrder::ByPosition { after: self.after };
                let page = self.store.events(self.project, &self.filter, order, CHUNK_EVENTS).await?;
                let last = page.events.last().map_or(0, |stored| stored.position);
                self.after = page.next.unwrap_or(head).max(last);
                if !page.events.is_empty() {
                    return Ok(page.events);
                }
            }
            self.woken().await;
        }
    }

    /// Waits until there may be something new: it was announced, or an announcement may have got lost.
    async fn woken(&mut self) {
        let look = tokio::time::sleep(LOOK_PERIOD);
        tokio::pin!(look);
        loop {
            // Both are cancel-safe: a receive from a broadcast, a timer.
            let announced = tokio::select! {
                announced = self.announced.recv() => announced,
                () = &mut look => return,
            };
            match announced {
                Some(Announced::Message { project, bytes }) => {
                    if project == self.project
                        && position_announced(&bytes).is_none_or(|last| last > self.after)
                    {
                        return;
                    }
                }
                Some(Announced::Missed) => return,
                // Nothing will be announced any more; whoever waits here decides for how long.
                None => look.as_mut().await,
            }
        }
    }
}
