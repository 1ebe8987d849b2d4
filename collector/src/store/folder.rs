use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::Arc;

use super::Error;

/// Rights of a folder that is made here: events are for their owner's eyes alone.
const FOLDER_MODE: u32 = 0o700;

/// Rights of a file that is made here. What SQLite makes beside the database takes over the database's rights.
const FILE_MODE: u32 = 0o600;

/// Rights that let others in.
const OTHERS: u32 = 0o077;

/// Makes a data folder that isn't there, for its owner alone. One that is there keeps the rights it has.
pub(super) fn make(folder: &Path) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    let new: Vec<&Path> =
        folder.ancestors().take_while(|level| !level.as_os_str().is_empty() && !level.is_dir()).collect();
    let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
    made.map_err(|source| error(folder, source))?;
    // Each new level is an entry in the one above.
    new.into_iter().try_for_each(|level| sync(of(level)))
}

/// Options for a file that, when it has to be made, is for its owner alone.
pub(super) fn owners_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

/// Gives a file that root makes in somebody's folder to them, as SQLite does with the files beside a database: otherwise the
/// collector, which runs as them, couldn't open it.
pub(super) fn give_to_owner(folder: &Path, file: &File) -> io::Result<()> {
    let (owner, made) = (fs::metadata(folder)?, file.metadata()?);
    if made.uid() == owner.uid() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Warns about a folder that was made by somebody else with wider rights; changing them is not the collector's business.
pub(crate) fn warn_if_open_to_others(folder: &Path) {
    let mode = fs::metadata(folder).map_or(FOLDER_MODE, |found| found.permissions().mode());
    if mode & OTHERS != 0 {
        let mode = format!("{:o}", mode & 0o777);
        tracing::warn!(
            folder = %folder.display(), mode,
            "other users of this machine may look into this folder; `chmod 700` it unless that is meant"
        );
    }
}

/// The folder a path lies in.
pub(super) fn of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the entries of a folder outlive a power cut.
pub(super) fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| error(folder, source))
}

/// How much room the disk of a folder has for this user; `None` where the system doesn't say.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Says that the folder can't be used.
pub(super) fn error(folder: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull => Error::DiskFull,
        _ => Error::Folder { path: folder.to_owned(), source: Arc::new(source) },
    }
}
