use super::Error;
use crate::cache::{Cache, Recalled};
use crate::project::{Grant, KeyHash, Standing};
use crate::store::Store;

/// Asks the cache first: it forgets after a second, so that a revoked key stops working within one. While the store is away,
/// what the cache believes of a key stands in for it.
pub(super) async fn grant(key: &str, store: &Store, cache: &Cache) -> Result<Grant, Error> {
    let hash = KeyHash::of(key);
    let standing = match cache.standing(&hash).await {
        Recalled::Known(standing) => standing,
        Recalled::Ask(asked) => match store.find_key(&hash).await {
            Ok(found) => {
                cache.remember(hash, found, asked).await;
                found
            }
            // Only where trying again may help is it away.
            Err(error) => match error.retry().and_then(|_| cache.believed(&hash)) {
                Some(grant) => Standing::Valid(grant),
                None => return Err(Error::Store(error)),
            },
        },
    };
    match standing {
        Standing::Valid(grant) => Ok(grant),
        Standing::Revoked => Err(Error::RevokedKey),
        Standing::Unknown => Err(Error::UnknownKey),
    }
}
