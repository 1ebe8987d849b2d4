//! A quick look at properties as JSON text. Nearly all are plain: it accepts these in one pass and nothing that the walk in
//! `check` would refuse. Whatever else it meets it leaves to the walk, which knows all of JSON and says what is wrong.

use crate::limits::{DEPTH_MAX, KEY_CHARS_MAX, KEYS_MAX};

/// Keys of the objects that are open at once, at most: four times those of a usual event. More are the walk's, which hashes
/// them where comparing each with each would cost more.
const OPEN_KEYS_MAX: usize = 32;

/// A number without an exponent is finite up to here: the largest that is has 309 digits.
const NUMBER_BYTES_MAX: usize = 300;

/// Counts the keys of an object that keeps every rule for properties and stands on one line without space around it; `None`
/// where that takes more than a look.
pub(crate) fn object(json: &str) -> Option<usize> {
    let mut look = Look { open: [&[]; OPEN_KEYS_MAX], open_keys: 0, keys: 0 };
    let rest = look.members(json.as_bytes().strip_prefix(b"{")?, 1)?;
    rest.is_empty().then_some(look.keys)
}

/// What is known of the keys so far. Each step gets what is left of the text and returns what is left behind it.
struct Look<'a> {
    /// The keys of the objects that are open, those of the innermost last.
    open: [&'a [u8]; OPEN_KEYS_MAX],
    open_keys: usize,
    keys: usize,
}

impl<'a> Look<'a> {
    /// What stands behind `{`, to its end.
    fn members(&mut self, rest: &'a [u8], depth: usize) -> Option<&'a [u8]> {
        if depth > DEPTH_MAX {
            return None;
        }
        let (first, mut traits) = (self.open_keys, 0);
        let mut next = mark(rest)?;
        if let (b'}', rest) = next {
            return Some(rest);
        }
        while let (b'"', rest) = next {
            let (key, rest) = key(rest)?;
            self.add(key, first, &mut traits)?;
            let (b':', rest) = mark(rest)? else { return None };
            next = match mark(self.value(rest, depth)?)? {
                (b',', rest) => mark(rest)?,
                (b'}', rest) => {
                    self.open_keys = first;
                    return Some(rest);
                }
                _ => return None,
            };
        }
        None
    }

    /// What stands behind `[`, to its end.
    fn elements(&mut self, mut rest: &'a [u8], depth: usize) -> Option<&'a [u8]> {
        if depth > DEPTH_MAX {
            return None;
        }
        if let (b']', rest) = mark(rest)? {
            return Some(rest);
        }
        loop {
            match mark(self.value(rest, depth)?)? {
                (b',', behind) => rest = behind,
                (b']', behind) => return Some(behind),
                _ => return None,
            }
        }
    }

    /// Adds a key to those of its object, from `first` on, none of which may be like it. `traits` has a bit for each length and
    /// end they have: what is alone in its own needs no comparing.
    fn add(&mut self, key: &'a [u8], first: usize, traits: &mut u64) -> Option<()> {
        let own = 1 << (((key.len() * 8) ^ usize::from(*key.last()?)) % 64);
        let again = *traits & own != 0 && self.open[first..self.open_keys].contains(&key);
        if again || self.keys == KEYS_MAX {
            return None;
        }
        *self.open.get_mut(self.open_keys)? = key;
        *traits |= own;
        self.open_keys += 1;
        self.keys += 1;
        Some(())
    }

    fn value(&mut self, rest: &'a [u8], depth: usize) -> Option<&'a [u8]> {
        match mark(rest)? {
            (b'"', rest) => text(rest),
            (b'{', rest) => self.members(rest, depth + 1),
            (b'[', rest) => self.elements(rest, depth + 1),
            (b't', rest) => rest.strip_prefix(b"rue"),
            (b'f', rest) => rest.strip_prefix(b"alse"),
            (b'n', rest) => rest.strip_prefix(b"ull"),
            (_, behind) => number(&rest[rest.len() - behind.len() - 1..]),
        }
    }
}

/// The next byte that isn't space within the line, and what stands behind it.
fn mark(rest: &[u8]) -> Option<(u8, &[u8])> {
    let (mut byte, mut behind) = rest.split_first()?;
    // Nothing else that JSON has between texts is as low.
    while *byte <= b' ' {
        if !matches!(byte, b' ' | b'\t') {
            return None;
        }
        (byte, behind) = behind.split_first()?;
    }
    Some((*byte, behind))
}

/// A key, and what stands behind its closing quote. With an escape it may be like one that is written otherwise.
fn key(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, rest) = rest.split_at(text_end(rest));
    // A text of N bytes has at most N characters.
    let fits = !key.is_empty() && key.len() <= KEY_CHARS_MAX;
    fits.then_some((key, rest.strip_prefix(b"\"")?))
}

/// What stands behind the opening quote of a text, to its end. What is escaped by its code may be NUL or half a character.
fn text(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        match &rest[text_end(rest)..] {
            [b'"', behind @ ..] => return Some(behind),
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', behind @ ..] => rest = behind,
            _ => return None,
        }
    }
}

/// `-`, digits without a leading zero, a fraction. An exponent is left standing, and nobody takes it.
fn number(start: &[u8]) -> Option<&[u8]> {
    let whole = start.strip_prefix(b"-").unwrap_or(start);
    let mut rest = digits(whole)?;
    if whole[0] == b'0' && whole.len() - rest.len() > 1 {
        return None;
    }
    if let [b'.', fraction @ ..] = rest {
        rest = digits(fraction)?;
    }
    (start.len() - rest.len() <= NUMBER_BYTES_MAX).then_some(rest)
}

/// Steps over one digit or more.
fn digits(mut rest: &[u8]) -> Option<&[u8]> {
    let start = rest.len();
    while let [b'0'..=b'9', behind @ ..] = rest {
        rest = behind;
    }
    (rest.len() < start).then_some(rest)
}

/// How many bytes of a text come before the first that ends it, escapes the next, or may not stand in it: a quote, a
/// backslash, a control character.
fn text_end(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let mut at = 0;
    while let Some(eight) = bytes[at..].first_chunk::<8>() {
        let eight = u64::from_le_bytes(*eight);
        // The high bit of each byte that is like another, or below 0x20: right up to the lowest that is, and that is all that
        // counts. <https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord>
        let like = |byte: u8| {
            let zero_where_like = eight ^ (ONES * u64::from(byte));
            zero_where_like.wrapping_sub(ONES) & !zero_where_like
        };
        let control = eight.wrapping_sub(ONES * 0x20) & !eight;
        let marks = (control | like(b'"') | like(b'\\')) & HIGH;
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let mark = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    at + bytes[at..].iter().position(mark).unwrap_or(bytes.len() - at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::check;

    #[test]
    fn what_events_usually_hold_takes_one_look() {
        for (json, keys) in [
            ("{}", 0),
            (r#"{"plan":"pro","amount":12.5,"items":0,"paid":true,"referrer":null,"below":-3}"#, 6),
            (r#"{ "a" : [ 1, [], {"a": "\"x\"\n"} ], "b" : {} }"#, 3),
            (r#"{"umlaut":"Zürich 😀","Straße":"c:\\x"}"#, 2),
        ] {
            assert_eq!(object(json), Some(keys), "{json}");
            assert_eq!(check::json_object(json), Ok(keys), "{json}");
        }
    }

    #[test]
    fn what_takes_more_than_a_look_is_left_to_the_walk() {
        let wide: Vec<String> = (0..=OPEN_KEYS_MAX).map(|key| format!("\"{key}\":1")).collect();
        let deep = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        for json in [
            r#"{"a":"\u00e9"}"#,
            r#"{"\n":1}"#,
            r#"{"a":1e3}"#,
            " {}",
            "{}\n",
            "{\n}",
            &format!("{{{}}}", wide.join(",")),
            &format!("{{\"{}\":1}}", "ü".repeat(KEY_CHARS_MAX)),
            &format!("{{\"a\":{}}}", "1".repeat(NUMBER_BYTES_MAX + 1)),
        ] {
            assert_eq!(object(json), None, "{json}");
            assert!(check::json_object(json).is_ok(), "{json}");
        }
        assert_eq!(object(&deep(DEPTH_MAX)), Some(DEPTH_MAX));
        assert_eq!(object(&deep(DEPTH_MAX + 1)), None);
    }

    /// Pieces that make JSON, or nearly.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            8 => prop::sample::select(vec![
                "{", "}", "[", "]", "\"", ":", ",", "\"a\":", "\"b\":", ",\"c\":", "{\"a\":", "{}", "[]", "true", "false",
                "null", "0", "1", "-", "12", "01", ".5", "1.", "1.5", "e3", "1E400", " ", "\t", "\n", "\r", "\\", "\\n",
                "\\\"", "\\u0000", "\\u00e9", "\\ud800", "\\x", "\"x\"", "\"\"", "\u{0}", "\u{1f}", "\u{7f}", "ü", "😀",
            ]).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
        ]
    }

    /// JSON as it may be, of the shapes that properties have.
    fn json(depth: u32) -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(|value| value.to_string()),
            any::<f64>().prop_map(|value| serde_json::json!(value).to_string()),
            any::<String>().prop_map(|value| serde_json::json!(value).to_string()),
            "[a-z \"\\\\\u{0}-\u{20}]{0,20}".prop_map(|value| serde_json::json!(value).to_string()),
            Just("true".to_owned()),
        ];
        leaf.prop_recursive(depth, 64, 6, |inner| {
            let key = prop_oneof!["[a-c]{0,2}", "[a-zü\"\\\\]{1,12}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(|all| format!("[{}]", all.join(", "))),
                prop::collection::vec((key, inner), 0..6).prop_map(|members| {
                    let member =
                        |(key, value): &(String, String)| format!("{}:{value}", serde_json::json!(key));
                    format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    fn agrees(json: &str) -> Result<(), TestCaseError> {
        if let Some(keys) = object(json) {
            prop_assert_eq!(check::json_object(json), Ok(keys), "{}", json);
            prop_assert_eq!(json.trim(), json);
            prop_assert!(!json.contains(['\n', '\r']), "{}", json);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn nothing_is_accepted_that_the_walk_refuses(pieces in prop::collection::vec(piece(), 0..24)) {
            agrees(&pieces.concat())?;
            agrees(&format!("{{\"a\":{}}}", pieces.concat()))?;
            agrees(&format!("{{\"a\":\"{}\"}}", pieces.concat()))?;
        }

        #[test]
        fn what_is_json_is_taken_as_the_walk_takes_it(value in json(4), at in any::<prop::sample::Index>(), with in piece()) {
            let whole = format!("{{\"k\":{value}}}");
            agrees(&whole)?;
            // And with one place of it changed.
            let cuts: Vec<usize> = whole.char_indices().map(|(place, _)| place).collect();
            let cut = cuts[at.index(cuts.len())];
            agrees(&format!("{}{with}{}", &whole[..cut], &whole[cut..]))?;
            let rest: String = whole[cut..].chars().skip(1).collect();
            agrees(&format!("{}{with}{rest}", &whole[..cut]))?;
        }

        #[test]
        fn a_text_ends_at_its_first_mark(bytes in prop::collection::vec(prop_oneof![Just(b'a'), Just(b'"'), any::<u8>()], 0..40)) {
            let slow = bytes.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\');
            prop_assert_eq!(text_end(&bytes), slow.unwrap_or(bytes.len()));
        }
    }
}
