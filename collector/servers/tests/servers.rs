//! Each server starts, keeps what it was told through a kill, can be paused, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use eventbucket_servers::{Postgres, RabbitMq, Redis, shared};

/// Long enough on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

fn port(url: &str) -> u16 {
    let (_, rest) = url.rsplit_once(':').unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

/// Commands of processes that were started with a word of a server's: its folder or its node. Without the watch, which
/// stays with its handle while the server is down.
fn left(mark: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|entry| {
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let settings = fs::read(entry.path().join("environ")).unwrap_or_default();
        let both = [words.clone(), settings].concat();
        let both = String::from_utf8_lossy(&both);
        let marked = both.contains(mark) && !both.contains("eventbucket-watch.sh");
        marked.then(|| String::from_utf8_lossy(&words).replace('\0', " "))
    });
    commands.collect()
}

#[expect(clippy::disallowed_methods, reason = "processes of others end unseen")]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn refuses(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}

/// The id of the shared memory of a cluster that runs.
fn segment_of(data: &Path) -> String {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    file.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

fn has_segment(id: &str) -> bool {
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    segments.lines().any(|line| line.split_whitespace().nth(1) == Some(id))
}

fn processes(postgres: &Postgres) -> Vec<u32> {
    let sql = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity";
    let pids = postgres.sql(sql).unwrap();
    pids.split(' ').map(|pid| pid.parse().unwrap()).collect()
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

/// A client whose session is busy until it is dropped.
struct Ticking(std::process::Child);

impl Ticking {
    fn on(postgres: &Postgres) -> Self {
        let sql = "SELECT pg_sleep(0.01), nextval('ticks') FROM generate_series(1, 100000)";
        let mut psql = Command::new("psql");
        let psql = psql.args(["-qAt", "-c", "CREATE SEQUENCE ticks", "-c", sql, &postgres.url()]);
        let ticking = Self(psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let begun = "SELECT count(*) FROM pg_sequences WHERE sequencename = 'ticks' AND last_value > 1";
        eventually("the session ticks", || postgres.sql(begun).unwrap() == "1");
        ticking
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

#[test]
fn postgres_keeps_what_was_committed_and_goes_without_a_trace() {
    let mut postgres = Postgres::start().unwrap();
    postgres.sql("CREATE TABLE t (x int)").unwrap();
    postgres.sql("INSERT INTO t VALUES (7)").unwrap();
    postgres.kill().unwrap();
    assert!(refuses(port(&postgres.url())));
    postgres.restart().unwrap();
    assert_eq!(postgres.sql("SELECT x FROM t").unwrap(), "7");
    assert_eq!(postgres.sql("SHOW fsync").unwrap(), "on");
    let (data, segment) = (postgres.data(), segment_of(&postgres.data()));
    assert!(has_segment(&segment));
    drop(postgres);
    assert!(!data.exists());
    assert_eq!(left(data.to_str().unwrap()), Vec::<String>::new());
    assert!(!has_segment(&segment), "its shared memory is left in the system");
}

#[test]
fn a_kill_of_postgres_ends_its_sessions_too() {
    let mut postgres = Postgres::start().unwrap();
    let _ticking = Ticking::on(&postgres);
    let processes = processes(&postgres);
    assert!(processes.len() > 5, "{processes:?}");
    postgres.kill().unwrap();
    let alive: Vec<u32> = processes.into_iter().filter(|pid| lives(*pid)).collect();
    assert_eq!(alive, Vec::<u32>::new());
}

#[test]
fn a_paused_postgres_does_nothing_in_any_session() {
    let postgres = Postgres::start().unwrap();
    let _ticking = Ticking::on(&postgres);
    let sql =
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%generate_series%' AND pid <> pg_backend_pid()";
    let session = postgres.sql(sql).unwrap().parse().unwrap();
    postgres.pause().unwrap();
    eventually("the session stops", || state(session) == 'T');
    postgres.resume().unwrap();
    let ticks = || postgres.sql("SELECT last_value FROM ticks").unwrap().parse::<u64>().unwrap();
    let before = ticks();
    eventually("the session goes on", || ticks() > before);
}

#[test]
fn postgres_stops_in_good_order_and_can_do_without_fsync() {
    let mut postgres = Postgres::start_with(&["fsync=off"]).unwrap();
    assert_eq!(postgres.sql("SHOW fsync").unwrap(), "off");
    postgres.stop().unwrap();
    let log = fs::read_to_string(postgres.data().with_file_name("output")).unwrap();
    assert!(log.contains("database system is shut down"), "{log}");
    postgres.restart().unwrap();
    let filled = postgres.database("filled").unwrap();
    assert!(filled.ends_with("/filled"), "{filled}");
    postgres.database_like("again", "filled").unwrap();
    postgres.database("filled").unwrap_err();
}

#[test]
fn a_server_that_does_not_come_up_says_why() {
    let error = Postgres::start_with(&["shared_buffers=none"]).unwrap_err().to_string();
    assert!(error.contains("PostgreSQL: ended while it started"), "{error}");
    assert!(error.contains("shared_buffers"), "{error}");
}

fn ask(redis: &Redis, words: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port(&redis.url())))?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(words)?;
    let mut answer = [0; 16];
    let read = stream.read(&mut answer)?;
    Ok(answer[..read].to_vec())
}

#[test]
fn redis_can_be_paused_and_forgets_when_killed() {
    let mut redis = Redis::start().unwrap();
    assert_eq!(ask(&redis, b"SET a 1\r\n").unwrap(), b"+OK\r\n");
    redis.pause().unwrap();
    ask(&redis, b"GET a\r\n").unwrap_err();
    redis.resume().unwrap();
    assert_eq!(ask(&redis, b"GET a\r\n").unwrap(), b"$1\r\n1\r\n");
    redis.restart().unwrap();
    assert_eq!(ask(&redis, b"GET a\r\n").unwrap(), b"$-1\r\n");
    redis.kill().unwrap();
    redis.kill().unwrap();
    assert!(redis.pause().unwrap_err().to_string().contains("isn't running"));
}

#[test]
fn redis_keeps_what_it_appends_when_it_is_told_to() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).unwrap();
    assert_eq!(ask(&redis, b"SET a 1\r\n").unwrap(), b"+OK\r\n");
    redis.restart().unwrap();
    assert_eq!(ask(&redis, b"GET a\r\n").unwrap(), b"$1\r\n1\r\n");
    redis.stop().unwrap();
    assert!(refuses(port(&redis.url())));
}

#[test]
fn a_port_is_never_one_that_a_client_can_be_given() {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let redis = Redis::start().unwrap();
    assert!(port(&redis.url()) < first, "{}", redis.url());
}

#[test]
fn rabbitmq_keeps_its_queues_and_goes_without_a_trace() {
    let advanced = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 1234}]}].";
    let mut rabbit = RabbitMq::start_with(&["heartbeat = 17"], advanced).unwrap();
    let settings = rabbit.control(&["environment"]).unwrap();
    assert!(settings.contains("{dead_letter_worker_publisher_confirm_timeout,1234}"), "{settings}");
    assert!(settings.contains("{heartbeat,17}"), "{settings}");
    assert!(rabbit.vhost("kept").unwrap().ends_with("/kept"));
    rabbit.vhost("with space").unwrap_err();
    let node = format!("eventbucket{}", port(&rabbit.url()));
    assert!(!left(&node).is_empty());
    rabbit.restart().unwrap();
    let hosts = rabbit.control(&["list_permissions", "-p", "kept"]).unwrap();
    assert!(hosts.contains("guest\t.*\t.*\t.*"), "{hosts}");
    rabbit.stop().unwrap();
    assert_eq!(left(&node), Vec::<String>::new());
    rabbit.restart().unwrap();
    drop(rabbit);
    assert_eq!(left(&node), Vec::<String>::new());
}

/// Runs in a process of its own, which a test interrupts: names a server of it on standard output and waits.
const OWNER: &str = "EVENTBUCKET_TEST_SERVERS_OWNER";

#[test]
fn an_owner_for_the_test_of_owners_that_die() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let postgres = Postgres::start().unwrap();
    println!("\n{OWNER} {}", postgres.data().display());
    println!("{OWNER} {}", shared::redis());
    std::thread::park();
}

#[test]
fn servers_go_with_an_owner_that_is_killed_or_interrupted() {
    for (signal, whole_group) in [("KILL", false), ("INT", true), ("TERM", true), ("KILL", true)] {
        // A shell starts what runs in the background with SIGINT ignored, and children inherit that.
        let mut owner = Command::new("env");
        owner.arg("--default-signal=INT").arg(std::env::current_exe().unwrap());
        owner.args(["--exact", "--nocapture", "an_owner_for_the_test_of_owners_that_die"]).env(OWNER, "1");
        // A Redis of its own, also where the harness around has one.
        owner.env_remove(shared::REDIS_VARIABLE);
        let mut owner = owner.process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(owner.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut named = lines.filter_map(|line| Some(line.strip_prefix(OWNER)?.trim().to_owned()));
        let (data, redis) = (named.next().unwrap(), named.next().unwrap());
        let segment = segment_of(Path::new(&data));
        let id = owner.id();
        let target = if whole_group { format!("-{id}") } else { id.to_string() };
        assert!(Command::new("kill").args(["-s", signal, "--", &target]).status().unwrap().success());
        owner.wait().unwrap();
        let folder = Path::new(&data).parent().unwrap();
        eventually(&format!("after {signal} {} is left", folder.display()), || !folder.exists());
        assert_eq!(left(&data), Vec::<String>::new(), "after {signal}");
        eventually("Redis is left", || refuses(port(&redis)));
        assert!(!has_segment(&segment), "after {signal}");
    }
}

#[test]
fn each_test_has_a_database_and_a_virtual_host_of_its_own() {
    let (first, second) = (shared::database(), shared::database());
    assert_ne!(first, second);
    let psql = Command::new("psql").args(["-qAt", "-c", "SELECT 1", &second]).output().unwrap();
    assert!(psql.status.success(), "{psql:?}");
    let (first, second) = (shared::vhost(), shared::vhost());
    assert_ne!(first, second);
    assert_eq!(port(&first), port(&second));
}
