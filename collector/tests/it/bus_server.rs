//! A private RabbitMQ, buses on it, and a connection of the test's own to look behind them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{Accepted, Bus, Delivery, RabbitOptions};
use eventbucket_collector::config::ServerUrl;
use eventbucket_collector::project::ProjectId;
use eventbucket_protocol::{BatchId, Event};
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::{DEADLINE, eventually};
use crate::store_fixture;

/// Starts the port mapper that Erlang needs, and when the test process is gone ends it, the broker and the folder.
const GUARD: &str = r#"epmd -port "$1" -address 127.0.0.1 & mapper=$!; read -r _; kill -9 $mapper $(cat "$2/pid"); rm -rf "$2""#;

/// A RabbitMQ in a folder of its own. It ends when dropped, or with the test process.
pub(crate) struct RabbitMq {
    folder: TempDir,
    ports: Ports,
    server: Child,
    guard: Child,
}

struct Ports {
    amqp: u16,
    distribution: u16,
    mapper: u16,
}

impl RabbitMq {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports { amqp: free_port(), distribution: free_port(), mapper: free_port() };
        // Dead letters that found no queue are tried again after a second, not after three minutes.
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nloopback_users = none\nlog.console = false\n\
             disk_free_limit.absolute = 50MB\n",
            ports.amqp
        );
        fs::write(folder.path().join("rabbitmq.conf"), settings).unwrap();
        fs::write(
            folder.path().join("advanced.config"),
            "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 1000}]}].\n",
        )
        .unwrap();
        fs::write(folder.path().join("enabled_plugins"), "[].\n").unwrap();
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &ports.mapper.to_string()])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = run(folder.path(), &ports);
        let server = Self { folder, ports, server, guard };
        server.ready();
        server
    }

    pub(crate) fn url(&self) -> ServerUrl {
        ServerUrl::parse(&self.address("guest"), &["amqp"]).unwrap()
    }

    pub(crate) fn address(&self, password: &str) -> String {
        format!("amqp://guest:{password}@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// Ends it at once, as a power cut of its process.
    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Ends it in order.
    pub(crate) fn terminate(&mut self) {
        kill_process(Pid::from_child(&self.server), Signal::TERM).unwrap();
        self.server.wait().unwrap();
    }

    /// Starts it on the same port with the same data.
    pub(crate) fn restart(&mut self) {
        self.server = run(self.folder.path(), &self.ports);
        self.ready();
    }

    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.server), Signal::STOP).unwrap();
    }

    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.server), Signal::CONT).unwrap();
    }

    fn ready(&self) {
        eventually("RabbitMQ takes connections", || self.greets().unwrap_or(false));
    }

    /// Whether it answers the protocol's greeting; it listens as the last step of its start.
    fn greets(&self) -> std::io::Result<bool> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.amqp))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(b"AMQP\0\0\x09\x01")?;
        let mut answer = [0; 3];
        connection.read_exact(&mut answer)?;
        Ok(answer == [1, 0, 0])
    }

    /// What the broker says of its queues: name and arguments.
    pub(crate) fn queues(&self) -> Vec<(String, String)> {
        let output = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("HOME", self.folder.path().join("home"))
            .env("ERL_EPMD_PORT", self.ports.mapper.to_string())
            .args([
                "-q",
                "-n",
                "test@localhost",
                "list_queues",
                "name",
                "durable",
                "arguments",
                "--no-table-headers",
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let queue = |line: &str| line.split_once('\t').map(|(name, rest)| (name.to_owned(), rest.to_owned()));
        text.lines().filter_map(queue).collect()
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
        drop(self.guard.stdin.take());
        self.guard.wait().ok();
    }
}

/// A port below those that the system gives to outgoing connections, one of which would take it while the broker is away.
fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    // Other processes' tests begin elsewhere.
    let step = || std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let port = || PORTS.start + u16::try_from(step() % u32::from(PORTS.end - PORTS.start)).unwrap();
    std::iter::repeat_with(port).find(free).expect("a port is free")
}

fn run(folder: &Path, ports: &Ports) -> Child {
    let home = folder.join("home");
    fs::create_dir_all(&home).unwrap();
    Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server")
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LANG", "C.UTF-8")
        .env("HOME", &home)
        .env("ERL_EPMD_PORT", ports.mapper.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", "test@localhost")
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", ports.amqp.to_string())
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
        .env("RABBITMQ_PID_FILE", folder.join("pid"))
        // The server takes the place of its shell, so that it is the process that is killed and paused.
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env("RABBITMQ_SERVER_START_ARGS", "-noinput")
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none -kernel inet_dist_use_interface {127,0,0,1}")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("rabbitmq-server is installed: apt-get install rabbitmq-server")
}

/// The broker that all tests share which don't hurt it; each has queues of its own.
pub(crate) fn shared() -> &'static RabbitMq {
    static SHARED: OnceLock<RabbitMq> = OnceLock::new();
    SHARED.get_or_init(RabbitMq::start)
}

/// Options with a prefix that nobody else has: a collector of the test's own on a shared broker.
pub(crate) fn options(server: &RabbitMq) -> RabbitOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    RabbitOptions { prefix, shards: 2, ..RabbitOptions::new(server.url()) }
}

pub(crate) async fn bus(options: &RabbitOptions) -> Bus {
    Bus::rabbitmq(options.clone()).await.unwrap()
}

/// A batch of one event, both named by a number.
pub(crate) fn numbered(project: u32, number: usize) -> ValidBatch {
    batch_of(project, number, vec![store_fixture::event(&format!("event-{number}"), "numbered")])
}

pub(crate) fn batch_of(project: u32, number: usize, events: Vec<Event>) -> ValidBatch {
    let batch = BatchId::from_text(&format!("batch-{number}"));
    ValidBatch { batch, ..store_fixture::batch(ProjectId(project), events) }
}

/// The number of a batch made by [`numbered`].
pub(crate) fn number(delivery: &Delivery) -> usize {
    let text = delivery.batch.events[0].id.text().unwrap();
    text.strip_prefix("event-").unwrap().parse().unwrap()
}

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("in vain: {what}"),
    }
}

/// Waits until something is true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    soon(what, async {
        while !holds().await {
            look.tick().await;
        }
    })
    .await;
}

/// Takes at least `count` deliveries from a process's receiving ends and leaves them unanswered.
pub(crate) async fn take(accepted: &mut [Accepted], count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    soon("batches are delivered", async {
        while taken.len() < count {
            let next = accepted.iter_mut().map(|end| end.next(10_000, 256).boxed());
            let (deliveries, _, _) = futures_util::future::select_all(next).await;
            taken.extend(deliveries.expect("the bus is open"));
        }
    })
    .await;
    taken
}

/// Tells the bus that these were stored.
pub(crate) fn stored(deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        let verdicts = vec![eventbucket_protocol::Verdict::Stored; delivery.batch.events.len()];
        delivery.ticket.answer(Ok(eventbucket_collector::bus::message::Published { verdicts }));
    }
}

/// A connection of the test's own.
pub(crate) struct Direct {
    connection: Connection,
    prefix: String,
}

impl Direct {
    pub(crate) async fn to(server: &RabbitMq, options: &RabbitOptions) -> Self {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&server.address("guest"), properties).await.unwrap();
        Self { connection, prefix: options.prefix.clone() }
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    pub(crate) fn named(&self, name: &str) -> lapin::types::ShortString {
        format!("{}.{name}", self.prefix).into()
    }

    /// Messages ready in a queue, and its consumers; `None` when there is no such queue.
    pub(crate) async fn look(&self, queue: &str) -> Option<(u32, u32)> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await;
        let queue = channel.queue_declare(self.named(queue), passive, FieldTable::default()).await.ok()?;
        let _ = channel.close(200, "looked".into()).await;
        Some((queue.message_count(), queue.consumer_count()))
    }

    /// Messages ready in all queues of accepted batches.
    pub(crate) async fn accepted(&self) -> u32 {
        let mut sum = 0;
        for shard in 0..2 {
            sum += self.look(&format!("accepted.{shard}")).await.map_or(0, |(ready, _)| ready);
        }
        sum
    }

    /// Takes the messages that are in the queues of accepted batches off them.
    pub(crate) async fn drain(&self) -> Vec<Message> {
        let (channel, mut drained) = (self.channel().await, Vec::new());
        for shard in 0..2 {
            let queue = format!("accepted.{shard}");
            let ready = self.look(&queue).await.unwrap().0 as usize;
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let consuming =
                channel.basic_consume(self.named(&queue), "drain".into(), options, FieldTable::default());
            let messages = consuming.await.unwrap().take(ready).map(Result::unwrap).collect::<Vec<_>>();
            drained.extend(soon("the messages", messages).await);
            channel.basic_cancel("drain".into(), BasicCancelOptions::default()).await.unwrap();
        }
        drained
    }
}
