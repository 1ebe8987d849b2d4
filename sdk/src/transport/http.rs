use std::error::Error as _;
use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eventbucket_protocol::{BATCHES_PATH, DRAINING_HEADER, EVENTS_PATH, NODES_PATH, SENT_AT_HEADER};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Proxy, Response, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::{Answer, Attempt, Inquiry, Question, SendError, Sending, Transport, retry_after};

/// An answer larger than this isn't read: a batch has at most 10,000 verdicts, and one with its reason takes 0.4 KiB.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a connection may take to be made, within the timeout of the attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections kept to one collector: as many as the worker has batches under way.
const IDLE_CONNECTIONS_MAX: usize = 4;

const USER_AGENT: &str = concat!("eventbucket-rust/", env!("CARGO_PKG_VERSION"));

/// Delivers over HTTP/1.1 by reqwest, with TLS by rustls on ring.
///
/// Trusts the system's certificates, and those added by [`HttpTransportBuilder::root_certificate_pem`]. Proxies come from
/// [`HttpTransportBuilder::proxy`], else from `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`. Redirects aren't followed, since
/// a key would travel along. No process-wide TLS provider is read or installed.
pub struct HttpTransport {
    options: HttpTransportBuilder,
    /// Made at the first attempt, inside the runtime its connections will live in.
    client: Mutex<Option<OwnClient>>,
}

/// Says what a transport can't be made of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The proxy URL can't be read.
    #[error("the proxy URL can't be read ({0}); write it like http://proxy.example.org:3128")]
    Proxy(String),
    /// The PEM text holds no certificate, or one that can't be read.
    #[error("the root certificate can't be read ({0}); give a PEM file with BEGIN CERTIFICATE lines")]
    Certificate(String),
    /// The user agent can't stand in a header.
    #[error("the user agent can't stand in a header; use visible ASCII characters")]
    UserAgent,
}

/// Sets up an [`HttpTransport`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct HttpTransportBuilder {
    proxy: Option<String>,
    roots_pem: Vec<Vec<u8>>,
    roots: Vec<CertificateDer<'static>>,
    connect_timeout: Option<Duration>,
    user_agent: Option<String>,
}

/// A client that only the process that made it may use: a forked child would write into its parent's connections.
struct OwnClient {
    client: Client,
    process: u32,
}

impl HttpTransport {
    /// Starts with the system's certificates and proxies.
    pub fn builder() -> HttpTransportBuilder {
        HttpTransportBuilder::default()
    }

    /// Hands out the client, and never waits: should the lock be taken (in a forked child, for ever), a client for this
    /// one attempt is made.
    fn client(&self) -> Result<Client, SendError> {
        let mut slot = match self.client.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.options.client(),
        };
        let process = std::process::id();
        match slot.take() {
            Some(own) if own.process == process => Ok(slot.insert(own).client.clone()),
            foreign => {
                #[expect(clippy::mem_forget, reason = "the connections in it belong to the parent process")]
                std::mem::forget(foreign);
                let client = self.options.client()?;
                Ok(slot.insert(OwnClient { client, process }).client.clone())
            }
        }
    }

    async fn exchange(&self, attempt: &Attempt) -> Result<Answer, SendError> {
        let key = bearer(&attempt.key)?;
        let url = format!("{}{EVENTS_PATH}", attempt.endpoint.trim_end_matches('/'));
        let mut request = self
            .client()?
            .post(url)
            .timeout(attempt.timeout)
            .header(AUTHORIZATION, key)
            .header(CONTENT_TYPE, attempt.content_type)
            .header(SENT_AT_HEADER, attempt.sent_at_ms)
            .body(attempt.body.to_vec());
        if let Some(encoding) = attempt.content_encoding {
            request = request.header(CONTENT_ENCODING, encoding);
        }
        answer(request.send().await.map_err(say)?).await
    }

    async fn inquire(&self, question: &Question) -> Result<Answer, SendError> {
        let endpoint = question.endpoint.trim_end_matches('/');
        let url = format!("{endpoint}{BATCHES_PATH}/{}?wait={}", question.batch_id, question.wait.as_secs());
        self.get(&url, &question.key, question.timeout).await
    }

    async fn look_around(&self, inquiry: &Inquiry) -> Result<Answer, SendError> {
        let url = format!("{}{NODES_PATH}", inquiry.endpoint.trim_end_matches('/'));
        self.get(&url, &inquiry.key, inquiry.timeout).await
    }

    async fn get(&self, url: &str, key: &str, timeout: Duration) -> Result<Answer, SendError> {
        let request = self.client()?.get(url).timeout(timeout).header(AUTHORIZATION, bearer(key)?);
        answer(request.send().await.map_err(say)?).await
    }
}

fn bearer(key: &str) -> Result<HeaderValue, SendError> {
    let mut key = HeaderValue::try_from(format!("Bearer {key}"))
        .map_err(|_| SendError::other("the key holds characters a header can't carry; check it"))?;
    key.set_sensitive(true);
    Ok(key)
}

async fn answer(response: Response) -> Result<Answer, SendError> {
    if response.status().is_redirection() {
        return Err(redirected(&response));
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| retry_after::parse(value.to_str().ok()?, now_unix_s()));
    let draining = response.headers().contains_key(DRAINING_HEADER);
    let status = response.status().as_u16();
    let body = read_capped(response).await?;
    Ok(Answer { status, retry_after, body, draining })
}

impl Transport for HttpTransport {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        Box::pin(self.exchange(attempt))
    }

    fn ask<'a>(&'a self, question: &'a Question) -> Sending<'a> {
        Box::pin(self.inquire(question))
    }

    fn discover<'a>(&'a self, inquiry: &'a Inquiry) -> Sending<'a> {
        Box::pin(self.look_around(inquiry))
    }
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

impl HttpTransportBuilder {
    /// Sends everything through a proxy, plain requests and CONNECT tunnels alike. User and password may stand in the URL.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Trusts the certificates in this PEM text as well. Can be called again for more.
    pub fn root_certificate_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots_pem.push(pem.into());
        self
    }

    /// Bounds how long a connection may take to be made; 10 s unless told otherwise.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Replaces the user agent `eventbucket-rust/<version>`.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = Some(user_agent.into());
        self
    }

    /// Checks what was given. Connects nowhere and starts nothing.
    ///
    /// # Errors
    /// When the proxy URL, a certificate or the user agent can't be read.
    pub fn build(mut self) -> Result<HttpTransport, TransportError> {
        if let Some(url) = &self.proxy {
            read_proxy(url)?;
        }
        for pem in std::mem::take(&mut self.roots_pem) {
            self.roots.extend(read_certificates(&pem)?);
        }
        if self.user_agent.as_ref().is_some_and(|agent| HeaderValue::from_str(agent).is_err()) {
            return Err(TransportError::UserAgent);
        }
        Ok(HttpTransport { options: self, client: Mutex::new(None) })
    }

    fn client(&self) -> Result<Client, SendError> {
        let tls = tls_config(&self.roots)?;
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(redirect::Policy::none())
            // Retries are decided above, where they are counted.
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.connect_timeout.unwrap_or(CONNECT_TIMEOUT))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .user_agent(self.user_agent.as_deref().unwrap_or(USER_AGENT));
        if let Some(url) = &self.proxy {
            builder = builder.proxy(read_proxy(url).map_err(|error| SendError::other(error.to_string()))?);
        }
        builder.build().map_err(say)
    }
}

/// reqwest takes bare words for hosts; only a URL with a scheme says what is meant.
fn read_proxy(url: &str) -> Result<Proxy, TransportError> {
    if !url.contains("://") {
        return Err(TransportError::Proxy("no scheme".to_owned()));
    }
    Proxy::all(url).map_err(|error| TransportError::Proxy(innermost(&error)))
}

fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TransportError::Certificate(error.to_string()))?;
    if certificates.is_empty() {
        return Err(TransportError::Certificate("no certificate in it".to_owned()));
    }
    for certificate in &certificates {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|error| TransportError::Certificate(error.to_string()))?;
    }
    Ok(certificates)
}

fn tls_config(roots: &[CertificateDer<'static>]) -> Result<ClientConfig, SendError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| SendError::other(error.to_string()))?;
    Ok(match Verifier::new_with_extra_roots(roots.iter().cloned(), provider) {
        Ok(verifier) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
        // A system without certificates can still reach a collector without TLS; one with TLS is refused.
        Err(_) => builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
    })
}

async fn read_capped(mut response: Response) -> Result<Vec<u8>, SendError> {
    let announced = usize::try_from(response.content_length().unwrap_or_default()).unwrap_or(usize::MAX);
    let mut body = Vec::with_capacity(announced.min(64 * 1024));
    while let Some(chunk) = response.chunk().await.map_err(say)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(SendError::other(format!(
                "the answer is larger than {ANSWER_BYTES_MAX} bytes; is the URL a collector's?"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn redirected(response: &Response) -> SendError {
    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or("nowhere");
    SendError::other(format!(
        "the collector's URL redirects ({}) to {target}; set the URL it leads to",
        response.status().as_u16()
    ))
}

/// The innermost cause says what happened; the URL is left out, for it may hold a password.
fn say(error: reqwest::Error) -> SendError {
    let error = error.without_url();
    if error.is_timeout() {
        SendError::Timeout
    } else if error.is_connect() {
        SendError::Connect(innermost(&error))
    } else {
        SendError::Other(format!("the exchange failed: {}", innermost(&error)))
    }
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

fn now_unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
