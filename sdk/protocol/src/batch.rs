use crate::{BatchId, RawEvent, Reason};

/// A body cut into its events: each is decoded or has its own reason why not.
#[derive(Debug, Default)]
pub struct RawBatch<'a> {
    /// The id, if the client gave one.
    pub id: Option<BatchId>,
    /// The events in the order of the body, which is the order of the verdicts.
    pub events: Vec<Result<RawEvent<'a>, Reason>>,
}
