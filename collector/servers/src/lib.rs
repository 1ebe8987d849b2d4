//! Private servers: PostgreSQL, Redis and RabbitMQ from Debian's packages, each on free loopback ports and in a temporary
//! folder, as root too. A server ends when its handle is dropped, and also when the process that holds it is killed.
//!
//! Tests that only need a server take [`shared`]; tests that break one start their own.

/// Processes that don't outlive their owner.
mod process;

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

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub use packages::install;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMq;
pub use redis::Redis;

/// How long a server may take to answer after its start: RabbitMQ takes 30 s on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a starting server is asked.
const ASK_PERIOD: Duration = Duration::from_millis(20);

/// Asks the system for a port that is free now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits until a server answers.
#[expect(
    clippy::disallowed_methods,
    reason = "a starting server is asked again; nothing tells when it is up"
)]
fn until(what: &str, mut answers: impl FnMut() -> bool) -> io::Result<()> {
    let end = Instant::now() + START_TIMEOUT;
    while !answers() {
        if Instant::now() > end {
            return Err(io::Error::other(format!(
                "{what} did not answer within {} s",
                START_TIMEOUT.as_secs()
            )));
        }
        std::thread::sleep(ASK_PERIOD);
    }
    Ok(())
}

/// Says something to a port and returns the beginning of what comes back.
fn say(port: u16, words: &[u8]) -> io::Result<Vec<u8>> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(words)?;
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer)?;
    answer.truncate(read);
    Ok(answer)
}
