//! What time does to a log: segments begin, and what is old is dropped. Done here as a collector does it, beside those that
//! append and count, and cut off in the middle as one that is killed.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::app;
use crate::store::Store;

use super::proxy::Proxy;
use super::schedule::Server;
use super::world::Addresses;

/// The pause before something is tried again that a server which was away, or somebody in the way, has prevented.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Whoever ages the log.
#[derive(Clone)]
pub(super) struct Ageing {
    /// Straight to the server.
    store: Store,
    /// To drop old events, where that may be.
    dropper: Option<Arc<Dropper>>,
}

/// A store of its own whose connections can be cut.
struct Dropper {
    store: Store,
    proxy: Proxy,
}

impl Ageing {
    pub(super) fn new(store: Store) -> Self {
        Self { store, dropper: None }
    }

    /// Lets it drop old events, too.
    pub(super) async fn dropping(self, addresses: &Addresses) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let proxy = Proxy::start(Some(addresses.upstream(Server::Postgres)?)).await?;
        let (_, store_url) = addresses.through(Server::Postgres, &proxy)?;
        let only = app::Servers {
            store_url,
            accounts_url: None,
            cache_url: None,
            cache_prefix: None,
            cache_ca_file: None,
        };
        let (store, _) = app::beside_servers(&only).await?;
        Ok(Self { dropper: Some(Arc::new(Dropper { store, proxy })), ..self })
    }

    pub(super) fn can_drop(&self) -> bool {
        self.dropper.is_some()
    }

    /// Begins the next segment, as soon as that can be done.
    pub(super) async fn next_segment(self) {
        while self.store.begin_segment().await.is_err() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Drops everything but the open segment, once, cut after so long; how far that comes doesn't matter.
    pub(super) async fn drop_old(self, cut_ms: Option<u64>) {
        let Some(dropper) = self.dropper else { return };
        let cut = async {
            match cut_ms {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => std::future::pending().await,
            }
        };
        // Both are cancel-safe: the connections are cut all the same, and a sleep is only a sleep.
        tokio::select! {
            _ = dropper.store.drop_before(Duration::ZERO) => {}
            () = cut => dropper.proxy.cut(),
        }
    }

    /// Drops everything but the open segment, however often that has to be begun.
    pub(super) async fn drop_all_old(&self) {
        while self.store.drop_before(Duration::ZERO).await.is_err() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// What faults have done to the log that nobody has to mend.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// How many events had been captured when the last segment began: what came later can't be dropped.
    droppable: AtomicUsize,
    /// How many events were in the log, and aren't since it was put back.
    undone: AtomicU64,
}

impl Past {
    pub(super) fn segment_began(&self, captured: usize) {
        self.droppable.fetch_max(captured, Ordering::AcqRel);
    }

    pub(super) fn was_undone(&self, events: u64) {
        self.undone.fetch_add(events, Ordering::AcqRel);
    }

    pub(super) fn droppable(&self) -> usize {
        self.droppable.load(Ordering::Acquire)
    }

    pub(super) fn undone(&self) -> u64 {
        self.undone.load(Ordering::Acquire)
    }
}
