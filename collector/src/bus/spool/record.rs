use super::super::message::ValidBatch;
use super::super::wire;

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

/// Writes a batch as the message it would be if messages had no bound, behind a checksum.
pub(super) fn write(batch: &ValidBatch) -> Vec<u8> {
    let message = wire::encode_whole(batch);
    let mut record = Vec::with_capacity(CHECKSUM_BYTES + message.len());
    record.extend_from_slice(&crc32fast::hash(&message).to_le_bytes());
    record.extend_from_slice(&message);
    record
}

/// Reads the batches of a record: one.
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
    fn a_batch_that_no_message_would_hold_comes_back_whole() {
        for bytes in [1, 200 * 1024] {
            let batch = batch(bytes);
            let read = read(&write(&batch)).unwrap();
            assert_eq!(format!("{read:?}"), format!("{:?}", [batch]));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let record = write(&batch(1));
        for place in 0..record.len() {
            let mut damaged = record.clone();
            damaged[place] ^= 1;
            assert!(read(&damaged).is_err(), "byte {place}");
            assert!(read(&record[..place]).is_err(), "cut at {place}");
        }
    }
}
