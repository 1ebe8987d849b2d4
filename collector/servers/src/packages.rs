use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

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
    if !Path::new(POLICY).exists() {
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        Command::new("chmod").args(["+x", POLICY]).status()?;
    }
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", package])?;
    if program.exists() { Ok(()) } else { Err(io::Error::other(by_hand)) }
}

fn apt(words: &[&str]) -> io::Result<()> {
    let mut command = Command::new("apt-get");
    let output = command.args(words).env("DEBIAN_FRONTEND", "noninteractive").output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("apt-get {} failed: {said}", words.join(" "))))
}
