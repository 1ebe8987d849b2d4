//! One server of each kind for a whole run: that of the harness around the test process when there is one, else one that
//! this process starts the first time it is asked and that ends with it. What tests make there they name so that no other
//! test meets it; a server that is to be broken is started for that.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::LazyLock;

use crate::postgres::psql;
use crate::rabbitmq::Node;
use crate::{Postgres, RabbitMq, Redis};

/// Names the PostgreSQL that a harness around the tests has started.
pub const POSTGRES_VARIABLE: &str = "TEST_POSTGRES";

/// Names the Redis.
pub const REDIS_VARIABLE: &str = "TEST_REDIS";

/// Names the RabbitMQ.
pub const RABBITMQ_VARIABLE: &str = "TEST_RABBITMQ";

/// Where virtual hosts of that RabbitMQ are made: the node, the port of its register of names and its home, with a space
/// between each.
pub const RABBITMQ_NODE_VARIABLE: &str = "TEST_RABBITMQ_NODE";

static POSTGRES: LazyLock<Postgres> = LazyLock::new(|| Postgres::start().expect("start PostgreSQL"));
static REDIS: LazyLock<Redis> = LazyLock::new(|| Redis::start().expect("start Redis"));
static RABBITMQ: LazyLock<RabbitMq> = LazyLock::new(|| RabbitMq::start().expect("start RabbitMQ"));

/// The address of the shared PostgreSQL, with the database `postgres`.
///
/// # Panics
/// When none can be started: a test without its server fails.
#[must_use]
pub fn postgres() -> String {
    std::env::var(POSTGRES_VARIABLE).unwrap_or_else(|_| POSTGRES.url())
}

/// The address of the shared Redis.
///
/// # Panics
/// As [`postgres`].
#[must_use]
pub fn redis() -> String {
    std::env::var(REDIS_VARIABLE).unwrap_or_else(|_| REDIS.url())
}

/// The address of the shared RabbitMQ, with the virtual host `/`.
///
/// # Panics
/// As [`postgres`].
#[must_use]
pub fn rabbitmq() -> String {
    std::env::var(RABBITMQ_VARIABLE).unwrap_or_else(|_| RABBITMQ.url())
}

/// The address of a new, empty database on the shared PostgreSQL, in 0.1 s.
///
/// # Panics
/// As [`postgres`], and when it can't be made.
#[must_use]
pub fn database() -> String {
    let (server, name) = (postgres(), name());
    psql(&server, &format!("CREATE DATABASE {name}")).expect("make a database");
    inside(&server, &name)
}

/// The address of a new, empty virtual host on the shared RabbitMQ, in 0.1 s.
///
/// # Panics
/// As [`postgres`], and when it can't be made: where the harness around gives a RabbitMQ without its node.
#[must_use]
pub fn vhost() -> String {
    let (server, name) = (rabbitmq(), name());
    let node = if std::env::var_os(RABBITMQ_VARIABLE).is_some() { outer_node() } else { RABBITMQ.node() };
    node.vhost(&name).expect("make a virtual host");
    inside(&server, &name)
}

/// A name that nothing else on a shared server has, for a prefix of keys in Redis, or a database, schema or exchange: `t`
/// and 16 hexadecimal digits.
#[must_use]
pub fn name() -> String {
    format!("t{:016x}", RandomState::new().hash_one(std::process::id()))
}

impl RabbitMq {
    /// What [`RABBITMQ_NODE_VARIABLE`] has to say, for who exports the variables.
    #[must_use]
    pub fn node_variable(&self) -> String {
        let Node { name, epmd_port, home } = self.node();
        format!("{name} {epmd_port} {}", home.display())
    }
}

fn outer_node() -> Node {
    let text = std::env::var(RABBITMQ_NODE_VARIABLE);
    let text = text.unwrap_or_else(|_| panic!("{RABBITMQ_VARIABLE} is set without {RABBITMQ_NODE_VARIABLE}"));
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().expect("a node is named by three words").to_owned();
    let (name, epmd_port, home) = (word(), word(), word());
    Node { name, epmd_port: epmd_port.parse().expect("a port"), home: PathBuf::from(home) }
}

fn inside(server: &str, name: &str) -> String {
    let (front, _) = server.rsplit_once('/').expect("an address ends with what is in the server");
    format!("{front}/{name}")
}
