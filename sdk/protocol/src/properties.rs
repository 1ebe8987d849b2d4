use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::Reason;
use crate::codec::{check, plain};

/// A JSON object, kept as text: checked once when it is made, then carried as bytes and never parsed again.
#[derive(Clone, PartialEq, Eq)]
pub struct Properties(Box<str>);

impl Properties {
    /// Checks that a text is one JSON object within the protocol's limits, without duplicate keys or NUL.
    ///
    /// The text is kept as it is, but on one line: whoever reads line by line (NDJSON, SSE) can rely on that.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(json: &str) -> Result<Self, Reason> {
        CheckedProperties::parse(json).map(CheckedProperties::into_owned)
    }

    /// Takes the text of a JSON object that its caller wrote or checked before: the SDK's own encoder, a store's column.
    /// What is wrong with it is found by whoever receives the event.
    #[must_use]
    pub fn trusted(json: String) -> Self {
        Self(json.into_boxed_str())
    }

    /// Returns the JSON text, `{}` when there are none.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        &*self.0 == "{}"
    }
}

/// [`Properties`] whose text is still where it arrived, unless it had to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedProperties<'a>(Cow<'a, str>);

const LINE_BREAKS: [char; 2] = ['\n', '\r'];

impl<'a> CheckedProperties<'a> {
    /// Checks a text as [`Properties::parse`] does.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(json: &'a str) -> Result<Self, Reason> {
        match plain::object(json) {
            Some(0) => return Ok(Self::default()),
            Some(_) => return Ok(Self(json.into())),
            None => {}
        }
        if check::json_object(json)? == 0 {
            return Ok(Self::default());
        }
        let json = json.trim();
        // In valid JSON a line break can only be whitespace between tokens: within a text it must be escaped.
        if json.contains(LINE_BREAKS) {
            return Ok(Self(json.replace(LINE_BREAKS, " ").into()));
        }
        Ok(Self(json.into()))
    }

    /// Takes the text that a check wrote.
    pub(crate) fn written(json: String) -> Self {
        Self(json.into())
    }

    /// Returns the JSON text, `{}` when there are none.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == "{}"
    }

    /// Lets go of where they arrived.
    #[must_use]
    pub fn into_owned(self) -> Properties {
        Properties(self.0.into())
    }
}

impl Default for CheckedProperties<'_> {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl Default for Properties {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes the object itself into JSON. Only `serde_json` can carry a raw text.
impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_but_on_one_line() {
        let properties = Properties::parse("\r\n{\n  \"a\" : 1e2,\r\n  \"b\": \"x\\ny\"\n}\n").unwrap();
        assert_eq!(properties.as_json(), r#"{   "a" : 1e2,    "b": "x\ny" }"#);
    }

    #[test]
    fn every_empty_object_is_the_same() {
        assert_eq!(Properties::parse(" { \n } ").unwrap(), Properties::default());
        assert!(Properties::parse("{\t}").unwrap().is_empty());
    }
}
