//! Whether a collector takes batches now: what a container's health check runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use eventbucket_protocol::Problem;
use reqwest::Url;

use crate::config::{CA_FILE_VARIABLE, Config, Flags};

use super::certificates;
use super::failure::Failure;
use super::output::Output;
use super::remote::unanswered;

/// A health check that takes longer is a failed one.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(
    after_help = "Asks the collector that this environment configures, without a key. Exits with 0 when it is ready.\n\n\
    Examples:\n  \
    eventbucket health\n  \
    eventbucket health --url https://edge-1.example.org:4000"
)]
pub(super) struct HealthArgs {
    /// Address of the collector [default: the one that this environment's configuration listens on]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Trust the certificates in this PEM file, not the system's [env: EVENTBUCKET_CA_FILE]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

pub(super) async fn run(args: HealthArgs) -> Result<ExitCode, Failure> {
    const WHAT: &str = "check the collector's health";
    let address = args.url.map_or_else(configured, Ok)?;
    let base = Url::parse(&address).map_err(|error| {
        Failure::usage(format!("use the address {address}"), error.to_string())
            .remedy("write it like http://127.0.0.1:4000")
    })?;
    let path = base.join("/healthz/ready").map_err(|error| Failure::new(WHAT, error))?;
    let ca_file = args.ca_file.or_else(|| std::env::var_os(CA_FILE_VARIABLE).map(PathBuf::from));
    let client = certificates::client(&base, ca_file.as_deref())?;
    let asked = client.get(path).timeout(TIMEOUT).send().await;
    let answer = asked.map_err(|error| unanswered(WHAT, &base, &error))?;
    if answer.status().is_success() {
        return Output::plain().text("ready\n").map(|()| ExitCode::SUCCESS);
    }
    let status = answer.status();
    let cause = match answer.json::<Problem>().await {
        Ok(problem) => problem.detail,
        Err(_) => format!("it answered {status}"),
    };
    Err(Failure::because(WHAT, cause))
}

/// The address that a collector with this environment's configuration listens on, from this machine.
fn configured() -> Result<String, Failure> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::load(&Flags::default(), variables)
        .map_err(|error| Failure::new("read the configuration", error))?;
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{address}"))
}
