use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Share};
use crate::cache::{Cache, HEARTBEAT_PERIOD, Node};

/// How often the registry is looked at: as often as the others say that they are there.
const LOOK_PERIOD: Duration = HEARTBEAT_PERIOD;

/// What the processes are called that take accepted batches.
const ROLE: &str = "storage";

/// Tells the bus which share of the work is this process's, until `cancel`. Without Redis a process knows of none but itself,
/// and takes whatever the broker gives it.
pub async fn run(bus: Bus, cache: Cache, node_id: String, cancel: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both are cancel-safe: a token, a tick.
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = look.tick() => {}
        }
        // What can't be known now stays as it was.
        if let Some(share) = cache.nodes().await.and_then(|nodes| share(&nodes, &node_id)) {
            bus.set_share(share);
        }
    }
}

/// Finds this process among those of its role, in an order that all of them agree on.
fn share(nodes: &[Node], node_id: &str) -> Option<Share> {
    let storing = nodes.iter().filter(|node| node.roles.iter().any(|role| role == ROLE));
    let mut ids: Vec<&str> = storing.map(|node| node.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    Some(Share { place: ids.iter().position(|id| *id == node_id)?, of: ids.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, roles: &[&str]) -> Node {
        Node {
            id: id.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            address: None,
            version: String::new(),
            started_ms: 0,
            last_seen_ms: 0,
        }
    }

    #[test]
    fn only_storing_processes_share_and_all_agree() {
        let nodes = [node("c", &["storage"]), node("b", &["edge"]), node("a", &["edge", "storage"])];
        assert_eq!(share(&nodes, "a"), Some(Share { place: 0, of: 2 }));
        assert_eq!(share(&nodes, "c"), Some(Share { place: 1, of: 2 }));
        assert_eq!(share(&nodes, "b"), None);
        assert_eq!(share(&nodes, "not heard of yet"), None);
    }
}
