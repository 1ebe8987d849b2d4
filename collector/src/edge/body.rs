use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::request::Parts;
use bytes::Bytes;
use eventbucket_protocol::limits::BATCH_BYTES_MAX;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::limits::{DISCARD_BYTES_MAX, DISCARD_TIME_MAX, Drawn, Limits};
use super::problem::{Cause, Refusal};

/// A body in memory and the account its bytes are drawn on.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    pub(super) drawn: Drawn,
}

/// Reads a body of at most 4 MiB within the time one body may take.
pub(super) async fn read(
    head: &Parts,
    body: &mut Body,
    limits: &Limits,
    time_max: Duration,
) -> Result<Held, Refusal> {
    read_up_to(BATCH_BYTES_MAX, head, body, limits, time_max).await
}

/// Reads a body with a limit of its own.
pub(super) async fn read_up_to(
    bytes_max: usize,
    head: &Parts,
    body: &mut Body,
    limits: &Limits,
    time_max: Duration,
) -> Result<Held, Refusal> {
    let announced = announced(head);
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    let mut held = Held { bytes: Vec::new(), drawn: limits.draw() };
    match timeout(time_max, collect(body, &mut held, bytes_max)).await {
        Ok(collected) => collected.map(|()| held),
        Err(_) => {
            let detail = format!(
                "{} bytes arrived in {} s; send smaller batches or on a faster line",
                held.bytes.len(),
                time_max.as_secs_f64()
            );
            Err(Refusal::new(Cause::SlowBody, detail))
        }
    }
}

async fn collect(body: &mut Body, held: &mut Held, bytes_max: usize) -> Result<(), Refusal> {
    while let Some(chunk) = next_chunk(body).await? {
        if held.bytes.len() + chunk.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        held.drawn.add(chunk.len())?;
        held.bytes.extend_from_slice(&chunk);
    }
    Ok(())
}

/// Returns the next bytes, `None` at the end; trailers are skipped.
async fn next_chunk(body: &mut Body) -> Result<Option<Bytes>, Refusal> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "a body broke off");
            Refusal::new(Cause::TruncatedBody, "the connection ended before the body did; send it again")
        })?;
        if let Ok(chunk) = frame.into_data() {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

fn too_large(bytes_max: usize) -> Refusal {
    Refusal::new(
        Cause::BodyTooLarge,
        format!("the body is larger than {bytes_max} bytes; split it, or compress it with zstd or gzip"),
    )
}

fn announced(head: &Parts) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads the rest of a refused body and throws it away. A server that answers and closes while bytes are still coming
/// in makes the kernel send a reset, and the client loses the answer that says what is wrong.
pub(super) async fn discard((head, body): (Parts, Body)) {
    discard_rest(&head, body).await;
}

/// The same for a body that was read in part.
pub(super) async fn discard_rest(head: &Parts, mut body: Body) {
    // Who asked before sending hears the answer and sends nothing; reading would invite the body.
    let asked_first = head.headers.contains_key(EXPECT);
    if asked_first || announced(head).is_some_and(|bytes| bytes > DISCARD_BYTES_MAX as u64) {
        return;
    }
    let read = async {
        let mut left = DISCARD_BYTES_MAX;
        while let Ok(Some(chunk)) = next_chunk(&mut body).await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whether it ended or the time did, the answer goes out next.
    let _ = timeout(DISCARD_TIME_MAX, read).await;
}
