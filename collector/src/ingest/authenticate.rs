use std::time::Duration;

use tokio::time::timeout;

use super::Error;
use crate::cache::{Asked, Cache, Recalled};
use crate::project::{Grant, KeyHash, Standing};
use crate::store::{self, Store};

/// How long the store may take to tell what a key is worth before what is believed of it stands in: hundreds of times what
/// it takes in a data centre, and once around the world. One that hangs costs a batch so much.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Asks the cache first: it forgets after a second, so that a revoked key stops working within one. While the store is away,
/// or hangs, what the cache believes of a key stands in for it.
pub(super) async fn grant(key: &str, store: &Store, cache: &Cache) -> Result<Grant, Error> {
    let hash = KeyHash::of(key);
    let standing = match cache.standing(&hash).await {
        Recalled::Known(standing) => Ok(standing),
        Recalled::Ask(asked) => in_time(hash, asked, store, cache).await,
    };
    let standing = match standing {
        Ok(standing) => standing,
        // Only where trying again may help is it away.
        Err(error) => match error.retry().and_then(|_| cache.believed(&hash)) {
            Some(grant) => Standing::Valid(grant),
            None => return Err(Error::Store(error)),
        },
    };
    match standing {
        Standing::Valid(grant) => Ok(grant),
        Standing::Revoked => Err(Error::RevokedKey),
        Standing::Unknown => Err(Error::UnknownKey),
    }
}

/// Asks the store, and waits no longer than it must. What it says later is remembered all the same: a store that is merely
/// slow lets nobody believe in a key for longer than it takes to answer.
async fn in_time(
    hash: KeyHash,
    asked: Asked,
    store: &Store,
    cache: &Cache,
) -> Result<Standing, store::Error> {
    let mut asking = Box::pin(ask(hash, asked, store.clone(), cache.clone()));
    if let Ok(answer) = timeout(ANSWER_MAX, &mut asking).await {
        return answer;
    }
    let Some(grant) = cache.believed(&hash) else { return asking.await };
    // How many of them there are is bounded: who finds no connection free gives up after 5 s.
    tokio::spawn(asking);
    Ok(Standing::Valid(grant))
}

async fn ask(hash: KeyHash, asked: Asked, store: Store, cache: Cache) -> Result<Standing, store::Error> {
    let found = store.find_key(&hash).await?;
    cache.remember(hash, found, asked).await;
    Ok(found)
}
