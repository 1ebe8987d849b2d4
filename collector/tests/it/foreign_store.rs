//! A broker and a Redis that carry another store's.

use eventbucket_collector::app;
use eventbucket_collector::bus::Bus;
use eventbucket_collector::cache::Cache;
use eventbucket_collector::config::{Config, Flags};
use eventbucket_collector::store::Store;
use eventbucket_servers::{Postgres, Redis, shared};

use crate::cache_fixture::Asked as _;

/// Connects as a process of a collector with these variables does; its data folder goes with it.
async fn start(variables: &[(&str, &str)]) -> Result<(Store, Bus, Cache), String> {
    let folder = tempfile::tempdir().unwrap();
    let data = [("DATA", folder.path().to_str().unwrap()), ("BUS_SHARDS", "1")];
    let variables = data.iter().chain(variables);
    let named = variables.map(|(name, value)| (format!("EVENTBUCKET_{name}"), (*value).to_owned()));
    let config = Config::load(&Flags::default(), named).map_err(|error| error.to_string())?;
    app::servers(&config).await.map_err(|error| error.to_string())
}

fn assert_refused(started: Result<(Store, Bus, Cache), String>, parts: &[&str]) {
    let said = started.err().expect("it is another's");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_takes_the_processes_of_one_store_and_another_under_another_prefix() {
    let (server, two, broker) = (Postgres::start().unwrap(), shared::database(), shared::vhost());
    let one = server.url();
    let first = start(&[("STORE_URL", &one), ("BUS_URL", &broker)]).await.unwrap();
    let refused = ["another store", "[bus] prefix", "delete the queue eventbucket.store"];
    assert_refused(start(&[("STORE_URL", &two), ("BUS_URL", &broker)]).await, &refused);
    assert_refused(start(&[("BUS_URL", &broker)]).await, &refused);
    let second = [("STORE_URL", two.as_str()), ("BUS_URL", &broker), ("BUS_PREFIX", "second")];
    start(&second).await.unwrap();

    // A store that was restored is the same, under another epoch.
    let epoch = first.0.epoch();
    server.sql("UPDATE epoch SET id = gen_random_uuid()").unwrap();
    let again = start(&[("STORE_URL", &one), ("BUS_URL", &broker)]).await.unwrap();
    assert_ne!(again.0.epoch(), epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_takes_the_processes_of_one_store_and_another_under_another_prefix() {
    let (one, two, redis) = (shared::database(), shared::database(), Redis::start().unwrap());
    let url = redis.url();
    let first = start(&[("STORE_URL", &one), ("CACHE_URL", &url)]).await.unwrap();
    start(&[("STORE_URL", &one), ("CACHE_URL", &url)]).await.unwrap();
    let refused = ["another collector", "eventbucket:{store}", "[cache] prefix"];
    assert_refused(start(&[("STORE_URL", &two), ("CACHE_URL", &url)]).await, &refused);
    assert_refused(start(&[("CACHE_URL", &url)]).await, &refused);
    let second = [("STORE_URL", two.as_str()), ("CACHE_URL", &url), ("CACHE_PREFIX", "second")];
    start(&second).await.unwrap();

    // Who is at work keeps its place in a Redis that lost everything.
    redis.run::<()>(&["FLUSHALL"]);
    let node = eventbucket_collector::cache::Node {
        id: "first".to_owned(),
        roles: vec![],
        address: None,
        version: String::new(),
        started_ms: 0,
        last_seen_ms: 0,
    };
    assert!(first.2.heartbeat(&node).await);
    assert_refused(start(&[("STORE_URL", &two), ("CACHE_URL", &url)]).await, &refused);
}

#[tokio::test]
async fn a_prefix_that_would_mean_something_else_is_refused() {
    for wrong in ["", "a b", "{keys}", "*", &"a".repeat(65)] {
        let started = start(&[("CACHE_PREFIX", wrong), ("BUS_PREFIX", wrong)]).await;
        if wrong.is_empty() {
            started.expect("an empty variable is none");
        } else {
            assert_refused(started, &["`cache.prefix`", "`bus.prefix`", "isn't a prefix"]);
        }
    }
}
