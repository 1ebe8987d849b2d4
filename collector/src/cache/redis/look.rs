use redis::cmd;
use tokio_util::sync::CancellationToken;

use super::RedisOptions;
use super::link::Link;
use crate::cache::{CacheFacts, Error};

/// Connects, asks and goes, leaving no mark.
pub(in crate::cache) async fn look(options: &RedisOptions) -> Result<CacheFacts, Error> {
    let cancel = CancellationToken::new();
    let _ends_it = cancel.clone().drop_guard();
    let link = Link::start(options.client()?, options.bulk_timeout, None, cancel).await?;
    let store = link.command::<Option<String>>(key(&options.prefix)).await.flatten();
    let told: String = link.command(cmd("INFO")).await.unwrap_or_default();
    let line = |name: &str| {
        told.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':')).map(str::to_owned)
    };
    Ok(CacheFacts {
        version: line("redis_version"),
        policy: line("maxmemory_policy"),
        memory_bytes: line("used_memory").and_then(|bytes| bytes.parse().ok()),
        store,
    })
}

fn key(prefix: &str) -> redis::Cmd {
    let mut get = cmd("GET");
    get.arg(format!("{prefix}:{{store}}"));
    get
}
