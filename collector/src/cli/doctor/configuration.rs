use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::report::Report;
use crate::config::{Config, ServerUrl};
use crate::edge::Tls;

const AREA: &str = "configuration";

/// Rights that let others read.
const OTHERS: u32 = 0o077;

/// Looks for what is allowed and risky.
pub(super) fn look(report: &mut Report, config: &Config) {
    report.ok(
        AREA,
        match config.file() {
            Some(file) => format!("read from {}", file.display()),
            None => "no file; variables and defaults".to_owned(),
        },
    );
    for warning in config.warnings() {
        report.warning(AREA, warning, "correct or unset it");
    }
    let listens_far = !config.listen.ip().is_loopback();
    if listens_far && config.tls.is_none() && config.edge.trusted_proxies.is_empty() {
        report.warning(
            AREA,
            format!("it listens on {} without TLS: keys and events can be read on the way", config.listen),
            "set tls.certificate and tls.key, or put a proxy before it and name that in edge.trusted_proxies",
        );
    }
    if config.store.url.is_none() && config.edge.free_disk_min == 0 {
        report.warning(
            AREA,
            "edge.free_disk_min is 0: batches are taken until the disk is full",
            "leave some room for the database to go on with, 128MiB as a rule",
        );
    }
    if let Some(tls) = &config.tls {
        match Tls::load(tls) {
            Ok(_) => report.ok(AREA, "certificate and key can be used"),
            Err(error) => report.failed(AREA, error),
        }
        secret(report, &tls.key, "holds a private key");
    }
    let urls = [&config.store.url, &config.store.accounts_url, &config.bus.url, &config.cache_url];
    let has_password = |url: &ServerUrl| url.to_string() != url.secret();
    if let Some(file) = config.file()
        && urls.into_iter().flatten().any(has_password)
    {
        secret(report, file, "holds a password");
    }
}

fn secret(report: &mut Report, file: &Path, what: &str) {
    let mode = fs::metadata(file).map_or(0, |found| found.permissions().mode());
    if mode & OTHERS != 0 {
        let mode = mode & 0o777;
        report.warning(
            AREA,
            format!("{} {what} and others may read it (mode {mode:o})", file.display()),
            format!("chmod 600 {}", file.display()),
        );
    }
}
