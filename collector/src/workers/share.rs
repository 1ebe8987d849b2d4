use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Share, Work};
use crate::cache::{Cache, HEARTBEAT_PERIOD, Node};

/// How often the registry is looked at: as often as the others say that they are there.
const LOOK_PERIOD: Duration = HEARTBEAT_PERIOD;

/// What is shared, and what the processes are called that do it.
const SHARED: [(Work, &str); 2] = [(Work::Batches, "storage"), (Work::Ranges, "insight")];

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
        let Some(nodes) = cache.nodes().await else { continue };
        for (work, role) in SHARED {
            if let Some(share) = share(&nodes, role, &node_id) {
                bus.set_share(work, share);
            }
        }
    }
}

/// Finds this process among those of its role, in an order that all of them agree on.
fn share(nodes: &[Node], role: &str, node_id: &str) -> Option<Share> {
    let working = nodes.iter().filter(|node| node.roles.iter().any(|of| of == role));
    let mut ids: Vec<&str> = working.map(|node| node.id.as_str()).collect();
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
    fn only_processes_of_a_role_share_and_all_agree() {
        let nodes =
            [node("c", &["storage"]), node("b", &["insight"]), node("a", &["edge", "storage", "insight"])];
        let share = |role, id| share(&nodes, role, id);
        assert_eq!(share("storage", "a"), Some(Share { place: 0, of: 2 }));
        assert_eq!(share("storage", "c"), Some(Share { place: 1, of: 2 }));
        assert_eq!(share("storage", "b"), None);
        assert_eq!(share("insight", "b"), Some(Share { place: 1, of: 2 }));
        assert_eq!(share("insight", "not heard of yet"), None);
    }
}
