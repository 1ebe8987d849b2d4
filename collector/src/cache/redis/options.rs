use std::fmt;
use std::path::Path;
use std::time::Duration;

use redis::{Client, ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use crate::cache::Error;

/// How long a request waits for Redis at most: a quarter of a second once, then no request waits until it is back.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// The same for what moves whole sets of counters: 100,000 names of 100 B are 10 MB.
const BULK_TIMEOUT: Duration = Duration::from_secs(2);

/// Which Redis to use, and how.
#[derive(Clone)]
pub struct RedisOptions {
    pub(super) address: ConnectionInfo,
    /// What every key begins with, so that several collectors can share a server. All processes of one collector need the
    /// same.
    pub prefix: String,
    /// Whose keys these are: a process of another store doesn't start. Everybody's without it.
    pub store: Option<String>,
    /// The certificate authority of a `rediss://` server, PEM; the system's when there is none.
    pub root_certificate_pem: Option<Vec<u8>>,
    /// How long a request waits for an answer.
    pub answer_timeout: Duration,
    /// How long counters are waited for when all of a project are moved at once.
    pub bulk_timeout: Duration,
}

impl RedisOptions {
    /// Reads an address: `redis://[user:password@]host:port/db`, `rediss://…` with TLS.
    ///
    /// # Errors
    /// [`Error::Address`]; it doesn't repeat the address.
    pub fn new(url: &str) -> Result<Self, Error> {
        let address = url.into_connection_info().map_err(|error| Error::Address {
            // The detail of the crate's message can be a part of the address.
            reason: error.category().to_owned(),
        })?;
        Ok(Self {
            address,
            prefix: "eventbucket".to_owned(),
            store: None,
            root_certificate_pem: None,
            answer_timeout: ANSWER_TIMEOUT,
            bulk_timeout: BULK_TIMEOUT,
        })
    }

    /// Believes the certificate authorities of a PEM file about the server, and no others.
    ///
    /// # Errors
    /// [`Error::CaFile`] when it can't be read.
    pub fn trusting(self, ca_file: &Path) -> Result<Self, Error> {
        let failed =
            |error: std::io::Error| Error::CaFile { file: ca_file.to_owned(), reason: error.to_string() };
        Ok(Self { root_certificate_pem: Some(std::fs::read(ca_file).map_err(failed)?), ..self })
    }

    pub(super) fn client(&self) -> Result<Client, Error> {
        let made = match &self.root_certificate_pem {
            Some(pem) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) };
                Client::build_with_tls(self.address.clone(), certificates)
            }
            None => Client::open(self.address.clone()),
        };
        made.map_err(|error| Error::Address { reason: error.category().to_owned() })
    }
}

/// Shows where, never the user or the password.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("server", &self.address.addr().to_string())
            .field("prefix", &self.prefix)
            .field("answer_timeout", &self.answer_timeout)
            .field("bulk_timeout", &self.bulk_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_in_no_message() {
        let options = RedisOptions::new("rediss://ann:hunter2@cache.example:6380/1").unwrap();
        let shown = format!("{options:?}");
        assert!(shown.contains("cache.example:6380"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("ann"), "{shown}");
        for wrong in
            ["redis://ann:hunter2@cache:port/0", "http://ann:hunter2@cache/", "redis://ann:hunter2@cache/x"]
        {
            let error = RedisOptions::new(wrong).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
