use std::sync::Arc;

/// Bodies below 1 KiB travel as they are: with headers the request is one or two packets either way.
pub(crate) const COMPRESS_BYTES_MIN: usize = 1024;

/// Level 1 takes 0.6 µs an event and makes batches 6 times smaller; higher levels cost a multiple for a few percent.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

/// How bodies are compressed.
///
/// The same body always becomes the same bytes. Bodies below 1 KiB, and those that don't shrink, travel as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// zstd, level 1.
    #[cfg(feature = "zstd")]
    Zstd,
    /// gzip, level 1; for what sits between here and the collector and knows no zstd.
    #[cfg(feature = "gzip")]
    Gzip,
}

/// The first of zstd, gzip and none that this build has.
impl Default for Compression {
    fn default() -> Self {
        #[cfg(feature = "zstd")]
        return Self::Zstd;
        #[cfg(all(feature = "gzip", not(feature = "zstd")))]
        return Self::Gzip;
        #[cfg(not(any(feature = "zstd", feature = "gzip")))]
        return Self::None;
    }
}

impl Compression {
    /// Compresses a body and names the encoding, or hands the body back with none.
    pub(crate) fn compress(self, body: Arc<[u8]>) -> (Arc<[u8]>, Option<&'static str>) {
        if body.len() < COMPRESS_BYTES_MIN {
            return (body, None);
        }
        let compressed: Option<(Vec<u8>, &'static str)> = match self {
            Self::None => None,
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd(&body).map(|bytes| (bytes, "zstd")),
            #[cfg(feature = "gzip")]
            Self::Gzip => gzip(&body).ok().map(|bytes| (bytes, "gzip")),
        };
        match compressed {
            Some((bytes, encoding)) if bytes.len() < body.len() => (bytes.into(), Some(encoding)),
            _ => (body, None),
        }
    }
}

/// A failure is of memory alone; then the body travels as it is.
#[cfg(feature = "zstd")]
fn zstd(body: &[u8]) -> Option<Vec<u8>> {
    let mut compressed = Vec::with_capacity(zstd_safe::compress_bound(body.len()));
    zstd_safe::compress(&mut compressed, body, ZSTD_LEVEL).ok()?;
    Some(compressed)
}

#[cfg(feature = "gzip")]
fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Write as _;

    // The header holds no time, so that the bytes depend on the body alone.
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Arc<[u8]> {
        r#"{"name":"order_paid","user":"u-17","amount":12.5}"#.repeat(100).into_bytes().into()
    }

    #[test]
    #[cfg(feature = "zstd")]
    fn zstd_shrinks_and_is_the_same_each_time() {
        let (body, encoding) = Compression::Zstd.compress(events());
        assert_eq!(encoding, Some("zstd"));
        assert!(body.len() * 6 < events().len());
        let mut read = Vec::with_capacity(1 << 20);
        zstd_safe::decompress(&mut read, &body).unwrap();
        assert_eq!(read, *events());
        assert_eq!(Compression::Zstd.compress(events()).0, body);
    }

    #[test]
    #[cfg(feature = "gzip")]
    fn gzip_shrinks_and_is_the_same_each_time() {
        use std::io::Read as _;

        let (body, encoding) = Compression::Gzip.compress(events());
        assert_eq!(encoding, Some("gzip"));
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&*body).read_to_end(&mut read).unwrap();
        assert_eq!(read, *events());
        assert_eq!(Compression::Gzip.compress(events()).0, body);
    }

    #[test]
    fn what_is_small_or_does_not_shrink_travels_as_it_is() {
        let small: Arc<[u8]> = vec![b'a'; COMPRESS_BYTES_MIN - 1].into();
        assert_eq!(Compression::default().compress(Arc::clone(&small)), (small, None));
        let mut random = fastrand::Rng::with_seed(7);
        let noise: Arc<[u8]> = (0..4096).map(|_| random.u8(..)).collect();
        assert_eq!(Compression::default().compress(Arc::clone(&noise)), (noise, None));
        assert_eq!(Compression::None.compress(events()), (events(), None));
    }
}
