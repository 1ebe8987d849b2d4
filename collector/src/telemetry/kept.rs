use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// The newest warnings and errors of a collector, a line of JSON each, in its data folder.
const FILE: &str = "eventbucket.warnings";

/// The lines before those.
const OLDER: &str = "eventbucket.warnings.old";

/// Lines that wait until it is known where they are kept: a start says few, and then is served or ends.
const WAITING_BYTES_MAX: usize = 16 * 1024;

/// What each of the two may take: 64 KiB are about 300 lines.
const BYTES_MAX: u64 = 64 * 1024;

/// Keeps lines in a folder, once it is told which. Clones share it. It fails no one: a line that can't be kept was on
/// stderr all the same.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    /// Lines that came before anybody said where.
    Waiting(Vec<u8>),
    Keeping(Place),
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting(Vec::new())
    }
}

#[derive(Debug)]
struct Place {
    folder: PathBuf,
    /// Made with the first line.
    open: Option<(File, u64)>,
}

impl Kept {
    /// Keeps lines in a folder that this process alone serves.
    pub fn keep_in(&self, folder: &Path) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = Place { folder: folder.to_owned(), open: None };
        if let State::Waiting(lines) = &*state
            && !lines.is_empty()
        {
            place.keep(lines);
        }
        *state = State::Keeping(place);
    }
}

/// Reads the newest lines that were kept in a folder, oldest first.
#[must_use]
pub fn newest(folder: &Path, lines_max: usize) -> Vec<String> {
    let read = |name| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let text = read(OLDER) + &read(FILE);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].iter().map(ToString::to_string).collect()
}

impl Place {
    fn keep(&mut self, line: &[u8]) {
        // On a full disk there is nobody to tell but stderr, which was told.
        let _ = self.write(line);
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let path = self.folder.join(FILE);
        if self.open.as_ref().is_some_and(|(_, bytes)| *bytes >= BYTES_MAX) {
            self.open = None;
            std::fs::rename(&path, self.folder.join(OLDER))?;
        }
        let (file, bytes) = match &mut self.open {
            Some(open) => open,
            none => {
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
                let bytes = file.metadata()?.len();
                none.insert((file, bytes))
            }
        };
        file.write_all(line)?;
        *bytes += line.len() as u64;
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Kept {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Takes a line a call, as the layer above writes them.
impl Write for Kept {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Keeping(place) => place.keep(line),
            State::Waiting(lines) if lines.len() + line.len() <= WAITING_BYTES_MAX => {
                lines.extend_from_slice(line);
            }
            State::Waiting(_) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_in_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::default();
        kept.write_all(b"before anybody said where\n").unwrap();
        assert!(newest(folder.path(), 9).is_empty());
        kept.keep_in(folder.path());
        assert_eq!(newest(folder.path(), 9), ["before anybody said where"]);
        for number in 0..20_000 {
            kept.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        assert_eq!(newest(folder.path(), 2), ["line 19998", "line 19999"]);
        let bytes: u64 = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes <= 2 * (BYTES_MAX + 100), "{bytes}");
        // What comes after a restart is added.
        let mut again = Kept::default();
        again.keep_in(folder.path());
        again.write_all(b"again\n").unwrap();
        assert_eq!(newest(folder.path(), 2), ["line 19999", "again"]);
        std::fs::remove_dir_all(folder.path()).unwrap();
        again.write_all(b"into nowhere\n").unwrap();
    }
}
