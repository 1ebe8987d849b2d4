use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::install;
use super::port::{Port, say};
use super::process::{self, Process, Recipe, breakable};

/// Where Debian's packages keep the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The version that the tests were made with; where it is missing and another is there, that one is taken.
const VERSION: &str = "15";
const PACKAGE: &str = "postgresql-15";

/// Who runs it where the test is root, which PostgreSQL refuses to be.
const USER: &str = "postgres";

/// Enough for two dozen tests at once with the pools of a collector each.
const CONNECTIONS: &str = "max_connections=200";

/// What a postmaster that was killed leaves: a segment of shared memory, of which the system has 4,096 for all, and a file
/// with its process id, which another process may have by now. Only when none of its processes lives any more.
const AFTER: &str = r#"
set -- $(sed -n 7p "$folder/data/postmaster.pid")
[ -z "$2" ] || ipcrm -m "$2"
rm -f "$folder/data/postmaster.pid"
"#;

/// A PostgreSQL with trust for everybody on this machine, and `fsync` as it is by default: on.
#[derive(Debug)]
pub struct Postgres {
    // Before the port, which is given back when nothing listens there any more.
    process: Process,
    folder: PathBuf,
    port: Port,
}

impl Postgres {
    /// Starts one with an empty cluster.
    ///
    /// # Errors
    /// When it isn't installed and can't be, or doesn't come up.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts one with settings of its own: `&["fsync=off"]` where only speed counts and it is never killed.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: &[&str]) -> io::Result<Self> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("eventbucket-postgres-").tempdir()?;
        let data = folder.path().join("data");
        copy(&template(&programs)?, &data)?;
        open_to_user(folder.path())?;
        let port = Port::claim()?;
        let mut command = as_user(&programs.join("postgres"));
        command.arg("-D").arg(data).args(["-p", &port.number().to_string()]);
        for setting in
            ["listen_addresses=127.0.0.1", "unix_socket_directories=", CONNECTIONS].iter().chain(settings)
        {
            command.args(["-c", setting]);
        }
        let path = folder.path().to_owned();
        let recipe = Recipe { name: "PostgreSQL", command, stop_signal: "INT", after: AFTER.to_owned() };
        let mut process = Process::new(folder, recipe)?;
        process.start(|| Self::answers(port.number()))?;
        Ok(Self { process, folder: path, port })
    }

    /// Its address with the database that is always there.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Its address with a database.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port.number())
    }

    /// Makes an empty database, in 0.1 s, and returns its address.
    ///
    /// # Errors
    /// When there is one of that name, or it can't be made.
    pub fn database(&self, name: &str) -> io::Result<String> {
        psql(&self.url(), &format!("CREATE DATABASE \"{name}\""))?;
        Ok(self.url_of(name))
    }

    /// Makes a database that begins with all that another holds, to which nobody may be connected meanwhile: for schemas
    /// that many tests begin with.
    ///
    /// # Errors
    /// As [`Self::database`], or when somebody is connected to the other.
    pub fn database_like(&self, name: &str, template: &str) -> io::Result<String> {
        psql(&self.url(), &format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\""))?;
        Ok(self.url_of(name))
    }

    /// Runs SQL by `psql` on the database that is always there; the rows come as lines, their columns between `|`.
    ///
    /// # Errors
    /// What the server complains about.
    pub fn sql(&self, sql: &str) -> io::Result<String> {
        psql(&self.url(), sql)
    }

    /// The folder of the cluster, to take a copy of while it is stopped.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Whether it lets a session begin: while it starts or recovers it answers with an error.
    fn answers(port: u16) -> bool {
        let words = [&[0, 3, 0, 0], b"user\0postgres\0database\0postgres\0\0".as_slice()].concat();
        let length = u32::try_from(words.len() + 4).expect("a few dozen bytes");
        let hello = [&length.to_be_bytes()[..], &words].concat();
        say(port, &hello).is_ok_and(|answer| answer.starts_with(b"R"))
    }
}

breakable!(Postgres);

pub(crate) fn psql(url: &str, sql: &str) -> io::Result<String> {
    let mut psql = Command::new(programs()?.join("psql"));
    psql.env_clear().env("PATH", process::path());
    psql.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql, url]);
    Ok(process::output(&mut psql)?.trim_end().to_owned())
}

/// The folder of the programs, from Debian's package where none is there.
fn programs() -> io::Result<PathBuf> {
    let of = |version: &str| Path::new(VERSIONS).join(version).join("bin");
    if of(VERSION).join("postgres").exists() {
        return Ok(of(VERSION));
    }
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let versions = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = versions.filter(|version| of(&version.to_string()).join("postgres").exists()).max();
    if let Some(newest) = newest {
        return Ok(of(&newest.to_string()));
    }
    install(&of(VERSION).join("postgres"), PACKAGE)?;
    Ok(of(VERSION))
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
        process::output(Command::new("chown").arg(format!("{USER}:{USER}")).arg(folder))?;
    }
    Ok(())
}

/// An empty cluster, made once a machine: `initdb` takes a second, a copy of it 0.07 s. It lies in the temporary folder and
/// not in cargo's, which caches of CI bring back with other owners than PostgreSQL takes.
fn template(programs: &Path) -> io::Result<PathBuf> {
    let version = programs.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let user = rustix::process::geteuid().as_raw();
    let template = std::env::temp_dir().join(format!("eventbucket-postgres-{version}-template-{user}"));
    let folder = TempDir::with_prefix("eventbucket-postgres-")?;
    open_to_user(folder.path())?;
    if template.join("data/PG_VERSION").exists() {
        // Everybody may make folders there; one that somebody else made is not started.
        return if fs::metadata(&template)?.uid() == fs::metadata(folder.path())?.uid() {
            Ok(template.join("data"))
        } else {
            Err(io::Error::other(format!("{} belongs to somebody else; remove it", template.display())))
        };
    }
    let mut initdb = as_user(&programs.join("initdb"));
    initdb.arg("-D").arg(folder.path().join("data"));
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--no-locale", "--encoding=UTF8"]);
    process::output(initdb.current_dir(folder.path()))?;
    // Whoever is first to move it there has made it; the others' are thrown away.
    let made = folder.keep();
    if fs::rename(&made, &template).is_err() {
        fs::remove_dir_all(&made)?;
    }
    Ok(template.join("data"))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    process::output(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}
