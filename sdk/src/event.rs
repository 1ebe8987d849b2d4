use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use eventbucket_protocol::{EventId, Texts, Timestamp};
use serde::Serialize;

use crate::Props;

/// An event under construction. What is left open is filled by [`Bucket::capture`](crate::Bucket::capture): a UUIDv7
/// and the present time.
///
/// ```
/// use eventbucket::Event;
///
/// let event = Event::new("order_paid")
///     .user("u-17")
///     .id("order-4711-paid") // captured twice, sent once
///     .prop("plan", "pro")
///     .prop("amount", 12.5);
/// assert_eq!(event.name(), "order_paid");
/// ```
#[derive(Clone, Debug)]
#[must_use = "an event does nothing until it is captured"]
pub struct Event {
    pub(crate) id: Option<EventId>,
    pub(crate) time: Option<Timestamp>,
    pub(crate) name: Cow<'static, str>,
    pub(crate) user: Option<Box<str>>,
    pub(crate) props: Props,
    /// Fields few events have, kept together so that most events stay small.
    pub(crate) rare: Option<Box<Rare>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Rare {
    pub(crate) description: Option<String>,
    pub(crate) stream: Option<String>,
    pub(crate) correlation: Option<String>,
    pub(crate) once: Option<Once>,
}

#[derive(Clone, Debug)]
pub(crate) struct Once {
    pub(crate) key: Box<str>,
    pub(crate) ttl: Duration,
}

impl Event {
    /// Begins an event: what happened, e.g. `order_paid`; 1 to 200 characters. Names that begin with `$` belong to
    /// the product.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { id: None, time: None, name: name.into(), user: None, props: Props::new(), rare: None }
    }

    /// Gives it an identity of its own: a UUID or any text of up to 200 characters. Captured again within the
    /// deduplication window it is withheld; sent again after that, the collector knows it.
    pub fn id(mut self, id: impl Into<EventId>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Says whom it is about, in the application's own words; up to 512 characters.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into().into_boxed_str());
        self
    }

    /// Says when it happened, if not now.
    pub fn time(mut self, time: impl Into<SystemTime>) -> Self {
        self.time = Some(Timestamp::from_system(time.into()));
        self
    }

    /// Says when it happened in Unix milliseconds, held from 0001-01-01 to 9999-12-30T22:00:00Z.
    pub fn time_ms(mut self, unix_ms: i64) -> Self {
        self.time = Timestamp::from_ms(0).map(|epoch| epoch.shifted(unix_ms));
        self
    }

    /// Adds a sentence for people; up to 2,000 characters.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.rare().description = Some(description.into());
        self
    }

    /// Says what caused it: another event's id, a request id; up to 512 characters.
    pub fn correlation(mut self, correlation: impl Into<String>) -> Self {
        self.rare().correlation = Some(correlation.into());
        self
    }

    /// Names the stream it belongs to; up to 512 characters.
    pub fn stream(mut self, stream: impl Into<String>) -> Self {
        self.rare().stream = Some(stream.into());
        self
    }

    /// Adds a property, or replaces the one of that key. NaN and the infinities become null: JSON has no word for them. A value
    /// that can't be JSON at all, and what breaks a limit of the protocol, costs the event: `try_capture` refuses it; it is
    /// counted as `invalid` and told to `on_error`.
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.props.insert(key, value);
        self
    }

    /// Adds properties, or replaces those of the same keys.
    pub fn props(mut self, props: impl Into<Props>) -> Self {
        let mut added = props.into();
        added.merge_missing(&self.props);
        self.props = added;
        self
    }

    /// Lets it pass once within a time: other events with the same key are withheld, whatever they carry. The key is
    /// remembered in memory, for the newest 8,192 keys.
    pub fn once(mut self, key: impl Into<String>, ttl: Duration) -> Self {
        self.rare().once = Some(Once { key: key.into().into_boxed_str(), ttl });
        self
    }

    /// Removes a property, for `before_send`.
    pub fn redact(mut self, key: impl AsRef<str>) -> Self {
        self.props.remove(key);
        self
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whom it is about.
    #[must_use]
    pub fn user_id(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Returns its id; in `before_send` there always is one.
    #[must_use]
    pub fn event_id(&self) -> Option<&EventId> {
        self.id.as_ref()
    }

    /// Returns its properties.
    #[must_use]
    pub fn properties(&self) -> &Props {
        &self.props
    }

    /// Returns its properties to be changed.
    pub fn properties_mut(&mut self) -> &mut Props {
        &mut self.props
    }

    /// Checks everything against the protocol's limits but its size.
    ///
    /// # Errors
    /// The first limit it breaks, in words.
    pub(crate) fn check(&self) -> Result<(), Cow<'_, str>> {
        let rare = self.rare.as_deref();
        let texts = Texts {
            name: &self.name,
            id: self.id.as_ref().and_then(EventId::text),
            description: rare.and_then(|rare| rare.description.as_deref()),
            user: self.user.as_deref(),
            stream: rare.and_then(|rare| rare.stream.as_deref()),
            correlation: rare.and_then(|rare| rare.correlation.as_deref()),
        };
        self.props.check()?;
        texts.check().map_err(|reason| reason.message)
    }

    /// The bytes it takes on the heap, room for growth included.
    pub(crate) fn heap_bytes(&self) -> usize {
        let rare = self.rare.as_ref().map_or(0, |_| size_of::<Rare>());
        self.text_bytes() - self.props.text_bytes() + self.props.heap_bytes() + rare
    }

    /// The bytes of all its texts.
    pub(crate) fn text_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let rare = self.rare.as_ref().map_or(0, |rare| {
            let once = rare.once.as_ref().map_or(0, |once| once.key.len());
            text(&rare.description) + text(&rare.stream) + text(&rare.correlation) + once
        });
        let id = self.id.as_ref().and_then(EventId::text).map_or(0, str::len);
        let user = self.user.as_ref().map_or(0, |user| user.len());
        self.name.len() + rare + id + user + self.props.text_bytes()
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl From<&'static str> for Event {
    fn from(name: &'static str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Event {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}
