use eventbucket_protocol::limits::BATCH_EVENTS_MAX;
use eventbucket_protocol::{BatchId, Code, Reason, Verdict};

use super::{Backend, Error, Ledger, Store};
use crate::bus::message::Refused;
use crate::project::ProjectId;

/// What became of a batch, as far as the log knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchRecord {
    /// Some of its parts are still on their way.
    Pending,
    /// One verdict for each event of the body, in order: what became of it when the batch was first stored.
    Final(Vec<Verdict>),
}

/// A `ranges` row, as far as it is about verdicts.
#[derive(Clone, Debug)]
pub(super) struct BatchPart {
    pub(super) part: u16,
    pub(super) parts: u16,
    /// How many events there were, without the refused.
    pub(super) events: u64,
    pub(super) verdicts: Option<String>,
    pub(super) refused: Option<String>,
}

impl Store {
    /// Finds out what became of a batch; `None` when nothing of it was ever stored.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn batch(&self, project: ProjectId, batch: BatchId) -> Result<Option<BatchRecord>, Error> {
        let parts = match &self.0 {
            Backend::Sqlite(sqlite) => sqlite.batch(project, batch).await?,
            Backend::Postgres(postgres) => postgres.batch(project, batch).await?,
        };
        if parts.is_empty() { Ok(None) } else { record(&parts).map(Some) }
    }
}

/// Puts the parts together, in their order, and the refused between them.
fn record(parts: &[BatchPart]) -> Result<BatchRecord, Error> {
    if parts.iter().zip(0..).any(|(part, expected)| part.part != expected)
        || parts.first().is_none_or(|first| usize::from(first.parts) != parts.len())
    {
        return Ok(BatchRecord::Pending);
    }
    let mut stored = Vec::new();
    for part in parts {
        read_verdicts(part, &mut stored)?;
    }
    let mut verdicts = Vec::with_capacity(stored.len());
    let mut stored = stored.into_iter();
    for (place, code) in read_refused(parts[0].refused.as_deref())? {
        let before = place.saturating_sub(verdicts.len());
        verdicts.extend(stored.by_ref().take(before));
        verdicts.push(Verdict::Rejected(Reason::new(code, "it was refused when the batch arrived")));
    }
    verdicts.extend(stored);
    Ok(BatchRecord::Final(verdicts))
}

/// Writes verdicts as runs, like `stored*400,duplicate*100`; nothing when all are stored, which nearly all are.
pub(super) fn verdicts_text(verdicts: &[Verdict]) -> Option<String> {
    if verdicts.iter().all(|verdict| *verdict == Verdict::Stored) {
        return None;
    }
    let runs = verdicts.chunk_by(|a, b| word(a) == word(b));
    Some(runs.map(|run| format!("{}*{}", word(&run[0]), run.len())).collect::<Vec<_>>().join(","))
}

/// Writes what was refused, like `3:invalid_name,7:too_deep`; nothing when nothing was.
pub(super) fn refused_text(refused: &[Refused]) -> Option<String> {
    let one = |refused: &Refused| format!("{}:{}", refused.place, code_text(refused.code));
    (!refused.is_empty()).then(|| refused.iter().map(one).collect::<Vec<_>>().join(","))
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Stored => "stored",
        Verdict::Duplicate { differs: false } => "duplicate",
        Verdict::Duplicate { differs: true } => "differs",
        Verdict::Quarantined(_) => "quarantined",
        other => unreachable!("storage gives no verdict {other:?}"),
    }
}

fn read_verdicts(part: &BatchPart, verdicts: &mut Vec<Verdict>) -> Result<(), Error> {
    for run in part.runs() {
        let (verdict, count) = run?;
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(BATCH_EVENTS_MAX);
        verdicts.extend(std::iter::repeat_n(verdict, count));
    }
    Ok(())
}

/// The runs of a text like `stored*400,duplicate*100`, in order.
fn runs(text: &str) -> impl Iterator<Item = Result<(Verdict, u64), Error>> + '_ {
    text.split(',').map(move |run| {
        let read =
            run.split_once('*').and_then(|(word, count)| Some((read_word(word)?, count.parse().ok()?)));
        read.ok_or_else(|| unreadable(text))
    })
}

/// Counts the stored ones before a place in the verdicts of a batch: what to add to its range's first position to get the
/// place's own.
pub(super) fn stored_before(verdicts: Option<&str>, place: u64) -> Result<u64, Error> {
    let Some(text) = verdicts else { return Ok(place) };
    let (mut at, mut stored) = (0_u64, 0);
    for run in runs(text) {
        let (verdict, count) = run?;
        if verdict == Verdict::Stored {
            stored += count.min(place.saturating_sub(at));
        }
        at = at.saturating_add(count);
    }
    Ok(stored)
}

impl BatchPart {
    fn runs(&self) -> impl Iterator<Item = Result<(Verdict, u64), Error>> + '_ {
        let all_stored = self.verdicts.is_none().then_some(Ok((Verdict::Stored, self.events)));
        all_stored.into_iter().chain(self.verdicts.iter().flat_map(|text| runs(text)))
    }

    /// Says what in the row disagrees with its figures, if anything does.
    pub(super) fn complaint(&self, ledger: &Ledger) -> Option<String> {
        if self.part >= self.parts {
            return Some(format!("it is part {} of {}", self.part, self.parts));
        }
        let mut told = Ledger::default();
        for run in self.runs() {
            let Ok((verdict, count)) = run else { return run.err().map(|error| error.to_string()) };
            let figure = match verdict {
                Verdict::Stored => &mut told.stored,
                Verdict::Duplicate { .. } => &mut told.duplicate,
                _ => &mut told.quarantined,
            };
            *figure = figure.saturating_add(count);
        }
        match read_refused(self.refused.as_deref()) {
            Ok(refused) => told.rejected = refused.len() as u64,
            Err(error) => return Some(error.to_string()),
        }
        let told_of = told.stored.saturating_add(told.duplicate).saturating_add(told.quarantined);
        told.received = told_of.saturating_add(told.rejected);
        (told != *ledger).then(|| format!("its verdicts tell of {told}, its figures of {ledger}"))
    }
}

fn read_word(word: &str) -> Option<Verdict> {
    match word {
        "stored" => Some(Verdict::Stored),
        "duplicate" => Some(Verdict::Duplicate { differs: false }),
        "differs" => Some(Verdict::Duplicate { differs: true }),
        "quarantined" => {
            let message = "the database refused it; it is kept in quarantine with the reason";
            Some(Verdict::Quarantined(Reason::new(Code::Unknown, message)))
        }
        _ => None,
    }
}

fn read_refused(text: Option<&str>) -> Result<Vec<(usize, Code)>, Error> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let one = |entry: &str| {
        let (place, code) = entry.split_once(':')?;
        Some((place.parse().ok()?, serde_json::from_value(code.into()).ok()?))
    };
    text.split(',').map(|entry| one(entry).ok_or_else(|| unreadable(text))).collect()
}

/// The code's name on the wire.
fn code_text(code: Code) -> String {
    let value = serde_json::to_value(code).expect("a code is a word");
    value.as_str().unwrap_or("unknown").to_owned()
}

fn unreadable(text: &str) -> Error {
    Error::unreadable(format!("the verdicts of a batch, {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(part: u16, parts: u16, verdicts: &[Verdict], refused: &[Refused]) -> BatchPart {
        let events = verdicts.len() as u64;
        BatchPart { part, parts, events, verdicts: verdicts_text(verdicts), refused: refused_text(refused) }
    }

    #[test]
    fn verdicts_come_back_in_the_order_of_the_body() {
        let same = Verdict::Duplicate { differs: false };
        let differs = Verdict::Duplicate { differs: true };
        let refused = [
            Refused { place: 0, code: Code::InvalidName },
            Refused { place: 3, code: Code::TooDeep },
            Refused { place: 6, code: Code::EventTooLarge },
        ];
        let parts = [
            part(0, 2, &[Verdict::Stored, same.clone(), same.clone()], &refused),
            part(1, 2, std::slice::from_ref(&differs), &[]),
        ];
        let Ok(BatchRecord::Final(found)) = record(&parts) else { panic!("it is complete") };
        let code = |verdict: &Verdict| match verdict {
            Verdict::Rejected(reason) => Some(reason.code),
            _ => None,
        };
        assert_eq!(code(&found[0]), Some(Code::InvalidName));
        assert_eq!(found[1..3], [Verdict::Stored, same.clone()]);
        assert_eq!(code(&found[3]), Some(Code::TooDeep));
        assert_eq!(found[4..6], [same, differs]);
        assert_eq!(code(&found[6]), Some(Code::EventTooLarge));
        assert_eq!(found.len(), 7);
        assert_eq!(record(&parts[..1]).unwrap(), BatchRecord::Pending);
        assert_eq!(record(&parts[1..]).unwrap(), BatchRecord::Pending);
    }

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

    #[test]
    fn what_was_tampered_with_is_told() {
        for text in ["stored", "stored*x", "lost*3"] {
            let tampered =
                BatchPart { verdicts: Some(text.to_owned()), ..part(0, 1, &[Verdict::Stored], &[]) };
            assert!(record(&[tampered]).unwrap_err().to_string().contains(text));
        }
    }
}
