//! Whom the command line trusts over TLS: the system's authorities, or those of one file.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, Url};
use rustls::CertificateError;

use crate::config::CA_FILE_VARIABLE;

use super::failure::Failure;
use super::remote::CONNECT_TIMEOUT;

/// After this much silence a connection is asked whether the other end is still there: an audit is quiet for longer.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Makes the client for an address.
pub(super) fn client(base: &Url, ca_file: Option<&Path>) -> Result<Client, Failure> {
    install_tls();
    let builder = Client::builder()
        .user_agent(concat!("eventbucket-cli/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        .redirect(reqwest::redirect::Policy::none());
    // A proxy could only reach its own loopback, never ours.
    let loopback = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let builder = if loopback { builder.no_proxy() } else { builder };
    let builder = match ca_file {
        Some(file) => builder.tls_certs_only(read(file)?),
        // A system without certificates, as a small container is, can ask without TLS all the same.
        None if base.scheme() == "http" => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build().map_err(|error| Failure::new("prepare the connection", error).remedy(trust()))
}

fn read(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let what = || format!("trust the certificates in {}", file.display());
    let pem = std::fs::read(file).map_err(|error| {
        Failure::usage(what(), error.to_string()).remedy("name a PEM file with --ca-file")
    })?;
    let none = "there is no certificate in it; it must be PEM, with BEGIN CERTIFICATE lines";
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Failure::usage(what(), none)),
    }
}

/// Says what is wrong with a certificate that was not accepted; `None` when something else failed.
pub(super) fn refused(what: &str, base: &Url, error: &reqwest::Error) -> Option<Failure> {
    let error = of_certificate(error)?;
    // The library below has no name of its own for it.
    if format!("{error:?}").contains("CaUsedAsEndEntity") {
        let cause = format!("{base} shows an authority's certificate as its own, which is not accepted");
        return Some(Failure::because(what, cause).remedy(
            "make it one of a server (basicConstraints CA:FALSE); docs/OPERATIONS.md, \"TLS\", shows how",
        ));
    }
    let failure = Failure::because(what, format!("the certificate of {base} is not accepted: {error}"));
    Some(match error {
        CertificateError::UnknownIssuer => failure.remedy(trust()),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            failure.remedy("write the address with a name that is in the certificate")
        }
        _ => failure,
    })
}

/// Says that one side speaks TLS and the other doesn't; `None` when something else failed. `cause` is the innermost error.
pub(super) fn mismatched(
    what: &str,
    base: &Url,
    error: &reqwest::Error,
    cause: &dyn Error,
) -> Option<Failure> {
    let garbled = matches!(of_tls(error), Some(rustls::Error::InvalidMessage(_)));
    // The library below has no name for it that can be asked.
    let alert = base.scheme() == "http" && cause.to_string().contains("invalid HTTP version");
    let (cause, scheme) = match (garbled, alert) {
        (true, _) => ("doesn't speak TLS", "http"),
        (_, true) => ("speaks TLS", "https"),
        _ => return None,
    };
    let failure = Failure::because(what, format!("{base} {cause}"));
    Some(failure.remedy(format!("write the address with {scheme}://")))
}

fn trust() -> String {
    format!("name the authority that signed it with --ca-file FILE, or in {CA_FILE_VARIABLE}")
}

fn of_certificate(error: &reqwest::Error) -> Option<&CertificateError> {
    match of_tls(error) {
        Some(rustls::Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    }
}

fn of_tls(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        // An I/O error hides the error it was made of from the chain.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = inner
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .or_else(|| error.downcast_ref::<rustls::Error>());
        if found.is_some() {
            return found;
        }
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[expect(clippy::disallowed_methods, reason = "this process is the application and nobody else's")]
fn install_tls() {
    // A second call finds the first one's provider, which is the same.
    drop(rustls::crypto::ring::default_provider().install_default());
}
