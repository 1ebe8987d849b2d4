use std::path::Path;

use crate::bus::{self, Bus, BusFacts, RabbitOptions};
use crate::cache::{self, Cache, CacheFacts, RedisOptions};
use crate::config::{Config, ServerUrl};
use crate::store::{self, PostgresOptions, Store, StoreFacts};

pub(super) fn redis_options(
    url: &str,
    prefix: Option<&str>,
    ca_file: Option<&Path>,
    identity: Option<String>,
) -> Result<RedisOptions, cache::Error> {
    let mut options = RedisOptions::new(url)?;
    if let Some(prefix) = prefix {
        prefix.clone_into(&mut options.prefix);
    }
    options.store = identity;
    match ca_file {
        Some(file) => options.trusting(file),
        None => Ok(options),
    }
}

pub(super) fn broker(config: &Config) -> Option<RabbitOptions> {
    let mut options = RabbitOptions::new(config.bus.url.clone()?);
    options.shards = u16::try_from(config.bus.shards).unwrap_or(u16::MAX);
    options.writers = config.bus.writers;
    options.prefix.clone_from(&config.bus.prefix);
    options.ca_file.clone_from(&config.bus.ca_file);
    Some(options)
}

/// Looks at the PostgreSQL that a configuration names, changing nothing.
///
/// # Errors
/// When there is none, or it can't be reached or read.
pub async fn look_at_server(config: &Config) -> Result<StoreFacts, store::Error> {
    let url = config.store.url.as_ref().map_or("", ServerUrl::secret);
    let accounts = config.store.accounts_url.as_ref().map(ServerUrl::secret);
    Store::look_at_server(PostgresOptions::parse(url, accounts)?).await
}

/// Looks at the Redis that a configuration names, changing nothing; `None` without one.
pub async fn look_at_redis(config: &Config) -> Option<Result<CacheFacts, cache::Error>> {
    let url = config.cache_url.as_ref()?;
    let options =
        redis_options(url.secret(), Some(&config.cache_prefix), config.cache_ca_file.as_deref(), None);
    Some(match options {
        Ok(options) => Cache::look(&options).await,
        Err(error) => Err(error),
    })
}

/// Looks at the RabbitMQ that a configuration names, changing nothing; `None` without one.
pub async fn look_at_broker(config: &Config) -> Option<Result<BusFacts, bus::Error>> {
    Some(Bus::look(&broker(config)?).await)
}
