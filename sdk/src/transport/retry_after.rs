//! The `Retry-After` header: [RFC 9110 §10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3).

use std::time::Duration;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads seconds or a date; a date that has passed means no delay. The two obsolete forms of dates aren't read.
pub(super) fn parse(value: &str, now_unix_s: i64) -> Option<Duration> {
    let value = value.trim();
    if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        // More than 20 digits is a delay as good as endless; whoever waits caps it.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let seconds = unix_seconds(value)?.saturating_sub(now_unix_s);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT`.
fn unix_seconds(date: &str) -> Option<i64> {
    let (_weekday, rest) = date.split_once(", ")?;
    let mut words = rest.split(' ');
    let day = number(words.next()?, 1..=31)?;
    let name = words.next()?;
    let month = 1 + i64::try_from(MONTHS.iter().position(|month| *month == name)?).ok()?;
    let year = number(words.next()?, 1970..=9999)?;
    let mut clock = words.next()?.split(':');
    let (hour, minute, second) =
        (number(clock.next()?, 0..=23)?, number(clock.next()?, 0..=59)?, number(clock.next()?, 0..=60)?);
    if words.next() != Some("GMT") || words.next().is_some() || clock.next().is_some() {
        return None;
    }
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(digits: &str, within: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|number| plain && within.contains(number))
}

/// `days_from_civil` of <https://howardhinnant.github.io/date_algorithms.html>, for years from 1970.
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let year_of_era = year % 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        assert_eq!(parse("120", 0), Some(Duration::from_secs(120)));
        assert_eq!(parse(" 0 ", 0), Some(Duration::ZERO));
        assert_eq!(parse("99999999999999999999999", 0), Some(Duration::from_secs(u64::MAX)));
        let example = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(unix_seconds(example), Some(784_111_777));
        assert_eq!(parse(example, 784_111_700), Some(Duration::from_secs(77)));
        assert_eq!(parse(example, 800_000_000), Some(Duration::ZERO));
        assert_eq!(unix_seconds("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(unix_seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    }

    #[test]
    fn what_is_neither_is_ignored() {
        for value in
            ["", "-1", "1.5", "soon", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 6"]
        {
            assert_eq!(parse(value, 0), None, "{value:?}");
        }
    }
}
