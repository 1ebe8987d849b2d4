//! One server of each kind for a whole run: that of the harness around the test process when there is one, else one that
//! this process starts the first time it is asked and that ends with it. What tests make there they name so that no other
//! test meets it; a server that is to be broken is started for that.

use std::sync::LazyLock;

use crate::{Postgres, RabbitMq, Redis};

/// Names the PostgreSQL that a harness around the tests has started.
pub const POSTGRES_VARIABLE: &str = "EVENTBUCKET_TEST_POSTGRES";

/// Names the Redis.
pub const REDIS_VARIABLE: &str = "EVENTBUCKET_TEST_REDIS";

/// Names the RabbitMQ.
pub const RABBITMQ_VARIABLE: &str = "EVENTBUCKET_TEST_RABBITMQ";

/// The address of the shared PostgreSQL, with the database `postgres`.
///
/// # Panics
/// When none can be started: a test without its server fails.
#[must_use]
pub fn postgres() -> String {
    static SERVER: LazyLock<Postgres> = LazyLock::new(|| Postgres::start().expect("start PostgreSQL"));
    std::env::var(POSTGRES_VARIABLE).unwrap_or_else(|_| SERVER.url())
}

/// The address of the shared Redis.
///
/// # Panics
/// As [`postgres`].
#[must_use]
pub fn redis() -> String {
    static SERVER: LazyLock<Redis> = LazyLock::new(|| Redis::start().expect("start Redis"));
    std::env::var(REDIS_VARIABLE).unwrap_or_else(|_| SERVER.url())
}

/// The address of the shared RabbitMQ.
///
/// # Panics
/// As [`postgres`].
#[must_use]
pub fn rabbitmq() -> String {
    static SERVER: LazyLock<RabbitMq> = LazyLock::new(|| RabbitMq::start().expect("start RabbitMQ"));
    std::env::var(RABBITMQ_VARIABLE).unwrap_or_else(|_| SERVER.url())
}
