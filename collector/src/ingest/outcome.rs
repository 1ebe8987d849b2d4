use eventbucket_protocol::{BatchId, EventId, Reason, Verdict};

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its id, the client's or one made on arrival.
    pub batch: BatchId,
    /// One verdict an event, in the order of the body.
    pub verdicts: Vec<Verdict>,
    /// The ids by place in the body, when the collector made some.
    pub ids: Option<Vec<Option<EventId>>>,
}

/// Puts the refused back between what was published. `refused` is in order of its places.
pub(super) fn in_order(published: Vec<Verdict>, refused: Vec<(usize, Reason)>) -> Vec<Verdict> {
    if refused.is_empty() {
        return published;
    }
    let mut verdicts = Vec::with_capacity(published.len() + refused.len());
    let mut published = published.into_iter();
    for (place, reason) in refused {
        let before = place - verdicts.len();
        verdicts.extend(published.by_ref().take(before));
        verdicts.push(Verdict::Rejected(reason));
    }
    verdicts.extend(published);
    verdicts
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::Code;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_event_gets_its_own_verdict_back(refusals in prop::collection::vec(any::<bool>(), 0..50)) {
            let differs = |place: usize| Verdict::Duplicate { differs: place.is_multiple_of(2) };
            let reason = || Reason::new(Code::InvalidName, "n");
            let expected: Vec<Verdict> = refusals
                .iter()
                .enumerate()
                .map(|(place, refused)| if *refused { Verdict::Rejected(reason()) } else { differs(place) })
                .collect();
            let published = (0..refusals.len()).filter(|place| !refusals[*place]).map(differs).collect();
            let refused = (0..refusals.len()).filter(|place| refusals[*place]).map(|p| (p, reason())).collect();
            prop_assert_eq!(in_order(published, refused), expected);
        }
    }
}
