#![no_main]

use eventbucket_protocol::codec::{self, Format, encode};
use eventbucket_protocol::limits::BATCH_EVENTS_MAX;
use eventbucket_protocol::{BatchId, EventId, Properties, Timestamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let format = match choice % 3 {
        0 => Format::Json,
        1 => Format::Ndjson,
        _ => Format::MessagePack,
    };
    let Ok(batch) = codec::decode(body, format) else { return };
    assert!(batch.events.len() <= BATCH_EVENTS_MAX);
    let now = Timestamp::from_ms(0).unwrap();
    for raw in batch.events.into_iter().flatten() {
        let Ok(event) = raw.complete(|| EventId::from_text("made"), now) else { continue };
        assert_eq!(Properties::parse(event.properties.as_json()).as_ref(), Ok(&event.properties));
        assert!(!event.properties.as_json().contains(['\n', '\r', '\0']));

        let mut again = Vec::new();
        encode::batch_header(BatchId::from_text("b"), 1, &mut again);
        let frame = again.len();
        encode::event(&event, &mut again);
        assert!(event.size_bytes() >= again.len() - frame);
        // An event just under the limit in one format may lie above it in the other.
        if again.len() < eventbucket_protocol::limits::EVENT_BYTES_MAX {
            let read = codec::decode(&again, Format::MessagePack).unwrap().events.remove(0);
            assert_eq!(read.unwrap().complete(|| unreachable!(), now), Ok(event));
        }
    }
});
