use std::fmt;

use uuid::{Builder, Uuid};

/// The namespace under which text ids are hashed (`uuid5(NAMESPACE_URL, "https://eventbucket.dev/ns/id")`).
const TEXT_ID_NAMESPACE: Uuid = Uuid::from_u128(0x1951_a71e_9274_5c60_9185_23b4_9eba_d744);

/// Identifies an event within its project: the same id is the same event, whatever else it carries.
///
/// Event Bucket makes UUIDv7, whose order in time keeps indexes small. A UUID of any version is taken as it is; any
/// other text becomes the UUIDv5 of that text ([RFC 9562 §5.5](https://www.rfc-editor.org/rfc/rfc9562#section-5.5)),
/// which depends on nothing but the text, and the text is kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    uuid: Uuid,
    text: Option<Box<str>>,
}

impl EventId {
    /// Takes a UUID as it is.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self { uuid, text: None }
    }

    /// Makes a UUIDv7 from a time and ten random bytes, both chosen by the caller.
    #[must_use]
    pub const fn v7(unix_ms: u64, random: &[u8; 10]) -> Self {
        Self::from_uuid(Builder::from_unix_timestamp_millis(unix_ms, random).into_uuid())
    }

    /// Reads an id as a client wrote it: a UUID stands for itself, other text is hashed and kept.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match parse_uuid(text) {
            Some(uuid) => Self::from_uuid(uuid),
            None => Self { uuid: hash_text(text), text: Some(text.into()) },
        }
    }

    /// Restores an id from its two stored parts.
    #[must_use]
    pub fn from_parts(uuid: Uuid, text: Option<String>) -> Self {
        Self { uuid, text: text.map(String::into_boxed_str) }
    }

    /// Returns the identity itself.
    #[must_use]
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Returns the text the identity was hashed from, where there was one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

/// Shows the id as its client wrote it.
impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => self.uuid.hyphenated().fmt(f),
        }
    }
}

impl From<Uuid> for EventId {
    fn from(uuid: Uuid) -> Self {
        Self::from_uuid(uuid)
    }
}

impl From<&str> for EventId {
    fn from(text: &str) -> Self {
        Self::from_text(text)
    }
}

impl From<String> for EventId {
    fn from(text: String) -> Self {
        Self::from_text(&text)
    }
}

/// Identifies a batch; a resend of the same events keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(Uuid);

impl BatchId {
    /// Takes a UUID as it is.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Makes a UUIDv7 from a time and ten random bytes, both chosen by the caller.
    #[must_use]
    pub fn v7(unix_ms: u64, random: &[u8; 10]) -> Self {
        Self(EventId::v7(unix_ms, random).uuid())
    }

    /// Reads an id as a client wrote it, by the rule of [`EventId::from_text`].
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(EventId::from_text(text).uuid())
    }

    /// Returns the identity itself.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Only the hyphenated form counts as a UUID: 32 bare hex digits are somebody's own hash.
fn parse_uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

fn hash_text(text: &str) -> Uuid {
    Uuid::new_v5(&TEXT_ID_NAMESPACE, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_hashed_the_same_way_for_ever() {
        let id = EventId::from_text("order-17");
        assert_eq!(id.uuid().get_version_num(), 5);
        assert_eq!(id, EventId::from_text("order-17"));
        assert_ne!(id.uuid(), EventId::from_text("order-18").uuid());
        assert_eq!(id.to_string(), "order-17");
    }

    #[test]
    fn a_uuid_stands_for_itself_in_either_case() {
        let lower = EventId::from_text("0190163d-8694-739b-aea5-966c26f8ad91");
        let upper = EventId::from_text("0190163D-8694-739B-AEA5-966C26F8AD91");
        assert_eq!(lower, upper);
        assert_eq!(lower.text(), None);
        assert_eq!(lower.to_string(), "0190163d-8694-739b-aea5-966c26f8ad91");
    }

    #[test]
    fn v7_carries_its_time() {
        let id = EventId::v7(1_700_000_000_000, &[7; 10]);
        assert_eq!(id.uuid().get_version_num(), 7);
        assert_eq!(&id.uuid().as_bytes()[..6], &1_700_000_000_000_u64.to_be_bytes()[2..]);
    }
}
