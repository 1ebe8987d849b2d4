use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::{Process, breakable};
use super::{free_port, install, until};

/// Debian's package, the same version everywhere.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const PACKAGE: &str = "postgresql-15";

/// Who runs it where the test is root, which PostgreSQL refuses to be.
const USER: &str = "postgres";

/// A PostgreSQL with trust for everybody on this machine, and `fsync` as it is by default: on.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Starts one with an empty cluster.
    ///
    /// # Errors
    /// When it isn't installed and can't be, or doesn't come up.
    pub fn start() -> io::Result<Self> {
        install(&program("postgres"), PACKAGE)?;
        let folder = tempfile::Builder::new().prefix("eventbucket-postgres-").tempdir()?;
        copy(&template()?, &folder.path().join("data"))?;
        open_to_user(folder.path())?;
        let mut postgres = Self { folder, port: free_port()?, process: None };
        postgres.process = Some(postgres.run()?);
        postgres.ready()?;
        Ok(postgres)
    }

    /// Its address with the database that is always there.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Its address with a database.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The folder of the cluster, to take a copy of while it is stopped.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn run(&self) -> io::Result<Process> {
        let mut command = as_user(&program("postgres"));
        command.arg("-D").arg(self.data());
        command.args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"] {
            command.args(["-c", setting]);
        }
        command.current_dir(self.folder.path());
        // The children of a postmaster that is killed may live for a moment and hold what it shared.
        let after = format!("rm -f '{}/postmaster.pid'", self.data().display());
        Process::start(&command, &self.folder.path().join("log"), &after)
    }

    fn ready(&self) -> io::Result<()> {
        let port = self.port.to_string();
        until("PostgreSQL", || {
            let mut asked = Command::new(program("pg_isready"));
            asked.args(["-q", "-h", "127.0.0.1", "-p", &port]);
            asked.status().is_ok_and(|status| status.success())
        })
    }
}

breakable!(Postgres);

fn program(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

/// A command that runs as the user who may run PostgreSQL.
fn as_user(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]).arg(program);
    command
}

/// Lets that user reach a folder that only its owner may enter.
fn open_to_user(folder: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        done(Command::new("chown").arg(format!("{USER}:{USER}")).arg(folder))?;
    }
    Ok(())
}

/// An empty cluster, made once a machine: `initdb` takes a second, a copy of it 0.07 s.
fn template() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let template = std::env::temp_dir().join(format!("eventbucket-postgres-15-template-{user}"));
    if template.join("data/PG_VERSION").exists() {
        return Ok(template.join("data"));
    }
    let folder = tempfile::Builder::new().prefix("eventbucket-postgres-").tempdir()?;
    open_to_user(folder.path())?;
    let mut initdb = as_user(&program("initdb"));
    initdb.arg("-D").arg(folder.path().join("data"));
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--no-locale", "--encoding=UTF8"]);
    done(initdb.current_dir(folder.path()))?;
    // Whoever is first to move it there has made it; the others' are thrown away.
    let made = folder.keep();
    if std::fs::rename(&made, &template).is_err() {
        std::fs::remove_dir_all(&made)?;
    }
    Ok(template.join("data"))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    done(Command::new("cp").arg("-a").arg(from).arg(to))
}

fn done(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{} failed: {said}", command.get_program().to_string_lossy())))
}
