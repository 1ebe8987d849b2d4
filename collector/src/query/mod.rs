//! Reading back: events, counts, users, the live tail, projects, audits. Everything is read for one project, the one a key belongs
//! to; nothing here can name another.

/// Pages of events, and one event.
mod events;

/// How long to wait for what isn't there yet.
mod reach;

/// Where a page ended.
mod cursor;

/// How an event is written as JSON.
mod shape;

/// How many events there are.
mod counts;

/// Who the users are, and what they did.
mod identifications;

/// What became of a batch.
mod batches;

/// Messages that nobody could process.
mod dead_letters;

/// Events as they are stored.
mod tail;

/// Projects and their keys.
mod projects;

/// Whether everything that is kept agrees with everything else.
pub mod audit;

/// Whether the store works, and what it counted.
mod health;

/// Why a question has no answer.
mod error;

use crate::bus::Bus;
use crate::cache::Cache;
use crate::store::Store;

pub use crate::cache::Node;
pub use crate::store::{
    BadCondition, BatchRecord, Condition, CountsBy, CountsQuery, EventFilter, Ledger, StoredEvent, UserLookup,
};
pub use audit::audit;
pub use batches::WAIT_S_MAX;
pub use counts::{CountRow, Counts};
pub use cursor::Cursor;
pub use dead_letters::{LetterDeed, LetterShape, LettersPage, WholeLetterShape};
pub use error::Error;
pub use events::{EventsPage, EventsQuery, LIMIT_DEFAULT, LIMIT_MAX, Order};
pub use identifications::{UserProfileShape, UserShape, UsersPage, UsersQuery};
pub use projects::{ChangedLimits, Rebuilt, RotatedKey};
pub use shape::EventShape;
pub use tail::Tail;

/// Answers questions about what is kept. Clones share what is behind it.
#[derive(Clone)]
pub struct Reader {
    store: Store,
    cache: Cache,
    /// Where the dead letters are; without a broker there are none.
    bus: Option<Bus>,
}

impl Reader {
    /// Puts a reader in front of a store; the cache wakes its tails.
    #[must_use]
    pub fn new(store: Store, cache: Cache) -> Self {
        Self { store, cache, bus: None }
    }
}
