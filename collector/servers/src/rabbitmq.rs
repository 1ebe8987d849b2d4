use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::{Process, breakable};
use super::{free_port, install, say, until};

const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const PACKAGE: &str = "rabbitmq-server";

/// A RabbitMQ of one node without plugins, with the user `guest`.
#[derive(Debug)]
pub struct RabbitMq {
    folder: TempDir,
    port: u16,
    /// Of Erlang's own protocol, and of its register of names: none of them is shared with another node.
    dist_port: u16,
    epmd_port: u16,
    process: Option<Process>,
}

impl RabbitMq {
    /// Starts an empty one: 5 to 30 s.
    ///
    /// # Errors
    /// When it isn't installed and can't be, or doesn't come up.
    pub fn start() -> io::Result<Self> {
        install(Path::new(PROGRAM), PACKAGE)?;
        let folder = tempfile::Builder::new().prefix("eventbucket-rabbitmq-").tempdir()?;
        let (port, dist_port, epmd_port) = (free_port()?, free_port()?, free_port()?);
        for name in ["mnesia", "log", "home"] {
            fs::create_dir(folder.path().join(name))?;
        }
        fs::write(folder.path().join("enabled_plugins"), "[].")?;
        // A test's disk may have little free space, which is not what it is about.
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\nlog.console = false\ndisk_free_limit.absolute = 50MB\n"
        );
        fs::write(folder.path().join("rabbitmq.conf"), settings)?;
        let mut rabbit = Self { folder, port, dist_port, epmd_port, process: None };
        rabbit.process = Some(rabbit.run()?);
        rabbit.ready()?;
        Ok(rabbit)
    }

    /// Its address with the virtual host `/`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Runs `rabbitmqctl` on the node: a second each, for what AMQP can't say.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn control(&self, words: &[&str]) -> io::Result<String> {
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
        command.args(["-q", "-n", &self.node()]).args(words);
        self.environment(&mut command);
        let output = command.output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("rabbitmqctl {} failed: {said}", words.join(" "))))
    }

    fn node(&self) -> String {
        format!("eventbucket{}@localhost", self.port)
    }

    fn environment(&self, command: &mut Command) {
        let at = |name: &str| self.folder.path().join(name);
        command
            .env("HOME", at("home"))
            .env("LANG", "C.UTF-8")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            // The register may be ended while it still believes in the node that was killed.
            .env("ERL_EPMD_RELAXED_COMMAND_CHECK", "1")
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", at("pid"))
            // Schedulers that spin while they wait cost the other servers of a small machine a third of a core.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .current_dir(self.folder.path());
    }

    fn run(&self) -> io::Result<Process> {
        let mut command = Command::new(PROGRAM);
        self.environment(&mut command);
        // Erlang's register of names outlives the node.
        let after = format!("epmd -port {} -kill", self.epmd_port);
        Process::start(&command, &self.folder.path().join("output"), &after)
    }

    fn ready(&self) -> io::Result<()> {
        const HELLO: &[u8] = b"AMQP\x00\x00\x09\x01";
        until("RabbitMQ", || say(self.port, HELLO).is_ok_and(|answer| answer.starts_with(&[1, 0, 0])))
    }
}

breakable!(RabbitMq);
