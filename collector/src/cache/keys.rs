use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::project::{Grant, KeyHash, Standing};

/// How long an answer about a key is believed, counted from when it was asked for.
pub(super) const KEY_TTL: Duration = Duration::from_secs(1);

/// Keys remembered, unknown ones included: 10,000 of about 180 B are 1.8 MB. As many valid ones for an outage: 1.3 MB.
const KEYS_MAX: u64 = 10_000;

/// How long a key that was valid is believed while the store can't be asked: two hours of an outage.
const BELIEVED_TTL: Duration = Duration::from_secs(2 * 60 * 60);

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
    pub(super) heard: Heard,
    /// The version of all keys in Redis then; `None` when it wasn't there to be asked.
    pub(super) version: Option<String>,
}

/// What this process has heard of keys that were made or revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// How often it was told to forget them.
    forgotten: u64,
    /// How often it began or ceased to be told: something may have been missed each time.
    gaps: u64,
}

/// The keys this process was asked about within the last second, and those to believe while the store is away.
#[derive(Clone)]
pub(super) struct RecentKeys {
    standings: moka::sync::Cache<KeyHash, (Standing, Asked)>,
    grants: moka::sync::Cache<KeyHash, (Grant, Heard)>,
    heard: Arc<Mutex<Heard>>,
    /// The gaps there had been when the store went away; [`PRESENT`] while it answers.
    gaps_before_outage: Arc<AtomicU64>,
}

const PRESENT: u64 = u64::MAX;

impl RecentKeys {
    pub(super) fn new() -> Self {
        Self {
            standings: moka::sync::Cache::builder().max_capacity(KEYS_MAX).time_to_live(KEY_TTL).build(),
            grants: moka::sync::Cache::builder().max_capacity(KEYS_MAX).time_to_live(BELIEVED_TTL).build(),
            heard: Arc::default(),
            gaps_before_outage: Arc::new(AtomicU64::new(PRESENT)),
        }
    }

    fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn recall(&self, hash: &KeyHash) -> Recalled {
        let heard = self.heard();
        // Counted from the asking: what took long to answer is older than its entry.
        let fresh = |asked: &Asked| asked.heard == heard && asked.at.elapsed() < KEY_TTL;
        match self.standings.get(hash).filter(|(_, asked)| fresh(asked)) {
            Some((standing, _)) => Recalled::Known(standing),
            None => Recalled::Ask(Asked { at: Instant::now(), heard, version: None }),
        }
    }

    /// Remembers an answer, unless keys were forgotten since it was asked for.
    pub(super) fn remember(&self, hash: KeyHash, standing: Standing, asked: &Asked) {
        match standing {
            Standing::Valid(grant) => self.grants.insert(hash, (grant, asked.heard)),
            Standing::Revoked | Standing::Unknown => self.grants.invalidate(&hash),
        }
        if asked.heard == self.heard() && asked.at.elapsed() < KEY_TTL {
            self.standings.insert(hash, (standing, asked.clone()));
        }
    }

    /// Takes down that the store answers: whatever is heard from now on may be missed.
    pub(super) fn store_is_there(&self) {
        self.gaps_before_outage.store(PRESENT, Ordering::SeqCst);
    }

    /// What a key was worth when that was last said, while the store can't be asked. Nobody can revoke a key then, so a gap
    /// in what is heard does no harm; one before it does, and so does being told.
    pub(super) fn believed(&self, hash: &KeyHash) -> Option<Grant> {
        let now = self.heard();
        let set =
            self.gaps_before_outage.compare_exchange(PRESENT, now.gaps, Ordering::SeqCst, Ordering::SeqCst);
        let gaps = set.map_or_else(|before| before, |_| now.gaps);
        let (grant, then) = self.grants.get(hash)?;
        (then.forgotten == now.forgotten && then.gaps >= gaps).then_some(grant)
    }

    /// Keys were made or revoked.
    pub(super) fn forget(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).forgotten += 1;
        self.standings.invalidate_all();
        self.grants.invalidate_all();
    }

    /// Keys may be made or revoked, or may have been, without this process being told.
    pub(super) fn may_have_missed(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).gaps += 1;
        self.standings.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::{AccountId, KeyKind, OwnLimit, OwnLimits, ProjectId};

    const GRANT: Grant = Grant {
        account: AccountId(1),
        project: ProjectId(1),
        kind: KeyKind::Write,
        browser: false,
        limits: OwnLimits { events_per_s: OwnLimit::None, events_per_day: OwnLimit::Default },
    };

    /// Keys that know of one that it is valid.
    fn knowing(hash: KeyHash) -> RecentKeys {
        let keys = RecentKeys::new();
        learns(&keys, hash);
        keys
    }

    fn learns(keys: &RecentKeys, hash: KeyHash) {
        let Recalled::Ask(asked) = keys.recall(&hash) else { panic!("it is known") };
        keys.remember(hash, Standing::Valid(GRANT), &asked);
    }

    #[test]
    fn a_key_is_believed_through_an_outage_until_anything_else_is_heard_of_it() {
        let hash = KeyHash::of("k");
        let keys = knowing(hash);
        assert_eq!(keys.believed(&KeyHash::of("other")), None, "nothing is known of it");
        assert_eq!(keys.believed(&hash), Some(GRANT));
        // The store is away: nobody can revoke anything in a gap.
        keys.may_have_missed();
        assert_eq!(keys.believed(&hash), Some(GRANT));
        let Recalled::Ask(asked) = keys.recall(&hash) else { panic!("a gap was passed over") };
        keys.remember(hash, Standing::Revoked, &asked);
        assert_eq!(keys.believed(&hash), None, "another process said so");
        let keys = knowing(hash);
        keys.forget();
        assert_eq!(keys.believed(&hash), None, "keys were revoked");
    }

    #[test]
    fn a_key_is_not_believed_when_its_revocation_may_have_been_missed_before_the_outage() {
        let hash = KeyHash::of("k");
        let keys = knowing(hash);
        keys.may_have_missed();
        assert_eq!(keys.believed(&hash), None);
        keys.store_is_there();
        learns(&keys, hash);
        assert_eq!(keys.believed(&hash), Some(GRANT));
        keys.may_have_missed();
        keys.store_is_there();
        assert_eq!(keys.believed(&hash), None, "another outage");
    }

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
