//! The real binary in a temporary folder, on a port the system chose; stopped when dropped.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Far more than anything here needs on a busy machine; only a hang reaches it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What is waited for is looked at this often.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// A command of the binary, without the variables of whoever runs the tests.
pub(crate) fn eventbucket(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventbucket"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("EVENTBUCKET_")) {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a command to its end, within the deadline.
pub(crate) fn run(mut command: Command) -> Ran {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = pid_of(&child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(DEADLINE) {
        Ok(output) => Ran::from(output.unwrap()),
        Err(_) => {
            kill_process(pid, Signal::KILL).unwrap();
            panic!("the command did not end: {command:?}");
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Reads what was printed as JSON, after success.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Asserts that it failed with a code and said all of this on stderr, and nothing on stdout.
    pub(crate) fn assert_failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert_eq!(self.stdout, "", "failures go to stderr");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
    }
}

/// The keys of the project that a first start makes.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) write: String,
    pub(crate) secret: String,
}

/// A running collector.
pub(crate) struct Collector {
    child: Child,
    folder: PathBuf,
    owned: Option<TempDir>,
    args: Vec<String>,
    address: String,
    keys: Option<Keys>,
    stdout: String,
    stderr: Collected,
}

impl Collector {
    /// Starts one in a folder of its own, which goes with it.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Collector::start`] with further arguments of `serve`.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut collector = Self::start_in(&data, args);
        collector.owned = Some(folder);
        collector
    }

    /// Starts one on a folder that stays.
    pub(crate) fn start_in(folder: &Path, args: &[&str]) -> Self {
        Self::start_on(folder, "127.0.0.1:0", args)
    }

    fn start_on(folder: &Path, address: &str, args: &[&str]) -> Self {
        Self::try_start_on(folder, address, args).unwrap_or_else(|said| panic!("no start: {said}"))
    }

    /// When it doesn't start, returns what it said.
    fn try_start_on(folder: &Path, address: &str, args: &[&str]) -> Result<Self, String> {
        let mut command = eventbucket(&["serve", "--data", folder.to_str().unwrap(), "--listen", address]);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = Collected::from(child.stderr.take().unwrap());
        let lines = lines_of(child.stdout.take().unwrap());
        let (address, stdout) = match listening(&lines) {
            Ok(found) => found,
            Err(stdout) => {
                let _ = child.kill();
                let status = child.wait();
                return Err(format!("{status:?}\n{stdout}\n{}", stderr.whole()));
            }
        };
        let keys = word(&stdout, "eb_write_").zip(word(&stdout, "eb_secret_"));
        Ok(Self {
            child,
            folder: folder.to_owned(),
            owned: None,
            args: args.iter().map(ToString::to_string).collect(),
            address,
            keys: keys.map(|(write, secret)| Keys { write, secret }),
            stdout,
            stderr,
        })
    }

    /// Starts it again after [`Collector::kill`] or [`Collector::terminate`]: same folder, same port, same keys.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.try_wait().unwrap().is_some(), "stop it first");
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let address = self.address.rsplit('/').next().unwrap().to_owned();
        // Meanwhile another test may have been given the port; it lets go of it when it ends.
        let mut started = None;
        eventually("the port is free again", || {
            match Self::try_start_on(&self.folder, &address, &args) {
                Ok(again) => started = Some(again),
                Err(said) => assert!(said.contains("is in use"), "no start: {said}"),
            }
            started.is_some()
        });
        let mut again = started.expect("the wait ends with it");
        again.owned = self.owned.take();
        again.keys = again.keys.take().or_else(|| self.keys.take());
        *self = again;
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> &str {
        &self.address
    }

    /// The data folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The keys that the first start printed.
    pub(crate) fn keys(&self) -> &Keys {
        self.keys.as_ref().expect("this collector's first start was somebody else's")
    }

    /// What was printed until it listened.
    pub(crate) fn welcome(&self) -> &str {
        &self.stdout
    }

    /// What it has logged so far; everything once it has ended.
    pub(crate) fn logged(&self) -> String {
        self.stderr.so_far()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a power cut of the process: nothing of it runs any more on return.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.stderr.whole();
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid_of(&self.child), signal).unwrap();
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        eventually("the collector ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        self.stderr.whole();
        ended.unwrap()
    }

    /// Runs a command on its data folder.
    pub(crate) fn beside(&self, args: &[&str]) -> Ran {
        let mut command = eventbucket(args);
        command.args(["--data", self.folder.to_str().unwrap()]);
        run(command)
    }

    /// Runs a command on its address, with its secret key.
    pub(crate) fn over_http(&self, args: &[&str]) -> Ran {
        let mut command = eventbucket(args);
        command.args(["--url", &self.address]).env("EVENTBUCKET_KEY", &self.keys().secret);
        run(command)
    }

    /// Reads its figures.
    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics")
    }

    /// Asks for a path without a key; returns the answer as it came.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(self.address.rsplit('/').next().unwrap()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Sends a batch as JSON and returns the answer, which must be a success.
    pub(crate) async fn send(&self, body: serde_json::Value) -> serde_json::Value {
        let request = http().post(format!("{}/v1/events", self.address)).bearer_auth(&self.keys().write);
        let response = request.json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the collector's log:\n{}", self.logged());
        }
    }
}

/// A client for requests of tests.
pub(crate) fn http() -> reqwest::Client {
    #[expect(clippy::disallowed_methods, reason = "this process is the application")]
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap()
}

/// Waits for a condition; panics with its name after the deadline.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::park_timeout(LOOK_PERIOD);
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap()).unwrap()
}

/// Reads a pipe to its end on a thread, so that it never fills up.
struct Collected {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut bytes) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// What has come so far.
    fn so_far(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Everything, once the process that writes has ended.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}

/// Reads a pipe to its end on a thread, line by line.
pub(crate) fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Who doesn't listen any more doesn't stop the reading.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Waits for the line for programs; gives what came before it, also when it doesn't come.
fn listening(lines: &Receiver<String>) -> Result<(String, String), String> {
    let deadline = Instant::now() + DEADLINE;
    let mut before = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if let Some(address) = line.strip_prefix("listening on ") {
            return Ok((address.to_owned(), before));
        }
        before.push_str(&line);
        before.push('\n');
    }
    Err(before)
}

/// Finds the first word that begins with `prefix` and goes on with letters and digits.
fn word(text: &str, prefix: &str) -> Option<String> {
    let begin = text.find(prefix)?;
    let rest = &text[begin..];
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}
