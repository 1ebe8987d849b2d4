use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use axum::extract;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use eventbucket_protocol::Timestamp;
use serde::Serialize;

use super::problem::{Cause, Refusal};
use super::{State, reply};
use crate::bus::message::Spooled;
use crate::config::Role;

/// Room comes back when somebody frees some, not by waiting a second.
const DISK_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Whether the disk of the data folder has room. Clones share what was seen last.
#[derive(Clone, Debug)]
pub struct Health(Option<Arc<Disk>>);

#[derive(Debug)]
struct Disk {
    folder: PathBuf,
    free_bytes_min: u64,
    free_bytes: AtomicU64,
}

impl Health {
    /// Watches the disk of a folder; below `free_bytes_min` no batch is taken, so that the disk never fills up under the
    /// log. 0 turns that off.
    ///
    /// # Errors
    /// When the system can't say how much room there is.
    pub fn new(folder: &Path, free_bytes_min: u64) -> io::Result<Self> {
        let disk = Disk { folder: folder.to_owned(), free_bytes_min, free_bytes: AtomicU64::new(u64::MAX) };
        let health = Self(Some(Arc::new(disk)));
        health.look()?;
        Ok(health)
    }

    /// Watches no disk: for a process that keeps nothing on one.
    #[must_use]
    pub fn without_disk() -> Self {
        Self(None)
    }

    /// Asks the system for the free bytes. Blocks as long as the file system takes.
    pub(super) fn look(&self) -> io::Result<Option<u64>> {
        let Some(disk) = &self.0 else { return Ok(None) };
        let stat = rustix::fs::statvfs(&disk.folder)?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let before = disk.free_bytes.swap(free_bytes, Ordering::Relaxed);
        let low = |bytes| bytes < disk.free_bytes_min;
        if low(free_bytes) && !low(before) {
            tracing::error!(
                free_bytes,
                "the disk is almost full; batches are refused until there is room again"
            );
        } else if low(before) && !low(free_bytes) && before > 0 {
            tracing::info!(free_bytes, "the disk has room again");
        }
        Ok(Some(free_bytes))
    }

    /// Refuses a batch while the disk is almost full.
    pub(super) fn check_room(&self) -> Result<(), Refusal> {
        let Some(disk) = &self.0 else { return Ok(()) };
        let free_bytes = disk.free_bytes.load(Ordering::Relaxed);
        if free_bytes >= disk.free_bytes_min {
            return Ok(());
        }
        let detail = format!(
            "{free_bytes} bytes are free on the collector's disk, less than the {} that are kept back; free some space",
            disk.free_bytes_min
        );
        Err(Refusal::new(Cause::DiskLow, detail).retry_after(DISK_RETRY_AFTER))
    }
}

/// How long figures wait for the ledger: everything else is known at once, and Prometheus gives up after 10 s.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct StatusDocument {
    status: &'static str,
    /// What waits for the broker, on an edge with a spool.
    #[serde(skip_serializing_if = "Option::is_none")]
    spool: Option<SpoolDocument>,
}

#[derive(Serialize)]
struct SpoolDocument {
    batches: u64,
    bytes: u64,
    /// How long the oldest has waited.
    oldest_s: u64,
}

impl SpoolDocument {
    fn new(spooled: Spooled) -> Self {
        Self { batches: spooled.batches, bytes: spooled.bytes, oldest_s: age_s(spooled) }
    }
}

/// How long the oldest batch has waited, in seconds; by the clock of the machine, which may have been set meanwhile.
fn age_s(spooled: Spooled) -> u64 {
    let now = Timestamp::from_system(SystemTime::now());
    let waited_ms = spooled.oldest.map_or(0, |oldest| now.ms().saturating_sub(oldest.ms()));
    u64::try_from(waited_ms).unwrap_or(0) / 1_000
}

/// `GET /healthz/live`: the process answers.
pub(super) async fn live() -> Response {
    reply::json(StatusCode::OK, &StatusDocument { status: "live", spool: None })
}

/// `GET /healthz/ready`: a batch sent now would be stored. Of a process that takes none: it can do its part of that.
pub(super) async fn ready(extract::State(edge): extract::State<State>) -> Response {
    if edge.draining.is_cancelled() {
        return Refusal::new(Cause::Unavailable, "the collector is stopping").into_response();
    }
    if let Err(refusal) = edge.health.check_room() {
        return refusal.into_response();
    }
    match serving(&edge) {
        Ok(()) => {
            let spool = edge.ingest.spooled().map(SpoolDocument::new);
            reply::json(StatusCode::OK, &StatusDocument { status: "ready", spool })
        }
        Err(told) => Refusal::new(Cause::Unavailable, told).into_response(),
    }
}

fn serving(edge: &State) -> Result<(), String> {
    // Behind a durable bus an edge takes batches while the store is away, and should get them.
    if !edge.roles.has(Role::Edge) {
        edge.query.serving().map_err(|error| error.told())?;
    }
    // Who only answers readers does without a broker.
    if [Role::Edge, Role::Storage, Role::Insight].into_iter().any(|role| edge.roles.has(role)) {
        edge.ingest.serving().map_err(|error| error.told())?;
    }
    Ok(())
}

#[derive(Serialize)]
struct VersionDocument {
    name: &'static str,
    version: &'static str,
    protocol: u32,
}

/// `GET /version`
pub(super) async fn version() -> Response {
    let document = VersionDocument { name: "eventbucket", version: env!("CARGO_PKG_VERSION"), protocol: 1 };
    reply::json(StatusCode::OK, &document)
}

/// `GET /metrics`: Prometheus' text format. While the store is away the ledger stands still, and everything else goes on:
/// that is when it is looked at.
pub(super) async fn metrics(extract::State(edge): extract::State<State>) -> Response {
    if let Some(spooled) = edge.ingest.spooled() {
        edge.metrics.spool(spooled.batches, spooled.bytes, age_s(spooled));
    }
    let ledger = async {
        edge.query.serving()?;
        edge.query.ledger().await
    };
    if let Ok(Ok(ledger)) = tokio::time::timeout(LEDGER_TIMEOUT, ledger).await {
        edge.metrics.ledger(
            ledger.received,
            &[
                ("stored", ledger.stored),
                ("duplicate", ledger.duplicate),
                ("quarantined", ledger.quarantined),
                ("rejected", ledger.rejected),
            ],
        );
    }
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (headers, edge.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_above_what_is_free_refuses_batches_and_zero_never_does() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = Health::new(folder.path(), u64::MAX).unwrap().check_room().unwrap_err();
        assert_eq!((refusal.problem().code.as_str(), refusal.retry_after_s()), ("disk_low", Some(30)));
        Health::new(folder.path(), 0).unwrap().check_room().unwrap();
        assert!(Health::new(&folder.path().join("absent"), 0).is_err());
    }
}
