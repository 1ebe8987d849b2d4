use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::report::{Report, bytes};
use crate::config::{Config, Role};
use crate::store::{DATABASE_FILE, free_bytes};
use crate::telemetry::kept;

/// Rights that let others in.
const OTHERS: u32 = 0o077;

/// 2024-01-01: this program is younger, so a clock that stands before it was never set.
const CLOCK_MIN: Duration = Duration::from_secs(1_704_067_200);

/// Lines of the collector's log that are told.
const WARNED_MAX: usize = 5;

/// What `statfs` says of file systems that lock or sync otherwise than a disk of this machine, or not at all, by Linux' `magic.h`.
const KINDS: [(u64, &str); 7] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x794c_7630, "the layers of a container"),
    (0xf15f, "eCryptfs"),
];

/// Those that live in memory.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

pub(super) fn clock(report: &mut Report) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if now < CLOCK_MIN {
        report.problem("clock", "this machine's clock was never set", "set it, by NTP as a rule");
    }
}

/// Looks at the data folder and the disk that it lies on.
pub(super) fn folder(report: &mut Report, config: &Config) {
    let data = &config.data;
    let Ok(found) = fs::metadata(data) else {
        return report.problem(
            "folder",
            format!("there is no folder {}", data.display()),
            "check --data; `eventbucket serve` makes it",
        );
    };
    let mode = found.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        let told = format!("other users of this machine may look into {} (mode {mode:o})", data.display());
        report.warning("folder", told, format!("chmod 700 {}", data.display()));
    } else {
        report.ok("folder", format!("{} is its owner's alone", data.display()));
    }
    kind(report, data);
    room(report, config);
    leftovers(report, data);
}

fn kind(report: &mut Report, data: &Path) {
    let Ok(found) = rustix::fs::statfs(data) else { return };
    #[expect(clippy::cast_sign_loss, reason = "the magic numbers are compared bit by bit")]
    let kind = found.f_type as u64 & u64::from(u32::MAX);
    if IN_MEMORY.contains(&kind) {
        report.problem(
            "disk",
            format!("{} lies in memory and is empty after a restart of the machine", data.display()),
            "move it to a disk",
        );
    }
    if let Some((_, name)) = KINDS.iter().find(|(magic, _)| *magic == kind) {
        report.warning(
            "disk",
            format!("{} lies on {name}, which may lock and sync otherwise than a disk", data.display()),
            "a disk of this machine, or a volume that is one, is safe",
        );
    }
}

/// Room for the log to grow, and for the copy that a backup here or an upgrade makes.
fn room(report: &mut Report, config: &Config) {
    let Some(free) = free_bytes(&config.data) else { return };
    let database = fs::metadata(config.data.join(DATABASE_FILE)).map_or(0, |found| found.len());
    let (told, min) = (format!("{} free", bytes(free)), config.edge.free_disk_min);
    if free < min {
        let told = format!("{told}, less than edge.free_disk_min ({}): batches are refused", bytes(min));
        report.problem("disk", told, "free some space; it goes on by itself");
    } else if free < database.max(min.saturating_mul(2)) {
        let told = format!("{told}; the database takes {}", bytes(database));
        report.warning("disk", told, "an upgrade keeps a copy of it here: free some space before");
    } else {
        report.ok("disk", told);
    }
}

/// What backups, restores and upgrades left beside the database.
fn leftovers(report: &mut Report, data: &Path) {
    for entry in fs::read_dir(data).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(ending) = name.strip_prefix(DATABASE_FILE) else { continue };
        let size = bytes(entry.metadata().map_or(0, |found| found.len()));
        if ending == ".partial" {
            report.warning(
                "copies",
                format!("{name} ({size}) is a copy that isn't whole"),
                "delete it, unless a backup or a restore runs at this moment; the next one does",
            );
        } else if ending.starts_with(".before-") || ending.starts_with(".replaced-") {
            report.ok("copies", format!("{name} ({size}) is kept"));
        }
    }
}

/// What the collector warned of last.
pub(super) fn warned(report: &mut Report, data: &Path) {
    let lines = kept::newest(data, WARNED_MAX);
    report.warned = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if let Some(last) = report.warned.last() {
        let word = |name: &str| last[name].as_str().unwrap_or_default().to_owned();
        let told = format!("the last line of warning, at {}: {}", word("timestamp"), word("message"));
        // Old ones stay until others push them out, so they are told and not held against anybody.
        report.ok("warned", told);
    }
}

pub(super) fn spool(report: &mut Report, config: &Config) {
    let Some(spool) = config.edge.spool.as_ref().filter(|_| config.roles.has(Role::Edge)) else { return };
    let folder = spool.folder.display();
    match free_bytes(&spool.folder) {
        None => report.warning(
            "spool",
            format!("there is no folder {folder} yet"),
            "the edge makes it when it starts, if it may",
        ),
        Some(free) if free < spool.bytes_max => {
            let told = format!("{} free at {folder}, less than edge.spool_max", bytes(free));
            report.warning("spool", told, "free some space, or lower edge.spool_max");
        }
        Some(free) => report.ok("spool", format!("{} free at {folder}", bytes(free))),
    }
}
