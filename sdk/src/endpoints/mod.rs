#[cfg(test)]
mod tests;

use crate::config::plain_url;

/// Batches under way at once to all collectors: each takes up to twice 1 MiB (the body, and compressed), so 8 MiB.
pub(crate) const IN_FLIGHT_MAX: usize = 4;

/// Collectors in use, learned ones included: of a larger cluster each client uses a part, and with the parts drawn at random
/// all get their share. With a URL and two idle connections each they take about 1 MiB.
const ENDPOINTS_MAX: usize = 32;

/// How long a collector is spared that said that it stops, while others serve: a restart takes seconds, and one that was
/// back sooner misses half a minute of its share.
const AWAY_MS: u64 = 30 * 1_000;

/// The collectors, their health, and whose turn it is. Knows no clock: times are monotonic milliseconds.
#[derive(Debug)]
pub(crate) struct Endpoints {
    list: Vec<Endpoint>,
    next: usize,
    next_number: u64,
    /// How often somebody was to be asked something.
    asked: usize,
}

#[derive(Debug)]
struct Endpoint {
    /// Names it for turns, while others come and go.
    number: u64,
    url: String,
    /// Named by another collector, not by the application.
    learned: bool,
    /// Learned, and no longer named: it gets nothing more, and goes when nothing is under way to it.
    gone: bool,
    /// Failures in a row; 0 when healthy.
    failures: u32,
    /// Not before this time, once it failed.
    until_ms: u64,
    /// Whether it asked for the wait itself, so that a flush doesn't hurry it.
    asked: bool,
    /// Spared until this time, because it said that it stops.
    away_until_ms: u64,
    /// Raised with each failure that counts: what was sent before it says nothing new.
    epoch: u64,
    in_flight: usize,
    /// How many may be under way: 1 at first and after an outage, doubled by each success.
    allowance: usize,
}

/// One attempt's claim on a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    number: u64,
    epoch: u64,
}

impl Endpoints {
    pub(crate) fn new(urls: impl IntoIterator<Item = String>) -> Self {
        let mut endpoints = Self { list: Vec::new(), next: 0, next_number: 0, asked: 0 };
        urls.into_iter().for_each(|url| endpoints.add(url, false));
        endpoints
    }

    fn add(&mut self, url: String, learned: bool) {
        self.list.push(Endpoint {
            number: self.next_number,
            url,
            learned,
            gone: false,
            failures: 0,
            until_ms: 0,
            asked: false,
            away_until_ms: 0,
            epoch: 0,
            in_flight: 0,
            allowance: 1,
        });
        self.next_number += 1;
    }

    /// Takes over the collectors that another one names, as [`plain_url`] writes them. Of those learned before, the ones that
    /// aren't among them get nothing more, but for those that are spared: they said themselves that they leave, and most come back.
    /// Those the application gave stay whatever is named.
    pub(crate) fn learn(&mut self, urls: &[String], now_ms: u64) {
        for endpoint in self.list.iter_mut().filter(|endpoint| endpoint.learned) {
            endpoint.gone = !urls.contains(&endpoint.url) && !endpoint.is_away(now_ms);
        }
        self.drop_gone();
        for url in urls {
            if self.list.len() >= ENDPOINTS_MAX {
                return;
            }
            if self.list.iter().all(|endpoint| plain_url(&endpoint.url) != *url) {
                self.add(url.clone(), true);
            }
        }
    }

    fn drop_gone(&mut self) {
        self.list.retain(|endpoint| !endpoint.gone || endpoint.in_flight > 0);
    }

    /// Picks the next collector that may be sent to: healthy ones in turn, one that failed with a single probe once its
    /// wait is over. One that said that it stops is spared; when all did, the first to say so is likely to be back.
    pub(crate) fn pick(&mut self, now_ms: u64) -> Option<Turn> {
        self.drop_gone();
        if self.in_flight() >= IN_FLIGHT_MAX {
            return None;
        }
        let healthy = || self.list.iter().filter(|endpoint| endpoint.is_healthy());
        let first_away = match healthy().any(|endpoint| !endpoint.is_away(now_ms)) {
            true => None,
            false => healthy().min_by_key(|endpoint| endpoint.away_until_ms).map(|endpoint| endpoint.number),
        };
        let may = |endpoint: &Endpoint| !endpoint.is_away(now_ms) || Some(endpoint.number) == first_away;
        let count = self.list.len();
        let index = (0..count)
            .map(|step| (self.next + step) % count)
            .find(|&index| self.list[index].has_room(now_ms) && may(&self.list[index]))?;
        self.next = index + 1;
        let endpoint = &mut self.list[index];
        endpoint.in_flight += 1;
        Some(Turn { number: endpoint.number, epoch: endpoint.epoch })
    }

    /// Whom to ask for the others: each in turn, healthy ones first.
    pub(crate) fn next_to_ask(&mut self, now_ms: u64) -> &str {
        self.asked = self.asked.wrapping_add(1);
        let count = self.list.len();
        let turns = (0..count).map(|step| &self.list[(self.asked + step) % count]);
        let best = turns
            .filter(|endpoint| !endpoint.gone)
            .min_by_key(|endpoint| (endpoint.failures, endpoint.is_away(now_ms)));
        &best.expect("the collectors that the application gave stay").url
    }

    /// Whom to ask what became of a batch that this collector took: the same, unless it is away and another serves, which
    /// knows it as well.
    pub(crate) fn instead_of(&mut self, url: &str, now_ms: u64) -> String {
        let serves = |endpoint: &Endpoint| endpoint.is_healthy() && !endpoint.is_away(now_ms);
        let itself = |endpoint: &Endpoint| endpoint.url.trim_end_matches('/') == url;
        let stays = self.list.iter().any(|endpoint| itself(endpoint) && serves(endpoint));
        if stays || !self.list.iter().any(serves) {
            return url.to_owned();
        }
        self.next_to_ask(now_ms).trim_end_matches('/').to_owned()
    }

    /// Says when the first collector may be probed that may not be now.
    pub(crate) fn next_probe_ms(&self, now_ms: u64) -> Option<u64> {
        let failing = self.list.iter().filter(|endpoint| endpoint.failures > 0 && !endpoint.gone);
        failing.map(|endpoint| endpoint.until_ms).filter(|until_ms| *until_ms > now_ms).min()
    }

    /// Says whether any collector isn't known to fail.
    pub(crate) fn any_healthy(&self) -> bool {
        self.list.iter().any(Endpoint::is_healthy)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.list.iter().map(|endpoint| endpoint.in_flight).sum()
    }

    pub(crate) fn url(&self, turn: Turn) -> &str {
        let endpoint = self.list.iter().find(|endpoint| endpoint.number == turn.number);
        &endpoint.expect(HELD).url
    }

    /// Notes whether a collector said, with an answer, that it is about to stop.
    pub(crate) fn heard(&mut self, turn: Turn, draining: bool, now_ms: u64) {
        self.of(turn).away_until_ms = if draining { now_ms.saturating_add(AWAY_MS) } else { 0 };
    }

    /// Ends a turn that brought an answer.
    pub(crate) fn succeeded(&mut self, turn: Turn) {
        let endpoint = self.of(turn);
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
        let endpoint = self.of(turn);
        endpoint.in_flight -= 1;
        if endpoint.epoch != turn.epoch {
            return None;
        }
        endpoint.epoch += 1;
        endpoint.failures = endpoint.failures.saturating_add(1);
        endpoint.until_ms = until_ms(endpoint.failures);
        endpoint.asked = asked;
        // From here on its own wait counts.
        endpoint.away_until_ms = 0;
        endpoint.allowance = 1;
        Some(endpoint.failures)
    }

    /// Ends a turn that was broken off.
    pub(crate) fn given_back(&mut self, turn: Turn) {
        self.of(turn).in_flight -= 1;
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

    fn of(&mut self, turn: Turn) -> &mut Endpoint {
        let endpoint = self.list.iter_mut().find(|endpoint| endpoint.number == turn.number);
        endpoint.expect(HELD)
    }
}

/// Why a turn's collector is found: it isn't dropped before the next pick after the turn ended.
const HELD: &str = "a collector stays while a turn on it is held";

impl Endpoint {
    fn is_healthy(&self) -> bool {
        self.failures == 0 && !self.gone
    }

    fn is_away(&self, now_ms: u64) -> bool {
        self.away_until_ms > now_ms
    }

    fn has_room(&self, now_ms: u64) -> bool {
        if self.gone {
            false
        } else if self.failures == 0 {
            self.in_flight < self.allowance
        } else {
            self.in_flight == 0 && self.until_ms <= now_ms
        }
    }
}
