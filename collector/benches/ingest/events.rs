//! What is sent, here and in the bench of the distributed form.

use eventbucket_protocol::{Event, EventId, Properties, Timestamp};
use serde_json::json;

/// The events of a round, with ids and times as the SDK makes them: UUIDv7, about 386 B as JSON, 8 properties.
pub(crate) fn events(round: usize) -> impl Iterator<Item = Event> {
    let started = Timestamp::from_system(std::time::SystemTime::now()).ms();
    (0_usize..).map(move |i| {
        let time = Timestamp::from_ms(started + (i / 100) as i64).unwrap();
        let mut random = [0; 10];
        random[..8].copy_from_slice(&(i as u64 ^ (round as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let properties = json!({
            "plan": "professional", "amount": 12.5, "items": i % 40, "paid": true, "city": "Wien",
            "path": format!("/checkout/{}", i % 1000), "agent": "Mozilla/5.0 (X11; Linux x86_64)", "referrer": null,
        });
        Event {
            id: EventId::v7(time.ms().cast_unsigned(), &random),
            name: ["page_viewed", "order_paid", "cart_filled"][i % 3].to_owned(),
            description: None,
            user: Some(format!("user-{}", i % 5000)),
            time,
            stream: None,
            correlation: None,
            properties: Properties::trusted(properties.to_string()),
        }
    })
}
