//! Caches on a private Redis, and commands of the test's own.

use std::time::SystemTime;

use eventbucket_collector::cache::{Cache, CountersState, RedisOptions, Used};
use eventbucket_collector::project::ProjectId;
use eventbucket_servers::Redis;

/// What tests of the cache do with a Redis.
pub(crate) trait Asked {
    /// Another process' cache.
    async fn cache(&self) -> Cache;

    /// Runs a command over a connection of the test's own.
    fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T;
}

impl Asked for Redis {
    async fn cache(&self) -> Cache {
        Cache::redis(RedisOptions::new(&self.url()).unwrap()).await.unwrap()
    }

    fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection).unwrap()
    }
}

/// What the live counters of one project follow, when the cache can be asked.
pub(crate) async fn counters_state(cache: &Cache, project: ProjectId) -> Option<CountersState> {
    cache.counters_states(&[project]).await.ok()?[0]
}

/// What a store's ledger would have of today and this month.
pub(crate) fn used_today(day: u64, month: u64) -> Used {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Used { on_day: i64::try_from(since.as_secs() / 86_400).unwrap(), day, month }
}
