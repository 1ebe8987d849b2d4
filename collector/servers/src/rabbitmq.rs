use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::install;
use super::port::{Port, say};
use super::process::{self, Process, Recipe, breakable};

const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const PACKAGE: &str = "rabbitmq-server";

/// Schedulers that spin while they wait cost the other servers of a small machine a third of a core.
const ERLANG: &str = "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}";

/// What `erl_call` says when the node refused its name, how often that is believed, and the pause before the next try:
/// sixteen callers at once are through within 16 s.
const REFUSED: &str = "failed to connect to node";
const REFUSALS_MAX: u32 = 32;
const AGAIN: Duration = Duration::from_millis(500);

/// A RabbitMQ of one node without plugins, with the user `guest`.
#[derive(Debug)]
pub struct RabbitMq {
    // Before the ports, which are given back when nothing listens there any more.
    process: Process,
    folder: PathBuf,
    port: Port,
    /// Of Erlang's own protocol, and of its register of names: none of them is shared with another node.
    dist_port: Port,
    epmd_port: Port,
}

impl RabbitMq {
    /// Starts an empty one: 5 to 30 s, of which 3 s of CPU go into starting Erlang's code, whatever is there already.
    ///
    /// # Errors
    /// When it isn't installed and can't be, or doesn't come up.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[], "[].")
    }

    /// Starts one with lines of its own in `rabbitmq.conf`, and for what has no name there a whole `advanced.config`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(lines: &[&str], advanced: &str) -> io::Result<Self> {
        install(Path::new(PROGRAM), PACKAGE)?;
        let folder = tempfile::Builder::new().prefix("eventbucket-rabbitmq-").tempdir()?;
        let (port, dist_port, epmd_port) = (Port::claim()?, Port::claim()?, Port::claim()?);
        for name in ["mnesia", "log", "home"] {
            fs::create_dir(folder.path().join(name))?;
        }
        fs::write(folder.path().join("enabled_plugins"), "[].")?;
        // A test's disk may have little free space, which is not what it is about.
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nloopback_users = none\nlog.console = false\ndisk_free_limit.absolute = 50MB\n",
            port.number()
        );
        fs::write(folder.path().join("rabbitmq.conf"), settings + &lines.join("\n") + "\n")?;
        fs::write(folder.path().join("advanced.config"), advanced)?;
        let mut command = Command::new(PROGRAM);
        let path = folder.path().to_owned();
        environment(&mut command, &path, [&port, &dist_port, &epmd_port].map(Port::number));
        // Erlang's register of names outlives the node.
        let after = format!("epmd -port {} -kill", epmd_port.number());
        let recipe = Recipe { name: "RabbitMQ", command, stop_signal: "TERM", after };
        let mut process = Process::new(folder, recipe)?;
        process.start(|| Self::answers(port.number()))?;
        Ok(Self { process, folder: path, port, dist_port, epmd_port })
    }

    /// Its address with the virtual host `/`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("%2f")
    }

    /// Its address with a virtual host, which [`Self::control`] can make.
    #[must_use]
    pub fn url_of(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.port.number())
    }

    /// Runs `rabbitmqctl` on the node: 1 to 4 s each, for what AMQP can't say.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn control(&self, words: &[&str]) -> io::Result<String> {
        let ports = [&self.port, &self.dist_port, &self.epmd_port].map(Port::number);
        let mut command = Command::new(CONTROL);
        command.args(["-q", "-n", &node(ports[0])]).args(words).env_clear().env("PATH", process::path());
        environment(&mut command, &self.folder, ports);
        process::output(&mut command)
    }

    /// Reads what it has logged so far, over all its starts.
    ///
    /// # Errors
    /// When its logs can't be read.
    pub fn log(&self) -> io::Result<String> {
        let mut log = String::new();
        for file in fs::read_dir(self.folder.join("log"))? {
            log.push_str(&String::from_utf8_lossy(&fs::read(file?.path())?));
        }
        Ok(log)
    }

    /// Makes an empty virtual host for `guest`, in 0.1 s, and returns its address.
    ///
    /// # Errors
    /// When there is one of that name, or it can't be made.
    pub fn vhost(&self, name: &str) -> io::Result<String> {
        self.node().vhost(name)?;
        Ok(self.url_of(name))
    }

    /// What another process needs to make virtual hosts there.
    pub(crate) fn node(&self) -> Node {
        Node {
            name: node(self.port.number()),
            epmd_port: self.epmd_port.number(),
            home: self.folder.join("home"),
        }
    }

    fn answers(port: u16) -> bool {
        say(port, b"AMQP\x00\x00\x09\x01").is_ok_and(|answer| answer.starts_with(&[1, 0, 0]))
    }
}

breakable!(RabbitMq);

/// A running node, as Erlang's own protocol knows it.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) epmd_port: u16,
    pub(crate) home: PathBuf,
}

impl Node {
    /// Asks the node itself: `rabbitmqctl` would start an Erlang of its own first, which takes seconds.
    pub(crate) fn vhost(&self, name: &str) -> io::Result<()> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(io::Error::other("a virtual host is named by letters, digits and underscores"));
        }
        let (all, guest) = ("<<\".*\">>", "<<\"guest\">>");
        self.evaluate(&format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, {guest}), \
             rabbit_auth_backend_internal:set_permissions({guest}, <<\"{name}\">>, {all}, {all}, {all}, {guest}).\n"
        ))
    }

    /// The caller's random name is drawn by the second, so callers at the same time may draw the same, and the node refuses
    /// all but one of them before it has heard anything. They try again.
    fn evaluate(&self, expressions: &str) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.evaluate_once(expressions) {
                Err(error) if tries < REFUSALS_MAX && error.to_string().contains(REFUSED) => tries += 1,
                done => return done,
            }
            std::thread::park_timeout(AGAIN);
        }
    }

    fn evaluate_once(&self, expressions: &str) -> io::Result<()> {
        let cookie = fs::read_to_string(self.home.join(".erlang.cookie"))?;
        let mut call = Command::new("erl_call");
        // By a random name: the node refuses a caller by a name that it believes to be connected still.
        call.args(["-r", "-sname", &self.name, "-c", cookie.trim(), "-e"]);
        call.env_clear().env("PATH", process::path()).env("HOME", &self.home);
        call.env("ERL_EPMD_PORT", self.epmd_port.to_string());
        match process::output_of(&mut call, expressions)?.trim() {
            "{ok, ok}" => Ok(()),
            problem => Err(io::Error::other(format!("RabbitMQ: {expressions}: {problem}"))),
        }
    }
}

fn node(port: u16) -> String {
    format!("eventbucket{port}@localhost")
}

fn environment(command: &mut Command, folder: &Path, [port, dist_port, epmd_port]: [u16; 3]) {
    let at = |name: &str| folder.join(name);
    command
        .env("HOME", at("home"))
        .env("LANG", "C.UTF-8")
        .env("ERL_EPMD_PORT", epmd_port.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        // The register may be ended while it still believes in the node that was killed.
        .env("ERL_EPMD_RELAXED_COMMAND_CHECK", "1")
        // Runs Erlang in the place of the script, without a shell that would swallow the signals.
        .env("RUNNING_UNDER_SYSTEMD", "1")
        .env("RABBITMQ_NODENAME", node(port))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_DIST_PORT", dist_port.to_string())
        .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
        .env("RABBITMQ_LOG_BASE", at("log"))
        .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
        // Neither this nor the next is the machine's own, in /etc/rabbitmq.
        .env("RABBITMQ_CONF_ENV_FILE", at("no-environment"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
        .env("RABBITMQ_PID_FILE", at("pid"))
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ERLANG)
        .current_dir(folder);
}
