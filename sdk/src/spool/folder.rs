use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
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
    /// What the names of its files begin with: files of another kind in the same folder are nobody's here.
    prefix: &'static str,
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
        Self::open_for(path, PREFIX)
    }

    /// The same for files whose names begin with something else.
    pub(super) fn open_for(path: &Path, prefix: &'static str) -> Result<Self, SpoolError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            // Events may tell about people.
            builder.mode(0o700);
        }
        let made: Vec<_> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        builder.create(path)?;
        // A new folder is there after a power cut when the one that it was made in is on the disk.
        for parent in made.iter().filter_map(|folder| folder.parent()) {
            sync_entries(parent)?;
        }
        Ok(Self { path: path.to_owned(), prefix })
    }

    /// Claims every file nobody holds, oldest first.
    pub(super) fn claim_abandoned(&self) -> Result<Vec<Claim>, SpoolError> {
        let _entrance = self.enter()?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(self.prefix) && name.ends_with(SUFFIX)) {
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
            let file = self.path.join(format!("{}{name}{SUFFIX}", self.prefix));
            match Claim::take(file, true) {
                Ok(Some(claim)) => return Ok(claim),
                Ok(None) => {}
                Err(SpoolError::Io(error)) if error.kind() == ErrorKind::AlreadyExists => {}
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
        let removed = fs::remove_file(&self.file);
        if removed.is_ok() || removed.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
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
        // Else a power cut could bring back the old name, and with it the damage.
        self.file.parent().map_or(Ok(()), sync_entries)
    }
}

/// Writes which names a folder holds to the disk. A folder that this process may write but not read can't be opened for it,
/// and some file systems can't do it; neither is a reason not to use the spool.
fn sync_entries(folder: &Path) -> Result<(), SpoolError> {
    // The parent of a relative name.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    #[cfg(unix)]
    match File::open(folder).and_then(|open| open.sync_all()) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => {}
        Err(error) => return Err(error.into()),
    }
    #[cfg(test)]
    tests::SYNCED.with_borrow_mut(|synced| synced.push(folder.to_owned()));
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// The folders whose names this thread has written to the disk.
        pub(super) static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    fn synced(work: impl FnOnce()) -> Vec<PathBuf> {
        SYNCED.take();
        work();
        SYNCED.take()
    }

    #[test]
    fn each_new_folder_is_written_where_it_was_made() {
        let root = tempfile::tempdir().unwrap();
        let (a, b, c) = (root.path().join("a"), root.path().join("a/b"), root.path().join("a/b/c"));
        let mut parents = synced(|| drop(Folder::open(&c).unwrap()));
        parents.sort();
        assert_eq!(parents, [root.path(), &a, &b]);
        assert!(synced(|| drop(Folder::open(&c).unwrap())).is_empty(), "it was there");
    }

    #[test]
    fn a_file_set_aside_stays_so_after_a_power_cut() {
        let root = tempfile::tempdir().unwrap();
        let claim = Folder::open(root.path()).unwrap().claim_new().unwrap();
        fs::write(claim.file(), b"damaged").unwrap();
        assert_eq!(synced(|| claim.set_aside().unwrap()), [root.path()]);
    }
}
