use std::collections::{BTreeMap, BTreeSet, HashMap};

use eventbucket_protocol::limits::REFERENCE_CHARS_MAX;
use eventbucket_protocol::{ALIAS, IDENTIFY};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Seen;

/// Events that change who users are, in one stretch: 1,000, because the traits of as many users, 64 MiB at most, are in memory
/// while they are applied.
const DEEDS_MAX: usize = 1_000;

/// Different ids in one stretch: 5,000 rows are read and written in about 100 ms, which an append to SQLite then waits for.
const IDS_MAX: usize = 5_000;

/// What a stretch may take in memory: 16 MiB, 64 of the largest events.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// Says whether events of a name change who users are.
#[must_use]
pub fn is_deed(name: &str) -> bool {
    name == IDENTIFY || name == ALIAS
}

/// An event that changes who users are.
#[derive(Debug)]
pub(super) struct Deed {
    pub(super) position: u64,
    pub(super) time_ms: i64,
    pub(super) user: String,
    pub(super) kind: Kind,
}

/// What it says; `None` when that can't be used.
#[derive(Debug)]
pub(super) enum Kind {
    Identify(Option<BTreeMap<String, Box<RawValue>>>),
    Alias(Option<String>),
}

impl Kind {
    fn read(name: &str, properties: &str) -> Self {
        if name == IDENTIFY {
            return Self::Identify(serde_json::from_str(properties).ok());
        }
        #[derive(Deserialize)]
        struct Alias {
            alias: String,
        }
        let read: Option<Alias> = serde_json::from_str(properties).ok();
        let fits = |alias: &String| !alias.is_empty() && alias.chars().count() <= REFERENCE_CHARS_MAX;
        Self::Alias(read.map(|read| read.alias).filter(fits))
    }
}

/// What a stretch of the log says about users.
#[derive(Debug, Default)]
pub struct Gathering {
    seen: HashMap<String, Seen>,
    deeds: Vec<Deed>,
    bytes: usize,
}

impl Gathering {
    /// Adds the next event of a user; `said` are the name and the properties of one that [`is_deed`].
    pub fn add(&mut self, position: u64, time_ms: i64, user: &str, said: Option<(&str, &str)>) {
        let once = Seen::once(time_ms, position);
        match self.seen.get_mut(user) {
            Some(seen) => seen.add(&once),
            None => {
                self.bytes += user.len() + size_of::<(String, Seen)>();
                self.seen.insert(user.to_owned(), once);
            }
        }
        if let Some((name, properties)) = said {
            self.bytes += user.len() + properties.len() + size_of::<Deed>();
            let kind = Kind::read(name, properties);
            self.deeds.push(Deed { position, time_ms, user: user.to_owned(), kind });
        }
    }

    /// Says whether the stretch has to end here, because its memory is bounded.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.deeds.len() >= DEEDS_MAX || self.seen.len() >= IDS_MAX || self.bytes >= BYTES_MAX
    }

    pub(super) fn deeds(&self) -> &[Deed] {
        &self.deeds
    }

    /// The ids that events which change who users are name.
    #[must_use]
    pub fn named(&self) -> BTreeSet<&str> {
        let other = |deed| match deed {
            &Kind::Alias(Some(ref other)) => Some(other.as_str()),
            _ => None,
        };
        self.deeds.iter().flat_map(|deed| [Some(deed.user.as_str()), other(&deed.kind)]).flatten().collect()
    }

    /// The ids that events carry, in their order.
    #[must_use]
    pub fn carried(&self) -> BTreeSet<&str> {
        self.seen.keys().map(String::as_str).collect()
    }

    /// When each user was seen, once it is known which ids are linked to whom.
    #[must_use]
    pub fn seen(self, links: &HashMap<String, String>) -> BTreeMap<String, Seen> {
        let mut users: BTreeMap<String, Seen> = BTreeMap::new();
        for (id, seen) in self.seen {
            let user = links.get(&id).cloned().unwrap_or(id);
            users.entry(user).and_modify(|known| known.add(&seen)).or_insert(seen);
        }
        users
    }
}
