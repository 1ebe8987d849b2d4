use eventbucket_protocol::{BatchId, CheckedEvent, EventId, RawBatch, Reason, Timestamp};
use uuid::Uuid;

use crate::bus::message::{Refused, ValidBatch};
use crate::project::ProjectId;

/// A sender's clock that is off by less than this is believed: a request may take half a minute to arrive, and a
/// correction smaller than that would be noise. 60,000 ms.
pub const SKEW_MS_MIN: u64 = 60_000;

/// When a batch was sent and when it was here.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When the body was complete, by our clock.
    pub received: Timestamp,
    /// When the attempt was sent, by the sender's.
    pub sent_at: Option<Timestamp>,
}

impl Arrival {
    /// What to add to the sender's times to get ours; `None` when its clock is right or nothing is known of it.
    #[must_use]
    pub fn skew_ms(self) -> Option<i64> {
        let skew_ms = self.received.ms() - self.sent_at?.ms();
        (skew_ms.unsigned_abs() > SKEW_MS_MIN).then_some(skew_ms)
    }
}

/// A batch whose events are all complete or refused, their texts still in its body.
#[derive(Debug)]
pub struct Valid<'a> {
    /// What is to be stored.
    pub batch: ValidBatch<CheckedEvent<'a>>,
    /// What was refused, by its place in the body, in order.
    pub refused: Vec<(usize, Reason)>,
    /// The ids by place in the body, when the collector made some.
    pub ids: Option<Vec<Option<EventId>>>,
}

/// Completes every event of a batch or refuses it; ids that are missing are made here.
#[must_use]
pub fn validate(project: ProjectId, raw: RawBatch<'_>, arrival: Arrival) -> Valid<'_> {
    let mut events = Vec::with_capacity(raw.events.len());
    let mut refused = Vec::new();
    let mut made_ids = false;
    let mut undated = Vec::new();
    for (place, event) in raw.events.into_iter().enumerate() {
        let has_id = event.as_ref().is_ok_and(|event| event.id.is_some());
        let has_time = event.as_ref().is_ok_and(|event| event.time.is_some());
        let new_id = || EventId::from_uuid(Uuid::now_v7());
        match event.and_then(|event| event.check(new_id, arrival.received)) {
            Ok(event) => {
                made_ids |= !has_id;
                if !has_time {
                    undated.push(events.len());
                }
                events.push(event);
            }
            Err(reason) => refused.push((place, reason)),
        }
    }
    let ids = made_ids.then(|| ids_in_order(&events, &refused));
    let batch = ValidBatch {
        project,
        batch: raw.id.unwrap_or_else(|| BatchId::from_uuid(Uuid::now_v7())),
        received: arrival.received,
        skew_ms: arrival.skew_ms(),
        events,
        undated,
        refused: refused.iter().map(|(place, reason)| refused_at(*place, reason)).collect(),
        part: 0,
        parts: 1,
    };
    Valid { batch, refused, ids }
}

/// The ids by place in the body; `refused` is in order of its places.
fn ids_in_order(events: &[CheckedEvent<'_>], refused: &[(usize, Reason)]) -> Vec<Option<EventId>> {
    let mut ids = Vec::with_capacity(events.len() + refused.len());
    let mut passed = events.iter().map(|event| Some(event.id.clone()));
    for (place, _) in refused {
        let before = place - ids.len();
        ids.extend(passed.by_ref().take(before));
        ids.push(None);
    }
    ids.extend(passed);
    ids
}

fn refused_at(place: usize, reason: &Reason) -> Refused {
    let place = u32::try_from(place).expect("a batch holds at most 10,000 events");
    Refused { place, code: reason.code }
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::Code;
    use eventbucket_protocol::codec::{Format, decode};

    use super::*;

    fn at(unix_ms: i64) -> Timestamp {
        Timestamp::from_ms(unix_ms).unwrap()
    }

    fn valid(body: &str) -> Valid<'_> {
        let raw = decode(body.as_bytes(), Format::Json).unwrap();
        validate(ProjectId(1), raw, Arrival { received: at(5), sent_at: None })
    }

    #[test]
    fn skew_counts_from_a_minute_on_in_both_directions() {
        let skew = |sent_at| Arrival { received: at(1_000_000), sent_at: Some(at(sent_at)) }.skew_ms();
        assert_eq!(skew(1_000_000 - 60_000), None);
        assert_eq!(skew(1_000_000 - 60_001), Some(60_001));
        assert_eq!(skew(1_000_000 + 60_001), Some(-60_001));
        assert_eq!(Arrival { received: at(0), sent_at: None }.skew_ms(), None);
    }

    #[test]
    fn what_is_refused_keeps_its_place_and_costs_its_neighbours_nothing() {
        let valid = valid(r#"[{"name":"a","id":"1"},{"name":""},{"name":"b","id":"2"},{"id":"3"}]"#);
        assert_eq!(valid.batch.events.len(), 2);
        assert_eq!(valid.batch.rejected(), 2);
        let places: Vec<_> = valid.refused.iter().map(|(place, reason)| (*place, reason.code)).collect();
        assert_eq!(places, [(1, Code::InvalidName), (3, Code::InvalidName)]);
        assert!(valid.ids.is_none(), "every event that passed brought its id");
    }

    #[test]
    fn ids_are_returned_when_one_had_to_be_made() {
        let ids = valid(r#"[{"name":"a","id":"1"},{"name":"b"},{}]"#).ids.unwrap();
        assert_eq!(ids[0].as_ref().unwrap().to_string(), "1");
        assert_eq!(ids[1].as_ref().unwrap().uuid().get_version_num(), 7);
        assert_eq!((&ids[2], ids.len()), (&None, 3));
        let between = valid(r#"[{},{"name":"a"},{},{},{"name":"b","id":"2"}]"#).ids.unwrap();
        let given: Vec<bool> = between.iter().map(Option::is_some).collect();
        assert_eq!(given, [false, true, false, false, true]);
    }

    #[test]
    fn an_event_without_a_time_gets_the_time_it_arrived() {
        assert_eq!(valid(r#"{"name":"a"}"#).batch.events[0].time, at(5));
    }

    #[test]
    fn skew_corrects_only_times_that_the_sender_gave() {
        let body = r#"[{"name":"a"},{"name":"","time":0},{"name":"b","time":0},{"name":"c"}]"#;
        let raw = decode(body.as_bytes(), Format::Json).unwrap();
        let arrival = Arrival { received: at(7_200_000), sent_at: Some(at(0)) };
        let batch = validate(ProjectId(1), raw, arrival).batch;
        let skews: Vec<_> = (0..3).map(|place| batch.skew_ms_at(place)).collect();
        assert_eq!(skews, [None, Some(7_200_000), None]);
    }
}
