use std::io;
use std::path::Path;
use std::process::Command;

use super::install;
use super::port::{Port, say};
use super::process::{Process, Recipe, breakable};

const PROGRAM: &str = "/usr/bin/redis-server";
const PACKAGE: &str = "redis-server";

/// A Redis that evicts nothing and writes nothing to disk, unless told to.
#[derive(Debug)]
pub struct Redis {
    // Before the port, which is given back when nothing listens there any more.
    process: Process,
    port: Port,
}

impl Redis {
    /// Starts an empty one.
    ///
    /// # Errors
    /// When it isn't installed and can't be, or doesn't come up.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts one with settings of its own, as words of its command line: `&["--appendonly", "yes", "--appendfsync",
    /// "always"]` for one that loses nothing when it is killed.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: &[&str]) -> io::Result<Self> {
        install(Path::new(PROGRAM), PACKAGE)?;
        let folder = tempfile::Builder::new().prefix("eventbucket-redis-").tempdir()?;
        let port = Port::claim()?;
        let mut command = Command::new(PROGRAM);
        command.args(["--port", &port.number().to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--maxmemory-policy", "noeviction", "--daemonize", "no"]);
        command.arg("--dir").arg(folder.path()).args(settings);
        let recipe = Recipe { name: "Redis", command, stop_signal: "TERM", after: String::new() };
        let mut process = Process::new(folder, recipe)?;
        process.start(|| Self::answers(port.number()))?;
        Ok(Self { process, port })
    }

    /// Its address with the first database.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port.number())
    }

    fn answers(port: u16) -> bool {
        // One that asks for a password answers, too.
        let is_up = |answer: Vec<u8>| answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH");
        say(port, b"PING\r\n").is_ok_and(is_up)
    }
}

breakable!(Redis);
