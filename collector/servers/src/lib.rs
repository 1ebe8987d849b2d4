//! Private servers: PostgreSQL, Redis and RabbitMQ from Debian's packages, each on loopback ports of its own and in a
//! temporary folder, as root too. A server ends, and its folder goes, when its handle is dropped, and also when the process
//! that holds it is killed or interrupted.
//!
//! Tests that only need a server take [`shared`]; tests that break one start their own.

/// Processes that don't outlive their owner.
mod process;

/// Ports that stay a server's own while it is down.
mod port;

/// Getting Debian's packages where they are missing.
mod packages;

/// PostgreSQL.
mod postgres;

/// Redis.
mod redis;

/// RabbitMQ.
mod rabbitmq;

/// One server of each kind for a whole run.
pub mod shared;

pub use packages::install;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMq;
pub use redis::Redis;
