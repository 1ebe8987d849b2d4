use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use eventbucket_protocol::EVENTS_PATH;

use crate::error::ConfigError;

/// A number within its bounds.
pub(super) fn limit(setting: &'static str, value: usize, min: usize, max: usize) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let allowed = if max == usize::MAX { format!("at least {min}") } else { format!("{min} to {max}") };
    Err(ConfigError::Limit { setting, value: value.to_string(), allowed })
}

/// The base URL of a collector: scheme, host and perhaps port and path. The transport reads it again; this is for a
/// clear word at the start instead of a failure at the first batch.
pub(crate) fn url(url: &str) -> Result<(), ConfigError> {
    parts(url).map(drop).map_err(|reason| ConfigError::Url { url: url.to_owned(), reason })
}

/// What a URL is made of; the scheme and the host as they were written.
struct Parts<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
    path: &'a str,
}

fn parts(url: &str) -> Result<Parts<'_>, &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("it has no scheme")?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err("its scheme is neither http nor https");
    }
    if url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it contains white space");
    }
    if url.contains(['?', '#']) {
        return Err("it has a query or a fragment");
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("it contains a user; the key is given separately");
    }
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand within its brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.is_empty() {
        return Err("it has no host");
    }
    if !is_host(host) {
        return Err("its host is neither a name nor an IP address; an IPv6 address stands in brackets");
    }
    if path.trim_end_matches('/').ends_with(EVENTS_PATH) {
        return Err("it is where events go; give the address without /v1/events, which is added");
    }
    // A number may have a sign where it is parsed, a port may not.
    let number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?;
    let port = match port {
        Some(port) => Some(number(port).ok_or("its port is no number from 0 to 65535")?),
        None => None,
    };
    let parts = Parts { scheme, host, port, path };
    if is_read_by_transport(url) { Ok(parts) } else { Err("it is no URL that can be sent to") }
}

/// The transport's own reading, which has the last word: it also knows which names of other alphabets there can be.
#[cfg(feature = "http")]
fn is_read_by_transport(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok()
}

#[cfg(not(feature = "http"))]
fn is_read_by_transport(_: &str) -> bool {
    true
}

/// Names of other alphabets pass as they are: the transport writes them in ASCII. A host that ends with a number is an IPv4
/// address (WHATWG URL, "ends in a number"), and no name.
fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_') || !c.is_ascii())
}

/// Writes a URL the way equal ones are equal: scheme and host in small letters, without the scheme's own port and without
/// a slash at the end. What isn't a URL stays as it is.
pub(crate) fn plain_url(url: &str) -> String {
    let Ok(Parts { scheme, host, port, path }) = parts(url) else { return url.to_owned() };
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != usual).map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", path.trim_end_matches('/'))
}

/// Says whether a URL leads to the machine that reads it.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Ok(Parts { host, .. }) = parts(url) else { return false };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_name = host == "localhost" || host.ends_with(".localhost");
    is_name || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// A key travels in a header.
pub(super) fn key(key: &str) -> Result<(), ConfigError> {
    if key.is_empty() {
        return Err(ConfigError::Key { reason: "is empty" });
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::Key { reason: "contains white space or characters that aren't ASCII" });
    }
    Ok(())
}
