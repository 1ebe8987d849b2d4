//! Processes: ours, as a user starts them, and what each server's have used of the processors.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::bare_edge;

/// Ticks of a processor's time in a second, as Linux counts them for everybody.
const TICKS_PER_S: f64 = 100.0;

/// One process with some roles.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
    // It goes on printing; a closed pipe would end it.
    _output: BufReader<ChildStdout>,
    _folder: TempDir,
}

impl Process {
    pub(crate) fn start(roles: &str, variables: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventbucket"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--roles", roles, "--data"])
            .arg(folder.path().join("data"))
            .envs(variables.iter().map(|(name, value)| (name, value)));
        Self::run(command, folder)
    }

    pub(crate) fn bare_edge(bus_url: &str, queues: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([bare_edge::WORD, bus_url, &queues.to_string()]);
        Self::run(command, tempfile::tempdir().unwrap())
    }

    fn run(mut command: Command, folder: TempDir) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "{command:?} ended");
            if let Some(address) = line.strip_prefix("listening on http://") {
                break address.trim().to_owned();
            }
        };
        Self { child, address, _output: output, _folder: folder }
    }

    pub(crate) fn cpu_s(&self) -> f64 {
        cpu_s(self.child.id())
    }

    pub(crate) fn highest_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time that each server has used: all processes of these names, so nothing else may run one.
pub(crate) fn servers_cpu_s() -> BTreeMap<&'static str, f64> {
    let mut used = BTreeMap::from([("postgres", 0.0), ("beam.smp", 0.0), ("redis-server", 0.0)]);
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ended in between has nothing more to say.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let Some(used) = used.get_mut(name.trim()) {
            *used += cpu_s(pid);
        }
    }
    used
}

/// What this process has used: the load and the bare loops.
pub(crate) fn own_cpu_s() -> f64 {
    cpu_s(std::process::id())
}

/// User and system time, with that of children that have ended.
fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may have spaces; utime is the 12th field behind it.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: f64 =
        after.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_S
}
