use super::super::message::ValidBatch;
use super::super::wire::{self, Encoded};

/// Bytes of the checksum in front: a page that a disk gave back changed would pass SQLite's own check.
const CHECKSUM_BYTES: usize = 4;

/// A record that gives no batch.
#[derive(Debug)]
pub(in crate::bus) struct Unreadable {
    /// What is left of the message.
    pub(in crate::bus) message: Vec<u8>,
    /// Why it can't be read.
    pub(in crate::bus) reason: String,
}

/// Writes a batch as the message it would be if messages had no bound, all its parts one after the other, behind a checksum.
pub(super) fn write(batch: &Encoded) -> Vec<u8> {
    let messages: Vec<&[u8]> = batch.messages.iter().map(|message| &message[..]).collect();
    let message = wire::merged(&messages);
    let mut record = Vec::with_capacity(CHECKSUM_BYTES + message.len());
    record.extend_from_slice(&crc32fast::hash(&message).to_le_bytes());
    record.extend_from_slice(&message);
    record
}

/// Reads what is in a record: a batch, or its parts in order.
pub(super) fn read(record: &[u8]) -> Result<Vec<ValidBatch>, Unreadable> {
    let unreadable = |message: &[u8], reason: String| Unreadable { message: message.to_vec(), reason };
    let Some((checksum, message)) = record.split_first_chunk::<CHECKSUM_BYTES>() else {
        return Err(unreadable(record, "a record of the spool is cut off".to_owned()));
    };
    if crc32fast::hash(message) != u32::from_le_bytes(*checksum) {
        return Err(unreadable(message, "it was damaged on the disk of a spool".to_owned()));
    }
    wire::read_message(message).map_err(|error| unreadable(message, error.to_string()))
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};

    use super::*;
    use crate::project::ProjectId;

    fn batch(properties_bytes: usize) -> ValidBatch {
        let json = format!(r#"{{"x":"{}"}}"#, "y".repeat(properties_bytes));
        let event = |number: u32| Event {
            id: EventId::from_text(&number.to_string()),
            name: "order_paid".to_owned(),
            description: None,
            user: None,
            time: Timestamp::from_ms(1_700_000_000_000).unwrap(),
            stream: None,
            correlation: None,
            properties: Properties::parse(&json).unwrap(),
        };
        ValidBatch {
            project: ProjectId(7),
            batch: BatchId::from_text("b"),
            received: Timestamp::from_ms(1_700_000_000_001).unwrap(),
            skew_ms: Some(3),
            events: (0..10).map(event).collect(),
            undated: vec![2],
            refused: Vec::new(),
            part: 0,
            parts: 1,
        }
    }

    #[test]
    fn a_batch_that_no_message_would_hold_comes_back_with_all_its_parts() {
        let small = batch(1);
        let back = read(&write(&Encoded::of(&small))).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", [small]));
        let large = batch(200 * 1024);
        let back = read(&write(&Encoded::of(&large))).unwrap();
        let parts: Vec<u16> = back.iter().map(|part| part.part).collect();
        assert_eq!((parts, back[0].parts), ((0..back[0].parts).collect(), 5));
        let events: Vec<Event> = back.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(events, large.events);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let record = write(&Encoded::of(&batch(1)));
        for place in 0..record.len() {
            let mut damaged = record.clone();
            damaged[place] ^= 1;
            assert!(read(&damaged).is_err(), "byte {place}");
            assert!(read(&record[..place]).is_err(), "cut at {place}");
        }
    }
}
