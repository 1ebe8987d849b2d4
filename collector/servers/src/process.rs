use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The shell beside each server, which does what it is told and cleans up when its owner is gone.
const WATCH: &str = include_str!("watch.sh");
const SCRIPT: &str = "eventbucket-watch.sh";

/// How long a server may take to answer after its start: RabbitMQ takes 30 s on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a starting server is asked.
const ASK_PERIOD: Duration = Duration::from_millis(20);

/// Lines of a server's log that go into the error when it doesn't come up.
const LOG_LINES: usize = 10;

/// What to run, and how to end it.
pub(crate) struct Recipe {
    /// What it is called in errors.
    pub(crate) name: &'static str,
    pub(crate) command: Command,
    /// The signal to its first process that ends it in good order.
    pub(crate) stop_signal: &'static str,
    /// Shell words that run in the watch when all its processes are gone; they may use `$folder`.
    pub(crate) after: String,
}

/// A server's processes and its folder. Both go when this is dropped, or its owner dies.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    log: PathBuf,
    shell: Child,
    /// One word and its answer at a time. None when the watch has been told to end.
    talk: Mutex<Option<Talk>>,
    /// Whether it was started and neither killed nor stopped since.
    running: bool,
}

#[derive(Debug)]
struct Talk {
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Begins the watch over a folder, which is its own from now on. The server isn't started yet.
    pub(crate) fn new(folder: TempDir, recipe: Recipe) -> io::Result<Self> {
        let Recipe { name, command, stop_signal, after } = recipe;
        let log = folder.path().join("output");
        let script = folder.path().join(SCRIPT);
        fs::write(&script, WATCH)?;
        let mut shell = Command::new("sh");
        shell.arg(script).arg(folder.path()).arg(&log).args([stop_signal, &after]);
        shell.arg(command.get_program()).args(command.get_args());
        // What the user set for servers of their own (`PGDATA`, `RABBITMQ_…`, `ERL_FLAGS`) is not for these.
        shell.env_clear().env("PATH", path()).env("LC_ALL", "C.UTF-8");
        shell.envs(command.get_envs().filter_map(|(variable, value)| Some((variable, value?))));
        // In a group of its own: Ctrl-C and `timeout` signal the owner's whole group, and the watch has to outlive it.
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        shell.stderr(File::create(folder.path().join("watch"))?);
        let mut shell = shell.spawn()?;
        let (words, answers) = (shell.stdin.take(), shell.stdout.take());
        let (words, answers) =
            words.zip(answers).ok_or_else(|| io::Error::other("the watch has no pipes"))?;
        let talk = Mutex::new(Some(Talk { words, answers: BufReader::new(answers) }));
        // Removed by the watch, which outlives this process.
        let _ = folder.keep();
        Ok(Self { name, log, shell, talk, running: false })
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn start(&mut self, answers: impl FnMut() -> bool) -> io::Result<()> {
        self.tell("start")?;
        self.running = true;
        let up = self.until(answers);
        if up.is_err() {
            self.kill()?;
        }
        up
    }

    /// Kills all of it and waits until it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.end("kill")
    }

    /// Ends it in good order and waits until it is gone.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        self.end("stop")
    }

    pub(crate) fn pause(&self) -> io::Result<()> {
        self.tell_running("pause")
    }

    pub(crate) fn resume(&self) -> io::Result<()> {
        self.tell_running("resume")
    }

    fn end(&mut self, word: &str) -> io::Result<()> {
        if std::mem::take(&mut self.running) { self.tell(word) } else { Ok(()) }
    }

    fn tell_running(&self, word: &str) -> io::Result<()> {
        if self.running { self.tell(word) } else { Err(self.error("isn't running: restart it first")) }
    }

    fn tell(&self, word: &str) -> io::Result<()> {
        match self.ask(word)?.trim_end() {
            "done" => Ok(()),
            "" => Err(self.error("has lost its watch")),
            problem => Err(self.error(problem)),
        }
    }

    fn ask(&self, word: &str) -> io::Result<String> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(talk) = talk.as_mut() else { return Ok(String::new()) };
        writeln!(talk.words, "{word}")?;
        let mut answer = String::new();
        talk.answers.read_line(&mut answer)?;
        Ok(answer)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a starting server is asked again; nothing tells when it is up"
    )]
    fn until(&self, mut answers: impl FnMut() -> bool) -> io::Result<()> {
        let end = Instant::now() + START_TIMEOUT;
        while !answers() {
            if self.ask("lives")?.trim_end() != "done" {
                return Err(self.error(&format!("ended while it started; it said:\n{}", self.last_words())));
            }
            if Instant::now() > end {
                let seconds = START_TIMEOUT.as_secs();
                let said = self.last_words();
                return Err(self.error(&format!("did not answer within {seconds} s; it said:\n{said}")));
            }
            std::thread::sleep(ASK_PERIOD);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn error(&self, problem: &str) -> io::Error {
        io::Error::other(format!("{}: {problem}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.talk.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        // The watch was told by the closed pipe, whatever fails here.
        let _ = self.shell.wait();
    }
}

/// Where programs are, with the folders of the system's own, which a user's shell may leave out.
pub(crate) fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// Runs a command to its end and returns what it printed; else the error has what it complained about.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    output_of(command, "")
}

/// The same for a command that reads a few words.
pub(crate) fn output_of(command: &mut Command, words: &str) -> io::Result<String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(
            |error| io::Error::new(error.kind(), format!("{}: {error}", name(command.get_program()))),
        )?;
    if let Some(mut input) = child.stdin.take() {
        // One that ends without reading says why itself.
        let _ = input.write_all(words.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{} failed: {}", name(command.get_program()), said.trim_end())))
}

fn name(program: &OsStr) -> String {
    Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}

/// Implements what all servers can, on a field `process: Process` and a method `answers`.
macro_rules! breakable {
    ($server:ident) => {
        impl $server {
            /// Kills all its processes at once, as a power cut would, and waits until they are gone; what it kept stays
            /// for [`Self::restart`]. Nothing happens when it isn't running.
            ///
            /// # Errors
            /// When a process can't be ended.
            pub fn kill(&mut self) -> std::io::Result<()> {
                self.process.kill()
            }

            /// Ends it in good order; what it kept stays for [`Self::restart`]. Nothing happens when it isn't running.
            ///
            /// # Errors
            /// When it doesn't end within a minute and had to be killed.
            pub fn stop(&mut self) -> std::io::Result<()> {
                self.process.stop()
            }

            /// Stops all its processes in the middle of what they do: connections stay open and nothing answers.
            ///
            /// # Errors
            /// When it isn't running.
            pub fn pause(&self) -> std::io::Result<()> {
                self.process.pause()
            }

            /// Lets them go on.
            ///
            /// # Errors
            /// When it isn't running.
            pub fn resume(&self) -> std::io::Result<()> {
                self.process.resume()
            }

            /// Starts it again on the same port with what it kept; kills it first if it runs.
            ///
            /// # Errors
            /// When it doesn't come up: with the end of its log.
            pub fn restart(&mut self) -> std::io::Result<()> {
                self.process.kill()?;
                let port = self.port.number();
                self.process.start(|| Self::answers(port))
            }
        }
    };
}

pub(crate) use breakable;
