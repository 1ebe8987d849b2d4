//! Connections that are slow, idle, too many, encrypted or open while the collector stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eventbucket_collector::config::{EdgeConfig, TlsConfig};
use eventbucket_collector::edge::Tls;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::in_process::{Answer, DEADLINE, client, collector, collector_with, tls_client};

/// A timeout that a test waits for.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_end_the_connection() {
    let collector = collector_with(EdgeConfig { header_timeout: SHORT, ..EdgeConfig::default() }, None).await;
    for start in [
        "",
        "PO",
        "POST /v1/events HTTP/1.1\r\nhost: x\r\n",
        "PRI * HTTP/2.0\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut connection = collector.connect().await;
        let began = Instant::now();
        connection.write(start).await;
        // HTTP/2 says goodbye in a frame, which is not text; what counts is that the connection ends.
        connection.ends().await;
        assert!(began.elapsed() >= SHORT, "{start:?} ended after {:?}", began.elapsed());
    }
    assert_eq!(collector.send(r#"{"name":"a"}"#).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_told_so() {
    let collector = collector_with(EdgeConfig { body_timeout: SHORT, ..EdgeConfig::default() }, None).await;
    let mut connection = collector.connect().await;
    connection.write(collector.raw_head(1000)).await;
    connection.write("{\"name\":").await;
    let answer = connection.read_until("smaller batches").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"slow_body\"") && answer.contains("8 bytes arrived"), "{answer}");
    assert_eq!(collector.head().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let collector = collector_with(EdgeConfig { header_timeout: SHORT, ..EdgeConfig::default() }, None).await;
    // A tail is one long request: it outlives the timeout many times over.
    let tail = collector.client.get(collector.url("/v1/events/tail")).bearer_auth(&collector.secret_key);
    let mut tail = tail.send().await.unwrap();
    let mut connection = collector.connect().await;
    connection.write("GET /healthz/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
    connection.read_until("\"live\"").await;
    connection.read_to_end().await;
    assert_eq!(collector.send(r#"{"name":"late"}"#).await.status, 200);
    let mut text = String::new();
    while !text.contains("\"late\"") {
        let chunk = timeout(DEADLINE, tail.chunk()).await.unwrap().unwrap().expect("the tail goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_answered_and_room_comes_back() {
    let collector = collector_with(EdgeConfig { connections_max: 2, ..EdgeConfig::default() }, None).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = collector.connect().await;
        connection.write("GET /healthz/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
        connection.read_until("\"live\"").await;
        held.push(connection);
    }
    let mut refused = collector.connect().await;
    refused.write("GET /healthz/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = refused.read_until("come again").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("\"code\":\"busy\""), "{answer}");
    held.clear();
    let back = async { while collector.get("/healthz/live").await.status != 200 {} };
    timeout(DEADLINE, back).await.expect("room comes back");
    assert!(collector.get("/metrics").await.body.contains("\neventbucket_http_connections_refused_total "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_is_in_flight_and_resets_nobody() {
    const CLIENTS: usize = 24;
    let mut collector = collector().await;
    let (progress, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (progress, url, key) = (progress.clone(), collector.url("/v1/events"), collector.write_key.clone());
            tokio::spawn(async move {
                let client = client(None);
                for round in 0_u64.. {
                    let batch = json!([{"id": format!("{number}-{round}-a"), "name": "a"}, {"id": format!("{number}-{round}-b"), "name": "b"}]);
                    match client.post(&url).bearer_auth(&key).json(&batch).send().await {
                        Ok(answer) => {
                            assert_eq!(answer.status(), 200);
                            answer.bytes().await.expect("an answer that began comes to its end");
                            progress.send(2).unwrap();
                        }
                        // Once the listener is closed nobody gets in; whoever is in must not be thrown out.
                        Err(error) => {
                            assert!(error.is_connect(), "{error:?}");
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    drop(progress);
    // One more sends the first half of a body and waits with the second.
    let body = r#"{"id":"half","name":"late"}"#;
    let mut slow = collector.connect().await;
    slow.write(collector.raw_head(body.len())).await;
    slow.write(&body[..10]).await;

    let mut sum = 0;
    while sum < 20 * CLIENTS as u64 {
        sum += timeout(DEADLINE, acknowledged.recv()).await.unwrap().unwrap();
    }
    collector.begin_to_stop();
    let stopping = async { while TcpStream::connect(collector.address).await.is_ok() {} };
    timeout(DEADLINE, stopping).await.expect("the listener closes");
    slow.write(&body[10..]).await;
    let answer = slow.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    for client in clients {
        timeout(DEADLINE, client).await.unwrap().unwrap();
    }
    while let Some(more) = acknowledged.recv().await {
        sum += more;
    }
    collector.drained().await;
    assert_eq!(collector.head().await, sum + 1, "stored is what was acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_cut_and_tails_end_by_themselves() {
    let config = EdgeConfig { drain_timeout: Duration::from_secs(1), ..EdgeConfig::default() };
    let mut collector = collector_with(config, None).await;
    let tail = collector.client.get(collector.url("/v1/events/tail")).bearer_auth(&collector.secret_key);
    let tail = tail.send().await.unwrap();
    let mut stuck = collector.connect().await;
    stuck.write(collector.raw_head(1000)).await;
    stuck.write("{").await;
    // The request has reached the collector when it shows among the connections.
    let arrived =
        async { while !collector.get("/metrics").await.body.contains("eventbucket_http_connections 3") {} };
    timeout(DEADLINE, arrived).await.unwrap();
    let began = Instant::now();
    collector.drained().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "the stuck request was given its time");
    tail.text().await.expect("the tail ended as it should");
    stuck.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_collector_is_not_ready() {
    let mut collector = collector().await;
    let mut connection = collector.connect().await;
    connection.write("GET /healthz/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
    connection.read_until("\"live\"").await;
    collector.begin_to_stop();
    let stopping = async { while TcpStream::connect(collector.address).await.is_ok() {} };
    timeout(DEADLINE, stopping).await.expect("the listener closes");
    // The kept connection still gets one answer, and is told to leave.
    connection.write("GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = connection.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("the collector is stopping"), "{answer}");
    collector.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_gives_notice_goes_on_taking_batches_and_says_that_it_stops() {
    let config = EdgeConfig { drain_notice: Some(DEADLINE), ..EdgeConfig::default() };
    let collector = collector_with(config, None).await;
    assert_eq!(collector.send(r#"{"name":"before"}"#).await.header("event-bucket-draining"), "");
    collector.begin_to_stop();
    let stopping = async { while collector.get("/healthz/ready").await.status == 200 {} };
    timeout(DEADLINE, stopping).await.expect("it is no longer ready");
    // Each is a new connection, since the answer before it closed the one it came on.
    for number in 0..3 {
        let answer = collector.send(format!(r#"{{"name":"{number}"}}"#)).await;
        assert_eq!((answer.status, answer.header("event-bucket-draining")), (200, "1"), "{answer:?}");
        assert_eq!(answer.header("connection"), "close");
    }
    assert_eq!(collector.head().await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_ends_however_many_knock() {
    let config = EdgeConfig { drain_notice: Some(Duration::from_millis(50)), ..EdgeConfig::default() };
    let mut collector = collector_with(config, None).await;
    let address = collector.address;
    let knocking = tokio::spawn(async move { while TcpStream::connect(address).await.is_ok() {} });
    collector.drained().await;
    timeout(DEADLINE, knocking).await.expect("the listener is closed").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_understood_without_tls_too() {
    let collector = collector().await;
    let stream = TcpStream::connect(collector.address).await.unwrap();
    assert_eq!(over_http2(stream, &collector.write_key, r#"{"name":"a"}"#).await, 200);
    let stream = TcpStream::connect(collector.address).await.unwrap();
    assert_eq!(over_http2(stream, "eb_write_nobody", r#"{"name":"a"}"#).await, 401);
    assert_eq!(collector.head().await, 1);
}

/// Sends a batch over HTTP/2 and returns the status.
async fn over_http2<I>(io: I, key: &str, body: &'static str) -> u16
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post("http://localhost/v1/events")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes::Bytes::from_static(body.as_bytes())))
        .unwrap();
    let answer = timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.version(), hyper::Version::HTTP_2);
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_carries_both_versions_of_http_and_a_wrong_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files =
        TlsConfig { certificate: folder.path().join("certificate.pem"), key: folder.path().join("key.pem") };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let config = EdgeConfig { header_timeout: SHORT, ..EdgeConfig::default() };
    let collector = collector_with(config, Some(Tls::load(&files).unwrap())).await;

    let url = format!("https://localhost:{}/v1/events", collector.address.port());
    let trusting = client(Some(made.cert.der().clone()));
    let request = trusting.post(&url).bearer_auth(&collector.write_key).json(&json!({"name": "a"}));
    assert_eq!(Answer::to(request).await.status, 200);
    assert!(client(None).get(&url).send().await.is_err(), "an unknown certificate is not accepted");
    let mut tls = tls_client(Some(made.cert.der().clone()));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(collector.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(over_http2(stream, &collector.write_key, r#"{"name":"b"}"#).await, 200);
    // A handshake that never begins doesn't hold its place for ever.
    collector.connect().await.ends().await;
    assert_eq!(collector.head().await, 2);

    let swapped = TlsConfig { certificate: files.key.clone(), key: files.certificate.clone() };
    let error = Tls::load(&swapped).err().expect("a key is no certificate").to_string();
    assert!(error.starts_with("can't read a certificate from ") && error.contains("key.pem"), "{error}");
    let absent = TlsConfig { key: folder.path().join("absent.pem"), ..files };
    let error = Tls::load(&absent).err().expect("there is no key").to_string();
    assert!(error.starts_with("can't read a private key from ") && error.contains("absent.pem"), "{error}");
}
