use super::Error;
use crate::cache::Cache;
use crate::project::{Grant, KeyHash, Standing};
use crate::store::Store;

/// Asks the cache first: it forgets after a second, so that a revoked key stops working within one.
pub(super) async fn grant(key: &str, store: &Store, cache: &Cache) -> Result<Grant, Error> {
    let hash = KeyHash::of(key);
    let standing = match cache.standing(&hash).await {
        Some(standing) => standing,
        None => {
            let found = store.find_key(&hash).await.map_err(Error::Store)?;
            cache.remember(hash, found).await;
            found
        }
    };
    match standing {
        Standing::Valid(grant) => Ok(grant),
        Standing::Revoked => Err(Error::RevokedKey),
        Standing::Unknown => Err(Error::UnknownKey),
    }
}
