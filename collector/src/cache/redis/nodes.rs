use std::sync::atomic::Ordering;

use super::Redis;
use crate::cache::node::{NODE_TTL, Node};

impl Redis {
    fn node_names(&self) -> [String; 2] {
        ["seen", "nodes"].map(|what| format!("{}:{{nodes}}:{what}", self.0.prefix))
    }

    pub(in crate::cache) async fn heartbeat(&self, node: &Node) -> bool {
        self.keep_claim().await;
        let Ok(text) = serde_json::to_string(node) else { return false };
        let mut call = self.0.scripts.heartbeat.prepare_invoke();
        call.key(&self.node_names()[..]).arg(&node.id).arg(text).arg(ttl_ms());
        let ask = async |mut connection| call.invoke_async::<(bool, Vec<String>)>(&mut connection).await;
        let Some((foreign, nodes)) = self.0.asks.ask(ask).await else { return false };
        if foreign && self.0.replaced.is_due() {
            let keys = self.node_names().join(" and ");
            tracing::warn!(keys, "what redis had there was not the registry of nodes; it is made anew");
        }
        let edges = nodes.iter().filter_map(|text| serde_json::from_str::<Node>(text).ok());
        self.0.edges.store(edges.filter(Node::is_edge).count(), Ordering::Relaxed);
        true
    }

    pub(in crate::cache) async fn leave(&self, id: &str) {
        let [seen, nodes] = self.node_names();
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("ZREM").arg(seen).arg(id).ignore().cmd("HDEL").arg(nodes).arg(id).ignore();
        self.0.asks.ask(async |mut connection| pipe.query_async::<()>(&mut connection).await).await;
    }

    pub(in crate::cache) async fn nodes(&self) -> Option<Vec<Node>> {
        let mut call = self.0.scripts.nodes.prepare_invoke();
        call.key(&self.node_names()[..]).arg(ttl_ms());
        let ask = async |mut connection| call.invoke_async::<Vec<(i64, String)>>(&mut connection).await;
        let found = self.0.asks.ask(ask).await?;
        let read = |(last_seen_ms, text): (i64, String)| {
            // What a newer version writes may not be readable; it is left out.
            serde_json::from_str::<Node>(&text).ok().map(|node| Node { last_seen_ms, ..node })
        };
        Some(found.into_iter().filter_map(read).collect())
    }
}

fn ttl_ms() -> u64 {
    NODE_TTL.as_secs() * 1_000
}
