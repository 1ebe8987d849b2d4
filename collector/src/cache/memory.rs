use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::project::ProjectId;

use super::counters::LiveCounters;
use super::keys::RecentKeys;
use super::limits::{Allowance, Calendar, Limits, Taken, Used};
use super::lock::{LockGuard, MemoryLocks};
use super::node::Node;
use super::recount::RecountAsked;
use super::tail::TailFan;

/// Everything within this process.
#[derive(Clone)]
pub(super) struct Memory {
    pub(super) keys: RecentKeys,
    pub(super) counters: LiveCounters,
    pub(super) tail: TailFan,
    locks: MemoryLocks,
    allowances: Arc<Mutex<HashMap<ProjectId, (Allowance, RecountAsked)>>>,
    node: Arc<Mutex<Option<Node>>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            keys: RecentKeys::new(),
            counters: LiveCounters::default(),
            tail: TailFan::new(),
            locks: MemoryLocks::default(),
            allowances: Arc::default(),
            node: Arc::default(),
        }
    }

    pub(super) fn lock(&self, name: &str, ttl: Duration) -> Option<LockGuard> {
        let now_us = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0);
        self.locks.take(name, ttl, now_us)
    }

    pub(super) fn heartbeat(&self, node: &Node) {
        let node = Node { last_seen_ms: Timestamp::now().as_millisecond(), ..node.clone() };
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    pub(super) fn leave(&self) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn take(&self, project: ProjectId, events: u64, limits: &Limits) -> Taken {
        let calendar = Calendar::at(Timestamp::now());
        let mut all = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        let (allowance, recount) = all.entry(project).or_default();
        let now = Instant::now();
        let figures = allowance.take(events, limits, &calendar, now);
        recount.once(figures.taken(limits, &calendar, 0), now)
    }

    pub(super) fn give_back(&self, project: ProjectId, events: u64, taken: &Taken) {
        let mut all = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(project).or_default().0.give_back(events, taken);
    }

    pub(super) fn recount(&self, project: ProjectId, used: Used) -> bool {
        let mut all = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        let (allowance, asked) = all.entry(project).or_default();
        let recounted = allowance.recount(used, &Calendar::at(Timestamp::now()));
        if recounted {
            asked.done(Instant::now());
        }
        recounted
    }
}
