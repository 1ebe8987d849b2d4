use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{BatchId, EventId};

/// What became of one event of a batch. Only [`Verdict::Retry`] leaves anything to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// In the log, on disk.
    Stored,
    /// Durably queued; the final verdict can be asked for by batch id.
    Accepted,
    /// In the log already. Flagged when the content differs from what is stored; the stored one stays.
    Duplicate {
        /// Whether the two carry different content.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        differs: bool,
    },
    /// Kept aside: well-formed but it can't be processed until somebody mends it.
    Quarantined(Reason),
    /// Refused for good; sending it again gets the same answer.
    Rejected(Reason),
    /// Not processed; send it again in a new batch. A verdict that a newer collector has and this version doesn't know
    /// counts as this one: sending again is never wrong, because the collector knows the event by its id.
    #[serde(other)]
    Retry,
}

/// Why an event was refused or set aside: a stable code for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The stable code.
    pub code: Code,
    /// What is wrong and what to do.
    pub message: Cow<'static, str>,
}

impl Reason {
    /// Pairs a code with its sentence.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The stable codes of [`Reason`]; new ones may appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// Not a map of known fields of the right types.
    InvalidEvent,
    /// No name, an empty one, or one over 200 characters.
    InvalidName,
    /// A text field that is empty, too long or contains NUL.
    InvalidField,
    /// Not RFC 3339 or milliseconds from 0001-01-01 to 9999-12-30T22:00:00Z.
    InvalidTime,
    /// Properties that aren't a JSON object, or hold what JSON can't.
    InvalidProperties,
    /// A key twice in one object.
    DuplicateKey,
    /// Nested deeper than 16 levels.
    TooDeep,
    /// More than 512 keys.
    TooManyKeys,
    /// Over 256 KiB.
    EventTooLarge,
    /// A code this version doesn't know.
    #[serde(other)]
    Unknown,
}

/// The answer to a batch: one verdict an event, in the order of the body.
///
/// As JSON, `{"batch_id": …, "events": 3, "verdicts": [{"verdict": "stored"}, …]}`; when all verdicts are alike the
/// list shrinks to one: `{"batch_id": …, "events": 500, "all": {"verdict": "stored"}}`. `ids` is there only when the
/// collector made ids because events came without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    batch_id: String,
    events: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    all: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verdicts: Option<Vec<Verdict>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<Option<String>>>,
}

impl Reply {
    /// Packs verdicts into their compact form.
    #[must_use]
    pub fn new(batch_id: BatchId, verdicts: Vec<Verdict>) -> Self {
        let alike = verdicts.windows(2).all(|pair| pair[0] == pair[1]);
        let events = verdicts.len();
        let (all, verdicts) = match verdicts.first() {
            Some(first) if alike && events > 1 => (Some(first.clone()), None),
            _ => (None, Some(verdicts)),
        };
        Self { batch_id: batch_id.to_string(), events, all, verdicts, ids: None }
    }

    /// Adds the ids of the events, `None` for those that were refused before they had one.
    #[must_use]
    pub fn with_ids(self, ids: &[Option<EventId>]) -> Self {
        let ids = ids.iter().map(|id| id.as_ref().map(ToString::to_string)).collect();
        Self { ids: Some(ids), ..self }
    }

    /// Unpacks one verdict an event.
    ///
    /// # Errors
    /// When the reply doesn't hold a verdict for each of the `sent` events: then nothing is known and all are to be
    /// sent again.
    pub fn into_verdicts(self, sent: usize) -> Result<Vec<Verdict>, ReplyError> {
        let verdicts = match (self.all, self.verdicts) {
            (Some(verdict), None) => vec![verdict; self.events.min(sent)],
            (None, Some(verdicts)) => verdicts,
            _ => Vec::new(),
        };
        if verdicts.len() == sent && self.events == sent {
            Ok(verdicts)
        } else {
            Err(ReplyError { sent, received: verdicts.len().min(self.events) })
        }
    }
}

/// A reply that doesn't answer for every event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply holds {received} verdicts for {sent} events; all are sent again")]
pub struct ReplyError {
    sent: usize,
    received: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> BatchId {
        BatchId::from_text("b")
    }

    fn json(reply: &Reply) -> serde_json::Value {
        serde_json::to_value(reply).unwrap()
    }

    #[test]
    fn alike_verdicts_travel_once() {
        let reply = Reply::new(batch(), vec![Verdict::Stored; 500]);
        assert_eq!(json(&reply)["all"]["verdict"], "stored");
        assert_eq!(json(&reply)["events"], 500);
        assert_eq!(reply.into_verdicts(500).unwrap(), vec![Verdict::Stored; 500]);
    }

    #[test]
    fn mixed_verdicts_keep_their_order_and_reasons() {
        let verdicts = vec![
            Verdict::Stored,
            Verdict::Duplicate { differs: true },
            Verdict::Rejected(Reason::new(Code::TooDeep, "flatten it")),
        ];
        let reply = Reply::new(batch(), verdicts.clone());
        assert_eq!(json(&reply)["verdicts"][1]["differs"], true);
        assert_eq!(json(&reply)["verdicts"][2]["code"], "too_deep");
        let read: Reply = serde_json::from_value(json(&reply)).unwrap();
        assert_eq!(read.into_verdicts(3).unwrap(), verdicts);
    }

    #[test]
    fn a_reply_with_the_wrong_number_of_verdicts_is_no_answer() {
        for sent in [499, 501] {
            assert!(Reply::new(batch(), vec![Verdict::Stored; 500]).into_verdicts(sent).is_err());
        }
        assert!(Reply::new(batch(), vec![]).into_verdicts(0).unwrap().is_empty());
    }

    #[test]
    fn verdicts_of_a_newer_collector_are_read_as_retry() {
        let reply = r#"{"batch_id":"b","events":3,"verdicts":
            [{"verdict":"stored"},{"verdict":"archived","where":"cellar"},{"verdict":"retry"}]}"#;
        let read: Reply = serde_json::from_str(reply).unwrap();
        assert_eq!(read.into_verdicts(3).unwrap(), [Verdict::Stored, Verdict::Retry, Verdict::Retry]);
    }

    #[test]
    fn codes_of_a_newer_collector_are_read_as_unknown() {
        let reason: Reason = serde_json::from_str(r#"{"code":"too_purple","message":"m"}"#).unwrap();
        assert_eq!(reason.code, Code::Unknown);
    }
}
