//! Who the users are: what events named `$identify` and `$alias` make of the ids that events carry. The rules are told in
//! docs/PROTOCOL.md, and why they are these in docs/decisions/0009.

/// What a stretch of the log says about users.
mod gathering;

/// What a user is said to be.
mod traits;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use gathering::{Gathering, is_deed};
pub use traits::{TRAITS_BYTES_MAX, Trait, Traits};

use gathering::{Deed, Kind};

/// Ids that are linked to one user at most. A page of the user's events looks each of them up in an index: 1,000 at 10 us are
/// 10 ms.
pub const LINKS_MAX: u64 = 1_000;

/// Refusals that are kept with a user, the newest: 20 with ids of 2 KiB are 40 KiB.
pub const REFUSALS_MAX: usize = 20;

/// How often an id was seen, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many events there are.
    pub events: u64,
    /// The earliest (corrected) time.
    pub first_ms: i64,
    /// The latest (corrected) time.
    pub last_ms: i64,
    /// The last position of an event of that time.
    pub last_position: u64,
}

impl Seen {
    /// Of one event.
    #[must_use]
    pub fn once(time_ms: i64, position: u64) -> Self {
        Self { events: 1, first_ms: time_ms, last_ms: time_ms, last_position: position }
    }

    /// Adds other events, in any order.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.first_ms = self.first_ms.min(other.first_ms);
        let last = (self.last_ms, self.last_position).max((other.last_ms, other.last_position));
        (self.last_ms, self.last_position) = last;
    }
}

/// To whom an anonymous id belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The user.
    pub to: String,
    /// The position of the `$alias` that said so first.
    pub position: u64,
}

/// Why something that was said of a user was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedFor {
    /// The other id is a user itself: two persons are never made one.
    Identified,
    /// The other id is linked to another user.
    Linked,
    /// The user has [`LINKS_MAX`] ids.
    TooManyIds,
    /// The properties hold no other id, or can't be read.
    Unusable,
    /// The user's traits would take more than [`TRAITS_BYTES_MAX`].
    TraitsFull,
}

/// Something that was said of a user and not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub reason: RefusedFor,
    /// The other id, of an `$alias`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The position of the event that said it last.
    pub position: u64,
}

/// What is kept of one id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identification {
    /// An anonymous id's user. Then everything else is there, and nothing here.
    pub link: Option<Link>,
    /// Whether an `$identify` or an `$alias` was about this user. Otherwise it is an id that events carry, and no more.
    pub identified: bool,
    /// How many ids are linked to it.
    pub links: u64,
    /// When it was seen, linked ids included.
    pub seen: Option<Seen>,
    /// What it is said to be.
    pub traits: Traits,
    /// What was not taken, the newest last.
    pub refused: Vec<Refusal>,
}

impl Identification {
    fn refuse(&mut self, reason: RefusedFor, id: Option<&str>, position: u64) {
        // What is said again and again is kept once.
        self.refused.retain(|refusal| (refusal.reason, refusal.id.as_deref()) != (reason, id));
        self.refused.push(Refusal { reason, id: id.map(str::to_owned), position });
        let over = self.refused.len().saturating_sub(REFUSALS_MAX);
        self.refused.drain(..over);
    }
}

/// The ids that some deeds are about, as they are kept. An id that isn't kept yet is one that nothing is known of.
#[derive(Debug, Default)]
pub struct Identities {
    kept: BTreeMap<String, Identification>,
    changed: BTreeSet<String>,
}

impl Identities {
    /// Takes in what is kept of an id.
    pub fn insert(&mut self, id: String, kept: Identification) {
        self.kept.insert(id, kept);
    }

    /// The users to whom ids are linked, and that haven't been taken in. A user is linked to nobody, so there is one round.
    #[must_use]
    pub fn missing(&self) -> BTreeSet<String> {
        let to = self.kept.values().filter_map(|kept| kept.link.as_ref()).map(|link| &link.to);
        to.filter(|to| !self.kept.contains_key(*to)).cloned().collect()
    }

    /// Does what the events of a stretch say, in their order. The ids that they name, and [`Self::missing`], were taken in.
    pub fn apply(&mut self, gathering: &Gathering) {
        for deed in gathering.deeds() {
            self.apply_one(deed);
        }
    }

    fn apply_one(&mut self, deed: &Deed) {
        let user = self.user_of(&deed.user);
        match &deed.kind {
            Kind::Identify(Some(traits)) => {
                let kept = self.change(&user);
                kept.identified = true;
                if !kept.traits.set(traits, deed.time_ms, deed.position) {
                    kept.refuse(RefusedFor::TraitsFull, None, deed.position);
                }
            }
            Kind::Alias(Some(other)) => self.link(&user, other, deed.position),
            Kind::Identify(None) | Kind::Alias(None) => {
                self.change(&user).refuse(RefusedFor::Unusable, None, deed.position);
            }
        }
    }

    fn link(&mut self, user: &str, other: &str, position: u64) {
        let found = self.kept.get(other);
        let linked = found.and_then(|found| found.link.as_ref());
        if other == user || linked.is_some_and(|link| link.to == user) {
            return;
        }
        let links = self.kept.get(user).map_or(0, |kept| kept.links);
        let refused = match found {
            Some(found) if found.identified => Some(RefusedFor::Identified),
            _ if linked.is_some() => Some(RefusedFor::Linked),
            _ if links >= LINKS_MAX => Some(RefusedFor::TooManyIds),
            _ => None,
        };
        if let Some(reason) = refused {
            return self.change(user).refuse(reason, Some(other), position);
        }
        let link = Some(Link { to: user.to_owned(), position });
        let before =
            std::mem::replace(self.change(other), Identification { link, ..Identification::default() });
        let kept = self.change(user);
        (kept.identified, kept.links) = (true, kept.links + 1);
        match (&mut kept.seen, before.seen) {
            (Some(seen), Some(before)) => seen.add(&before),
            (seen @ None, before) => *seen = before,
            (Some(_), None) => {}
        }
    }

    /// The user whom an id belongs to: itself, unless it was linked.
    fn user_of(&self, id: &str) -> String {
        let link = self.kept.get(id).and_then(|kept| kept.link.as_ref());
        link.map_or(id, |link| &link.to).to_owned()
    }

    fn change(&mut self, id: &str) -> &mut Identification {
        self.changed.insert(id.to_owned());
        self.kept.entry(id.to_owned()).or_default()
    }

    /// What is to be written, in the order of the ids.
    pub fn changed(&self) -> impl Iterator<Item = (&str, &Identification)> {
        self.changed.iter().map(|id| (id.as_str(), &self.kept[id]))
    }
}
