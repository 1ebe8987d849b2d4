use std::fmt;

use reqwest::Url;

/// The address of a server, which may hold a password. What is shown of it doesn't.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// Reads an address that must have one of the schemes. What is wrong with it is said without repeating it.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<Self, String> {
        let expected = schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
        let url = Url::parse(text)
            .map_err(|error| format!("this isn't a URL ({error}): it begins with {expected}"))?;
        if !schemes.contains(&url.scheme()) {
            return Err(format!("it begins with {}://, but must with {expected}", url.scheme()));
        }
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
    fn what_is_no_address_is_told_without_repeating_it() {
        for text in ["u:geheim@h", "http://u:geheim@h", "postgres://", "postgres:///geheim"] {
            let told = ServerUrl::parse(text, &["postgres"]).unwrap_err();
            assert!(!told.contains("geheim") && told.contains("postgres://"), "{told}");
        }
    }
}
