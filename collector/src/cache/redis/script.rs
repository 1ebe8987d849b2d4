//! Everything that has to happen at once, in Lua. Each script names all its keys, and those of one script share a hash
//! tag, so that they run on a cluster too.

use redis::Script;

/// The scripts, each hashed once. They are sent by hash and loaded again when the server has forgotten them.
pub(super) struct Scripts {
    pub(super) claim: Script,
    pub(super) count_up: Script,
    pub(super) reset: Script,
    pub(super) take_lock: Script,
    pub(super) renew_lock: Script,
    pub(super) release_lock: Script,
    pub(super) heartbeat: Script,
    pub(super) nodes: Script,
    pub(super) take: Script,
    pub(super) give_back: Script,
    pub(super) recount: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        // What day and month it is, by the clock of Redis, for the two that count by them.
        let dated = |code: &str| Script::new(&format!("{}{code}", include_str!("lua/calendar.lua")));
        Self {
            claim: Script::new(include_str!("lua/claim.lua")),
            count_up: Script::new(include_str!("lua/count_up.lua")),
            reset: Script::new(include_str!("lua/reset.lua")),
            take_lock: Script::new(include_str!("lua/take_lock.lua")),
            renew_lock: Script::new(include_str!("lua/renew_lock.lua")),
            release_lock: Script::new(include_str!("lua/release_lock.lua")),
            heartbeat: Script::new(include_str!("lua/heartbeat.lua")),
            nodes: Script::new(include_str!("lua/nodes.lua")),
            take: dated(include_str!("lua/take.lua")),
            give_back: Script::new(include_str!("lua/give_back.lua")),
            recount: dated(include_str!("lua/recount.lua")),
        }
    }
}
