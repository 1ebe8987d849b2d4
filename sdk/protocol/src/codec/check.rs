//! One walk over a value checks everything the protocol asks of properties: depth, keys, duplicates, NUL, and what JSON
//! has no word for. Over JSON text it only checks; over MessagePack it writes the JSON text as it goes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::codec::seen::Seen;
use crate::codec::{shown, told};
use crate::limits::{DEPTH_MAX, EVENT_BYTES_MAX, KEY_CHARS_MAX, KEYS_MAX};
use crate::{Code, Reason};

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    NotAnObject,
    TooDeep,
    TooManyKeys,
    LongKey,
    DuplicateKey(String),
    Nul,
    NotFinite,
    Binary,
    Extension,
    TooLarge,
}

impl From<Fault> for Reason {
    fn from(fault: Fault) -> Self {
        let invalid = |message: &'static str| Self::new(Code::InvalidProperties, message);
        match fault {
            Fault::NotAnObject => invalid("properties must be an object, {\"key\": value}"),
            Fault::TooDeep => Self::new(
                Code::TooDeep,
                format!("properties nest deeper than {DEPTH_MAX} levels; flatten them"),
            ),
            Fault::TooManyKeys => Self::new(
                Code::TooManyKeys,
                format!("properties hold more than {KEYS_MAX} keys; split the event or use a list"),
            ),
            Fault::LongKey => Self::new(
                Code::InvalidProperties,
                format!("a key in properties is empty or longer than {KEY_CHARS_MAX} characters"),
            ),
            Fault::DuplicateKey(key) => Self::new(
                Code::DuplicateKey,
                format!("key {} stands twice in one object; keep one", shown(&key)),
            ),
            Fault::Nul => {
                invalid("properties contain a NUL character (\\u0000), which databases can't hold; remove it")
            }
            Fault::NotFinite => {
                invalid("properties contain NaN or infinity, which JSON can't hold; send null")
            }
            // rmp-serde shows text that isn't UTF-8 as bytes, so the two look alike here.
            Fault::Binary => invalid(
                "properties contain binary or text that isn't UTF-8, which JSON can't hold; send base64 text",
            ),
            Fault::Extension => invalid(
                "properties contain a MessagePack extension; send a plain value, times as RFC 3339 text",
            ),
            Fault::TooLarge => Self::new(
                Code::EventTooLarge,
                format!(
                    "the properties take more than {EVENT_BYTES_MAX} bytes as JSON; send less in one event"
                ),
            ),
        }
    }
}

/// Checks a JSON text and returns the number of its keys.
pub(crate) fn json_object(json: &str) -> Result<usize, Reason> {
    let mut walk = Walk::default();
    let mut parser = serde_json::Deserializer::from_str(json);
    let read = Node { walk: &mut walk, depth: 0 }.deserialize(&mut parser).and_then(|()| parser.end());
    let keys = walk.keys;
    walk.finish(read.map_err(|error| format!("properties aren't valid JSON: {}", told(&error)))).map(|_| keys)
}

/// Checks a MessagePack value and returns it as JSON text.
#[cfg(feature = "maps")]
pub(crate) fn messagepack_object(bytes: &[u8]) -> Result<String, Reason> {
    let mut walk = Walk { json: Some(Vec::with_capacity(bytes.len() + bytes.len() / 4)), ..Walk::default() };
    let mut parser = rmp_serde::Deserializer::from_read_ref(bytes);
    let read = Node { walk: &mut walk, depth: 0 }.deserialize(&mut parser);
    let json =
        walk.finish(read.map_err(|error| format!("properties aren't valid MessagePack: {}", told(&error))))?;
    Ok(String::from_utf8(json).expect("serde_json writes UTF-8"))
}

/// Refuses what only other builds read.
#[cfg(not(feature = "maps"))]
pub(crate) fn messagepack_object(_: &[u8]) -> Result<String, Reason> {
    Err(Reason::new(Code::InvalidProperties, "this build reads properties as JSON text alone"))
}

#[derive(Default)]
struct Walk {
    keys: usize,
    json: Option<Vec<u8>>,
    fault: Option<Fault>,
}

impl Walk {
    fn fail<E: de::Error>(&mut self, fault: Fault) -> E {
        let error = E::custom(format_args!("{fault:?}"));
        self.fault.get_or_insert(fault);
        error
    }

    fn push<E: de::Error>(&mut self, text: &[u8]) -> Result<(), E> {
        match &mut self.json {
            Some(json) => json.extend_from_slice(text),
            None => return Ok(()),
        }
        self.check_size()
    }

    /// Writes a scalar whose JSON form can't fail; the caller has excluded NaN.
    fn scalar<E: de::Error>(&mut self, value: impl serde::Serialize) -> Result<(), E> {
        match &mut self.json {
            Some(json) => serde_json::to_writer(json, &value).map_err(E::custom)?,
            None => return Ok(()),
        }
        self.check_size()
    }

    fn text<E: de::Error>(&mut self, text: &str) -> Result<(), E> {
        if text.contains('\0') {
            return Err(self.fail(Fault::Nul));
        }
        self.scalar(text)
    }

    fn check_size<E: de::Error>(&mut self) -> Result<(), E> {
        match &self.json {
            Some(json) if json.len() > EVENT_BYTES_MAX => Err(self.fail(Fault::TooLarge)),
            _ => Ok(()),
        }
    }

    fn finish(self, read: Result<(), String>) -> Result<Vec<u8>, Reason> {
        match (self.fault, read) {
            (Some(fault), _) => Err(fault.into()),
            (None, Err(message)) => Err(Reason::new(Code::InvalidProperties, message)),
            (None, Ok(())) => Ok(self.json.unwrap_or_default()),
        }
    }
}

/// One value of the walk; the outermost has depth 0 and must be an object.
struct Node<'w> {
    walk: &'w mut Walk,
    depth: usize,
}

impl Node<'_> {
    fn outermost<E: de::Error>(&mut self) -> Result<(), E> {
        if self.depth == 0 { Err(self.walk.fail(Fault::NotAnObject)) } else { Ok(()) }
    }

    fn deeper<E: de::Error>(&mut self) -> Result<usize, E> {
        if self.depth == DEPTH_MAX { Err(self.walk.fail(Fault::TooDeep)) } else { Ok(self.depth + 1) }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_unit<E: de::Error>(mut self) -> Result<(), E> {
        self.outermost()?;
        self.walk.push(b"null")
    }

    fn visit_bool<E: de::Error>(mut self, value: bool) -> Result<(), E> {
        self.outermost()?;
        self.walk.scalar(value)
    }

    fn visit_i64<E: de::Error>(mut self, value: i64) -> Result<(), E> {
        self.outermost()?;
        self.walk.scalar(value)
    }

    fn visit_u64<E: de::Error>(mut self, value: u64) -> Result<(), E> {
        self.outermost()?;
        self.walk.scalar(value)
    }

    fn visit_f32<E: de::Error>(mut self, value: f32) -> Result<(), E> {
        self.outermost()?;
        if value.is_finite() { self.walk.scalar(value) } else { Err(self.walk.fail(Fault::NotFinite)) }
    }

    fn visit_f64<E: de::Error>(mut self, value: f64) -> Result<(), E> {
        self.outermost()?;
        if value.is_finite() { self.walk.scalar(value) } else { Err(self.walk.fail(Fault::NotFinite)) }
    }

    fn visit_str<E: de::Error>(mut self, value: &str) -> Result<(), E> {
        self.outermost()?;
        self.walk.text(value)
    }

    fn visit_bytes<E: de::Error>(self, _: &[u8]) -> Result<(), E> {
        Err(self.walk.fail(Fault::Binary))
    }

    /// MessagePack extensions arrive this way; JSON never does.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(self.walk.fail(Fault::Extension))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        self.outermost()?;
        let depth = self.deeper()?;
        let walk = self.walk;
        walk.push(b"[")?;
        let mut first = true;
        loop {
            // The comma goes before an element, but whether there is one is known only after asking for it.
            let node = Element { walk, depth, comma: !first };
            if list.next_element_seed(node)?.is_none() {
                return walk.push(b"]");
            }
            first = false;
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let depth = self.deeper()?;
        let walk = self.walk;
        walk.push(b"{")?;
        let mut seen = Seen::default();
        while let Some(Key(key)) = map.next_key_seed(KeySeed(walk))? {
            if walk.keys == KEYS_MAX {
                return Err(walk.fail(Fault::TooManyKeys));
            }
            walk.keys += 1;
            if !seen.is_empty() {
                walk.push(b",")?;
            }
            walk.text(&key)?;
            walk.push(b":")?;
            if let Some(twice) = seen.insert(key) {
                return Err(walk.fail(Fault::DuplicateKey(twice)));
            }
            map.next_value_seed(Node { walk, depth })?;
        }
        walk.push(b"}")
    }
}

struct Element<'w> {
    walk: &'w mut Walk,
    depth: usize,
    comma: bool,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.comma {
            self.walk.push(b",")?;
        }
        Node { walk: self.walk, depth: self.depth }.deserialize(deserializer)
    }
}

struct Key<'de>(Cow<'de, str>);

/// Keys must be text: a number or a map as a key has no JSON form.
struct KeySeed<'w>(&'w mut Walk);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as key")
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<Key<'de>, E> {
        checked_key(self.0, Cow::Borrowed(key))
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Key<'de>, E> {
        checked_key(self.0, Cow::Owned(key.to_owned()))
    }
}

fn checked_key<'de, E: de::Error>(walk: &mut Walk, key: Cow<'de, str>) -> Result<Key<'de>, E> {
    let too_long = key.len() > KEY_CHARS_MAX && key.chars().count() > KEY_CHARS_MAX;
    if key.is_empty() || too_long { Err(walk.fail(Fault::LongKey)) } else { Ok(Key(key)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: &str) -> Code {
        json_object(json).unwrap_err().code
    }

    fn nested(levels: usize) -> String {
        format!("{}{}{}", "{\"a\":".repeat(levels), 1, "}".repeat(levels))
    }

    #[test]
    fn depth_counts_the_outermost_object() {
        assert!(json_object(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(code(&nested(DEPTH_MAX + 1)), Code::TooDeep);
        assert_eq!(code(&format!("{{\"a\":{}", "[".repeat(100_000))), Code::TooDeep);
    }

    #[test]
    fn keys_are_counted_over_all_objects() {
        let object = |keys: usize| {
            let members: Vec<String> = (0..keys).map(|i| format!("\"k{i}\":{{\"v\":1}}")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(json_object(&object(KEYS_MAX / 2)).is_ok());
        assert_eq!(code(&object(KEYS_MAX / 2 + 1)), Code::TooManyKeys);
    }

    #[test]
    fn duplicates_are_found_among_few_and_many_and_behind_escapes() {
        assert_eq!(code(r#"{"a":1,"\u0061":2}"#), Code::DuplicateKey);
        assert_eq!(code(r#"{"a":{"b":1,"b":2}}"#), Code::DuplicateKey);
        let many: Vec<String> = (0..100).chain([99]).map(|i| format!("\"k{i}\":1")).collect();
        assert_eq!(code(&format!("{{{}}}", many.join(","))), Code::DuplicateKey);
        assert!(json_object(r#"{"a":{"b":1},"c":{"b":1}}"#).is_ok());
    }

    #[test]
    fn what_json_or_a_database_cannot_hold_is_refused() {
        for json in [
            r#"{"a":"\u0000"}"#,
            r#"{"\u0000":1}"#,
            "[]",
            "1",
            "null",
            "{\"a\":NaN}",
            "{\"a\":1e999}",
            "{\"a\":1} x",
            "{\"a\":",
            "{\"\":1}",
            r#"{"a":"\ud800"}"#,
        ] {
            assert_eq!(code(json), Code::InvalidProperties, "{json}");
        }
    }
}
