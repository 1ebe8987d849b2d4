use eventbucket_protocol::codec::{self, Format};
use eventbucket_protocol::{BatchId, Properties};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::written::{complete_all, event_and_json, messagepack_body, sdk_body};

const FORMATS: [Format; 3] = [Format::Json, Format::Ndjson, Format::MessagePack];

/// Decodes and completes whatever it can; what it takes must be within the rules.
fn take(body: &[u8]) {
    for format in FORMATS {
        let Ok(batch) = codec::decode(body, format) else { continue };
        for event in complete_all(batch).into_iter().flatten() {
            assert_eq!(event.check(), Ok(()));
            assert_eq!(Properties::parse(event.properties.as_json()).as_ref(), Ok(&event.properties));
        }
    }
}

/// Bytes that MessagePack markers and JSON punctuation are likely among.
fn likely() -> impl Strategy<Value = u8> {
    prop_oneof![
        any::<u8>(),
        0x80_u8..=0x9f,
        0xc0_u8..=0xdf,
        proptest::sample::select(&b"{}[]\",:\\u0 \nenv1.-"[..]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_it_panic(body in vec(likely(), 0..200)) {
        take(&body);
    }

    #[test]
    fn no_changed_byte_makes_it_panic(
        (event, json) in event_and_json(),
        changes in vec((any::<proptest::sample::Index>(), likely()), 1..6),
    ) {
        let written = [
            sdk_body(BatchId::from_text("b"), std::slice::from_ref(&event)),
            messagepack_body(&json),
            json.to_string().into_bytes(),
        ];
        for mut body in written {
            for (at, byte) in &changes {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            take(&body);
        }
    }
}
