use std::cell::Cell;
use std::fmt;

use eventbucket_protocol::limits::DESCRIPTION_CHARS_MAX;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::{Bucket, Event, Props};

/// The name of the events this layer captures.
const NAME: &str = "log";

/// Whatever delivery itself may log: captured, it would cause the next delivery, without end.
const OWN_TARGETS: [&str; 8] =
    ["eventbucket", "reqwest", "hyper", "hyper_util", "rustls", "h2", "tower_http", "tokio_rustls"];

/// The thread that delivers; what hooks log there would cause the next event in the same way.
const WORKER_THREAD: &str = "eventbucket";

thread_local! {
    /// Set while this thread captures, for a subscriber may be called again from inside.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// A [`tracing_subscriber::Layer`] that captures tracing events at or above a level.
///
/// Each becomes an event named `log`, with the message as its description and the other fields as properties, beside
/// `level` and `target`. Ignored are spans, what `reqwest`, `hyper`, `rustls`, `h2` and this crate say, and whatever is
/// said on the bucket's own thread or while an event is being captured.
///
/// ```
/// use eventbucket::Bucket;
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let (bucket, sink) = Bucket::test();
/// let subscriber = tracing_subscriber::registry().with(bucket.tracing_layer());
/// tracing::subscriber::with_default(subscriber, || {
///     tracing::info!(order = 4711, "order paid");
///     tracing::debug!("not this one");
/// });
/// # let _ = sink;
/// ```
#[derive(Clone, Debug)]
pub struct TracingLayer {
    bucket: Bucket,
    level_max: Level,
}

impl TracingLayer {
    /// Captures what is said at `INFO` or a more important level.
    #[must_use]
    pub const fn new(bucket: Bucket) -> Self {
        Self { bucket, level_max: Level::INFO }
    }

    /// Captures what is said at this level or a more important one.
    #[must_use]
    pub const fn with_level(mut self, level: Level) -> Self {
        self.level_max = level;
        self
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        // The levels are ordered by how much they let through: TRACE is the largest.
        *metadata.level() <= self.level_max && !is_own(metadata.target())
    }
}

impl<S: Subscriber> Layer<S> for TracingLayer {
    fn on_event(&self, said: &tracing::Event<'_>, _context: Context<'_, S>) {
        if !self.wants(said.metadata()) || std::thread::current().name() == Some(WORKER_THREAD) {
            return;
        }
        let Some(_capturing) = Capturing::begin() else { return };
        self.bucket.capture(event_of(said));
    }
}

fn event_of(said: &tracing::Event<'_>) -> Event {
    let mut fields = Fields::default();
    fields.props.insert("level", said.metadata().level().as_str());
    fields.props.insert("target", said.metadata().target());
    said.record(&mut fields);
    let event = Event::new(NAME).props(fields.props);
    match fields.message {
        Some(message) => event.description(cut(message)),
        None => event,
    }
}

/// A target is a module path; the crate is its first part.
fn is_own(target: &str) -> bool {
    let crate_name = target.split("::").next().unwrap_or_default();
    OWN_TARGETS.contains(&crate_name)
}

/// A longer description would make the event invalid.
fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(DESCRIPTION_CHARS_MAX) {
        message.truncate(end);
    }
    message
}

/// Holds the mark of this thread, also through a panic.
struct Capturing;

impl Capturing {
    fn begin() -> Option<Self> {
        // At the end of a thread the mark may be gone; then nothing is captured.
        let busy = CAPTURING.try_with(|capturing| capturing.replace(true)).unwrap_or(true);
        (!busy).then_some(Self)
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        // Gone with its thread, there is nothing to take back.
        let _gone = CAPTURING.try_with(|capturing| capturing.set(false));
    }
}

#[derive(Default)]
struct Fields {
    message: Option<String>,
    props: Props,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = Some(format!("{value:?}"));
        } else {
            self.props.insert(field.name(), format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = Some(value.to_owned());
        } else {
            self.props.insert(field.name(), value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.props.insert(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.props.insert(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.props.insert(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.props.insert(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.props.insert(field.name(), value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::Sink;

    fn captured(said: impl FnOnce()) -> (Vec<eventbucket_protocol::Event>, Sink) {
        let (bucket, sink) = Bucket::test();
        let subscriber = tracing_subscriber::registry().with(bucket.tracing_layer().with_level(Level::DEBUG));
        tracing::subscriber::with_default(subscriber, said);
        (sink.events(), sink)
    }

    fn properties(event: &eventbucket_protocol::Event) -> serde_json::Value {
        serde_json::from_str(event.properties.as_json()).unwrap()
    }

    #[test]
    fn fields_become_properties_and_the_message_the_description() {
        let error = std::io::Error::other("no such order");
        let (events, _sink) = captured(|| {
            tracing::warn!(
                target: "shop::orders",
                order = 4711,
                amount = 12.5,
                paid = false,
                plan = "pro",
                who = ?Some("Ada"),
                cause = &error as &dyn std::error::Error,
                "order {} failed", 4711
            );
        });
        assert_eq!(events.len(), 1);
        assert_eq!((&*events[0].name, events[0].description.as_deref()), ("log", Some("order 4711 failed")));
        let expected = serde_json::json!({
            "level": "WARN", "target": "shop::orders", "order": 4711, "amount": 12.5, "paid": false,
            "plan": "pro", "who": "Some(\"Ada\")", "cause": "no such order",
        });
        assert_eq!(properties(&events[0]), expected);
    }

    #[test]
    fn less_important_levels_and_the_own_machinery_are_ignored() {
        let (events, _sink) = captured(|| {
            tracing::trace!(target: "shop", "too detailed");
            tracing::error!(target: "eventbucket::worker", "own");
            tracing::error!(target: "reqwest::connect", "own");
            tracing::error!(target: "hyper_util::client::legacy", "own");
            tracing::error!(target: "rustls", "own");
            tracing::debug!(target: "hyperspace", "not own");
        });
        assert_eq!(events.len(), 1);
        assert_eq!(properties(&events[0])["target"], "hyperspace");
    }

    struct Chatty;

    impl fmt::Debug for Chatty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            tracing::error!(target: "shop", "from inside");
            f.write_str("chatty")
        }
    }

    #[test]
    fn what_is_said_by_a_hook_or_a_field_does_not_feed_itself() {
        let (bucket, sink) = Bucket::builder("http://test.invalid", "key")
            .before_send(|event| {
                tracing::error!(target: "shop", "from the hook");
                Some(event)
            })
            .build_test()
            .unwrap();
        // For every thread, since the hook runs on the worker's; and only such a subscriber is called again from inside.
        let subscriber = tracing_subscriber::registry().with(bucket.tracing_layer().with_level(Level::ERROR));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        bucket.capture("order_paid");
        assert_eq!(sink.events().len(), 1);
        tracing::error!(target: "shop", field = ?Chatty, "outer");
        tracing::error!(target: "shop", "next");
        let said: Vec<_> = sink.events().into_iter().filter_map(|event| event.description).collect();
        assert_eq!(said, ["outer", "next"]);
    }

    #[test]
    fn a_message_longer_than_a_description_is_cut_at_a_character() {
        let message = "é".repeat(DESCRIPTION_CHARS_MAX + 5);
        let (events, _sink) = captured(|| tracing::info!(target: "shop", "{message}"));
        assert_eq!(events[0].description.as_deref(), Some(&*"é".repeat(DESCRIPTION_CHARS_MAX)));
    }
}
