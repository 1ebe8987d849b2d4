use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use super::{Error, folder};

/// The lock file's name in the data folder; it holds the process id of who holds the lock.
const LOCK_FILE: &str = "eventbucket.lock";

/// Holds a data folder for one serving process. The system lets go of it when the process ends, however it ends.
///
/// The folder itself is locked, so that deleting the lock file lets nobody else in, nor does moving the folder. The
/// database file is not: SQLite's locks on it belong to the process, which would lose them when any other handle of the
/// file is closed.
#[derive(Debug)]
pub struct StoreLock {
    _folder: File,
    _file: File,
}

impl StoreLock {
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        let failed = |source| folder::error(path, source);
        folder::make(path)?;
        folder::warn_if_open_to_others(path);
        let folder = File::open(path).map_err(failed)?;
        let opened = folder::owners_file().create(true).truncate(false).open(path.join(LOCK_FILE));
        let mut file = opened.map_err(failed)?;
        folder::give_to_owner(path, &file).map_err(failed)?;
        // A network file system may be unable to lock a folder; the file remains.
        if let Err(TryLockError::WouldBlock) = folder.try_lock() {
            return Err(Error::Locked { pid: read_pid(&mut file) });
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { pid: read_pid(&mut file) }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _folder: folder, _file: file })
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
