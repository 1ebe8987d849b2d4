use std::fs;
use std::path::{Path, PathBuf};

use super::file::log_of;

/// Where a file and its log were when they were opened.
pub(super) struct Place([(PathBuf, Option<Identity>); 2]);

/// Which file it is, whatever it is called: device and inode.
#[cfg(unix)]
type Identity = (u64, u64);

/// Elsewhere nobody can move or delete an open file.
#[cfg(not(unix))]
type Identity = ();

impl Place {
    /// Remembers the files of a spool that has just been opened.
    pub(super) fn of(file: &Path) -> Self {
        Self([file.to_owned(), log_of(file)].map(|path| {
            let found = identity(&path);
            (path, found)
        }))
    }

    /// Says whether the paths still lead to the same files: an open file can be written to after it was moved or deleted,
    /// and nobody would find it there. Two questions to the system.
    pub(super) fn is_kept(&self) -> bool {
        // A log that wasn't there yet has come meanwhile.
        self.0.iter().enumerate().all(|(index, (path, opened))| {
            let found = identity(path);
            found == *opened || (index == 1 && opened.is_none())
        })
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(drop)
}
