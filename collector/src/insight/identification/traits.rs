use std::collections::BTreeMap;

use eventbucket_protocol::limits::REFERENCE_CHARS_MAX;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// All traits of a user together: 64 KiB. A step of the view holds those of up to 1,000 users, 64 MiB.
pub const TRAITS_BYTES_MAX: usize = 64 * 1024;

/// What a trait takes beside its name and value: punctuation, a time, a position.
const TRAIT_BYTES: usize = 40;

/// The value of a trait as it was sent, when it was set by the corrected time, and by which event. Kept as `[time,position,value]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trait(i64, u64, Box<RawValue>);

impl Trait {
    /// When it was set, by the corrected time.
    #[must_use]
    pub fn time_ms(&self) -> i64 {
        self.0
    }

    /// The position of the event that set it.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.1
    }

    /// Its value, as it was sent.
    #[must_use]
    pub fn value(&self) -> &RawValue {
        &self.2
    }

    fn is_removed(&self) -> bool {
        self.2.get() == "null"
    }
}

/// What a user is said to be. The latest time wins, of two at the same time the later position, so that it makes no difference
/// in which order they arrive. One that was removed, by null, stays as such: what was set earlier may arrive later.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Traits(BTreeMap<String, Trait>);

impl PartialEq for Traits {
    fn eq(&self, other: &Self) -> bool {
        self.to_text() == other.to_text()
    }
}

impl Traits {
    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_text(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Writes them, in the order of their names: the same traits are the same bytes.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("names are text and values are JSON")
    }

    /// Those that there are, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Trait)> {
        self.0.iter().filter(|(_, one)| !one.is_removed()).map(|(name, one)| (name.as_str(), one))
    }

    /// The trait `email`, where it is a text as long as an id may be: what users are found by.
    #[must_use]
    pub fn email(&self) -> Option<String> {
        let email: String = serde_json::from_str(self.0.get("email")?.value().get()).ok()?;
        (!email.is_empty() && email.chars().count() <= REFERENCE_CHARS_MAX).then_some(email)
    }

    /// Sets what wasn't set later. Says whether there was room for all of them.
    pub(super) fn set(
        &mut self,
        traits: &BTreeMap<String, Box<RawValue>>,
        time_ms: i64,
        position: u64,
    ) -> bool {
        let mut bytes: usize = self.0.iter().map(|(name, one)| size(name, &one.2)).sum();
        let mut room = true;
        for (name, value) in traits {
            let known = self.0.get(name);
            if known.is_some_and(|known| (known.0, known.1) > (time_ms, position)) {
                continue;
            }
            let without = bytes - known.map_or(0, |known| size(name, &known.2));
            let with = without + size(name, value);
            // What takes less than before is taken in any case, so that a removal always is.
            if with > TRAITS_BYTES_MAX && with > bytes {
                room = false;
                continue;
            }
            bytes = with;
            self.0.insert(name.clone(), Trait(time_ms, position, value.clone()));
        }
        room
    }
}

fn size(name: &str, value: &RawValue) -> usize {
    name.len() + value.get().len() + TRAIT_BYTES
}
