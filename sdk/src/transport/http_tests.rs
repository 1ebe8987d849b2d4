use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventbucket_protocol::BatchId;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// One request as it came over the wire.
#[derive(Debug)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut received = Vec::new();
    let head_bytes = loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(received[..head_bytes].to_vec()).unwrap();
    let mut lines = head.lines();
    let line = lines.next().unwrap().to_owned();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let body_bytes: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = received.split_off(head_bytes);
    while body.len() < body_bytes {
        assert!(stream.read_buf(&mut body).await.unwrap() > 0, "the body broke off");
    }
    Some(Request { line, headers, body })
}

/// Answers every request on a connection with the same bytes.
async fn answer_all(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<[u8]>,
    seen: mpsc::UnboundedSender<Request>,
) {
    while let Some(request) = read_request(&mut stream).await {
        drop(seen.send(request));
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// A real server on a real socket.
struct Server {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Request>,
    connections: Arc<AtomicUsize>,
}

async fn serve(answer: impl Into<Vec<u8>>, tls: Option<tokio_rustls::TlsAcceptor>) -> Server {
    let answer: Arc<[u8]> = answer.into().into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = mpsc::unbounded_channel();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let (answer, sender, tls) = (Arc::clone(&answer), sender.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => answer_all(stream, answer, sender).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            answer_all(stream, answer, sender).await;
                        }
                    }
                }
            });
        }
    });
    Server { address, seen, connections }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn attempt_to(endpoint: impl Into<String>) -> Attempt {
    let batch = BatchId::from_text("b");
    Attempt {
        sent_at_ms: 1_700_000_000_123,
        events: 1,
        timeout: Duration::from_secs(20),
        ..Attempt::new(endpoint, "eb_write_secret", batch, Arc::from(&b"the body"[..]))
    }
}

fn plain() -> HttpTransport {
    HttpTransport::builder().build().unwrap()
}

#[tokio::test]
async fn an_attempt_carries_its_headers_and_body_unchanged() {
    let mut server = serve(ok("{}"), None).await;
    let transport = plain();
    let mut attempt = attempt_to(format!("http://{}/", server.address));
    attempt.content_encoding = Some("zstd");
    let answer = transport.send(&attempt).await.unwrap();
    assert_eq!(answer, Answer::new(200).with_body("{}"));
    let request = server.seen.recv().await.unwrap();
    assert_eq!(request.line, "POST /v1/events HTTP/1.1");
    assert_eq!(request.body, b"the body");
    let agent = concat!("eventbucket-rust/", env!("CARGO_PKG_VERSION"));
    for (header, value) in [
        ("authorization", "Bearer eb_write_secret"),
        ("content-type", "application/msgpack"),
        ("content-encoding", "zstd"),
        ("event-bucket-sent-at", "1700000000123"),
        ("user-agent", agent),
        ("content-length", "8"),
    ] {
        assert_eq!(request.headers.get(header).map(String::as_str), Some(value), "{header}");
    }
    attempt.content_encoding = None;
    attempt.endpoint = format!("http://{}/behind/a/path", server.address);
    transport.send(&attempt).await.unwrap();
    let request = server.seen.recv().await.unwrap();
    assert_eq!(request.line, "POST /behind/a/path/v1/events HTTP/1.1");
    assert!(!request.headers.contains_key("content-encoding"));
    assert_eq!(server.connections.load(Ordering::Relaxed), 1, "the connection is used again");
}

#[tokio::test]
async fn an_error_status_is_an_answer_and_carries_its_delay() {
    let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 17\r\ncontent-length: 4\r\n\r\nbusy";
    let server = serve(answer, None).await;
    let answer = plain().send(&attempt_to(format!("http://{}", server.address))).await.unwrap();
    let expected = Answer::new(503).with_retry_after(Duration::from_secs(17)).with_body("busy");
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_says_where_it_leads() {
    let mut target = serve(ok("{}"), None).await;
    let answer = format!(
        "HTTP/1.1 308 Permanent Redirect\r\nlocation: http://{}/v1/events\r\ncontent-length: 0\r\n\r\n",
        target.address
    );
    let server = serve(answer, None).await;
    let error = plain().send(&attempt_to(format!("http://{}", server.address))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("308") && text.contains(&target.address.to_string()), "{text}");
    assert!(target.seen.try_recv().is_err(), "the key didn't travel");
}

#[tokio::test]
async fn an_answer_over_the_cap_is_given_up() {
    let bytes = 5 * 1024 * 1024;
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + bytes, b' ');
    let server = serve(answer, None).await;
    let error = plain().send(&attempt_to(format!("http://{}", server.address))).await.unwrap_err();
    assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn no_answer_in_time_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut attempt = attempt_to(format!("http://{}", listener.local_addr().unwrap()));
    attempt.timeout = Duration::from_millis(100);
    assert_eq!(plain().send(&attempt).await, Err(SendError::Timeout));
}

#[tokio::test]
async fn nobody_listening_or_a_cut_answer_or_no_url_is_an_error_without_the_key() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let transport = plain();
    let refused = transport.send(&attempt_to(format!("http://{address}"))).await.unwrap_err();
    assert!(matches!(refused, SendError::Connect(_)), "{refused:?}");
    let server = serve("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", None).await;
    let mut attempt = attempt_to(format!("http://{}", server.address));
    attempt.timeout = Duration::from_millis(300);
    transport.send(&attempt).await.unwrap_err();
    for endpoint in ["not a url", "ftp://127.0.0.1", "http://"] {
        let error = transport.send(&attempt_to(endpoint)).await.unwrap_err();
        assert!(!error.to_string().contains("eb_write_secret"), "{error}");
    }
    let mut attempt = attempt_to(format!("http://{address}"));
    attempt.key = "line\nbreak".to_owned();
    let error = transport.send(&attempt).await.unwrap_err();
    assert!(error.to_string().contains("the key"), "{error}");
    assert!(!format!("{attempt:?}").contains("break"), "the key isn't shown");
}

struct Authority {
    pem: String,
    acceptor: tokio_rustls::TlsAcceptor,
}

/// A certificate authority of one's own, and a server certificate from it for 127.0.0.1.
fn authority() -> Authority {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.into())
        .unwrap();
    Authority { pem, acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)) }
}

#[tokio::test]
async fn tls_trusts_an_own_authority_when_told_and_nobody_else() {
    let authority = authority();
    let mut server = serve(ok("{}"), Some(authority.acceptor)).await;
    let attempt = attempt_to(format!("https://{}", server.address));
    let trusting = HttpTransport::builder().root_certificate_pem(authority.pem).build().unwrap();
    assert_eq!(trusting.send(&attempt).await.unwrap().status, 200);
    assert_eq!(server.seen.recv().await.unwrap().body, b"the body");
    let refused = plain().send(&attempt).await.unwrap_err();
    assert!(matches!(&refused, SendError::Connect(reason) if reason.contains("certificate")), "{refused:?}");
    assert!(server.seen.try_recv().is_err());
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "the process has no provider from here");
}

/// Opens the tunnels it is asked for and reports their targets.
async fn connect_proxy() -> (SocketAddr, mpsc::UnboundedReceiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut inner, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let request = read_request(&mut inner).await.unwrap();
                let target = request.line.split(' ').nth(1).unwrap().to_owned();
                sender.send(request).unwrap();
                let mut outer = TcpStream::connect(target).await.unwrap();
                inner.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut inner, &mut outer).await);
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_proxy_tunnels_tls_and_forwards_plain_requests() {
    let authority = authority();
    let mut server = serve(ok("{}"), Some(authority.acceptor)).await;
    let (proxy, mut tunnels) = connect_proxy().await;
    let transport = HttpTransport::builder()
        .proxy(format!("http://user:word@{proxy}"))
        .root_certificate_pem(authority.pem)
        .build()
        .unwrap();
    let answer = transport.send(&attempt_to(format!("https://{}", server.address))).await.unwrap();
    assert_eq!(answer.status, 200);
    let tunnel = tunnels.recv().await.unwrap();
    assert_eq!(tunnel.line, format!("CONNECT {} HTTP/1.1", server.address));
    assert_eq!(tunnel.headers["proxy-authorization"], "Basic dXNlcjp3b3Jk");
    assert!(!tunnel.headers.contains_key("authorization"), "the proxy doesn't see the key");
    assert_eq!(server.seen.recv().await.unwrap().body, b"the body");

    let mut forward = serve(ok("{}"), None).await;
    let transport = HttpTransport::builder().proxy(format!("http://{}", forward.address)).build().unwrap();
    transport.send(&attempt_to("http://collector.invalid")).await.unwrap();
    assert_eq!(forward.seen.recv().await.unwrap().line, "POST http://collector.invalid/v1/events HTTP/1.1");
}

#[test]
fn options_that_can_not_work_are_refused_when_built() {
    let refused = |builder: HttpTransportBuilder| builder.build().unwrap_err().to_string();
    assert!(refused(HttpTransport::builder().proxy("proxy:3128")).contains("proxy URL"));
    assert!(refused(HttpTransport::builder().proxy("http://")).contains("proxy URL"));
    assert!(refused(HttpTransport::builder().root_certificate_pem("hello")).contains("BEGIN CERTIFICATE"));
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(refused(HttpTransport::builder().root_certificate_pem(broken)).contains("BEGIN CERTIFICATE"));
    assert!(refused(HttpTransport::builder().user_agent("line\nbreak")).contains("user agent"));
}

#[test]
fn a_client_outlives_the_runtime_of_a_worker_that_was_restarted() {
    let servers = tokio::runtime::Runtime::new().unwrap();
    let mut server = servers.block_on(serve(ok("{}"), None));
    let transport = plain();
    for _ in 0..2 {
        let worker = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let attempt = attempt_to(format!("http://{}", server.address));
        assert_eq!(worker.block_on(transport.send(&attempt)).unwrap().status, 200);
        assert_eq!(server.seen.blocking_recv().unwrap().body, b"the body");
    }
}
