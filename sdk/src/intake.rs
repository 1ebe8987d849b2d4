use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use eventbucket_protocol::limits::EVENT_BYTES_MAX;
use eventbucket_protocol::{self as protocol, EventId, Timestamp, codec};
use uuid::Uuid;

use crate::Event;
use crate::clock::ms;
use crate::config::Settings;
use crate::dedup::Window;
use crate::encoded::EncodedEvent;
use crate::error::{CaptureError, Fault, invalid_words, panic_message};
use crate::event::Rare;
use crate::ledger::Tally;
use crate::queue::Captured;

/// Keys of `once` that are remembered: 8,192 × about 100 B = 0.8 MiB.
const ONCE_KEYS: usize = 8_192;

/// Takes events from the queue one by one: sampling, repeats, context, hook, limits, encoding.
pub(crate) struct Intake {
    settings: Arc<Settings>,
    ids: Window<Uuid>,
    once: Window<Box<str>>,
}

impl Intake {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self { ids: Window::new(settings.dedup_ids_max), once: Window::new(ONCE_KEYS), settings }
    }

    /// Freezes the event, or says and counts why it goes no further.
    pub(crate) fn take(
        &mut self,
        captured: Captured,
        tally: &mut Tally,
    ) -> Result<EncodedEvent, CaptureError> {
        let now_ms = self.settings.clock.monotonic_ms();
        let Captured { mut event, captured_ms, explicit_id, .. } = captured;
        let id = event.id.clone().expect("capture gives every event an id");
        let time = event.time.expect("capture gives every event a time");
        let withheld = &mut tally.ledger.withheld;
        if !is_sampled(&event, &id, self.settings.sample) {
            withheld.sampled += 1;
            return Err(CaptureError::Withheld);
        }
        let explicit_id = explicit_id.then(|| id.uuid());
        if explicit_id.is_some_and(|id| self.ids.knows(&id, now_ms)) {
            withheld.duplicate += 1;
            return Err(CaptureError::Withheld);
        }
        let once = event.rare.as_mut().and_then(|rare| rare.once.take());
        if once.as_ref().is_some_and(|once| self.once.knows(&once.key, now_ms)) {
            withheld.once += 1;
            return Err(CaptureError::Withheld);
        }
        event.props.merge_missing(&self.settings.context);
        let event = self.ask_hook(event, tally)?;
        let encoded = encode(event, id, time, captured_ms, tally)?;
        // Only now: an event that was refused may be mended and captured again under its id.
        if let Some(id) = explicit_id {
            self.ids.remember(id, now_ms, ms(self.settings.dedup_ttl));
        }
        if let Some(once) = once {
            self.once.remember(once.key, now_ms, ms(once.ttl));
        }
        Ok(encoded)
    }

    /// Lets ids pass again whose events were lost. Keys of `once` stay: they say that something was tried, not that it arrived.
    pub(crate) fn release(&mut self, ids: &[Uuid]) {
        ids.iter().for_each(|id| self.ids.release(id));
    }

    fn ask_hook(&self, event: Event, tally: &mut Tally) -> Result<Event, CaptureError> {
        let Some(hook) = &self.settings.before_send else { return Ok(event) };
        match catch_unwind(AssertUnwindSafe(|| hook(event))) {
            Ok(Some(event)) => Ok(event),
            Ok(None) => {
                tally.ledger.withheld.hook += 1;
                Err(CaptureError::Withheld)
            }
            Err(panic) => {
                tally.ledger.dropped.hook_panicked += 1;
                tally.fault(Fault::Panicked { who: "before_send", message: panic_message(&*panic) });
                Err(CaptureError::Panicked)
            }
        }
    }
}

/// The hook may have touched id and time; what `capture` returned holds.
fn encode(
    event: Event,
    id: EventId,
    time: Timestamp,
    captured_ms: i64,
    tally: &mut Tally,
) -> Result<EncodedEvent, CaptureError> {
    let Event { name, user, props, rare, .. } = event;
    let Rare { description, stream, correlation, .. } = rare.map(|rare| *rare).unwrap_or_default();
    let props_checked = props.check().map_err(Cow::into_owned);
    let event = protocol::Event {
        id,
        name: name.into_owned(),
        description,
        user: user.map(String::from),
        time,
        stream,
        correlation,
        properties: props.into_properties(),
    };
    let checked = props_checked.and_then(|()| event.check().map_err(|reason| reason.message.into_owned()));
    // Before its fields are looked at: what is far too large is told so, whatever else is wrong with it. Near the limit the
    // encoding decides, since this is an estimate.
    let size = event.size_bytes();
    if size > 2 * EVENT_BYTES_MAX {
        return Err(too_large(size, tally));
    }
    if let Err(message) = checked {
        tally.ledger.dropped.invalid += 1;
        tally.dropped(1, invalid_words(&event.id, &message));
        return Err(CaptureError::Invalid(message));
    }
    let mut bytes = Vec::with_capacity(event.size_bytes());
    codec::encode::event(&event, &mut bytes);
    if bytes.len() > EVENT_BYTES_MAX {
        return Err(too_large(bytes.len(), tally));
    }
    Ok(EncodedEvent::new(event.id.uuid(), captured_ms, bytes))
}

fn too_large(bytes: usize, tally: &mut Tally) -> CaptureError {
    let error = CaptureError::TooLarge { bytes, bytes_max: EVENT_BYTES_MAX };
    tally.ledger.dropped.too_large += 1;
    tally.dropped(1, error.to_string());
    error
}

/// The same user is in the sample or out of it for every process and version: the hash is fixed, FNV-1a with
/// splitmix64's last step (FNV's high bits alone are poor on short texts).
fn is_sampled(event: &Event, id: &EventId, rate: f64) -> bool {
    if rate >= 1.0 {
        return true;
    }
    let uuid = id.uuid();
    let drawn_by = event.user_id().map_or(uuid.as_bytes().as_slice(), str::as_bytes);
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = drawn_by.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    // The upper 53 bits are what a double holds exactly.
    const STEPS: f64 = (1_u64 << 53) as f64;
    ((hash >> 11) as f64) < rate * STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_users_is_a_tenth_and_always_the_same() {
        let id = EventId::from_text("any");
        let in_sample = |user: u32| is_sampled(&Event::new("e").user(format!("user-{user}")), &id, 0.1);
        let first: Vec<_> = (0..10_000).filter(|user| in_sample(*user)).collect();
        let second: Vec<_> = (0..10_000).filter(|user| in_sample(*user)).collect();
        assert_eq!(first, second);
        assert!((900..1_100).contains(&first.len()), "{}", first.len());
        assert!(!is_sampled(&Event::new("e"), &id, 0.0) && is_sampled(&Event::new("e"), &id, 1.0));
    }
}
