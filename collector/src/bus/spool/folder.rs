use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use eventbucket::message_spool::Trouble;

use crate::store;

/// What `statfs` says of file systems that live in memory: those of tmpfs and ramfs, by Linux' `magic.h`.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// What it says of the layers of a container, which go with it.
const LAYERED: u64 = 0x794c_7630;

/// Refuses a folder that forgets everything at a restart: what is accepted must outlive one. One that isn't there yet is
/// judged by the nearest that is, so that nothing is made where nothing may be kept.
pub(super) fn check_before(folder: &Path) -> Result<(), String> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    match kind_of(existing)? {
        kind if IN_MEMORY.contains(&kind) => {
            Err("it lies in memory and is empty after a restart; name a folder on a disk".to_owned())
        }
        LAYERED => {
            let folder = folder.display();
            tracing::warn!(
                %folder,
                "the spool lies in the layer of a container, which goes with the container; name a volume"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Says what is wrong with a folder that somebody else made.
pub(super) fn check_after(folder: &Path) -> Result<(), String> {
    store::warn_if_open_to_others(folder);
    kind_of(folder).map(drop)
}

/// The folder that was opened. Another one at its path lies on another disk, or is gone with the next mount.
#[derive(Clone)]
pub(super) struct Home {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl Home {
    pub(super) fn of(path: PathBuf) -> Self {
        Self { identity: identity(&path), path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the path still leads there.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        let same = self.identity.is_some() && identity(&self.path) == self.identity;
        if same { Ok(()) } else { Err(Trouble::Moved) }
    }

    /// Room for the largest batch and what SQLite writes beside it, or half of a disk that is small.
    pub(super) fn has_room(&self) -> bool {
        const ROOM_BYTES: u64 = 64 * 1024 * 1024;
        self.bytes().is_some_and(|(free, all)| free >= ROOM_BYTES.min(all / 2))
    }

    /// Less than a new file takes.
    pub(super) fn is_full(&self) -> bool {
        const FILE_BYTES: u64 = 256 * 1024;
        self.bytes().is_some_and(|(free, _)| free < FILE_BYTES)
    }

    /// Bytes of the disk that are free, and all.
    fn bytes(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.path).ok()?;
        Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn kind_of(path: &Path) -> Result<u64, String> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let found = rustix::fs::statfs(path).map_err(|error| error.to_string())?;
    #[expect(clippy::cast_sign_loss, reason = "the magic numbers are compared bit by bit")]
    let kind = found.f_type as u64;
    Ok(kind & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_memory_is_refused_before_anything_is_made_there() {
        // Each of these is in memory on a usual Linux, in containers too; one will do.
        let folders = ["/dev/shm", "/dev", "/run"].map(Path::new);
        let in_memory = |folder: &&Path| kind_of(folder).is_ok_and(|kind| IN_MEMORY.contains(&kind));
        let memory = folders.into_iter().find(in_memory).expect("this test needs a folder in memory");
        let folder = memory.join("eventbucket-spool-that-is-never-made");
        let told = check_before(&folder).unwrap_err();
        assert!(told.contains("on a disk"), "{told}");
        assert!(!folder.exists());
    }
}
