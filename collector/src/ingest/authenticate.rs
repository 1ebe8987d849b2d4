use super::Error;
use crate::cache::Cache;
use crate::project::{Grant, KeyHash};
use crate::store::Store;

/// Asks the cache first: it forgets after a second, so that a revoked key stops working within one.
pub(super) async fn grant(key: &str, store: &Store, cache: &Cache) -> Result<Grant, Error> {
    let hash = KeyHash::of(key);
    let known = match cache.grant(&hash).await {
        Some(known) => known,
        None => {
            let found = store.find_key(&hash).await.map_err(Error::Store)?;
            cache.remember(hash, found).await;
            found
        }
    };
    match known {
        Some(grant) => Ok(grant),
        None if store.is_revoked(&hash).await.map_err(Error::Store)? => Err(Error::RevokedKey),
        None => Err(Error::UnknownKey),
    }
}
