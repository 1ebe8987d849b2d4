use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Remembers keys for a time, the newest `keys_max` of them.
#[derive(Debug)]
pub(crate) struct Window<K> {
    /// Until when each key is remembered.
    known: HashMap<K, u64>,
    /// The keys in the order they came, with what `known` said then.
    order: VecDeque<(K, u64)>,
    keys_max: usize,
}

impl<K: Clone + Eq + Hash> Window<K> {
    pub(crate) fn new(keys_max: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), keys_max }
    }

    /// Says whether the key is remembered.
    pub(crate) fn knows(&self, key: &K, now_ms: u64) -> bool {
        self.known.get(key).is_some_and(|&until_ms| now_ms < until_ms)
    }

    /// Remembers a key for `ttl_ms` from now. One that is known is not prolonged.
    pub(crate) fn remember(&mut self, key: K, now_ms: u64, ttl_ms: u64) {
        if self.knows(&key, now_ms) {
            return;
        }
        let until_ms = now_ms.saturating_add(ttl_ms);
        self.known.insert(key.clone(), until_ms);
        self.order.push_back((key, until_ms));
        self.forget(now_ms);
    }

    /// Forgets a key, as if it had never come.
    pub(crate) fn release(&mut self, key: &K) {
        self.known.remove(key);
    }

    /// Keys may expire behind an older one that lives longer; they go when it does, or when the window is full.
    fn forget(&mut self, now_ms: u64) {
        while let Some((key, until_ms)) = self.order.front() {
            if self.order.len() <= self.keys_max && now_ms < *until_ms {
                break;
            }
            // Unless the key came again meanwhile and stands further back.
            if self.known.get(key) == Some(until_ms) {
                self.known.remove(key);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<K: Clone + Eq + Hash> Window<K> {
        fn is_first(&mut self, key: K, now_ms: u64, ttl_ms: u64) -> bool {
            let first = !self.knows(&key, now_ms);
            self.remember(key, now_ms, ttl_ms);
            first
        }
    }

    #[test]
    fn a_key_counts_once_until_it_expires() {
        let mut window = Window::new(8);
        assert!(window.is_first("a", 0, 100));
        assert!(!window.is_first("a", 99, 100));
        assert!(window.is_first("a", 100, 100));
        assert!(!window.is_first("a", 199, 100));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut window = Window::new(2);
        for key in ["a", "b", "c"] {
            assert!(window.is_first(key, 0, 100));
        }
        assert!(!window.is_first("c", 1, 100));
        assert!(window.is_first("a", 1, 100));
        assert!(window.known.len() <= 2 && window.order.len() <= 2);
    }

    #[test]
    fn no_window_lets_everything_pass() {
        let mut window = Window::new(0);
        assert!(window.is_first("a", 0, 100));
        assert!(window.is_first("a", 0, 100));
    }
}
