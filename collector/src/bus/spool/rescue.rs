use eventbucket::message_spool::{MessageSpool, Trouble};

/// Bytes of one commit, as for batches that come.
const COMMIT_BYTES_MAX: u64 = super::disk::COMMIT_BYTES_MAX as u64;

/// Writes what is in a file into another, a commit's worth at a time.
pub(super) fn copy(from: &MessageSpool, mut into: MessageSpool) -> Result<MessageSpool, Trouble> {
    let (mut messages, mut bytes) = (Vec::new(), 0);
    for group in from.oldest(usize::MAX)? {
        messages.extend(from.read(&group)?);
        bytes += group.bytes;
        if bytes > COMMIT_BYTES_MAX {
            into.append(&std::mem::take(&mut messages))?;
            bytes = 0;
        }
    }
    into.append(&messages)?;
    Ok(into)
}

/// Empties a file whose batches are in another now. What stays is sent twice, and known by then.
pub(super) fn empty(spool: &mut MessageSpool) {
    for group in spool.oldest(usize::MAX).unwrap_or_default() {
        if spool.remove(&group).is_err() {
            return;
        }
    }
}
