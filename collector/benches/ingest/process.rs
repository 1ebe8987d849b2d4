//! The real binary, as a user starts it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Collector {
    process: Child,
    url: String,
    key: String,
    // The collector goes on printing; a closed pipe would end it.
    _output: BufReader<ChildStdout>,
    _folder: TempDir,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_eventbucket"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let (mut url, mut key) = (None, None);
        while url.is_none() || key.is_none() {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "the collector ended");
            if let Some(found) = line
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .find(|w| w.starts_with("eb_write_"))
            {
                key.get_or_insert(found.to_owned());
            }
            if let Some(found) = line.strip_prefix("listening on ") {
                url = Some(found.trim().to_owned());
            }
        }
        Self { process, url: url.unwrap(), key: key.unwrap(), _output: output, _folder: folder }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn resident_mib(&self) -> f64 {
        self.status_mib("VmRSS:")
    }

    pub(crate) fn highest_mib(&self) -> f64 {
        self.status_mib("VmHWM:")
    }

    fn status_mib(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024.0
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
