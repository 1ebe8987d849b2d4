use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::store::Error;

/// Connections of a process to the log for its work beside its writers: two that count, retention, a rebuild, a quota's
/// recount, and one for keys where accounts live in the log.
const BESIDE_WRITERS: usize = 6;

/// Writers where nobody says how many.
const WRITERS: usize = 2;

/// More of them for what people read: so many slow reads hold up only each other.
pub(super) const READ_CONNECTIONS: usize = 4;

/// How often it is looked whether it is time for a new segment: 10 s at 100,000 events a second are 0.4 GiB beyond its 8.
const SEGMENT_LOOK: Duration = Duration::from_secs(10);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long sent bytes may stay unacknowledged: what a cut cable costs before the connection counts as lost.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// After which silence a connection is probed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// How a Postgres store is reached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PostgresOptions {
    pub(super) log: Server,
    pub(super) accounts: Option<Server>,
    /// Connections to the log for storing and counting: 8. Reads get 4 more, accounts in a database of their own half as many.
    pub connections: usize,
    /// How often the process looks whether it is time for a new segment of the log: every 10 s.
    pub segment_look: Duration,
}

impl PostgresOptions {
    /// Reads `postgres://user:password@host:port/database?sslmode=…&sslrootcert=…`, and another such address when accounts
    /// live elsewhere. `sslmode` is `disable`, `prefer` (the default), `require` or `verify-full`.
    ///
    /// # Errors
    /// [`Error::Address`] with what is wrong, without the password.
    pub fn parse(url: &str, accounts_url: Option<&str>) -> Result<Self, Error> {
        let accounts = accounts_url.map(Server::parse).transpose()?;
        Ok(Self {
            log: Server::parse(url)?,
            accounts,
            connections: BESIDE_WRITERS + WRITERS,
            segment_look: SEGMENT_LOOK,
        })
    }

    /// Has enough connections for so many writers.
    #[must_use]
    pub fn with_writers(self, writers: usize) -> Self {
        Self { connections: BESIDE_WRITERS + writers, ..self }
    }
}

/// Whether a connection is encrypted, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    Disable,
    /// Encrypts when the server can, and when it must; who the server is isn't checked, as in libpq.
    Unverified,
    /// Checks the certificate and the host name, against a file of roots or those of the system.
    VerifyFull {
        roots: Option<PathBuf>,
    },
}

/// One database server. Shows its password nowhere.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) encryption: Encryption,
}

impl Server {
    fn parse(url: &str) -> Result<Self, Error> {
        let (bare, ssl_mode, roots) = split_ssl(url)?;
        let has_roots = roots.is_some();
        let mut config: Config = bare.parse().map_err(|error| address(format!("{error}")))?;
        let (mode, encryption) = match ssl_mode.as_deref().unwrap_or("prefer") {
            "disable" => (SslMode::Disable, Encryption::Disable),
            "prefer" => (SslMode::Prefer, Encryption::Unverified),
            "require" => (SslMode::Require, Encryption::Unverified),
            "verify-full" => (SslMode::Require, Encryption::VerifyFull { roots }),
            other => {
                return Err(address(format!(
                    "sslmode is {other:?}; it must be disable, prefer, require or verify-full"
                )));
            }
        };
        if has_roots && !matches!(encryption, Encryption::VerifyFull { .. }) {
            return Err(address("sslrootcert is looked at with sslmode=verify-full alone: set both or none"));
        }
        config.ssl_mode(mode);
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(address("it names no host"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(UNACKNOWLEDGED_MAX);
        }
        config.keepalives_idle(KEEPALIVE_IDLE);
        if config.get_application_name().is_none() {
            config.application_name("eventbucket");
        }
        Ok(Self { config, encryption })
    }
}

/// `user@host:port/database`, never more.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => write!(f, "{host}:{port}")?,
            #[cfg(unix)]
            Some(Host::Unix(path)) => write!(f, "{}", path.display())?,
            None => {}
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

fn address(what: impl Into<String>) -> Error {
    Error::Address { what: what.into().into() }
}

/// Takes the parameters about TLS out of an address; the driver knows fewer of them.
fn split_ssl(url: &str) -> Result<(String, Option<String>, Option<PathBuf>), Error> {
    let Some((front, query)) = url.split_once('?') else { return Ok((url.to_owned(), None, None)) };
    let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = || {
            let text = percent_decode_str(value).decode_utf8();
            text.map(String::from).map_err(|_| address(format!("{name} is not UTF-8")))
        };
        match name {
            "sslmode" => mode = Some(decoded()?),
            "sslrootcert" => roots = Some(PathBuf::from(decoded()?)),
            _ => rest.push(pair),
        }
    }
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    Ok((format!("{front}{query}"), mode, roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_its_password_never_shown() {
        let url = "postgres://ada:geheim@db.example:6432/log?sslmode=verify-full&sslrootcert=%2Fca.pem&application_name=x";
        let options = PostgresOptions::parse(url, Some("postgres://h/accounts?sslmode=disable")).unwrap();
        let shown = format!("{options:?}");
        assert!(shown.contains("ada@db.example:6432/log") && !shown.contains("geheim"), "{shown}");
        assert_eq!(options.log.encryption, Encryption::VerifyFull { roots: Some("/ca.pem".into()) });
        assert_eq!(options.log.config.get_application_name(), Some("x"));
        assert_eq!(options.accounts.unwrap().encryption, Encryption::Disable);
    }

    #[test]
    fn what_can_not_be_used_is_told_without_the_password() {
        for url in [
            "postgres://u:geheim@h/d?sslmode=verify-ca",
            "postgres://u:geheim@h:port/d",
            "u:geheim",
            "postgres://u:geheim@h/d?sslrootcert=/ca.pem",
        ] {
            let error = PostgresOptions::parse(url, None).unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
