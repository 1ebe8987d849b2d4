use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::process;

/// Keeps Debian's packages from starting their servers as services: ours are private.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes sure that a program is there, from Debian's package where it isn't.
///
/// # Errors
/// When it is missing and can't be installed: with what to run.
pub fn install(program: &Path, package: &str) -> io::Result<()> {
    if program.exists() {
        return Ok(());
    }
    let by_hand = format!("{} is missing; install it: apt-get install {package}", program.display());
    if !rustix::process::geteuid().is_root() {
        return Err(io::Error::other(by_hand));
    }
    // Two test processes at once wait for each other.
    let lock = File::create(std::env::temp_dir().join("eventbucket-servers-apt.lock"))?;
    lock.lock()?;
    if program.exists() {
        return Ok(());
    }
    let _policy = Policy::set()?;
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", package])?;
    if program.exists() { Ok(()) } else { Err(io::Error::other(by_hand)) }
}

/// The machine's rule that no service is started, for as long as we install; one that was there already stays.
struct Policy {
    ours: bool,
}

impl Policy {
    fn set() -> io::Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let policy = Self { ours: true };
        fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(POLICY, Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours {
            // Whoever can't remove it could not have written it.
            let _ = fs::remove_file(POLICY);
        }
    }
}

fn apt(words: &[&str]) -> io::Result<()> {
    let mut command = Command::new("apt-get");
    process::output(command.args(words).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}
