//! Caches on a private Redis, and commands of the test's own.

use eventbucket_collector::cache::{Cache, CountersState, RedisOptions};
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
