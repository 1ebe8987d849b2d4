use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// A moment in Unix milliseconds, shown as RFC 3339 in UTC.
///
/// 0001-01-01 to 9999-12-30T22:00:00Z; what lies outside can't be written in RFC 3339 and is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 0001-01-01T00:00:00.000Z.
const MS_MIN: i64 = -62_135_596_800_000;
/// 9999-12-30T22:00:00.000Z, the last moment every time zone can still write with four digits.
const MS_MAX: i64 = 253_402_207_200_000;

impl Timestamp {
    /// Takes Unix milliseconds; `None` before 0001-01-01 or after 9999-12-30T22:00:00Z.
    #[must_use]
    pub fn from_ms(unix_ms: i64) -> Option<Self> {
        (MS_MIN..=MS_MAX).contains(&unix_ms).then_some(Self(unix_ms))
    }

    /// Reads an RFC 3339 timestamp with any offset, cut to milliseconds.
    #[must_use]
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        if !has_its_shape(text) {
            return None;
        }
        let moment: jiff::Timestamp = text.parse().ok()?;
        // Cut towards the past on both sides of 1970.
        i64::try_from(moment.as_nanosecond().div_euclid(1_000_000)).ok().and_then(Self::from_ms)
    }

    /// Takes the system's time, held within the years that can be written.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Self {
        let unix_ms = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        Self(unix_ms.clamp(MS_MIN, MS_MAX))
    }

    /// Returns Unix milliseconds.
    #[must_use]
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// Moves the moment, held within the years that can be written.
    #[must_use]
    pub fn shifted(self, by_ms: i64) -> Self {
        Self(self.0.saturating_add(by_ms).clamp(MS_MIN, MS_MAX))
    }
}

/// `YYYY-MM-DDThh:mm:ss`, a fraction, `Z` or `±hh:mm` ([RFC 3339 §5.6](https://www.rfc-editor.org/rfc/rfc3339#section-5.6)).
/// jiff reads more: basic forms, six-digit years and zones in brackets.
fn has_its_shape(text: &str) -> bool {
    let like = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b'T' | b't' | b' '),
                _ => byte == wanted,
            })
    };
    let Some((moment, rest)) = text.as_bytes().split_at_checked(MOMENT.len()) else { return false };
    let digits =
        rest.strip_prefix(b".").map(|rest| rest.iter().take_while(|byte| byte.is_ascii_digit()).count());
    let offset = match digits {
        Some(0) => return false,
        Some(digits) => &rest[1 + digits..],
        None => rest,
    };
    let zone = matches!(offset, b"Z" | b"z") || like(offset, b"+00:00") || like(offset, b"-00:00");
    like(moment, MOMENT) && zone
}

/// A digit for each 0.
const MOMENT: &[u8] = b"0000-00-00T00:00:00";

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment =
            jiff::Timestamp::from_millisecond(self.0).expect("the range was checked at construction");
        write!(f, "{moment:.3}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_reads_any_offset_and_prints_utc() {
        let moment = Timestamp::from_rfc3339("2013-01-01T05:15:00.1239-05:00").unwrap();
        assert_eq!(moment.ms(), 1_357_035_300_123);
        assert_eq!(moment.to_string(), "2013-01-01T10:15:00.123Z");
    }

    #[test]
    fn only_the_shape_of_rfc3339_is_read() {
        for text in [
            "2024-06-15T12:00:00Z",
            "2024-06-15t12:00:00.5z",
            "2024-06-15 12:00:00+05:30",
            "2024-06-15T12:00:00.123456789-00:00",
        ] {
            assert!(Timestamp::from_rfc3339(text).is_some(), "{text}");
        }
        for text in [
            "20240615T120000Z",
            "2024-06-15T12Z",
            "2024-06-15T12:00Z",
            "+002024-06-15T12:00:00Z",
            "2024-06-15",
            "2024-06-15T12:00:00+01:00[Europe/Berlin]",
            "2024-06-15T12:00:00",
            "2024-06-15T12:00:00.Z",
            "2024-06-15T12:00:00,5Z",
            "2024-06-15T12:00:00+0100",
            "2024-06-15T12:00:00+01",
            "2024-06-15T12:00:00Z ",
            "",
            "2024-06-15T12:00:00+05:30:10",
        ] {
            assert_eq!(Timestamp::from_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_is_cut_towards_the_past() {
        let moment = Timestamp::from_rfc3339("1969-12-31T23:59:59.9999Z").unwrap();
        assert_eq!((moment.ms(), moment.to_string().as_str()), (-1, "1969-12-31T23:59:59.999Z"));
    }

    #[test]
    fn both_ends_of_the_range_can_be_printed_and_read_again() {
        for ms in [MS_MIN, MS_MAX] {
            let moment = Timestamp::from_ms(ms).unwrap();
            assert_eq!(Timestamp::from_rfc3339(&moment.to_string()), Some(moment));
        }
        assert_eq!(Timestamp::from_ms(MS_MIN - 1), None);
        assert_eq!(Timestamp::from_ms(MS_MAX + 1), None);
        assert_eq!(Timestamp::from_rfc3339("yesterday"), None);
    }
}
