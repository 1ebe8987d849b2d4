use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::project::{KeyHash, Standing};

/// How long an answer about a key is believed, counted from when it was asked for.
pub(super) const KEY_TTL: Duration = Duration::from_secs(1);

/// Keys remembered, unknown ones included: 10,000 of about 150 B are 1.5 MB.
const KEYS_MAX: u64 = 10_000;

/// What the cache knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// The store said so a moment ago.
    Known(Standing),
    /// The store is to be asked, and its answer remembered with this.
    Ask(Asked),
}

/// When the store began to be asked about a key. An answer is worth nothing when keys were revoked since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub(super) at: Instant,
    /// How often keys were forgotten in this process before.
    pub(super) forgotten: u64,
    /// The version of all keys in Redis then; `None` when it wasn't there to be asked.
    pub(super) version: Option<String>,
}

/// The keys this process was asked about within the last second.
#[derive(Clone)]
pub(super) struct RecentKeys {
    standings: moka::sync::Cache<KeyHash, (Standing, Instant)>,
    forgotten: Arc<AtomicU64>,
}

impl RecentKeys {
    pub(super) fn new() -> Self {
        let standings = moka::sync::Cache::builder().max_capacity(KEYS_MAX).time_to_live(KEY_TTL).build();
        Self { standings, forgotten: Arc::default() }
    }

    pub(super) fn recall(&self, hash: &KeyHash) -> Recalled {
        // Counted from the asking: what took long to answer is older than its entry.
        match self.standings.get(hash).filter(|(_, asked)| asked.elapsed() < KEY_TTL) {
            Some((standing, _)) => Recalled::Known(standing),
            None => Recalled::Ask(self.asked()),
        }
    }

    fn asked(&self) -> Asked {
        Asked { at: Instant::now(), forgotten: self.forgotten.load(Ordering::SeqCst), version: None }
    }

    /// Remembers an answer, unless keys were forgotten since it was asked for.
    pub(super) fn remember(&self, hash: KeyHash, standing: Standing, asked: &Asked) {
        if asked.forgotten == self.forgotten.load(Ordering::SeqCst) && asked.at.elapsed() < KEY_TTL {
            self.standings.insert(hash, (standing, asked.at));
        }
    }

    pub(super) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.standings.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_before_a_revocation_is_not_remembered() {
        let keys = RecentKeys::new();
        let hash = KeyHash::of("eb_write_a");
        let Recalled::Ask(early) = keys.recall(&hash) else { panic!("nothing is known yet") };
        keys.forget();
        keys.remember(hash, Standing::Unknown, &early);
        let Recalled::Ask(late) = keys.recall(&hash) else { panic!("an old answer was remembered") };
        keys.remember(hash, Standing::Revoked, &late);
        assert_eq!(keys.recall(&hash), Recalled::Known(Standing::Revoked));
    }

    #[test]
    fn an_answer_that_took_longer_than_it_would_be_believed_is_not_remembered() {
        let keys = RecentKeys::new();
        let hash = KeyHash::of("eb_write_a");
        let Recalled::Ask(mut asked) = keys.recall(&hash) else { panic!("nothing is known yet") };
        asked.at = asked.at.checked_sub(KEY_TTL).expect("the machine has been up for a second");
        keys.remember(hash, Standing::Unknown, &asked);
        assert!(matches!(keys.recall(&hash), Recalled::Ask(_)));
    }
}
