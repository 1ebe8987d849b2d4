//! The servers under a distributed collector, and connections to them as each of its processes has its own.

use eventbucket_collector::bus::{Bus, RabbitOptions};
use eventbucket_collector::cache::{Cache, RedisOptions};
use eventbucket_collector::store::Store;
use eventbucket_servers::shared;

use crate::bus_fixture;
use crate::store_postgres::Database;

/// A database of its own, and names of its own on a broker and a Redis that tests share.
pub(crate) struct Servers {
    database: Database,
    broker: RabbitOptions,
    redis: RedisOptions,
}

/// What one process stands on. Clones share it.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) cache: Cache,
}

impl Servers {
    pub(crate) async fn new() -> Self {
        let mut redis = RedisOptions::new(&shared::redis()).unwrap();
        redis.prefix = shared::name();
        Self { database: Database::new().await, broker: bus_fixture::options(bus_fixture::shared()), redis }
    }

    /// Connects as another process would.
    pub(crate) async fn process(&self) -> Process {
        let store = self.database.open().await;
        let bus = bus_fixture::bus(&self.broker).await;
        Process { store, bus, cache: Cache::redis(self.redis.clone()).await.unwrap() }
    }
}
