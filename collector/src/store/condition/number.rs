use std::cmp::Ordering;

/// Puts two numbers, as JSON writes them, in order by their digits: exactly, also where a float would round.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let (one, other) = (Decimal::of(one), Decimal::of(other));
    match (one.sign(), other.sign()) {
        (-1, -1) => other.compare_size(&one),
        (1, 1) => one.compare_size(&other),
        (one, other) => one.cmp(&other),
    }
}

/// 0.`digits` · 10^`magnitude`, where the first digit isn't 0.
struct Decimal<'n> {
    negative: bool,
    whole: &'n str,
    fraction: &'n str,
    magnitude: i64,
    is_zero: bool,
}

impl<'n> Decimal<'n> {
    fn of(number: &'n str) -> Self {
        let (negative, number) = match number.strip_prefix('-') {
            Some(number) => (true, number),
            None => (false, number),
        };
        let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let point = i64::try_from(whole.len()).unwrap_or(i64::MAX);
        let zeros = whole.bytes().chain(fraction.bytes()).take_while(|digit| *digit == b'0').count();
        let leading = i64::try_from(zeros).unwrap_or(i64::MAX);
        Self {
            negative,
            whole,
            fraction,
            magnitude: power(exponent).saturating_add(point).saturating_sub(leading),
            is_zero: zeros == whole.len() + fraction.len(),
        }
    }

    fn sign(&self) -> i8 {
        match (self.is_zero, self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    fn digits(&self) -> impl Iterator<Item = u8> {
        self.whole.bytes().chain(self.fraction.bytes()).skip_while(|digit| *digit == b'0')
    }

    /// Compares without the sign.
    fn compare_size(&self, other: &Self) -> Ordering {
        let by_digits = || {
            let (mut mine, mut theirs) = (self.digits(), other.digits());
            loop {
                match (mine.next(), theirs.next()) {
                    (None, None) => return Ordering::Equal,
                    (mine, theirs) => {
                        let order = mine.unwrap_or(b'0').cmp(&theirs.unwrap_or(b'0'));
                        if order.is_ne() {
                            return order;
                        }
                    }
                }
            }
        };
        self.magnitude.cmp(&other.magnitude).then_with(by_digits)
    }
}

/// Reads an exponent. One that no 64 bits hold is as good as the largest that they do.
fn power(exponent: &str) -> i64 {
    let beyond = if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 };
    exponent.parse().unwrap_or(beyond).clamp(i64::MIN / 2, i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_one_order_however_they_are_written() {
        let rising: [&[&str]; 13] = [
            &["-1e400"],
            &["-12345678901234567890123457"],
            &["-12345678901234567890123456", "-1.2345678901234567890123456e25"],
            &["-2"],
            &["-0.5", "-5e-1", "-0.50"],
            &["0", "-0", "0.000", "0e9", "-0.0E-5"],
            &["1e-99999999999999999999"],
            &["0.001", "1e-3", "1E-03", "0.1e-2"],
            &["1", "1.0", "10e-1", "0.01e+2", "1e0"],
            &["9007199254740992"],
            &["9007199254740993"],
            &["1e308"],
            &["1e99999999999999999999"],
        ];
        for (at, ones) in rising.iter().enumerate() {
            for (other_at, others) in rising.iter().enumerate() {
                for (one, other) in ones.iter().flat_map(|one| others.iter().map(move |other| (one, other))) {
                    assert_eq!(compare(one, other), at.cmp(&other_at), "{one} and {other}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn integers_and_floats_are_in_their_own_order(
            ints in any::<(i128, i128)>(), floats in any::<(f64, f64)>(), near in -20_i128..20,
        ) {
            prop_assert_eq!(compare(&ints.0.to_string(), &ints.1.to_string()), ints.0.cmp(&ints.1));
            let neighbour = ints.0.saturating_add(near);
            prop_assert_eq!(compare(&ints.0.to_string(), &neighbour.to_string()), ints.0.cmp(&neighbour));
            if let (Some(one), Some(other)) = (json(floats.0), json(floats.1)) {
                prop_assert_eq!(Some(compare(&one, &other)), floats.0.partial_cmp(&floats.1));
            }
        }
    }

    fn json(float: f64) -> Option<String> {
        float.is_finite().then(|| serde_json::to_string(&float).unwrap())
    }
}
