use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use eventbucket_protocol::EventId;

use super::{SpoolError, file};

const PREFIX: &str = "spool-";
const SUFFIX: &str = ".db";

/// Tries to find a free name: each is random, so a second one is needed only when a forked twin drew the same.
const NAME_ATTEMPTS_MAX: usize = 16;

/// A spool folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// A file with its lock. Files are touched only through a claim.
#[derive(Debug)]
pub(super) struct Claim {
    file: PathBuf,
    lock: PathBuf,
    _held: Held,
}

/// A lock that ends with this value in the process that took it.
///
/// A child inherits the lock with the descriptor, until it runs another program or ends. So it isn't enough to close the
/// own descriptor: the lock would outlive it by as long as a child lives that was forked at the wrong moment.
#[derive(Debug)]
struct Held {
    file: File,
    process: u32,
}

impl Held {
    fn new(file: File) -> Self {
        Self { file, process: std::process::id() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // Closing it ends the lock too, if a little later in the case above.
            drop(self.file.unlock());
        }
    }
}

impl Folder {
    /// Makes the folder if it isn't there.
    pub(super) fn open(path: &Path) -> Result<Self, SpoolError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            // Events may tell about people.
            builder.mode(0o700);
        }
        builder.create(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Claims every file nobody holds, oldest first.
    pub(super) fn claim_abandoned(&self) -> Result<Vec<Claim>, SpoolError> {
        let _entrance = self.enter()?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.file_name().and_then(|name| name.to_str()).is_some_and(is_spool_name) {
                files.push(path);
            }
        }
        // Names begin with their time.
        files.sort();
        let mut claims = Vec::new();
        for file in files {
            claims.extend(Claim::take(file, false)?);
        }
        Ok(claims)
    }

    /// Claims a name no file has yet.
    pub(super) fn claim_new(&self) -> Result<Claim, SpoolError> {
        let _entrance = self.enter()?;
        for _ in 0..NAME_ATTEMPTS_MAX {
            let mut random = [0; 10];
            fastrand::fill(&mut random);
            let name = EventId::v7(now_ms(), &random).uuid().hyphenated().to_string();
            let file = self.path.join(format!("{PREFIX}{name}{SUFFIX}"));
            match Claim::take(file, true) {
                Ok(Some(claim)) => return Ok(claim),
                Ok(None) => {}
                Err(SpoolError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(SpoolError::Io(io::Error::other("every name for a new file is taken")))
    }

    /// Waits until no other process claims or makes files here; each takes milliseconds. Without it, a process could find
    /// another's new file before that has locked it, or lock a file that is just being removed.
    fn enter(&self) -> Result<Held, SpoolError> {
        let entrance = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(self.path.join("spool.lock"))?;
        entrance.lock()?;
        Ok(Held::new(entrance))
    }
}

impl Claim {
    /// Locks a file that is there or, if `new`, is about to be made; `None` when another holds it or it is gone.
    fn take(file: PathBuf, new: bool) -> Result<Option<Self>, SpoolError> {
        let lock = file.with_extension("lock");
        let held = OpenOptions::new()
            .create(true)
            .truncate(false)
            .create_new(new)
            .read(true)
            .write(true)
            .open(&lock)?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // Its owner removed it between the listing and the lock.
        if !new && !file.exists() {
            drop(fs::remove_file(&lock));
            return Ok(None);
        }
        Ok(Some(Self { file, lock, _held: Held::new(held) }))
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Removes the file, its log and, last, its lock: a file without lock could be claimed by another.
    pub(super) fn remove_files(&self) {
        // A file that stays is claimed by the next process, which finds it empty or its batches merged already.
        if fs::remove_file(&self.file).is_ok() {
            drop(fs::remove_file(file::log_of(&self.file)));
            drop(fs::remove_file(&self.lock));
        }
    }

    /// Ends the claim by renaming the file and its log to `….corrupt-<ms>`.
    pub(super) fn set_aside(self) -> Result<(), SpoolError> {
        self.set_aside_file()
    }

    /// Renames the file and its log to `….corrupt-<ms>` and removes the lock.
    pub(super) fn set_aside_file(&self) -> Result<(), SpoolError> {
        let mut aside = self.file.as_os_str().to_owned();
        aside.push(format!(".corrupt-{}", now_ms()));
        let aside = PathBuf::from(aside);
        let log = file::log_of(&self.file);
        if log.exists() {
            fs::rename(log, file::log_of(&aside))?;
        }
        fs::rename(&self.file, aside)?;
        drop(fs::remove_file(&self.lock));
        Ok(())
    }
}

fn is_spool_name(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
