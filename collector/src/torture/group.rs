//! The process group of everything that is started, which ends with this process however that ends.

use std::io;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Waits for its input to end, which it does when the process at the other end of the pipe is gone, and kills the group: also
/// who is stopped, and could not notice anything by itself.
const WATCH: &str = "cat >/dev/null; kill -9 0";

/// A group with a shell that watches over this process.
pub(super) struct Group {
    /// What members give as their group.
    pub(super) id: i32,
    /// Dropped, it closes the pipe.
    _watch: Child,
}

impl Group {
    pub(super) fn start() -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", WATCH]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let watch = command.spawn()?;
        let id = watch.id().and_then(|id| i32::try_from(id).ok());
        let id = id.ok_or_else(|| io::Error::other("the shell that watches ended at once"))?;
        Ok(Self { id, _watch: watch })
    }
}
