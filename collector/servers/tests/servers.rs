//! Each server starts, keeps what it was told through a kill, can be paused, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use eventbucket_servers::{Postgres, RabbitMq, Redis};

fn port(url: &str) -> u16 {
    let (_, rest) = url.rsplit_once(':').unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

fn psql(postgres: &Postgres, sql: &str) -> String {
    let output = Command::new("/usr/lib/postgresql/15/bin/psql")
        .args(["-qAt", "-c", sql, &postgres.url()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Commands of processes that were started with a word of a server's: its folder or its node.
fn left(mark: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|entry| {
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let settings = fs::read(entry.path().join("environ")).ok()?;
        let both = [words.clone(), settings].concat();
        let marked = String::from_utf8_lossy(&both).contains(mark);
        marked.then(|| String::from_utf8_lossy(&words).replace('\0', " "))
    });
    commands.collect()
}

/// Waits until nothing is left: helpers of a process that was killed end by themselves, a moment later.
#[expect(clippy::disallowed_methods, reason = "processes of others end unseen")]
fn gone(mark: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    while !left(mark).is_empty() {
        assert!(Instant::now() < end, "{:?}", left(mark));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn refuses(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}

#[test]
fn postgres_keeps_what_was_committed_and_goes_without_a_trace() {
    let mut postgres = Postgres::start().unwrap();
    psql(&postgres, "CREATE TABLE t (x int)");
    psql(&postgres, "INSERT INTO t VALUES (7)");
    postgres.kill().unwrap();
    assert!(refuses(port(&postgres.url())));
    postgres.restart().unwrap();
    assert_eq!(psql(&postgres, "SELECT x FROM t"), "7");
    assert_eq!(psql(&postgres, "SHOW fsync"), "on");
    let data = postgres.data();
    drop(postgres);
    assert!(!data.exists());
    gone(data.to_str().unwrap());
}

#[test]
fn redis_can_be_paused_and_forgets_when_killed() {
    let mut redis = Redis::start().unwrap();
    let ask = |redis: &Redis, words: &[u8]| -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port(&redis.url())))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(words)?;
        let mut answer = [0; 16];
        let read = stream.read(&mut answer)?;
        Ok(answer[..read].to_vec())
    };
    assert_eq!(ask(&redis, b"SET a 1\r\n").unwrap(), b"+OK\r\n");
    redis.pause().unwrap();
    ask(&redis, b"GET a\r\n").unwrap_err();
    redis.resume().unwrap();
    assert_eq!(ask(&redis, b"GET a\r\n").unwrap(), b"$1\r\n1\r\n");
    redis.restart().unwrap();
    assert_eq!(ask(&redis, b"GET a\r\n").unwrap(), b"$-1\r\n");
}

#[test]
fn rabbitmq_keeps_its_queues_and_goes_without_a_trace() {
    let mut rabbit = RabbitMq::start().unwrap();
    rabbit.control(&["add_vhost", "kept"]).unwrap();
    let node = format!("eventbucket{}", port(&rabbit.url()));
    assert!(!left(&node).is_empty());
    rabbit.restart().unwrap();
    assert!(rabbit.control(&["list_vhosts"]).unwrap().contains("kept"));
    drop(rabbit);
    gone(&node);
}
