//! One process of ours, which is started again whenever it ends, as a service manager does.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::proxy::Proxy;
use super::schedule::Place;

/// The pause before a process that ended by itself is started again: it couldn't start while a server was away.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// How long a start may take before it is given up and tried again: connecting to a broker that is starting takes 20 s.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Orders that may wait: a schedule gives 10 at most.
const ORDERS_MAX: usize = 64;

/// What a process is started with.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) place: Place,
    /// The group it belongs to.
    pub(super) group: i32,
    /// Everything below it belongs to the process.
    pub(super) folder: PathBuf,
    pub(super) variables: Vec<(&'static str, String)>,
}

/// A process and who keeps it running.
pub(super) struct Process {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
    ended: Arc<Mutex<Vec<String>>>,
    keeper: JoinHandle<()>,
}

enum Order {
    Kill,
    Pause(Duration),
    End,
}

/// What the process is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Up,
    Paused,
}

impl Process {
    /// Starts it, and keeps it running until dropped. `door` leads to it.
    pub(super) fn start(launch: Launch, door: Option<Arc<Proxy>>) -> Self {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let (said, state) = watch::channel(State::Starting);
        let ended = Arc::new(Mutex::new(Vec::new()));
        let keeper = Keeper { launch, door, orders: received, state: said, ended: Arc::clone(&ended) };
        Self { orders, state, ended, keeper: tokio::spawn(keeper.run()) }
    }

    /// `kill -9`.
    pub(super) fn kill(&self) {
        self.order(Order::Kill);
    }

    /// SIGSTOP, and SIGCONT later.
    pub(super) fn pause(&self, time: Duration) {
        self.order(Order::Pause(time));
    }

    fn order(&self, order: Order) {
        // The keeper ends with this handle, and a queue of orders that is full has more than enough to do.
        let _ = self.orders.try_send(order);
    }

    /// Waits until it has carried out every order and serves.
    pub(super) async fn settled(&self) {
        let mut state = self.state.clone();
        loop {
            let up = state.wait_for(|state| *state == State::Up).await.is_ok();
            // An order that was given but not yet begun is still in the queue.
            if !up || self.orders.capacity() == self.orders.max_capacity() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends it for good, and waits until nothing of it is left.
    pub(super) async fn end(&mut self) {
        self.order(Order::End);
        // One that panicked has ended too, and its child with it.
        let _ = (&mut self.keeper).await;
    }

    /// Takes what is known of ends that nobody ordered, once it had been serving.
    pub(super) fn take_ends(&self) -> Vec<String> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The process ends with its handle: tokio kills what a dropped task held.
impl Drop for Process {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

struct Keeper {
    launch: Launch,
    door: Option<Arc<Proxy>>,
    orders: mpsc::Receiver<Order>,
    state: watch::Sender<State>,
    ended: Arc<Mutex<Vec<String>>>,
}

/// How a process came to its end.
enum End {
    Ordered,
    ByItself(String),
    NeverStarted,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            self.state.send_replace(State::Starting);
            let end = match self.launch.spawn() {
                Ok((child, lines)) => self.keep(child, lines).await,
                Err(_) => Some(End::NeverStarted),
            };
            self.lead_to(None);
            match end {
                Some(End::Ordered) => {}
                Some(End::NeverStarted) => tokio::time::sleep(RESTART_PAUSE).await,
                Some(End::ByItself(how)) => {
                    let said =
                        format!("{} ended by itself: {how}; {}", self.launch.place, self.launch.last_words());
                    self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(said);
                }
                None => return,
            }
        }
    }

    fn lead_to(&self, upstream: Option<String>) {
        if let Some(door) = &self.door {
            door.lead_to(upstream);
        }
    }

    /// Sees it through one life; `None` when nobody wants it any more.
    async fn keep(&mut self, mut child: Child, mut lines: Lines<BufReader<ChildStdout>>) -> Option<End> {
        let give_up = Instant::now() + START_TIMEOUT;
        let mut served = false;
        let mut resume_at: Option<Instant> = None;
        loop {
            let resume = async {
                match resume_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // All are cancel-safe: a line that was read in part stays in the reader, and the others only look.
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => if let Some(address) = line.strip_prefix("listening on http://") {
                        served = true;
                        self.lead_to(Some(address.to_owned()));
                        if resume_at.is_none() {
                            self.state.send_replace(State::Up);
                        }
                    },
                    // Its output ends with it.
                    Ok(None) | Err(_) => {
                        let how = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
                        return Some(if served { End::ByItself(how) } else { End::NeverStarted });
                    }
                },
                order = self.orders.recv() => match order? {
                    Order::Kill => {
                        // It may have ended this instant: then that was the kill.
                        let _ = child.kill().await;
                        return Some(End::Ordered);
                    }
                    Order::End => {
                        let _ = child.kill().await;
                        return None;
                    }
                    Order::Pause(time) => {
                        signal(&child, Signal::STOP);
                        self.state.send_replace(State::Paused);
                        resume_at = Some(Instant::now() + time);
                    }
                },
                () = resume => {
                    signal(&child, Signal::CONT);
                    resume_at = None;
                    self.state.send_replace(if served { State::Up } else { State::Starting });
                }
                () = tokio::time::sleep_until(give_up), if !served => {
                    let _ = child.kill().await;
                    return Some(End::NeverStarted);
                }
            }
        }
    }
}

/// Sends a signal to a child that wasn't waited for yet, so the number is still its own.
fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // A child that is dead already needs no signal.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

impl Launch {
    fn spawn(&self) -> io::Result<(Child, Lines<BufReader<ChildStdout>>)> {
        std::fs::create_dir_all(&self.folder)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("EVENTBUCKET_")) {
                command.env_remove(name);
            }
        }
        command.args(["serve", "--roles", self.place.role.roles(), "--listen", "127.0.0.1:0", "--data"]);
        command.arg(self.folder.join("data")).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        command.process_group(self.group);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("its output can't be read"))?;
        Ok((child, BufReader::new(stdout).lines()))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// What it logged last.
    fn last_words(&self) -> String {
        last_line(&self.log())
            .map_or_else(|| "it logged nothing".to_owned(), |line| format!("it said: {line}"))
    }
}

fn last_line(log: &Path) -> Option<String> {
    std::fs::read_to_string(log).ok()?.lines().last().map(str::to_owned)
}
