//! Commands on the servers that collectors share.

use std::time::{Duration, Instant};

use eventbucket_servers::{Redis, shared};
use serde_json::json;

use crate::harness::{Collector, Ran, eventbucket, eventually, http, run};

/// A collector on a PostgreSQL and a Redis, and the way to both.
struct OnServers {
    collector: Collector,
    store_url: String,
    redis: Redis,
    _folder: tempfile::TempDir,
}

impl OnServers {
    fn start() -> Self {
        let (folder, redis, store_url) =
            (tempfile::tempdir().unwrap(), Redis::start().unwrap(), shared::database());
        let file = format!("[store]\nurl = \"{store_url}\"\n[cache]\nurl = \"{}\"\n", redis.url());
        std::fs::write(folder.path().join("eventbucket.toml"), file).unwrap();
        Self { collector: Collector::start_in(folder.path(), &[]), store_url, redis, _folder: folder }
    }

    fn rotate(&self, more: &[&str]) -> Ran {
        let mut command = eventbucket(&["project", "rotate-key", "default", "--kind", "write"]);
        command.args(["--store-url", &self.store_url]).args(more);
        run(command)
    }

    /// The status of a batch sent with a key.
    async fn send(&self, key: &str) -> u16 {
        let url = format!("{}/v1/events", self.collector.url());
        let sent = http().post(url).bearer_auth(key).json(&json!({ "events": [{ "name": "x" }] })).send();
        sent.await.unwrap().status().as_u16()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_rotated_on_the_servers_stops_working_within_seconds() {
    /// Far below the minute for which Redis remembers a key, far above the second that a process does.
    const SOON: Duration = Duration::from_secs(20);
    let servers = OnServers::start();
    let old = servers.collector.keys().write.clone();
    assert_eq!(servers.send(&old).await, 200);
    let rotated = servers.rotate(&["--cache-url", &servers.redis.url()]);
    assert_eq!((rotated.code, rotated.stderr.as_str()), (0, ""));
    let began = Instant::now();
    eventually("the old key is refused", || {
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(servers.send(&old))) == 401
    });
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(servers.send(rotated.stdout.trim()).await, 200);
}

#[tokio::test]
async fn whoever_rotates_a_key_without_the_redis_is_told_that_the_old_one_may_live_on() {
    let mut servers = OnServers::start();
    let rotated = servers.rotate(&[]);
    assert_eq!(rotated.code, 0);
    assert!(rotated.stderr.contains("up to a minute, unless --cache-url names it"), "{}", rotated.stderr);
    let key = rotated.stdout.trim();
    let cache_url = servers.redis.url();
    servers.redis.kill().unwrap();
    servers.rotate(&["--cache-url", &cache_url]).assert_failed(1, &["use the servers", "redis at"]);
    assert_eq!(servers.send(key).await, 200, "nothing was rotated");
    let mut nowhere = eventbucket(&["project", "list", "--cache-url", &cache_url]);
    nowhere.current_dir(servers.collector.folder());
    run(nowhere).assert_failed(2, &["--cache-url goes with --store-url"]);
}
