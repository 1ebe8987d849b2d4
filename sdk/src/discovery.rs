use std::time::Duration;

use serde::Deserialize;

use crate::config::{check_url, is_loopback, plain_url};
use crate::transport::{Answer, SendError};

/// How long what was learned is good for, before jitter: a collector that was added gets its share within five minutes,
/// and 10,000 clients ask 33 to 67 times a second.
const PERIOD_MS: u64 = 5 * 60 * 1_000;

/// Between two inquiries whatever fails, and after one that brought no answer, before jitter. Nodes leave the registry when
/// they are asked to stop, or 6 s after their last word.
const GAP_MS: u64 = 30 * 1_000;

/// How long after a failure to ask, at most: clients don't ask all at once, and one that stops still answers for 2 s.
const SOON_MS: u64 = 1_000;

/// One inquiry as a whole: the answer is a few KiB.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A longer URL is nobody's address: a host has at most 253 characters, and a path little more.
const URL_BYTES_MAX: usize = 512;

/// When to ask which collectors there are, and whether the last answer could be used.
#[derive(Debug)]
pub(crate) struct Discovery {
    wanted: bool,
    due_ms: u64,
    /// Not before this time, whatever fails.
    not_before_ms: u64,
    /// The URL that is being asked.
    asking: Option<String>,
    /// Whether `on_error` knows that the answers can't be used.
    told: bool,
}

/// What an answer comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The collectors that may be sent to, as [`plain_url`] writes them.
    Collectors(Vec<String>),
    /// Nobody answered, or can say at the moment. An outage is told by whoever sends there.
    Nothing,
    /// What was said can't be used.
    Unusable(String),
}

impl Discovery {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, due_ms: 0, not_before_ms: 0, asking: None, told: false }
    }

    /// When to ask next; `None` while an answer is awaited, or nothing is to be asked at all.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        (self.wanted && self.asking.is_none()).then_some(self.due_ms)
    }

    /// Says whether it is time to ask.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.next_ms().is_some_and(|due_ms| due_ms <= now_ms)
    }

    /// Notes that a collector is being asked.
    pub(crate) fn asks(&mut self, url: String, now_ms: u64) {
        self.asking = Some(url);
        self.not_before_ms = now_ms.saturating_add(GAP_MS);
    }

    /// Asks soon: a collector failed or is about to stop.
    pub(crate) fn hurry(&mut self, now_ms: u64, random: u64) {
        let soon_ms = now_ms.saturating_add(random % SOON_MS).max(self.not_before_ms);
        self.due_ms = self.due_ms.min(soon_ms);
    }

    /// Ends the inquiry under way. Returns the URL that was asked and what is wrong with its answer, unless that is known.
    pub(crate) fn settle(&mut self, found: &Found, now_ms: u64, random: u64) -> Option<(String, String)> {
        let asked = self.asking.take()?;
        let pause_ms = if matches!(found, Found::Nothing) { GAP_MS } else { PERIOD_MS };
        // At least half of it, so that jitter doesn't make it often.
        self.due_ms = now_ms.saturating_add(pause_ms / 2 + random % (pause_ms / 2));
        match found {
            Found::Collectors(_) => self.told = false,
            Found::Nothing => {}
            Found::Unusable(message) if !self.told => {
                self.told = true;
                return Some((asked, message.clone()));
            }
            Found::Unusable(_) => {}
        }
        None
    }

    /// The inquiry under way was broken off.
    pub(crate) fn broken_off(&mut self) {
        self.asking = None;
    }

    /// Reads the answer to the inquiry under way. `given` are the collectors' URLs that the application gave.
    pub(crate) fn read(&self, outcome: &Result<Answer, SendError>, given: &[String]) -> Found {
        let Ok(answer) = outcome else { return Found::Nothing };
        match answer.status {
            200 => match collectors(&answer.body, given, self.asking.as_deref().unwrap_or_default()) {
                Ok(urls) => Found::Collectors(urls),
                Err(message) => Found::Unusable(message),
            },
            408 | 425 | 429 | 500..=599 => Found::Nothing,
            status => {
                Found::Unusable(format!("it answered {status}; leave .discover(true) out, or update it"))
            }
        }
    }
}

/// The answer to `GET /v1/nodes`, as far as it matters here.
#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    address: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

/// All addresses are used or none: whoever names one that can't be meant is not to be trusted with the others.
fn collectors(body: &[u8], given: &[String], asked: &str) -> Result<Vec<String>, String> {
    let said: Nodes =
        serde_json::from_slice(body).map_err(|_| "its answer isn't a list of nodes; is it a collector?")?;
    let edges = said.nodes.into_iter().filter(|node| node.roles.iter().any(|role| role == "edge"));
    let has_tls = |url: &String| plain_url(url).starts_with("https:");
    let tls_only = given.iter().any(has_tls);
    let mut urls = Vec::new();
    for address in edges.filter_map(|node| node.address) {
        if address.len() > URL_BYTES_MAX {
            return Err(format!("an address of {} bytes is none", address.len()));
        }
        // The error shows the URL, and with it what user and password it may have.
        check_url(&address).map_err(|_| "an address is no collector URL; set edge.advertise to one")?;
        if tls_only && !has_tls(&address) {
            return Err(format!(
                "{address} has no TLS, and the key travels with TLS alone; set edge.advertise"
            ));
        }
        // Of another machine it says where it is for itself.
        if is_loopback(&address) && !is_loopback(asked) {
            continue;
        }
        let url = plain_url(&address);
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.is_empty() {
        return Err("no address can be reached from here; set edge.advertise in each collector".to_owned());
    }
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "http://10.0.0.1:4000";
    const TLS: &str = "https://a.example.org";

    fn answer(addresses: &[&str]) -> Result<Answer, SendError> {
        let node = |address: &&str| serde_json::json!({ "roles": ["edge"], "address": address });
        let nodes: Vec<_> = addresses.iter().map(node).collect();
        Ok(Answer::new(200).with_body(serde_json::json!({ "nodes": nodes }).to_string()))
    }

    fn found(outcome: &Result<Answer, SendError>, given: &[&str]) -> Found {
        let mut discovery = Discovery::new(true);
        discovery.asks(given[0].to_owned(), 0);
        let given: Vec<String> = given.iter().map(|url| (*url).to_owned()).collect();
        discovery.read(outcome, &given)
    }

    fn urls(urls: &[&str]) -> Found {
        Found::Collectors(urls.iter().map(|url| (*url).to_owned()).collect())
    }

    #[test]
    fn edges_with_an_address_are_found_each_once() {
        let text = r#"{"nodes": [
            {"id": "1", "roles": ["edge", "query"], "address": "http://10.0.0.2:4000/", "more": 1},
            {"id": "2", "roles": ["edge"], "address": "HTTP://10.0.0.2:4000"},
            {"id": "3", "roles": ["storage"], "address": "http://10.0.0.3:4000"},
            {"id": "4", "roles": ["edge"], "address": null},
            {"id": "5", "roles": ["edge"], "address": "https://b.example.org:443/base"}
        ], "more": 2}"#;
        let answer = Ok(Answer::new(200).with_body(text));
        assert_eq!(found(&answer, &[PLAIN]), urls(&["http://10.0.0.2:4000", "https://b.example.org/base"]));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_as_a_whole() {
        let good = "http://10.0.0.2:4000";
        let long = format!("http://{}", "a".repeat(URL_BYTES_MAX));
        for bad in ["ftp://10.0.0.3", "10.0.0.3:4000", "http://u:p@10.0.0.3", "http://10.0.0.3/?a", "", &long]
        {
            let Found::Unusable(message) = found(&answer(&[good, bad]), &[PLAIN]) else { panic!("{bad}") };
            assert!(!message.contains("u:p"), "{message}");
        }
        for body in ["", "[]", "{}", "<html>", r#"{"nodes": 1}"#, r#"{"nodes": [1]}"#, r#"{"nodes": []}"#] {
            let answer = Ok(Answer::new(200).with_body(body));
            assert!(matches!(found(&answer, &[PLAIN]), Found::Unusable(_)), "{body}");
        }
        for status in [204, 301, 401, 404, 405] {
            assert!(matches!(found(&Ok(Answer::new(status)), &[PLAIN]), Found::Unusable(_)), "{status}");
        }
        for outcome in [Ok(Answer::new(503)), Ok(Answer::new(429)), Err(SendError::Timeout)] {
            assert_eq!(found(&outcome, &[PLAIN]), Found::Nothing);
        }
    }

    #[test]
    fn one_given_url_with_tls_keeps_every_learned_one_to_tls() {
        let (plain, tls) = (answer(&["http://b.example.org"]), answer(&["https://b.example.org"]));
        for given in [&[TLS][..], &[TLS, PLAIN], &[PLAIN, TLS]] {
            let Found::Unusable(message) = found(&plain, given) else { panic!("{given:?}") };
            assert!(message.contains("no TLS"), "{message}");
            assert_eq!(found(&tls, given), urls(&["https://b.example.org"]));
        }
        assert_eq!(found(&plain, &[PLAIN]), urls(&["http://b.example.org"]));
        assert_eq!(found(&tls, &[PLAIN]), urls(&["https://b.example.org"]));
    }

    #[test]
    fn a_loopback_address_is_believed_over_loopback_alone() {
        for address in
            ["http://127.0.0.1:5", "http://localhost:5", "http://[::1]:5", "http://[::ffff:127.0.0.1]:5"]
        {
            assert!(matches!(found(&answer(&[address]), &[PLAIN]), Found::Unusable(_)), "{address}");
            assert_eq!(found(&answer(&[address]), &["http://localhost:4000"]), urls(&[address]));
        }
        let mixed = answer(&["http://127.0.0.1:5", "http://10.0.0.2:4000"]);
        assert_eq!(found(&mixed, &[PLAIN]), urls(&["http://10.0.0.2:4000"]));
    }

    #[test]
    fn it_asks_at_once_then_now_and_then_and_soon_after_a_failure() {
        let mut discovery = Discovery::new(true);
        assert!(discovery.is_due(0));
        discovery.asks("http://a".to_owned(), 0);
        assert!(!discovery.is_due(u64::MAX), "one inquiry at a time");
        assert_eq!(discovery.settle(&urls(&["http://b"]), 10, 0), None);
        assert_eq!(discovery.next_ms(), Some(10 + PERIOD_MS / 2));
        discovery.hurry(20, 1_234);
        assert_eq!(discovery.next_ms(), Some(GAP_MS), "not sooner after the last one");
        discovery.asks("http://a".to_owned(), GAP_MS);
        discovery.settle(&Found::Nothing, GAP_MS, u64::MAX);
        let next_ms = discovery.next_ms().unwrap();
        assert!((GAP_MS + GAP_MS / 2..GAP_MS * 2).contains(&next_ms), "{next_ms}");
        discovery.hurry(10 * GAP_MS, 0);
        assert_eq!(discovery.next_ms(), Some(next_ms), "what is due isn't put off");
        assert!(!Discovery::new(false).is_due(u64::MAX));
    }

    #[test]
    fn what_cannot_be_used_is_told_once_until_it_can() {
        let mut discovery = Discovery::new(true);
        let mut told = |found: &Found| {
            discovery.asks("http://a".to_owned(), 0);
            discovery.settle(found, 0, 0).is_some()
        };
        let unusable = Found::Unusable("m".to_owned());
        assert!(told(&unusable) && !told(&unusable) && !told(&Found::Nothing) && !told(&unusable));
        assert!(!told(&urls(&["http://b"])) && told(&unusable));
    }
}
