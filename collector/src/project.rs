//! Projects, their keys and what a key may do.

use std::fmt;

use serde::{Deserialize, Serialize};
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
}
