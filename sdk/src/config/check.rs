use std::net::{Ipv4Addr, Ipv6Addr};

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
pub(super) fn url(url: &str) -> Result<(), ConfigError> {
    check_url(url).map_err(|reason| ConfigError::Url { url: url.to_owned(), reason })
}

fn check_url(url: &str) -> Result<(), &'static str> {
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
    let authority = rest.split('/').next().unwrap_or_default();
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
    // A number may have a sign where it is parsed, a port may not.
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if !port.is_none_or(is_port) {
        return Err("its port is no number from 0 to 65535");
    }
    if is_read_by_transport(url) { Ok(()) } else { Err("it is no URL that can be sent to") }
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
