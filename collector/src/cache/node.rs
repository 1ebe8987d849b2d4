use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a node says that it is there.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(2);

/// How long a node is listed after its last heartbeat: two may be lost, the third is late.
pub const NODE_TTL: Duration = Duration::from_secs(6);

/// A process of the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Names this run of the process.
    pub id: String,
    /// What it does: `edge`, `storage`, …
    pub roles: Vec<String>,
    /// Where it takes requests, e.g. `http://10.0.0.7:4100`; `None` when it takes none.
    pub address: Option<String>,
    /// The collector's version.
    pub version: String,
    /// When it started, in ms since 1970.
    pub started_ms: i64,
    /// Its last heartbeat in ms since 1970, by the clock of what stands behind the cache.
    #[serde(default)]
    pub last_seen_ms: i64,
}

impl Node {
    pub(super) fn is_edge(&self) -> bool {
        self.roles.iter().any(|role| role == "edge")
    }
}
