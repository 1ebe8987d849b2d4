use std::str::FromStr;

use serde_json::value::RawValue;

use super::{Condition, Operator, Scalar};

/// Bytes of a condition: the longest key there can be (200 characters) at each of 5 levels, or a text of a few pages.
const CONDITION_BYTES_MAX: usize = 4 * 1024;

/// Why a condition can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCondition(String);

impl FromStr for Condition {
    type Err = BadCondition;

    fn from_str(text: &str) -> Result<Self, BadCondition> {
        if text.len() > CONDITION_BYTES_MAX {
            return Err(BadCondition(format!(
                "a condition of {} bytes is too long; at most {CONDITION_BYTES_MAX} are read",
                text.len()
            )));
        }
        let (path, operator, rest) = keys(text)?;
        let test = operator.map(|operator| value(text, operator, rest).map(|value| (operator, value)));
        Ok(Self { text: text.to_owned(), path, test: test.transpose()? })
    }
}

/// Reads the keys up to the operator, and returns what stands behind it.
fn keys(text: &str) -> Result<(Vec<String>, Option<Operator>, &str), BadCondition> {
    let mut path = Vec::new();
    let mut key = Key::default();
    let mut rest = text.chars();
    loop {
        let Some(character) = rest.next() else {
            path.push(key.end(text)?);
            return Ok((path, None, ""));
        };
        let operator = match character {
            '\\' => {
                let escaped = rest.next().ok_or_else(|| {
                    BadCondition(format!("{text:?} ends with a backslash; write \\\\ for one in a key"))
                })?;
                key.push(escaped);
                continue;
            }
            '.' => {
                path.push(std::mem::take(&mut key).end(text)?);
                continue;
            }
            '=' => Operator::Equal,
            '~' => Operator::Contains,
            '>' if follows(&mut rest, '=') => Operator::GreaterOrEqual,
            '>' => Operator::Greater,
            '<' if follows(&mut rest, '=') => Operator::LessOrEqual,
            '<' => Operator::Less,
            '!' if follows(&mut rest, '=') => Operator::NotEqual,
            '!' => {
                let message = format!("a ! without = in {text:?}; write != for not equal, or \\! in a key");
                return Err(BadCondition(message));
            }
            space if space.is_whitespace() => {
                key.space(space);
                continue;
            }
            other => {
                key.push(other);
                continue;
            }
        };
        path.push(key.end(text)?);
        return Ok((path, Some(operator), rest.as_str()));
    }
}

fn follows(rest: &mut std::str::Chars<'_>, wanted: char) -> bool {
    let mut ahead = rest.clone();
    let found = ahead.next() == Some(wanted);
    if found {
        *rest = ahead;
    }
    found
}

/// A key without the spaces around it, unless they are escaped.
#[derive(Default)]
struct Key {
    text: String,
    /// Up to here it is more than spaces.
    solid: usize,
}

impl Key {
    fn push(&mut self, character: char) {
        self.text.push(character);
        self.solid = self.text.len();
    }

    fn space(&mut self, space: char) {
        if !self.text.is_empty() {
            self.text.push(space);
        }
    }

    fn end(mut self, condition: &str) -> Result<String, BadCondition> {
        self.text.truncate(self.solid);
        if self.text.is_empty() {
            let message =
                format!("a key is missing in {condition:?}; write KEY, KEY=VALUE or a path like a.b=VALUE");
            return Err(BadCondition(message));
        }
        Ok(self.text)
    }
}

/// Reads the value: what JSON has a word for is that, everything else is text. What is contained is always text.
fn value(condition: &str, operator: Operator, text: &str) -> Result<Scalar, BadCondition> {
    let text = text.trim();
    if text.is_empty() {
        let message = format!("the value is missing in {condition:?}; write \"\" for an empty text");
        return Err(BadCondition(message));
    }
    if text.starts_with('"') {
        return serde_json::from_str(text).map(Scalar::Text).map_err(|error| {
            BadCondition(format!(
                "{text} is not a text as JSON writes it ({error}); end it with \" and write \\\" within it"
            ))
        });
    }
    let plain = || Scalar::Text(text.to_owned());
    let scalar = match text {
        _ if operator == Operator::Contains => return Ok(plain()),
        "null" => Scalar::Null,
        "true" => Scalar::Bool(true),
        "false" => Scalar::Bool(false),
        _ if text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => {
            match serde_json::from_str::<&RawValue>(text) {
                Ok(_) => Scalar::Number(text.to_owned()),
                Err(_) => plain(),
            }
        }
        _ => plain(),
    };
    let ordered = matches!(scalar, Scalar::Number(_) | Scalar::Text(_));
    if !ordered && !matches!(operator, Operator::Equal | Operator::NotEqual) {
        let message = format!(
            "nothing is greater or less than {text} in {condition:?}; use = or !=, or the text \"{text}\""
        );
        return Err(BadCondition(message));
    }
    Ok(scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Option<(Operator, Scalar)>) {
        let condition: Condition = text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(condition.as_str(), text);
        (condition.path, condition.test)
    }

    fn path(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn what_json_has_a_word_for_is_that_and_everything_else_is_text() {
        let number = |text: &str| Scalar::Number(text.to_owned());
        let plain = |text: &str| Scalar::Text(text.to_owned());
        for (text, scalar) in [
            ("10", number("10")),
            ("-1.50e3", number("-1.50e3")),
            ("1e999", number("1e999")),
            ("true", Scalar::Bool(true)),
            ("null", Scalar::Null),
            ("\"10\"", plain("10")),
            ("\"a \\\"b\\\"\\n\\u00fc\"", plain("a \"b\"\nü")),
            ("\"\"", plain("")),
            ("010", plain("010")),
            ("1.", plain("1.")),
            ("+1", plain("+1")),
            ("2026-11-21", plain("2026-11-21")),
            ("1 2", plain("1 2")),
            ("True", plain("True")),
            ("NaN", plain("NaN")),
            ("a=b&c", plain("a=b&c")),
            ("back\\slash", plain("back\\slash")),
        ] {
            assert_eq!(read(&format!("k={text}")), (path(&["k"]), Some((Operator::Equal, scalar))), "{text}");
        }
        assert_eq!(read("k~10").1, Some((Operator::Contains, plain("10"))), "only text contains");
        assert_eq!(read("k~\"a b \"").1, Some((Operator::Contains, plain("a b "))));
    }

    #[test]
    fn an_operator_ends_the_key_and_the_value_takes_the_rest() {
        for (text, operator) in [
            ("k=v", Operator::Equal),
            ("k!=v", Operator::NotEqual),
            ("k~v", Operator::Contains),
            ("k>v", Operator::Greater),
            ("k>=v", Operator::GreaterOrEqual),
            ("k<v", Operator::Less),
            (" k <= v ", Operator::LessOrEqual),
        ] {
            assert_eq!(read(text), (path(&["k"]), Some((operator, Scalar::Text("v".into())))), "{text}");
        }
        assert_eq!(read("k==v").1, Some((Operator::Equal, Scalar::Text("=v".into()))));
        assert_eq!(read("k<>v").1, Some((Operator::Less, Scalar::Text(">v".into()))));
    }

    #[test]
    fn any_key_can_be_written() {
        assert_eq!(read("a.b"), (path(&["a", "b"]), None));
        assert_eq!(read(r"a\.b"), (path(&["a.b"]), None));
        assert_eq!(read(r"a\=\!\~\>\<\\.\ b\ "), (path(&[r"a=!~><\", " b "]), None));
        assert_eq!(read(" two words . c "), (path(&["two words", "c"]), None));
        assert_eq!(read("<b>".replace('<', r"\<").replace('>', r"\>").as_str()).0, path(&["<b>"]));
        assert_eq!(read("\u{202e}ünï🚀\"\u{1b}").0, path(&["\u{202e}ünï🚀\"\u{1b}"]));
    }

    #[test]
    fn what_can_not_be_read_says_what_to_write() {
        for (text, told) in [
            ("", "a key is missing"),
            ("=1", "a key is missing"),
            ("a..b", "a key is missing"),
            ("a. =1", "a key is missing"),
            ("a=", "write \"\" for an empty text"),
            ("a>", "the value is missing"),
            ("a!b", "\\!"),
            ("a\\", "\\\\"),
            ("a=\"b", "not a text as JSON"),
            ("a=\"b\" c", "not a text as JSON"),
            ("a=\"\\ud800\"", "not a text as JSON"),
            ("a>true", "use = or !="),
            ("a<=null", "use = or !="),
        ] {
            let error = text.parse::<Condition>().unwrap_err().to_string();
            assert!(error.contains(told), "{text:?}: {error}");
        }
        let long = format!("a={}", "x".repeat(CONDITION_BYTES_MAX));
        assert!(long.parse::<Condition>().unwrap_err().to_string().contains("4098 bytes"));
    }
}
