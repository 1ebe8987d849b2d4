use std::borrow::Cow;
use std::collections::HashSet;

/// The keys of one object so far: a scan while there are few, a set once there are many.
#[derive(Default)]
pub(super) struct Seen<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

/// Up to here comparing each with each (120 comparisons) is cheaper than hashing.
const FEW_KEYS: usize = 16;

impl<'de> Seen<'de> {
    pub(super) fn is_empty(&self) -> bool {
        self.few.is_empty()
    }

    /// Adds a key, or returns it when it was there before.
    pub(super) fn insert(&mut self, key: Cow<'de, str>) -> Option<String> {
        if self.few.contains(&key) || self.many.contains(&key) {
            return Some(key.into_owned());
        }
        if self.few.is_empty() {
            // One allocation an object instead of three as it grows; that was half of what finding duplicates costs.
            self.few.reserve_exact(FEW_KEYS);
        }
        if self.few.len() < FEW_KEYS {
            self.few.push(key);
        } else {
            self.many.insert(key);
        }
        None
    }
}
