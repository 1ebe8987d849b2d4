//! Bodies that are compressed, too large or too many. What is refused before anything behind the edge is asked is tested in one
//! form of the collector.

use std::io::Write;

use eventbucket_protocol::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use serde_json::json;

use crate::in_process::{Answer, Form, Running, collector};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn send_encoded(collector: &Running, encoding: &str, body: Vec<u8>) -> Answer {
    let request = collector.client.post(collector.url("/v1/events")).bearer_auth(&collector.write_key);
    let request = request.header("content-type", "application/json").header("content-encoding", encoding);
    let answer = Answer::to(request.body(body)).await;
    collector.finally(answer, &collector.write_key).await
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_taken_with_and_without_their_header() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let body = |id: &str| json!({"id": id, "name": "a"}).to_string().into_bytes();
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        assert_eq!(send_encoded(&collector, "gzip", gzip(&body("1"))).await.status, 200);
        assert_eq!(send_encoded(&collector, "zstd", zstd(&body("2"))).await.status, 200);
        assert_eq!(send_encoded(&collector, "identity", body("3")).await.status, 200);
        assert_eq!(collector.send(gzip(&body("4"))).await.status, 200);
        assert_eq!(collector.send(zstd(&body("5"))).await.status, 200);
        assert_eq!(collector.head().await, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoding_that_does_not_fit_the_body_is_said() {
    let collector = collector().await;
    let body = br#"{"name":"a"}"#;
    let half = gzip(body)[..15].to_vec();
    let mut found = Vec::new();
    for (encoding, body) in [
        ("gzip", body.to_vec()),
        ("zstd", gzip(body)),
        ("gzip", half),
        ("br", body.to_vec()),
        ("gzip", b"\x1f\x8bnothing that gzip knows".to_vec()),
    ] {
        found.push(send_encoded(&collector, encoding, body).await.problem());
    }
    insta::assert_snapshot!(found.join("\n"), @r#"
    400 malformed_body: The body can't be read. Content-Encoding says gzip, but the body is not compressed; say what it is or leave it out
    400 malformed_body: The body can't be read. Content-Encoding says zstd, but the body is gzip; say what it is or leave it out
    400 truncated_body: The body breaks off. the gzip data breaks off; send the body again
    415 unsupported_encoding: The content encoding is not supported. Content-Encoding "br" is not taken; send zstd, gzip or leave it out
    400 malformed_body: The body can't be read. the body can't be decompressed as gzip: invalid gzip header
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_stopped_and_the_collector_goes_on() {
    let collector = collector().await;
    // 256 MiB of spaces in 256 KiB of gzip and 25 KiB of zstd.
    let chunk = vec![b' '; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..256 {
        gzip.write_all(&chunk).unwrap();
        zstd.write_all(&chunk).unwrap();
    }
    let problem = "413 decompressed_too_large: The body is too large once decompressed. the body is larger than \
                   16777216 bytes once decompressed; send fewer events in one";
    assert_eq!(send_encoded(&collector, "gzip", gzip.finish().unwrap()).await.problem(), problem);
    assert_eq!(send_encoded(&collector, "zstd", zstd.finish().unwrap()).await.problem(), problem);
    assert_eq!(collector.send(r#"{"name":"a"}"#).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_holds_ten_thousand_events_and_not_one_more() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let lines = |count: usize| "{\"name\":\"a\"}\n".repeat(count);
        let answer = collector.send_as("application/x-ndjson", lines(BATCH_EVENTS_MAX + 1)).await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(answer.problem(), @"413 too_many_events: The batch holds too many events. the batch holds more than 10000 events; send them in smaller batches");
        }
        let list = format!("[{}1]", "{\"name\":\"a\"},".repeat(BATCH_EVENTS_MAX));
        assert_eq!(collector.send(list).await.json()["code"], "too_many_events");
        assert_eq!(collector.head().await, 0);
        let answer = collector.send_as("application/x-ndjson", lines(BATCH_EVENTS_MAX)).await;
        assert_eq!((answer.status, &answer.json()["all"]["verdict"]), (200, &json!("stored")));
        assert_eq!(collector.head().await, 10_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_over_long_body_is_refused_announced_or_not() {
    let collector = collector().await;
    let problem = "413 body_too_large: The body is too large. the body is larger than 4194304 bytes; split it, or \
                   compress it with zstd or gzip";
    assert_eq!(collector.send(vec![b' '; BATCH_BYTES_MAX + 1]).await.problem(), problem);
    // In chunks its length is not known before it has come. The client gets the answer and no reset.
    let chunks = futures_util::stream::iter((0..6).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    assert_eq!(collector.send(reqwest::Body::wrap_stream(chunks)).await.problem(), problem);
    let mut fits = br#"{"name":"a"}"#.to_vec();
    fits.resize(BATCH_BYTES_MAX, b' ');
    assert_eq!(collector.send(fits).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_early_still_hears_why() {
    let collector = collector().await;
    let body = vec![b' '; BATCH_BYTES_MAX];
    for round in 0..8 {
        let request = collector.client.post(collector.url("/v1/events")).bearer_auth("eb_write_nobody");
        let answer = Answer::to(request.body(body.clone())).await;
        assert_eq!(answer.json()["code"], "unknown_key", "round {round}");
        let answer = Answer::to(collector.client.post(collector.url("/v1/evnets")).body(body.clone())).await;
        assert_eq!(answer.json()["code"], "not_found", "round {round}");
    }
}
