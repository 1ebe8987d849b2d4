use eventbucket_protocol::{Properties, Timestamp};
use serde::Serialize;

use crate::store::StoredEvent;

/// An event of the log as it is written in JSON, over HTTP and by the command line alike.
#[derive(Clone, Debug, Serialize)]
pub struct EventShape<'a> {
    position: u64,
    id: String,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    time: Timestamp,
    received: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    skew_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<&'a str>,
    properties: &'a Properties,
}

impl<'a> From<&'a StoredEvent> for EventShape<'a> {
    fn from(stored: &'a StoredEvent) -> Self {
        let event = &stored.event;
        Self {
            position: stored.position,
            id: event.id.to_string(),
            name: &event.name,
            description: event.description.as_deref(),
            user: event.user.as_deref(),
            time: event.time,
            received: stored.received,
            skew_ms: stored.skew_ms,
            stream: event.stream.as_deref(),
            correlation: event.correlation.as_deref(),
            properties: &event.properties,
        }
    }
}
