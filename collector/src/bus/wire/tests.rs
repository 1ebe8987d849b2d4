use eventbucket_protocol::codec;
use proptest::prelude::*;

use super::*;

fn event(number: u128, properties: &str) -> Event {
    Event {
        id: EventId::from_uuid(Uuid::from_u128(number)),
        name: "order_paid".to_owned(),
        description: None,
        user: Some("ada".to_owned()),
        time: Timestamp::from_ms(1_700_000_000_000).unwrap(),
        stream: None,
        correlation: Some("c".to_owned()),
        properties: Properties::parse(properties).unwrap(),
    }
}

fn batch(events: Vec<Event>) -> ValidBatch {
    ValidBatch {
        project: ProjectId(7),
        batch: BatchId::from_uuid(Uuid::from_u128(9)),
        received: Timestamp::from_ms(1_700_000_000_001).unwrap(),
        skew_ms: Some(-70_000),
        undated: (0..events.len()).filter(|place| place % 3 == 1).collect(),
        events,
        refused: vec![Refused { place: 4, code: Code::TooDeep }],
        part: 0,
        parts: 1,
    }
}

fn sent(batch: &ValidBatch) -> Vec<ValidBatch> {
    let read = |bytes: Vec<u8>| {
        assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{} bytes", bytes.len());
        read_message(&bytes).unwrap()
    };
    encode_batch(batch).into_iter().flat_map(read).collect()
}

#[test]
fn a_batch_comes_back_as_it_was() {
    let text = Event { id: EventId::from_text("order-17"), ..event(1, "{}") };
    let whole = batch(vec![event(1, r#"{"a":[1,2.5,"x"]}"#), text, event(3, "{}")]);
    let back = sent(&whole);
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].events, whole.events);
    assert_eq!(
        (back[0].project, back[0].batch, back[0].received),
        (whole.project, whole.batch, whole.received)
    );
    assert_eq!(
        (back[0].skew_ms, &back[0].undated, &back[0].refused),
        (whole.skew_ms, &whole.undated, &whole.refused)
    );
}

#[test]
fn what_is_written_from_a_body_is_what_its_events_would_be() {
    let body = r#"{"batch_id":"b","events":[
        {"id":"order-17","name":"p\u0061id","user":"ada","time":5,"properties":{ "a" : "\u00e9" }},
        {"name":"a","id":"0190163d-8694-739b-aea5-966c26f8ad91","description":"d","stream":"s","correlation":"c"},
        {"name":"","id":"x"}]}"#;
    let raw = codec::decode(body.as_bytes(), codec::Format::Json).unwrap();
    let now = Timestamp::from_ms(7).unwrap();
    let checked =
        raw.events.into_iter().filter_map(|raw| raw.and_then(|raw| raw.check(|| unreachable!(), now)).ok());
    let whole = batch(Vec::new());
    let borrowed = ValidBatch {
        project: whole.project,
        batch: whole.batch,
        received: whole.received,
        skew_ms: whole.skew_ms,
        events: checked.collect::<Vec<_>>(),
        undated: vec![1],
        refused: whole.refused,
        part: 0,
        parts: 1,
    };
    let written = encode_batch(&borrowed);
    let owned = borrowed.into_owned();
    assert_eq!(written, encode_batch(&owned));
    assert_eq!(format!("{:?}", read_message(&written[0]).unwrap()), format!("{:?}", [owned]));
}

#[test]
fn batches_that_share_a_message_come_back_one_by_one() {
    let batches: Vec<ValidBatch> = (0..20).map(|number| batch(vec![event(number, "{}")])).collect();
    let messages: Vec<Vec<u8>> = batches.iter().flat_map(encode_batch).collect();
    for count in [1, 2, 20] {
        let some: Vec<&[u8]> = messages[..count].iter().map(Vec::as_slice).collect();
        let back = read_message(&merged(&some)).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", &batches[..count]));
    }
}

#[test]
fn the_largest_batch_travels_in_parts_that_fit() {
    let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(200 * 1024));
    let whole = batch((0..80).map(|number| event(number, &large)).collect());
    let parts = sent(&whole);
    assert!(parts.len() > 15, "{} parts", parts.len());
    let numbers: Vec<u16> = parts.iter().map(|part| part.part).collect();
    assert_eq!(numbers, (0..parts[0].parts).collect::<Vec<_>>());
    let refused: Vec<usize> = parts.iter().map(|part| part.refused.len()).collect();
    assert_eq!((refused[0], refused.iter().sum::<usize>()), (1, 1), "they are counted once");
    let mut place = 0;
    for part in &parts {
        for own in 0..part.events.len() {
            assert_eq!(part.is_dated(own), whole.is_dated(place));
            place += 1;
        }
    }
    assert_eq!(parts.into_iter().flat_map(|part| part.events).collect::<Vec<_>>(), whole.events);
}

#[test]
fn another_version_is_told_apart_from_damage() {
    let mut bytes = encode_batch(&batch(vec![])).remove(0);
    bytes[0] = VERSION + 1;
    assert!(matches!(read_message(&bytes), Err(WireError::Version { found }) if found == VERSION + 1));
    assert!(matches!(read_message(&[]), Err(WireError::Empty)));
    assert!(matches!(read_message(&[VERSION, 0xc1]), Err(WireError::Malformed(_))));
}

#[test]
fn what_no_edge_would_have_sent_is_malformed() {
    type Forge = fn(&mut BatchForm<Vec<EventForm<'_>>>);
    let forgeries: [(&str, Forge); 8] = [
        ("ms before", |form| form.skew_ms = Some(i64::MAX)),
        ("ms before", |form| form.skew_ms = Some(i64::MIN)),
        ("is no time", |form| form.events[1].time_ms = i64::MAX),
        ("no part 1 of 1", |form| form.part = 1),
        ("no event at 2", |form| form.undated = vec![2]),
        ("event 1: its id", |form| form.events[1].id_text = Some("another")),
        ("event 1: ", |form| form.events[1].name = ""),
        ("event 1: ", |form| form.events[1].properties = "{not json"),
    ];
    let whole = batch(vec![event(1, "{}"), event(2, "{}")]);
    for (expected, forge) in forgeries {
        let encoded = encode_batch(&whole).remove(0);
        let mut form: BatchForm<Vec<EventForm<'_>>> =
            rmp_serde::from_slice(&encoded[LONE_HEAD.len()..]).unwrap();
        forge(&mut form);
        let forged = [&LONE_HEAD[..], &rmp_serde::to_vec(&form).unwrap()].concat();
        let error = read_message(&forged).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn ranges_come_back() {
    let all = [StoredRange { project: ProjectId(1), first: 5, last: 9 }];
    assert_eq!(read_ranges(&ranges(&all)).unwrap(), all);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_message(&bytes);
        let _ = read_ranges(&bytes);
        let mut known = vec![VERSION];
        known.extend(bytes);
        let _ = read_message(&known);
        let _ = read_ranges(&known);
    }
}
