use crate::store::Error;

/// Counts the stored ones before a place in the verdicts of a batch: what to add to its range's first position to get the
/// place's own. Verdicts are kept as runs, like `stored*400,duplicate*100`; nothing when all were stored.
pub(super) fn stored_before(verdicts: Option<&str>, place: u64) -> Result<u64, Error> {
    let Some(text) = verdicts else { return Ok(place) };
    let (mut at, mut stored) = (0, 0);
    for run in text.split(',') {
        let (word, count) = run.split_once('*').unwrap_or((run, ""));
        let count: u64 =
            count.parse().map_err(|_| Error::unreadable(format!("the verdicts of a batch, {text:?}")))?;
        if word == "stored" {
            stored += count.min(place.saturating_sub(at));
        }
        at += count;
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::Verdict;

    use super::*;
    use crate::store::batches::verdicts_text;

    #[test]
    fn runs_lead_to_what_was_stored() {
        let (stored, differs) = (Verdict::Stored, Verdict::Duplicate { differs: true });
        let twice = Verdict::Duplicate { differs: false };
        let text = verdicts_text(&[stored.clone(), stored.clone(), twice, differs, stored]);
        let offsets: Vec<u64> = (0..5).map(|place| stored_before(text.as_deref(), place).unwrap()).collect();
        assert_eq!(offsets, [0, 1, 2, 2, 2]);
        assert_eq!(stored_before(None, 7).unwrap(), 7);
        assert!(stored_before(Some("stored*x"), 1).is_err());
    }
}
