use std::fmt;

use reqwest::Url;

use super::keys::nearest;

/// What may stand behind the `?` of an address; what is misspelt there would be without effect.
const PARAMETERS: [(&[&str], &[&str]); 3] = [
    (
        &["postgres", "postgresql"],
        &[
            "sslmode",
            "sslrootcert",
            "user",
            "password",
            "dbname",
            "options",
            "application_name",
            "sslnegotiation",
            "host",
            "hostaddr",
            "port",
            "connect_timeout",
            "tcp_user_timeout",
            "keepalives",
            "keepalives_idle",
            "keepalives_interval",
            "keepalives_retries",
            "target_session_attrs",
            "channel_binding",
            "load_balance_hosts",
        ],
    ),
    (&["amqp", "amqps"], &["heartbeat", "connection_timeout", "frame_max", "channel_max", "auth_mechanism"]),
    (&["redis", "rediss"], &["protocol"]),
];

/// The address of a server, which may hold a password. What is shown of it doesn't.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// Reads an address that must have one of the schemes. What is wrong with it is said without repeating it.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<Self, String> {
        let expected = schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
        let url = Url::parse(text).map_err(|error| {
            format!("this isn't a URL ({error}){}: it begins with {expected}", hint(text))
        })?;
        if !schemes.contains(&url.scheme()) {
            return Err(format!("it begins with {}://, but must with {expected}", url.scheme()));
        }
        check_parameters(text)?;
        match url.host_str() {
            Some(host) if !host.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(format!("it names no host: write {expected} and the host behind it")),
        }
    }

    /// Returns the whole address, with the password if there is one: for connecting, never for showing.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.0))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerUrl({self})")
    }
}

/// Looks for parameters of an address that nothing knows.
///
/// # Errors
/// Names the first, without its value.
pub fn check_parameters(text: &str) -> Result<(), String> {
    let Ok(url) = Url::parse(text) else { return Ok(()) };
    let of_scheme = PARAMETERS.iter().find(|(schemes, _)| schemes.contains(&url.scheme()));
    let Some((_, known)) = of_scheme else { return Ok(()) };
    match url.query_pairs().find(|(name, _)| !known.contains(&&**name)) {
        None => Ok(()),
        Some((name, _)) => Err(match nearest(&name, known.iter().copied()) {
            Some(meant) => format!("the parameter {name:?} is not known; did you mean {meant}?"),
            None => format!("the parameter {name:?} is not known; there are {}", known.join(", ")),
        }),
    }
}

/// A user or a password that ends the host's part of the address is the usual reason why a port can't be read.
fn hint(text: &str) -> &'static str {
    let behind = text.split_once("://").map_or("", |(_, behind)| behind);
    match behind.split_once(['/', '?', '#']) {
        Some((place, rest)) if !place.contains('@') && rest.contains('@') => {
            ", percent-encode / ? # in user and password as %2F %3F %23"
        }
        _ => "",
    }
}

/// Replaces the password of an address, in the user's place and in the query; any other text stays.
pub(super) fn redacted(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    let in_query = url.query_pairs().any(|(name, _)| name == "password");
    if url.password().is_none() && !in_query {
        return text.to_owned();
    }
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return format!("{}://***", url.scheme());
    }
    if in_query {
        let shown: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| {
                (name.to_string(), if name == "password" { "***".into() } else { value.to_string() })
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.to_string()
}

/// An address as it may stand in a command line: without its password.
#[must_use]
pub fn without_password(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return String::new() };
    if url.set_password(None).is_err() {
        return String::new();
    }
    let others: Vec<(String, String)> =
        url.query_pairs().filter(|(name, _)| name != "password").map(|(n, v)| (n.into(), v.into())).collect();
    url.set_query(None);
    if !others.is_empty() {
        url.query_pairs_mut().extend_pairs(others);
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for text in
            ["postgres://u:geheim@h/d", "amqp://u:geheim@h:1/%2f", "postgres://h/d?user=u&password=geheim"]
        {
            let url = ServerUrl::parse(text, &["postgres", "amqp"]).unwrap();
            assert_eq!(url.secret(), text);
            let shown = format!("{url} {url:?}");
            assert!(!shown.contains("geheim") && shown.contains("***"), "{shown}");
        }
        assert_eq!(redacted("redis://127.0.0.1:6379/0"), "redis://127.0.0.1:6379/0");
        assert_eq!(redacted("127.0.0.1:4000"), "127.0.0.1:4000");
    }

    #[test]
    fn parameters_that_nothing_knows_are_named() {
        for (text, told) in [
            ("postgres://h/d?sslmod=require", "\"sslmod\" is not known; did you mean sslmode?"),
            ("amqp://h/v?heartbeet=1", "\"heartbeet\" is not known; did you mean heartbeat?"),
            ("redis://h/0?db=2", "\"db\" is not known; there are protocol"),
        ] {
            let scheme = text.split(':').next().unwrap();
            let error = ServerUrl::parse(text, &[scheme]).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
        for text in
            ["postgres://h/d?sslmode=require&user=u", "amqp://h/v?heartbeat=1", "redis://h/0?protocol=3"]
        {
            let scheme = text.split(':').next().unwrap();
            assert!(ServerUrl::parse(text, &[scheme]).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_slash_in_a_password_is_told_without_repeating_it() {
        for text in ["postgres://u:ge/heim@h/d", "amqp://u:ge#heim@h/v", "redis://u:ge?heim@h/0"] {
            let scheme = text.split(':').next().unwrap();
            let error = ServerUrl::parse(text, &[scheme]).unwrap_err();
            assert!(error.contains("percent-encode") && !error.contains("heim"), "{error}");
        }
        assert!(ServerUrl::parse("postgres://u:ge%2Fheim@h/d", &["postgres"]).is_ok());
    }

    #[test]
    fn what_is_no_address_is_told_without_repeating_it() {
        for text in ["u:geheim@h", "http://u:geheim@h", "postgres://", "postgres:///geheim"] {
            let told = ServerUrl::parse(text, &["postgres"]).unwrap_err();
            assert!(!told.contains("geheim") && told.contains("postgres://"), "{told}");
        }
    }
}
