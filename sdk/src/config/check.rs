use std::net::Ipv6Addr;

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
    let refuse = |reason| Err(ConfigError::Url { url: url.to_owned(), reason });
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => {
            rest
        }
        Some(_) => return refuse("its scheme is neither http nor https"),
        None => return refuse("it has no scheme"),
    };
    if url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return refuse("it contains white space");
    }
    if url.contains(['?', '#']) {
        return refuse("it has a query or a fragment");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return refuse("it contains a user; the key is given separately");
    }
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand within its brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.is_empty() {
        return refuse("it has no host");
    }
    if !is_host(host) {
        return refuse("its host is neither a name nor an IP address; an IPv6 address stands in brackets");
    }
    match port.map(str::parse::<u16>) {
        Some(Err(_)) => refuse("its port is no number from 0 to 65535"),
        _ => Ok(()),
    }
}

/// Names of other alphabets pass as they are: the transport writes them in ASCII.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_') || !c.is_ascii()),
    }
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
