use std::borrow::Cow;

use crate::limits::{
    DESCRIPTION_CHARS_MAX, EVENT_BYTES_MAX, ID_CHARS_MAX, NAME_CHARS_MAX, REFERENCE_CHARS_MAX,
};
use crate::{CheckedProperties, Code, EventId, Properties, Reason, Timestamp};

/// A fact: something with a name happened at a time. Every value here has passed the limits.
///
/// The envelope follows CloudEvents where the two overlap: `name` is its `type`, `user` its `subject`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its identity within the project.
    pub id: EventId,
    /// What happened, e.g. `order_paid`; 1 to 200 characters. Names that begin with `$` belong to the product.
    pub name: String,
    /// A sentence for people.
    pub description: Option<String>,
    /// Whom it is about, in the application's own words.
    pub user: Option<String>,
    /// When it happened, by the sender's clock.
    pub time: Timestamp,
    /// The stream it belongs to.
    pub stream: Option<String>,
    /// What caused it: another event's id, a request id.
    pub correlation: Option<String>,
    /// Everything else.
    pub properties: Properties,
}

impl Event {
    /// Checks every field but the properties, which were checked when they were made.
    ///
    /// # Errors
    /// The first field that breaks a limit.
    pub fn check(&self) -> Result<(), Reason> {
        self.texts().check()
    }

    /// Returns its texts.
    #[must_use]
    pub fn texts(&self) -> Texts<'_> {
        Texts {
            name: &self.name,
            id: self.id.text(),
            description: self.description.as_deref(),
            user: self.user.as_deref(),
            stream: self.stream.as_deref(),
            correlation: self.correlation.as_deref(),
        }
    }

    /// Estimates the bytes the event takes in memory and, within a few bytes, in MessagePack.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, |text| text.len() + 16);
        FIXED_BYTES
            + self.name.len()
            + self.id.text().map_or(0, str::len)
            + optional(&self.description)
            + optional(&self.user)
            + optional(&self.stream)
            + optional(&self.correlation)
            + self.properties.as_json().len()
    }
}

/// The texts of an event, for who has to check them before there is an [`Event`].
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// What happened.
    pub name: &'a str,
    /// The id, where it is a text.
    pub id: Option<&'a str>,
    /// A sentence for people.
    pub description: Option<&'a str>,
    /// Whom it is about.
    pub user: Option<&'a str>,
    /// The stream it belongs to.
    pub stream: Option<&'a str>,
    /// What caused it.
    pub correlation: Option<&'a str>,
}

impl Texts<'_> {
    /// Checks each against its limit.
    ///
    /// # Errors
    /// The first that breaks one.
    #[inline]
    pub fn check(&self) -> Result<(), Reason> {
        check_name(self.name)?;
        check_optional(self.user, "user", REFERENCE_CHARS_MAX)?;
        check_optional(self.description, "description", DESCRIPTION_CHARS_MAX)?;
        check_optional(self.stream, "stream", REFERENCE_CHARS_MAX)?;
        check_optional(self.correlation, "correlation", REFERENCE_CHARS_MAX)?;
        check_optional(self.id, "id", ID_CHARS_MAX)
    }
}

/// Field names, id, time and length markers of a MessagePack event without optional fields.
const FIXED_BYTES: usize = 64;

/// An event as it arrived: decoded, its properties checked, everything else still open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawEvent<'a> {
    /// The id, if the client gave one.
    pub id: Option<EventId>,
    /// The name, if there is one.
    pub name: Option<Cow<'a, str>>,
    /// A sentence for people.
    pub description: Option<Cow<'a, str>>,
    /// Whom it is about.
    pub user: Option<Cow<'a, str>>,
    /// When it happened, if the client said so.
    pub time: Option<Timestamp>,
    /// The stream it belongs to.
    pub stream: Option<Cow<'a, str>>,
    /// What caused it.
    pub correlation: Option<Cow<'a, str>>,
    /// Everything else.
    pub properties: CheckedProperties<'a>,
}

impl<'a> RawEvent<'a> {
    /// Fills what the client left open and checks the whole event, as [`RawEvent::check`] does, and lets go of the body.
    ///
    /// # Errors
    /// The first field that is missing or breaks a limit.
    pub fn complete(self, new_id: impl FnOnce() -> EventId, now: Timestamp) -> Result<Event, Reason> {
        self.check(new_id, now).map(CheckedEvent::into_owned)
    }

    /// Fills what the client left open and checks the whole event.
    ///
    /// # Errors
    /// The first field that is missing or breaks a limit.
    pub fn check(self, new_id: impl FnOnce() -> EventId, now: Timestamp) -> Result<CheckedEvent<'a>, Reason> {
        let name = self.name.ok_or_else(|| {
            Reason::new(Code::InvalidName, "an event needs a name; add \"name\": \"what_happened\"")
        })?;
        let event = CheckedEvent {
            id: self.id.unwrap_or_else(new_id),
            name,
            description: self.description,
            user: self.user,
            time: self.time.unwrap_or(now),
            stream: self.stream,
            correlation: self.correlation,
            properties: self.properties,
        };
        event.texts().check()?;
        Ok(event)
    }
}

/// An [`Event`] whose texts are still where it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedEvent<'a> {
    /// Its identity within the project.
    pub id: EventId,
    /// What happened.
    pub name: Cow<'a, str>,
    /// A sentence for people.
    pub description: Option<Cow<'a, str>>,
    /// Whom it is about.
    pub user: Option<Cow<'a, str>>,
    /// When it happened, by the sender's clock.
    pub time: Timestamp,
    /// The stream it belongs to.
    pub stream: Option<Cow<'a, str>>,
    /// What caused it.
    pub correlation: Option<Cow<'a, str>>,
    /// Everything else.
    pub properties: CheckedProperties<'a>,
}

impl CheckedEvent<'_> {
    /// Returns its texts.
    #[must_use]
    pub fn texts(&self) -> Texts<'_> {
        Texts {
            name: &self.name,
            id: self.id.text(),
            description: self.description.as_deref(),
            user: self.user.as_deref(),
            stream: self.stream.as_deref(),
            correlation: self.correlation.as_deref(),
        }
    }

    /// Lets go of where it arrived.
    #[must_use]
    pub fn into_owned(self) -> Event {
        Event {
            id: self.id,
            name: self.name.into_owned(),
            description: self.description.map(Cow::into_owned),
            user: self.user.map(Cow::into_owned),
            time: self.time,
            stream: self.stream.map(Cow::into_owned),
            correlation: self.correlation.map(Cow::into_owned),
            properties: self.properties.into_owned(),
        }
    }
}

/// Refuses an encoded event over the limit before anything of it is read.
pub(crate) fn check_size(bytes: usize) -> Result<(), Reason> {
    if bytes <= EVENT_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("the event takes {bytes} bytes, more than {EVENT_BYTES_MAX}; send less in one event");
    Err(Reason::new(Code::EventTooLarge, message))
}

#[inline]
fn check_name(name: &str) -> Result<(), Reason> {
    if name.is_empty() {
        return Err(Reason::new(Code::InvalidName, "the name is empty; say what happened"));
    }
    check_text(name, "name", NAME_CHARS_MAX).map_err(|reason| Reason { code: Code::InvalidName, ..reason })
}

#[inline]
fn check_optional(text: Option<&str>, field: &str, chars_max: usize) -> Result<(), Reason> {
    match text {
        Some("") => {
            Err(Reason::new(Code::InvalidField, format!("{field} is empty; leave the field out instead")))
        }
        Some(text) => check_text(text, field, chars_max),
        None => Ok(()),
    }
}

/// Runs in every capture, so what most texts pass is small enough to be inlined.
#[inline]
fn check_text(text: &str, field: &str, chars_max: usize) -> Result<(), Reason> {
    // A text of N bytes has at most N characters, so most are never counted.
    if text.len() <= chars_max && !text.as_bytes().contains(&0) {
        return Ok(());
    }
    check_odd_text(text, field, chars_max)
}

#[cold]
fn check_odd_text(text: &str, field: &str, chars_max: usize) -> Result<(), Reason> {
    if text.len() > chars_max && text.chars().count() > chars_max {
        let message = format!("{field} has {} characters, more than {chars_max}", text.chars().count());
        return Err(Reason::new(Code::InvalidField, message));
    }
    if text.contains('\0') {
        let message = format!("{field} contains a NUL character, which databases can't hold; remove it");
        return Err(Reason::new(Code::InvalidField, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> RawEvent<'_> {
        RawEvent { name: Some(name.into()), ..RawEvent::default() }
    }

    fn complete(raw: RawEvent<'_>) -> Result<Event, Reason> {
        raw.complete(|| EventId::from_text("made"), Timestamp::from_ms(5).unwrap())
    }

    #[test]
    fn what_the_client_left_open_is_filled() {
        let event = complete(named("ping")).unwrap();
        assert_eq!((event.id.to_string().as_str(), event.time.ms()), ("made", 5));
    }

    #[test]
    fn names_are_counted_in_characters() {
        assert!(complete(named(&"ü".repeat(NAME_CHARS_MAX))).is_ok());
        let reason = complete(named(&"ü".repeat(NAME_CHARS_MAX + 1))).unwrap_err();
        assert_eq!(reason.code, Code::InvalidName);
        assert_eq!(reason.message, "name has 201 characters, more than 200");
    }

    #[test]
    fn empty_and_missing_fields_say_what_to_do() {
        assert_eq!(complete(RawEvent::default()).unwrap_err().code, Code::InvalidName);
        assert_eq!(complete(named("")).unwrap_err().message, "the name is empty; say what happened");
        let reason = complete(RawEvent { user: Some("".into()), ..named("ping") }).unwrap_err();
        assert_eq!(reason.message, "user is empty; leave the field out instead");
    }

    #[test]
    fn nul_is_refused_in_every_text() {
        for reason in [
            complete(named("a\0b")).unwrap_err(),
            complete(RawEvent { correlation: Some("\0".into()), ..named("ping") }).unwrap_err(),
        ] {
            assert!(reason.message.contains("NUL"), "{reason:?}");
        }
    }
}
