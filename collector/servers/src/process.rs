use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

/// Runs a server in a session of its own until its owner closes the pipe, by will or by dying, then kills all of it.
const WATCH: &str = r#"
log=$1 after=$2; shift 2
setsid "$@" </dev/null >>"$log" 2>&1 &
pid=$!
echo $pid
while read -r _; do :; done
kill -CONT -$pid 2>/dev/null
kill -9 -$pid 2>/dev/null
wait
[ -z "$after" ] || sh -c "$after" >/dev/null 2>&1
"#;

/// A server's processes.
#[derive(Debug)]
pub(crate) struct Process {
    watch: Child,
    owner: Option<ChildStdin>,
    group: Pid,
}

impl Process {
    /// Starts a command with what it prints in `log`; `after` runs when it has ended, in a shell.
    pub(crate) fn start(command: &Command, log: &Path, after: &str) -> io::Result<Self> {
        let mut watch = Command::new("sh");
        watch.arg("-c").arg(WATCH).arg("watch").arg(log).arg(after);
        watch.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watch.env(name, value),
                None => watch.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            watch.current_dir(folder);
        }
        let errors = File::create(log.with_extension("watch"))?;
        let mut watch = watch.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn()?;
        let owner = watch.stdin.take();
        let mut line = String::new();
        if let Some(said) = watch.stdout.take() {
            BufReader::new(said).read_line(&mut line)?;
        }
        let group = line.trim().parse().ok().and_then(Pid::from_raw);
        let group = group.ok_or_else(|| io::Error::other("the server's process could not be started"))?;
        Ok(Self { watch, owner, group })
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process_group(self.group, signal)?)
    }

    /// Kills everything and waits until it is gone.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        drop(self.owner.take());
        self.watch.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whatever fails here, the watch is told by the closed pipe.
        let _ = self.end();
    }
}

/// Implements what all servers can, on a field `process: Option<Process>` and a method `run`.
macro_rules! breakable {
    ($server:ident) => {
        impl $server {
            /// Kills it at once, as a power cut would; what it kept stays for [`Self::restart`].
            ///
            /// # Errors
            /// When the processes can't be ended.
            pub fn kill(&mut self) -> std::io::Result<()> {
                self.process.take().map_or(Ok(()), $crate::process::Process::kill)
            }

            /// Stops its processes in the middle of what they do.
            ///
            /// # Errors
            /// When it isn't running.
            pub fn pause(&self) -> std::io::Result<()> {
                self.signal(rustix::process::Signal::STOP)
            }

            /// Lets them go on.
            ///
            /// # Errors
            /// When it isn't running.
            pub fn resume(&self) -> std::io::Result<()> {
                self.signal(rustix::process::Signal::CONT)
            }

            /// Starts it again on the same port with what it kept; kills it first if it runs.
            ///
            /// # Errors
            /// When it doesn't come up.
            pub fn restart(&mut self) -> std::io::Result<()> {
                self.kill()?;
                self.process = Some(self.run()?);
                self.ready()
            }

            fn signal(&self, signal: rustix::process::Signal) -> std::io::Result<()> {
                match &self.process {
                    Some(process) => process.signal(signal),
                    None => Err(std::io::Error::other("the server isn't running")),
                }
            }
        }
    };
}

pub(crate) use breakable;
