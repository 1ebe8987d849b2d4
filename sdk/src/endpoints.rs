/// Batches under way at once to all collectors: each takes up to twice 1 MiB (the body, and compressed), so 8 MiB.
pub(crate) const IN_FLIGHT_MAX: usize = 4;

/// The collectors, their health, and whose turn it is. Knows no clock: times are monotonic milliseconds.
#[derive(Debug)]
pub(crate) struct Endpoints {
    list: Vec<Endpoint>,
    next: usize,
}

#[derive(Debug)]
struct Endpoint {
    url: String,
    /// Failures in a row; 0 when healthy.
    failures: u32,
    /// Not before this time, once it failed.
    until_ms: u64,
    /// Whether it asked for the wait itself, so that a flush doesn't hurry it.
    asked: bool,
    /// Raised with each failure that counts: what was sent before it says nothing new.
    epoch: u64,
    in_flight: usize,
    /// How many may be under way: 1 at first and after an outage, doubled by each success.
    allowance: usize,
}

/// One attempt's claim on a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    index: usize,
    epoch: u64,
}

impl Endpoints {
    pub(crate) fn new(urls: impl IntoIterator<Item = String>) -> Self {
        let endpoint = |url| Endpoint {
            url,
            failures: 0,
            until_ms: 0,
            asked: false,
            epoch: 0,
            in_flight: 0,
            allowance: 1,
        };
        Self { list: urls.into_iter().map(endpoint).collect(), next: 0 }
    }

    /// Picks the next collector that may be sent to: healthy ones in turn, one that failed with a single probe once its
    /// wait is over.
    pub(crate) fn pick(&mut self, now_ms: u64) -> Option<Turn> {
        if self.in_flight() >= IN_FLIGHT_MAX {
            return None;
        }
        let count = self.list.len();
        let index = (0..count)
            .map(|step| (self.next + step) % count)
            .find(|&index| self.list[index].has_room(now_ms))?;
        self.next = index + 1;
        let endpoint = &mut self.list[index];
        endpoint.in_flight += 1;
        Some(Turn { index, epoch: endpoint.epoch })
    }

    /// Says when the first collector may be probed that may not be now.
    pub(crate) fn next_probe_ms(&self, now_ms: u64) -> Option<u64> {
        let waiting = self.list.iter().filter(|endpoint| endpoint.failures > 0 && endpoint.until_ms > now_ms);
        waiting.map(|endpoint| endpoint.until_ms).min()
    }

    /// Says whether any collector isn't known to fail.
    pub(crate) fn any_healthy(&self) -> bool {
        self.list.iter().any(|endpoint| endpoint.failures == 0)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.list.iter().map(|endpoint| endpoint.in_flight).sum()
    }

    pub(crate) fn url(&self, turn: Turn) -> &str {
        &self.list[turn.index].url
    }

    /// Ends a turn that brought an answer.
    pub(crate) fn succeeded(&mut self, turn: Turn) {
        let endpoint = &mut self.list[turn.index];
        endpoint.in_flight -= 1;
        // A success from before an outage doesn't end it.
        if endpoint.epoch == turn.epoch {
            endpoint.failures = 0;
            endpoint.allowance = (endpoint.allowance * 2).min(IN_FLIGHT_MAX);
        }
    }

    /// Ends a turn that failed. `until_ms` is asked with the number of failures in a row; returns that number, or `None`
    /// when the turn began before the present outage.
    pub(crate) fn failed(
        &mut self,
        turn: Turn,
        asked: bool,
        until_ms: impl FnOnce(u32) -> u64,
    ) -> Option<u32> {
        let endpoint = &mut self.list[turn.index];
        endpoint.in_flight -= 1;
        if endpoint.epoch != turn.epoch {
            return None;
        }
        endpoint.epoch += 1;
        endpoint.failures = endpoint.failures.saturating_add(1);
        endpoint.until_ms = until_ms(endpoint.failures);
        endpoint.asked = asked;
        endpoint.allowance = 1;
        Some(endpoint.failures)
    }

    /// Ends a turn that was broken off.
    pub(crate) fn given_back(&mut self, turn: Turn) {
        self.list[turn.index].in_flight -= 1;
    }

    /// Ends all turns without an answer.
    pub(crate) fn broken_off(&mut self) {
        self.list.iter_mut().for_each(|endpoint| endpoint.in_flight = 0);
    }

    /// Lets collectors be probed at once, unless they asked for the wait themselves.
    pub(crate) fn hurry(&mut self) {
        for endpoint in self.list.iter_mut().filter(|endpoint| !endpoint.asked) {
            endpoint.until_ms = 0;
        }
    }
}

impl Endpoint {
    fn has_room(&self, now_ms: u64) -> bool {
        if self.failures == 0 {
            self.in_flight < self.allowance
        } else {
            self.in_flight == 0 && self.until_ms <= now_ms
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: usize) -> Endpoints {
        Endpoints::new((0..count).map(|index| format!("http://{index}")))
    }

    fn index(turn: Option<Turn>) -> Option<usize> {
        turn.map(|turn| turn.index)
    }

    #[test]
    fn collectors_take_turns() {
        let mut endpoints = endpoints(3);
        let picked: Vec<_> = (0..3).map(|_| index(endpoints.pick(0)).unwrap()).collect();
        assert_eq!(picked, [0, 1, 2]);
        assert_eq!(endpoints.pick(0), None, "each begins with one batch under way");
    }

    #[test]
    fn a_failing_collector_is_left_out_and_probed_once_its_wait_is_over() {
        let mut endpoints = endpoints(2);
        let turn = endpoints.pick(0).unwrap();
        assert_eq!(endpoints.failed(turn, false, |_| 100), Some(1));
        let other = endpoints.pick(0).unwrap();
        assert_eq!(other.index, 1);
        endpoints.succeeded(other);
        assert_eq!(index(endpoints.pick(99)), Some(1));
        assert_eq!(endpoints.next_probe_ms(99), Some(100));
        assert_eq!(index(endpoints.pick(100)), Some(0));
        assert_eq!(index(endpoints.pick(100)), Some(1), "one probe is enough");
    }

    #[test]
    fn replay_after_an_outage_is_paced() {
        let mut endpoints = endpoints(1);
        let turn = endpoints.pick(0).unwrap();
        endpoints.failed(turn, false, |_| 10);
        let mut under_way = Vec::new();
        for allowed in [1, 2, 4, 4] {
            while let Some(turn) = endpoints.pick(10) {
                under_way.push(turn);
            }
            assert_eq!(under_way.len(), allowed);
            endpoints.succeeded(under_way.pop().unwrap());
        }
    }

    #[test]
    fn one_outage_counts_once_however_many_batches_it_hits() {
        let mut endpoints = endpoints(1);
        for _ in 0..2 {
            let turn = endpoints.pick(0).unwrap();
            endpoints.succeeded(turn);
        }
        let turns: Vec<_> = (0..4).map(|_| endpoints.pick(0).unwrap()).collect();
        let counted: Vec<_> = turns[..3].iter().map(|turn| endpoints.failed(*turn, false, |_| 10)).collect();
        assert_eq!(counted, [Some(1), None, None]);
        endpoints.succeeded(turns[3]);
        assert!(!endpoints.any_healthy(), "an answer from before the outage doesn't end it");
    }

    #[test]
    fn a_flush_hurries_our_own_waits_alone() {
        for (asked, picked) in [(false, Some(0)), (true, None)] {
            let mut endpoints = endpoints(1);
            let turn = endpoints.pick(0).unwrap();
            endpoints.failed(turn, asked, |_| 100);
            endpoints.hurry();
            assert_eq!(index(endpoints.pick(1)), picked);
        }
    }
}
