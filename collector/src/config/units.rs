//! Durations and sizes with units. A bare number is refused: nobody should have to guess its unit.

use std::time::Duration;

/// The longest duration that means anything here: a year. It also keeps `now + duration` from overflowing.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

const DURATION_UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `500ms`, `10s`, `5m`, `1h`; the message says what to write instead.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let ms = amount(text, DURATION_UNITS, "a duration", "10s or 500ms")?;
    match Duration::from_millis(ms) {
        Duration::ZERO => Err(format!("`{text}` is no time at all: write at least 1ms")),
        long if long > DURATION_MAX => Err(format!("`{text}` is over a year: write at most 8760h")),
        fits => Ok(fits),
    }
}

/// Reads `0B`, `64KiB`, `128MiB`, `1GiB`, also decimal `1GB`; the message says what to write instead.
pub(super) fn size(text: &str) -> Result<u64, String> {
    amount(text, SIZE_UNITS, "a size", "128MiB or 1GiB")
}

fn amount(text: &str, units: &[(&str, u64)], what: &str, sample: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err(format!("`{text}` isn't {what}: write a whole number and a unit, like {sample}"));
    }
    if unit.is_empty() {
        return Err(format!("`{text}` has no unit: write it like {sample}"));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let known: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "`{text}` has an unknown unit: write one of {}, like {sample}",
            known.join(", ")
        ));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*factor))
        .ok_or_else(|| format!("`{text}` is too large: write {what} like {sample}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5 m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        assert_eq!(size("0B"), Ok(0));
        assert_eq!(size("128MiB"), Ok(128 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write() {
        let cases = [
            (duration("10").unwrap_err(), "no unit"),
            (duration("ten seconds").unwrap_err(), "isn't a duration"),
            (duration("").unwrap_err(), "isn't a duration"),
            (duration("-5s").unwrap_err(), "isn't a duration"),
            (duration("1.5s").unwrap_err(), "unknown unit"),
            (duration("0s").unwrap_err(), "no time at all"),
            (duration("9000h").unwrap_err(), "over a year"),
            (duration("99999999999999999999h").unwrap_err(), "too large"),
            (size("128").unwrap_err(), "no unit"),
            (size("128mib").unwrap_err(), "unknown unit"),
            (size("99999999999TiB").unwrap_err(), "too large"),
        ];
        for (message, part) in cases {
            assert!(message.contains(part), "{message}");
            assert!(message.contains("write"), "says what to do: {message}");
        }
    }
}
