use std::time::Duration;

use super::Error;
use crate::cache::{Cache, Recalled};
use crate::project::{Grant, KeyHash, Standing};
use crate::store::{self, Store};

/// How long a key that was valid is believed while the store is away and can't be asked: two hours of an outage. Nobody can
/// revoke a key meanwhile, except beside an edge that alone is cut off.
const LAST_KNOWN_TTL: Duration = Duration::from_secs(2 * 60 * 60);

/// Keys remembered for that: 10,000 of about 100 B are 1 MB.
const LAST_KNOWN_MAX: u64 = 10_000;

/// What keys were worth when the store last said so.
#[derive(Clone)]
pub(super) struct LastKnown(moka::sync::Cache<KeyHash, Grant>);

impl LastKnown {
    pub(super) fn new() -> Self {
        Self(moka::sync::Cache::builder().max_capacity(LAST_KNOWN_MAX).time_to_live(LAST_KNOWN_TTL).build())
    }

    fn note(&self, hash: KeyHash, standing: Standing) {
        match standing {
            Standing::Valid(grant) => self.0.insert(hash, grant),
            Standing::Revoked | Standing::Unknown => self.0.invalidate(&hash),
        }
    }

    fn instead(&self, hash: &KeyHash, error: store::Error) -> Result<Standing, Error> {
        let known = error.retry().and_then(|_| self.0.get(hash));
        known.map(Standing::Valid).ok_or(Error::Store(error))
    }
}

/// Asks the cache first: it forgets after a second, so that a revoked key stops working within one.
pub(super) async fn grant(
    key: &str,
    store: &Store,
    cache: &Cache,
    last_known: &LastKnown,
) -> Result<Grant, Error> {
    let hash = KeyHash::of(key);
    let standing = match cache.standing(&hash).await {
        Recalled::Known(standing) => standing,
        Recalled::Ask(asked) => match store.find_key(&hash).await {
            Ok(found) => {
                cache.remember(hash, found, asked).await;
                last_known.note(hash, found);
                found
            }
            Err(error) => last_known.instead(&hash, error)?,
        },
    };
    match standing {
        Standing::Valid(grant) => Ok(grant),
        Standing::Revoked => Err(Error::RevokedKey),
        Standing::Unknown => Err(Error::UnknownKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::{AccountId, KeyKind, ProjectId};

    #[test]
    fn a_key_that_was_valid_lives_through_an_outage_and_a_revoked_one_does_not() {
        let (known, hash) = (LastKnown::new(), KeyHash::of("k"));
        let grant =
            Grant { account: AccountId(1), project: ProjectId(1), kind: KeyKind::Write, browser: false };
        let away = || store::Error::unavailable("gone");
        assert!(known.instead(&hash, away()).is_err(), "nothing is known of it");
        known.note(hash, Standing::Valid(grant));
        assert_eq!(known.instead(&hash, away()).unwrap(), Standing::Valid(grant));
        assert!(known.instead(&hash, store::Error::corrupt("x")).is_err(), "that doesn't mend itself");
        known.note(hash, Standing::Revoked);
        assert!(known.instead(&hash, away()).is_err());
    }
}
