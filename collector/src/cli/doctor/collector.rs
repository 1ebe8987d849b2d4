use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use eventbucket_protocol::Problem;
use reqwest::{Client, Url};
use serde_json::Value;

use super::report::{Report, bytes};
use crate::cli::certificates;
use crate::cli::failure::Failure;
use crate::cli::output::grouped;
use crate::cli::remote::unanswered;
use crate::config::Config;

const AREA: &str = "collector";

/// A collector that takes longer to answer is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the collector that a configuration tells of, from this machine; says whether it answers. None has to run.
pub(super) async fn ask_local(report: &mut Report, config: &Config, ca_file: Option<&Path>) -> bool {
    let mut address = config.listen;
    if address.port() == 0 {
        report.ok(AREA, "its port is chosen at the start, so it can't be asked; --url ADDR does");
        return false;
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    ask(report, &format!("{scheme}://{address}"), ca_file, false).await
}

/// Asks a collector without a key. `expected` to be there or not, it says whether it answers.
pub(super) async fn ask(report: &mut Report, url: &str, ca_file: Option<&Path>, expected: bool) -> bool {
    let asked = async {
        let base = Url::parse(url).map_err(|error| Failure::usage("use the address", error.to_string()))?;
        let client = certificates::client(&base, ca_file)?;
        let version = version(&client, &base).await?;
        Ok::<_, Failure>((base, client, version))
    };
    let (base, client, version) = match asked.await {
        Ok(found) => found,
        Err(failure) if expected => {
            report.problem(AREA, failure.cause(), "is it running there? `eventbucket serve` starts one");
            return false;
        }
        Err(failure) => {
            report.ok(AREA, format!("none answers here ({})", failure.cause()));
            return false;
        }
    };
    if version == env!("CARGO_PKG_VERSION") {
        report.ok(AREA, format!("version {version} answers at {url}"));
    } else {
        let told =
            format!("version {version} answers at {url}, this program is {}", env!("CARGO_PKG_VERSION"));
        report.warning(AREA, told, "restart the collector with the version that is meant");
    }
    match readiness(&client, &base).await {
        Ok(()) => report.ok(AREA, "ready: a batch sent now would be stored"),
        Err(why) => report.problem(AREA, format!("not ready: {why}"), "until then SDKs keep their events"),
    }
    match get(&client, &base, "metrics").await {
        Ok(answer) => figures(report, &answer.text().await.unwrap_or_default()),
        Err(failure) => report.warning(AREA, failure.cause(), "its figures are not known"),
    }
    true
}

async fn get(client: &Client, base: &Url, path: &str) -> Result<reqwest::Response, Failure> {
    const WHAT: &str = "ask the collector";
    let url = base.join(path).map_err(|error| Failure::new(WHAT, error))?;
    let asked = client.get(url).timeout(TIMEOUT).send().await;
    asked.map_err(|error| unanswered(WHAT, base, &error))
}

async fn version(client: &Client, base: &Url) -> Result<String, Failure> {
    let stranger =
        || Failure::because("ask the collector", format!("what answers at {base} is no collector"));
    let told: Value = get(client, base, "version").await?.json().await.map_err(|_| stranger())?;
    match (told["name"].as_str(), told["version"].as_str()) {
        (Some("eventbucket"), Some(version)) => Ok(version.to_owned()),
        _ => Err(stranger()),
    }
}

async fn readiness(client: &Client, base: &Url) -> Result<(), String> {
    let answer = get(client, base, "healthz/ready").await.map_err(|failure| failure.cause().to_owned())?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(answer
        .json::<Problem>()
        .await
        .map_or_else(|_| format!("it answered {status}"), |problem| problem.detail))
}

/// Reads what the figures say since the collector started.
fn figures(report: &mut Report, text: &str) {
    let stored = sum(text, "eventbucket_events_total", "verdict=\"stored\"");
    report.ok(AREA, format!("{} events stored", grouped(stored)));
    let failed = sum(text, "eventbucket_http_requests_total", "status=\"5");
    if failed > 0 {
        report.warning(
            AREA,
            format!("{} requests were answered with 5xx since it started", grouped(failed)),
            "its log says why; SDKs send them again",
        );
    }
    let cache = sum(text, "eventbucket_cache_failures_total", "");
    if cache > 0 {
        let told = format!("Redis failed {} questions since it started", grouped(cache));
        report.warning(AREA, told, "look at Redis; the store was asked instead");
    }
    let dead = sum(text, "eventbucket_dead_letters", "");
    if dead > 0 {
        let told = format!("{} messages could not be processed", grouped(dead));
        report.warning(AREA, told, "`eventbucket dead-letters list`");
    }
    let waiting = sum(text, "eventbucket_spool_batches", "");
    if waiting > 0 {
        let (size, oldest) =
            (sum(text, "eventbucket_spool_bytes", ""), sum(text, "eventbucket_spool_oldest_seconds", ""));
        let told =
            format!("{} batches ({}) wait in its spool, for {oldest} s", grouped(waiting), bytes(size));
        report.warning(AREA, told, "look at RabbitMQ; they go by themselves");
    }
}

/// Adds up the figures of a name whose labels hold a text.
fn sum(text: &str, name: &str, label: &str) -> u64 {
    let value = |line: &str| -> Option<u64> {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        if !(labels.is_empty() || labels.starts_with('{')) || !labels.contains(label) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts, written as floats"
        )]
        value.parse::<f64>().ok().map(|value| value as u64)
    };
    text.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_added_by_name_and_label() {
        let text = "# HELP a_total x\na_total{route=\"/x\",status=\"200\"} 5\na_total{route=\"/x\",status=\"503\"} 2\n\
                    a_total{route=\"/y\",status=\"500\"} 1\na_total_more 9\nb 1.5\n";
        assert_eq!(sum(text, "a_total", "status=\"5"), 3);
        assert_eq!(sum(text, "a_total", ""), 8);
        assert_eq!((sum(text, "b", ""), sum(text, "c", "")), (1, 0));
    }
}
