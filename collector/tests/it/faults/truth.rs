//! What must be true in the end, from the outside: read over HTTP and by the audit command.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::harness::{Collector, http};

/// `reached` says for the first number of each process where those that it can have captured end.
pub(super) async fn check(
    collector: &Collector,
    confirmed: &BTreeSet<u64>,
    attempted_by_last: u64,
    reached: &BTreeMap<u64, u64>,
) {
    let events = all_events(collector).await;
    let mut numbers = BTreeSet::new();
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["position"], index as u64 + 1, "positions are dense");
        let number = event["properties"]["number"].as_u64().unwrap();
        assert!(numbers.insert(number), "event {number} is stored twice");
        let process = reached.range(..=number).next_back();
        assert!(process.is_some_and(|(_, end)| number < *end), "nobody captured event {number}: {process:?}");
        assert_eq!(event["id"], format!("n-{number}"), "an event is stored as it was captured");
        assert_eq!(event["name"], format!("fault-{}", number % 4));
        *names.entry(event["name"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let missing: Vec<_> = confirmed.difference(&numbers).collect();
    assert!(missing.is_empty(), "{} confirmed events are gone: {missing:?}", missing.len());
    let last = reached.last_key_value().map_or(0, |(first, _)| *first);
    let of_last = numbers.range(last..).count() as u64;
    assert_eq!(of_last, attempted_by_last, "the last process delivered everything");
    counts_agree(collector, &names).await;
    audit_holds(collector, events.len() as u64);
}

async fn get(collector: &Collector, path: &str) -> Value {
    let request = http().get(format!("{}{path}", collector.url())).bearer_auth(&collector.keys().secret);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.unwrap()
}

async fn all_events(collector: &Collector) -> Vec<Value> {
    let mut events = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = get(collector, &format!("/v1/events?order=position&limit=1000{cursor}")).await;
        events.extend(page["events"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return events,
        }
    }
}

/// The live counters and the rollups come to what was read event by event, once they have caught up.
async fn counts_agree(collector: &Collector, names: &BTreeMap<String, u64>) {
    let deadline = tokio::time::Instant::now() + crate::harness::DEADLINE;
    for by in ["total", "hour"] {
        loop {
            let mut counted: BTreeMap<String, u64> = BTreeMap::new();
            for row in get(collector, &format!("/v1/counts?by={by}")).await["counts"].as_array().unwrap() {
                *counted.entry(row["name"].as_str().unwrap().to_owned()).or_default() +=
                    row["count"].as_u64().unwrap();
            }
            if counted == *names {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "by {by}: counted {counted:?}, stored {names:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// The audit agrees, from the file beside the collector and through the collector itself.
fn audit_holds(collector: &Collector, stored: u64) {
    for ran in [collector.beside(&["audit", "--json"]), collector.over_http(&["audit", "--json"])] {
        let audit = ran.json();
        let project = &audit["projects"][0];
        assert_eq!(project["stored"], stored, "{audit}");
        assert_eq!(project["position"], stored, "{audit}");
        assert_eq!(project["applied_to"], stored, "{audit}");
        let checks = project["checks"].as_array().unwrap();
        assert!(checks.len() >= 10 && checks.iter().all(|check| check["holds"] == true), "{audit}");
    }
}
