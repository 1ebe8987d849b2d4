use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Operator, Scalar, number};

type Test<'c> = Option<&'c (Operator, Scalar)>;

/// Says whether a JSON object has a value at a path that meets a test. Nothing but what the path leads to is taken apart.
pub(super) fn meets(object: &str, path: &[String], test: Test<'_>) -> serde_json::Result<bool> {
    match test {
        // Of a list none of the elements may be equal.
        Some((Operator::NotEqual, value)) => {
            let equal = (Operator::Equal, value.clone());
            Ok(leads(object.trim_start(), path, None)? && !leads(object.trim_start(), path, Some(&equal))?)
        }
        test => leads(object.trim_start(), path, test),
    }
}

fn leads(value: &str, path: &[String], test: Test<'_>) -> serde_json::Result<bool> {
    let Some((key, inner)) = path.split_first() else { return is_so(value, test) };
    match value.as_bytes().first() {
        Some(b'{') => match member(value, key)? {
            Some(value) => leads(value, inner, test),
            None => Ok(false),
        },
        Some(b'[') => any_element(value, |element| leads(element, path, test)),
        Some(_) => Ok(false),
        None => Err(serde_json::Error::custom("they are empty")),
    }
}

/// Says whether a value meets a test.
fn is_so(value: &str, test: Test<'_>) -> serde_json::Result<bool> {
    let Some((operator, wanted)) = test else { return Ok(true) };
    if value.starts_with('[') {
        return any_element(value, |element| is_so(element, test));
    }
    if let (Operator::Contains, Scalar::Text(part)) = (operator, wanted) {
        return Ok(value.starts_with('"') && text(value)?.contains(part.as_str()));
    }
    let order = order(value, wanted)?;
    Ok(match operator {
        Operator::Equal => order == Some(Ordering::Equal),
        Operator::NotEqual | Operator::Contains => false,
        Operator::Greater => order.is_some_and(Ordering::is_gt),
        Operator::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
        Operator::Less => order.is_some_and(Ordering::is_lt),
        Operator::LessOrEqual => order.is_some_and(Ordering::is_le),
    })
}

/// How a value stands to the one asked for; nothing when they are of different types, or have no order and aren't equal.
fn order(value: &str, wanted: &Scalar) -> serde_json::Result<Option<Ordering>> {
    let same = |holds: bool| holds.then_some(Ordering::Equal);
    Ok(match (value.as_bytes().first(), wanted) {
        (Some(b'"'), Scalar::Text(wanted)) => Some((*text(value)?).cmp(wanted.as_str())),
        (Some(b'-' | b'0'..=b'9'), Scalar::Number(wanted)) => Some(number::compare(value, wanted)),
        (Some(b't'), Scalar::Bool(wanted)) => same(*wanted),
        (Some(b'f'), Scalar::Bool(wanted)) => same(!wanted),
        (Some(b'n'), Scalar::Null) => same(true),
        _ => None,
    })
}

/// Reads a JSON text; most have no escapes and are borrowed.
fn text(json: &str) -> serde_json::Result<Cow<'_, str>> {
    match json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str::<String>(json).map(Cow::Owned),
    }
}

fn any_element(list: &str, meets: impl Fn(&str) -> serde_json::Result<bool>) -> serde_json::Result<bool> {
    let elements: Vec<&RawValue> = serde_json::from_str(list)?;
    for element in elements {
        if meets(element.get())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the value of a key in an object; the first, where somebody wrote one twice.
fn member<'j>(object: &'j str, key: &str) -> serde_json::Result<Option<&'j str>> {
    let mut parser = serde_json::Deserializer::from_str(object);
    let found = parser.deserialize_map(Member(key))?;
    parser.end()?;
    Ok(found.map(RawValue::get))
}

struct Member<'k>(&'k str);

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(IsKey(self.0))? {
            if is_it && found.is_none() {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a key without keeping it.
struct IsKey<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for IsKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::store::Condition;

    fn holds(properties: &str, condition: &str) -> bool {
        condition.parse::<Condition>().unwrap().is_met_by(properties).unwrap()
    }

    #[test]
    fn each_type_is_compared_with_its_own() {
        let all = r#"{"n":10,"t":"10","b":true,"z":null,"o":{},"d":"2026-11-21"}"#;
        for (condition, expected) in [
            ("n=10", true),
            ("n=10.0", true),
            ("n=1e1", true),
            ("n=\"10\"", false),
            ("t=10", false),
            ("t=\"10\"", true),
            ("t>\"1\"", true),
            ("n>9.99", true),
            ("n>10", false),
            ("n>=10", true),
            ("n<10.0001", true),
            ("n<=9", false),
            ("n>\"0\"", false),
            ("d>=2026-11", true),
            ("d<2026-11", false),
            ("b=true", true),
            ("b=false", false),
            ("b!=false", true),
            ("b=\"true\"", false),
            ("z=null", true),
            ("z!=null", false),
            ("z", true),
            ("o", true),
            ("o={}", false),
            ("o!=1", true),
            ("absent", false),
            ("absent=null", false),
            ("absent!=1", false),
            ("t~0", true),
            ("n~0", false),
            ("d~-11-", true),
        ] {
            assert_eq!(holds(all, condition), expected, "{condition}");
        }
    }

    #[test]
    fn a_list_stands_for_its_elements() {
        let order =
            r#"{"tags":["new","sale",3,[7]],"items":[{"sku":"a","n":1},{"sku":"b","n":20},5],"none":[]}"#;
        for (condition, expected) in [
            ("tags=sale", true),
            ("tags=7", true),
            ("tags~al", true),
            ("tags!=sale", false),
            ("tags!=old", true),
            ("items.sku=b", true),
            ("items.n>10", true),
            ("items.sku!=a", false),
            ("items.n", true),
            ("items.x", false),
            ("items", true),
            ("none", true),
            ("none=1", false),
            ("none!=1", true),
            ("none.x", false),
            ("tags.x", false),
        ] {
            assert_eq!(holds(order, condition), expected, "{condition}");
        }
    }

    #[test]
    fn keys_and_texts_behind_escapes_are_found() {
        let odd = r#" {"\u0061":"\ud83d\ude80 \"x\"\n", "a.b":{"=":1}, "<b>":"\/", "\\":2 } "#;
        for condition in
            ["a~🚀", "a=\"🚀 \\\"x\\\"\\n\"", r"a\.b.\==1", r"\<b\>=/", r"\\=2", r"a\.b", "a>\u{1f600}"]
        {
            assert!(holds(odd, condition), "{condition}");
        }
        assert!(!holds(odd, "a.b"));
    }

    #[test]
    fn what_is_no_json_is_an_error_and_not_an_answer() {
        for damaged in ["", "{", "{\"a\":1", "{\"b\":[1,}", "{\"a\":1}x", "{\"b\":tru,\"a\":1}"] {
            assert!("a=1".parse::<Condition>().unwrap().is_met_by(damaged).is_err(), "{damaged}");
        }
        assert!(!holds("7", "a"), "a value that isn't an object has no keys");
    }
}
