use std::fmt;
use std::io::{self, ErrorKind, Read};

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use eventbucket_protocol::codec::{DecodeError, Format};
use eventbucket_protocol::limits::BATCH_DECODED_BYTES_MAX;
use flate2::bufread::GzDecoder;

use super::body::Held;
use super::limits::{DECODE_INLINE_BYTES_MAX, Drawn, Limits};
use super::problem::{Cause, Refusal};

/// How much is decompressed between two looks at the limits.
const CHUNK_BYTES: usize = 64 * 1024;

/// The largest zstd window that is accepted, as a power of two: 16 MiB, all that a body may decompress to. A frame can
/// ask for 128 MiB and more, which would be allocated before the first byte.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;

/// The compressions of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    Zstd,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Reads the body's format from `Content-Type`.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, Refusal> {
    const TAKEN: &str = "send application/json, application/x-ndjson or application/msgpack";
    let refuse = |detail| Refusal::new(Cause::UnsupportedMediaType, detail);
    let value = headers
        .get(CONTENT_TYPE)
        .ok_or_else(|| refuse(format!("there is no Content-Type header; {TAKEN} (curl: use --json)")))?;
    let value = value.to_str().unwrap_or("not plain text");
    Format::from_content_type(value)
        .ok_or_else(|| refuse(format!("Content-Type {value:?} is not taken; {TAKEN} (curl: use --json)")))
}

/// Reads what `Content-Encoding` says.
pub(super) fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Refusal> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
    let value = value.to_str().unwrap_or("not plain text").trim();
    match value.to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(None),
        "gzip" | "x-gzip" => Ok(Some(Encoding::Gzip)),
        "zstd" => Ok(Some(Encoding::Zstd)),
        _ => {
            let detail = format!("Content-Encoding {value:?} is not taken; send zstd, gzip or leave it out");
            Err(Refusal::new(Cause::UnsupportedEncoding, detail))
        }
    }
}

/// Decompresses a body and runs `work` over it, on a thread for long work when it is big. The bytes stay drawn from the
/// budget until the caller has answered, because what came out of them lives as long.
pub(super) async fn decoded<T: Send + 'static>(
    held: Held,
    said: Option<Encoding>,
    limits: &Limits,
    work: impl FnOnce(&[u8]) -> Result<T, Refusal> + Send + 'static,
) -> Result<(T, Drawn), Refusal> {
    let _place = limits.decoding().await;
    let big = held.bytes.len() > DECODE_INLINE_BYTES_MAX || sniff(&held.bytes).is_some();
    let all = move || {
        let held = decompressed(held, said)?;
        Ok((work(&held.bytes)?, held.drawn))
    };
    if !big {
        return all();
    }
    match tokio::task::spawn_blocking(all).await {
        Ok(done) => done,
        // The thread is never aborted: what ended it was a panic, which goes on here and is answered as one.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What every gzip member begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Says by its first bytes how a body is compressed. No body in one of the formats begins with them: JSON begins with a
/// bracket or space, MessagePack with a map or list.
fn sniff(body: &[u8]) -> Option<Encoding> {
    match body {
        [0x1f, 0x8b, ..] => Some(Encoding::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Encoding::Zstd),
        _ => None,
    }
}

fn decompressed(held: Held, said: Option<Encoding>) -> Result<Held, Refusal> {
    if held.bytes.is_empty() {
        return Err(Refusal::new(Cause::TruncatedBody, "the body is empty; send a batch or an event"));
    }
    let found = sniff(&held.bytes);
    if let Some(said) = said
        && found != Some(said)
    {
        let is = found.map_or_else(|| "is not compressed".to_owned(), |found| format!("is {found}"));
        let detail =
            format!("Content-Encoding says {said}, but the body {is}; say what it is or leave it out");
        return Err(Refusal::new(Cause::MalformedBody, detail));
    }
    match found {
        None => Ok(held),
        Some(Encoding::Gzip) => unpack(GzipMembers::new(&held.bytes), "gzip", held.drawn),
        Some(Encoding::Zstd) => {
            let mut reader = zstd::stream::read::Decoder::with_buffer(&*held.bytes)
                .map_err(|error| unpacking_failed(&error, "zstd"))?;
            reader.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| unpacking_failed(&error, "zstd"))?;
            unpack(reader, "zstd", held.drawn)
        }
    }
}

/// The members of a gzip body, one after the other. What stands behind a member and isn't one is told apart from a member that
/// breaks off, however short it is.
struct GzipMembers<'a>(GzDecoder<&'a [u8]>);

impl<'a> GzipMembers<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(GzDecoder::new(bytes))
    }
}

impl Read for GzipMembers<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.0.read(out)?;
            let rest: &[u8] = self.0.get_ref();
            if read > 0 || out.is_empty() || rest.is_empty() {
                return Ok(read);
            }
            if !GZIP_MAGIC.starts_with(&rest[..rest.len().min(GZIP_MAGIC.len())]) {
                return Err(io::Error::new(ErrorKind::InvalidData, "there is more behind its end"));
            }
            self.0 = GzDecoder::new(rest);
        }
    }
}

/// Decompresses chunk by chunk, so that a bomb costs one chunk over the limit and not what it would become.
fn unpack(mut reader: impl Read, name: &'static str, mut drawn: Drawn) -> Result<Held, Refusal> {
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        let read = reader
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| unpacking_failed(&error, name))?;
        if read == 0 {
            return Ok(Held { bytes, drawn });
        }
        if bytes.len() > BATCH_DECODED_BYTES_MAX {
            let detail = format!(
                "the body is larger than {BATCH_DECODED_BYTES_MAX} bytes once decompressed; send fewer events in one"
            );
            return Err(Refusal::new(Cause::DecompressedTooLarge, detail));
        }
        drawn.add(bytes.len() - start)?;
    }
}

fn unpacking_failed(error: &io::Error, name: &'static str) -> Refusal {
    if error.kind() == ErrorKind::UnexpectedEof {
        return Refusal::new(
            Cause::TruncatedBody,
            format!("the {name} data breaks off; send the body again"),
        );
    }
    Refusal::new(Cause::MalformedBody, format!("the body can't be decompressed as {name}: {error}"))
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        let cause = match error {
            DecodeError::Truncated { .. } => Cause::TruncatedBody,
            DecodeError::TooManyEvents => Cause::TooManyEvents,
            _ => Cause::MalformedBody,
        };
        Self::new(cause, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unpacked(bytes: Vec<u8>, said: Option<Encoding>) -> Result<Vec<u8>, String> {
        let held = Held { bytes, drawn: Limits::new(1).draw() };
        decompressed(held, said).map(|held| held.bytes).map_err(|refusal| refusal.problem().code)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_first_bytes_decide_and_the_header_must_agree() {
        let packed =
            [(Encoding::Gzip, gzip(b"[]")), (Encoding::Zstd, zstd::encode_all(&b"[]"[..], 1).unwrap())];
        for (encoding, bytes) in &packed {
            assert_eq!(unpacked(bytes.clone(), None).unwrap(), b"[]");
            assert_eq!(unpacked(bytes.clone(), Some(*encoding)).unwrap(), b"[]");
            assert_eq!(unpacked(b"[]".to_vec(), Some(*encoding)).unwrap_err(), "malformed_body");
        }
        assert_eq!(unpacked(packed[0].1.clone(), Some(Encoding::Zstd)).unwrap_err(), "malformed_body");
        assert_eq!(unpacked(Vec::new(), None).unwrap_err(), "truncated_body");
    }

    #[test]
    fn a_body_of_several_members_is_read_to_its_end_and_rubbish_behind_it_is_not_ignored() {
        let both = [gzip(b"[1,"), gzip(b"2]")].concat();
        assert_eq!(unpacked(both, None).unwrap(), b"[1,2]");
        assert_eq!(
            unpacked([gzip(b"[]"), b"rubbish behind it".to_vec()].concat(), None).unwrap_err(),
            "malformed_body"
        );
        for length in 1..10 {
            let rubbish = vec![b'x'; length];
            let found = unpacked([gzip(b"[]"), rubbish].concat(), None).unwrap_err();
            assert_eq!(found, "malformed_body", "{length} bytes");
        }
        let second_breaks_off = [gzip(b"[1,"), gzip(b"2]")[..9].to_vec()].concat();
        assert_eq!(unpacked(second_breaks_off, None).unwrap_err(), "truncated_body");
        let zstd = zstd::encode_all(&b"[]"[..], 1).unwrap();
        assert_eq!(
            unpacked([zstd, b"rubbish behind it".to_vec()].concat(), None).unwrap_err(),
            "malformed_body"
        );
    }

    #[test]
    fn what_breaks_off_says_so_at_every_length() {
        let text = br#"{"events":[{"name":"a"},{"name":"b"}]}"#;
        for packed in [gzip(text), zstd::encode_all(&text[..], 1).unwrap()] {
            for length in 5..packed.len() {
                assert_eq!(
                    unpacked(packed[..length].to_vec(), None).unwrap_err(),
                    "truncated_body",
                    "{length}"
                );
            }
        }
    }

    #[test]
    fn bombs_stop_at_the_limit_and_what_just_fits_passes() {
        let fits = vec![b' '; BATCH_DECODED_BYTES_MAX];
        let over = vec![b' '; BATCH_DECODED_BYTES_MAX + 1];
        assert_eq!(unpacked(gzip(&fits), None).unwrap().len(), BATCH_DECODED_BYTES_MAX);
        assert_eq!(unpacked(gzip(&over), None).unwrap_err(), "decompressed_too_large");
        assert_eq!(
            unpacked(zstd::encode_all(&over[..], 3).unwrap(), None).unwrap_err(),
            "decompressed_too_large"
        );
    }
}
