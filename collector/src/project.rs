//! Projects, their keys and what a key may do.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Names a project within this collector; small, because it is part of every key in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProjectId(pub u32);

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names an account within this collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub u32);

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// May send events and nothing else; safe to ship inside an application.
    Write,
    /// May read and manage the project.
    Secret,
}

/// What the holder of a valid key is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The account the project belongs to.
    pub account: AccountId,
    /// The project the key belongs to.
    pub project: ProjectId,
    /// What the key may do there.
    pub kind: KeyKind,
    /// Whether browsers may use the key: its answers carry CORS headers.
    pub browser: bool,
    /// What the project may send, where that is its own.
    pub limits: OwnLimits,
}

/// What one project may send, where that differs from what the configuration sets for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnLimits {
    /// Events a second, over all edges; ten seconds' worth may come at once.
    pub events_per_s: OwnLimit,
    /// Events a day, UTC.
    pub events_per_day: OwnLimit,
}

/// What is to be changed of a project's limits; the rest stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsChange {
    /// Events a second.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub events_per_s: Option<OwnLimit>,
    /// Events a day.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub events_per_day: Option<OwnLimit>,
}

/// Reads a limit that is named. `null` is none of them: whether it stands for no limit or for the usual one, nobody knows.
fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OwnLimit>, D::Error> {
    OwnLimit::deserialize(deserializer).map(Some)
}

/// A limit of one project. As text and JSON a number, or the word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnLimit {
    /// What the configuration says.
    #[default]
    Default,
    /// No limit, whatever the configuration says.
    None,
    /// So many events, at most [`OwnLimit::EVENTS_MAX`].
    Events(NonZeroU64),
}

impl OwnLimit {
    /// The highest limit: ten seconds of it, 10^13, and what a month of it comes to, are whole numbers in Redis' scripts
    /// (2^53) with room to spare.
    pub const EVENTS_MAX: u64 = 1_000_000_000_000;

    fn of(events: u64) -> Option<Self> {
        NonZeroU64::new(events).filter(|events| events.get() <= Self::EVENTS_MAX).map(Self::Events)
    }
}

impl fmt::Display for OwnLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::None => f.write_str("none"),
            Self::Events(events) => events.fmt(f),
        }
    }
}

impl FromStr for OwnLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            number => number.parse().ok().and_then(Self::of).ok_or_else(|| {
                format!("`{text}` isn't a limit: give events from 1 to {}, default or none", Self::EVENTS_MAX)
            }),
        }
    }
}

impl Serialize for OwnLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Events(events) => serializer.serialize_u64(events.get()),
            Self::Default | Self::None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for OwnLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is valid, and this is what it allows.
    Valid(Grant),
    /// It was valid once: a stale key, not a mistyped one.
    Revoked,
    /// There never was such a key.
    Unknown,
}

/// The SHA-256 of a key: what is stored and looked up. Keys carry 256 random bits, so a slow password hash would add
/// nothing but a way to exhaust the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// Hashes a key as it was presented.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

/// A key at the only moment it is known in clear: when it is made.
#[derive(Clone)]
pub struct NewKey {
    /// The key itself, e.g. `eb_write_…`.
    pub text: String,
    /// What it may do.
    pub kind: KeyKind,
}

impl NewKey {
    /// Makes a key from 32 random bytes; the prefix tells people and secret scanners what it is.
    #[must_use]
    pub fn from_random(kind: KeyKind, random: &[u8; 32]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let prefix = match kind {
            KeyKind::Write => "eb_write_",
            KeyKind::Secret => "eb_secret_",
        };
        // Five bits a character: 32 bytes are 256 bits, 52 characters hold 260.
        let bit = |i: usize| random.get(i / 8).is_some_and(|byte| byte >> (7 - i % 8) & 1 == 1);
        let letter = |i: usize| (0..5).fold(0, |value, b| value << 1 | usize::from(bit(i * 5 + b)));
        let body: String = (0..52).map(|i| char::from(ALPHABET[letter(i)])).collect();
        Self { text: format!("{prefix}{body}"), kind }
    }

    /// Returns what is stored of the key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.text)
    }
}

/// Shows the prefix alone: a key must never reach a log.
impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewKey({}…)", &self.text[..self.text.len().min(12)])
    }
}

/// A project as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    #[serde(rename = "project_id")]
    pub id: ProjectId,
    /// Its name, unique within the account.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// How many events its log holds.
    pub events: u64,
    /// What it may send, where that is its own.
    #[serde(default)]
    pub limits: OwnLimits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_a_word_and_nothing_else() {
        let million = OwnLimit::Events(NonZeroU64::new(1_000_000).unwrap());
        for (text, json, limit) in [
            ("default", "\"default\"", OwnLimit::Default),
            ("none", "\"none\"", OwnLimit::None),
            ("1000000", "1000000", million),
        ] {
            assert_eq!((text.parse(), limit.to_string().as_str()), (Ok(limit), text));
            assert_eq!(serde_json::from_str::<OwnLimit>(json).unwrap(), limit);
            assert_eq!(serde_json::to_string(&limit).unwrap(), json);
        }
        for wrong in ["", "0", "-1", "1.5", "1000000000001", "18446744073709551616", "None", "unlimited"] {
            let error = wrong.parse::<OwnLimit>().unwrap_err();
            assert!(error.ends_with("give events from 1 to 1000000000000, default or none"), "{error}");
        }
        for wrong in ["null", "true", "[5]", "0", "1e3"] {
            assert!(serde_json::from_str::<OwnLimit>(wrong).is_err(), "{wrong}");
        }
    }
}
