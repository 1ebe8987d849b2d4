use std::io;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::{Process, breakable};
use super::{free_port, install, say, until};

const PROGRAM: &str = "/usr/bin/redis-server";
const PACKAGE: &str = "redis-server";

/// A Redis that evicts nothing and writes nothing to disk, unless told to.
#[derive(Debug)]
pub struct Redis {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Option<Process>,
}

impl Redis {
    /// Starts an empty one.
    ///
    /// # Errors
    /// When it isn't installed and can't be, or doesn't come up.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts one with settings of its own, as words of its command line.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: &[&str]) -> io::Result<Self> {
        install(Path::new(PROGRAM), PACKAGE)?;
        let folder = tempfile::Builder::new().prefix("eventbucket-redis-").tempdir()?;
        let settings = settings.iter().map(|word| (*word).to_owned()).collect();
        let mut redis = Self { folder, port: free_port()?, settings, process: None };
        redis.process = Some(redis.run()?);
        redis.ready()?;
        Ok(redis)
    }

    /// Its address with the first database.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn run(&self) -> io::Result<Process> {
        let mut command = Command::new(PROGRAM);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no"]);
        command.arg("--dir").arg(self.folder.path()).args(&self.settings);
        Process::start(&command, &self.folder.path().join("log"), "")
    }

    fn ready(&self) -> io::Result<()> {
        until("Redis", || say(self.port, b"PING\r\n").is_ok_and(|answer| answer.starts_with(b"+PONG")))
    }
}

breakable!(Redis);
