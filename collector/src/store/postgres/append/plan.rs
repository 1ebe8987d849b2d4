use std::collections::{BTreeMap, BTreeSet, HashMap};

use eventbucket_protocol::{Event, Verdict};
use uuid::Uuid;

use crate::bus::message::{StoredRange, ValidBatch};
use crate::project::ProjectId;
use crate::store::events::refusal;
use crate::store::postgres::project_number;
use crate::store::{Appended, Ledger};

/// Events that the database refuses, by batch and place, with what it said.
pub(super) type Culprits = BTreeMap<(usize, usize), String>;

/// Those of them that were in quarantine before.
pub(super) type KnownCulprits = BTreeSet<(usize, usize)>;

/// One event of an append, named by its identity.
struct Item {
    project: i32,
    id: Uuid,
    batch: usize,
    place: usize,
    digest: Digest,
    dated: bool,
}

/// What a resend must repeat: CRC-32 of the content above that of the time. Two contents share one in 4 billion cases; then
/// a duplicate isn't flagged as differing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(pub(super) i64);

impl Digest {
    fn of(event: &Event) -> Self {
        let mut content = crc32fast::Hasher::new();
        // The lengths keep a name that ends like the user begins apart from another cut.
        let user = event.user.as_deref();
        content.update(&(event.name.len() as u64).to_le_bytes());
        content.update(&user.map_or(u64::MAX, |user| user.len() as u64).to_le_bytes());
        for text in [event.name.as_str(), user.unwrap_or_default(), event.properties.as_json()] {
            content.update(text.as_bytes());
        }
        // Few events have these, and those that don't need no room for saying so.
        let rare = [
            ("description", &event.description),
            ("stream", &event.stream),
            ("correlation", &event.correlation),
        ];
        for (field, text) in rare {
            if let Some(text) = text {
                content.update(field.as_bytes());
                content.update(&(text.len() as u64).to_le_bytes());
                content.update(text.as_bytes());
            }
        }
        let time = crc32fast::hash(&event.time.ms().to_le_bytes());
        Self((u64::from(content.finalize()) << 32 | u64::from(time)).cast_signed())
    }

    fn differs(self, other: Self, dated: bool) -> bool {
        let mask = if dated { -1 } else { i64::MAX << 32 };
        self.0 & mask != other.0 & mask
    }
}

/// Identities as columns, in the order in which every writer takes them.
#[derive(Default)]
pub(super) struct Identities {
    pub(super) projects: Vec<i32>,
    pub(super) places: Vec<i32>,
    pub(super) ids: Vec<Uuid>,
    pub(super) range_ids: Vec<i64>,
    pub(super) digests: Vec<i64>,
}

/// The identities that were in the log before, with their digests.
pub(super) type Known = HashMap<(i32, Uuid), Digest>;

/// Where a project's log ends before an append.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) segment: i32,
    pub(super) position: u64,
    /// Whether events of the project are in quarantine.
    pub(super) has_quarantined: bool,
}

/// What one project gets from an append.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    pub(super) before: Head,
    pub(super) ledger: Ledger,
}

/// What becomes of every batch, once it is known what is new and where the logs end.
pub(super) struct Outcome {
    pub(super) appended: Vec<Appended>,
    pub(super) entries: Vec<Ledger>,
    pub(super) projects: BTreeMap<ProjectId, Growth>,
}

/// The events of an append sorted by identity: every writer takes them in this order, so none waits for another in a ring.
pub(super) struct Plan<'b> {
    batches: &'b [ValidBatch],
    culprits: &'b Culprits,
    items: Vec<Item>,
}

impl<'b> Plan<'b> {
    pub(super) fn new(batches: &'b [ValidBatch], culprits: &'b Culprits) -> Self {
        let mut items = Vec::with_capacity(batches.iter().map(|batch| batch.events.len()).sum());
        for (number, batch) in batches.iter().enumerate() {
            let project = project_number(batch.project);
            for (place, event) in batch.events.iter().enumerate() {
                if !culprits.contains_key(&(number, place)) {
                    let (id, dated) = (event.id.uuid(), batch.is_dated(place));
                    items.push(Item { project, id, batch: number, place, digest: Digest::of(event), dated });
                }
            }
        }
        items.sort_unstable_by_key(|item| (item.project, item.id, item.batch, item.place));
        Self { batches, culprits, items }
    }

    /// Each identity once, at its first place, in pieces of at most `rows`.
    pub(super) fn identities(&self, range_ids: &[i64], rows: usize) -> Vec<Identities> {
        let firsts: Vec<&Item> = self.runs().map(|run| &run[0]).collect();
        let piece = |items: &[&Item]| {
            let mut columns = Identities::default();
            for item in items {
                columns.projects.push(item.project);
                columns.places.push(i32::try_from(item.place).expect("a batch has at most 10,000 events"));
                columns.ids.push(item.id);
                columns.range_ids.push(range_ids[item.batch]);
                columns.digests.push(item.digest.0);
            }
            columns
        };
        firsts.chunks(rows).map(piece).collect()
    }

    fn runs(&self) -> impl Iterator<Item = &[Item]> {
        self.items.chunk_by(|one, next| (one.project, one.id) == (next.project, next.id))
    }

    /// Gives every event its verdict and every batch its positions behind the heads, which must be there for each project.
    pub(super) fn outcome(
        &self,
        known: &Known,
        heads: &BTreeMap<ProjectId, Head>,
        known_culprits: &KnownCulprits,
    ) -> Outcome {
        let mut projects: BTreeMap<ProjectId, Growth> = heads
            .iter()
            .map(|(project, head)| (*project, Growth { before: *head, ledger: Ledger::default() }))
            .collect();
        let (mut appended, mut entries) = (Vec::new(), Vec::new());
        let all_verdicts = self.verdicts(known, known_culprits);
        for (number, (batch, verdicts)) in self.batches.iter().zip(all_verdicts).enumerate() {
            let count =
                |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|one| wanted(one)).count() as u64;
            let stored = count(|verdict| *verdict == Verdict::Stored);
            let quarantined = count(|verdict| matches!(verdict, Verdict::Quarantined(_)));
            let (events, rejected) = (verdicts.len() as u64, batch.rejected());
            let duplicate = events - stored - quarantined;
            let entry = Ledger { received: events + rejected, stored, duplicate, quarantined, rejected };
            let growth = projects.get_mut(&batch.project).expect("every batch's head was locked");
            let first = growth.before.position + growth.ledger.stored + 1;
            growth.ledger += entry;
            let range = StoredRange { project: batch.project, first, last: first + stored - 1 };
            let of_batch = known_culprits.range((number, 0)..(number + 1, 0));
            let aside = of_batch.map(|culprit| (culprit.1, refusal(&self.culprits[culprit]))).collect();
            appended.push(Appended { verdicts, range, aside });
            entries.push(entry);
        }
        Outcome { appended, entries, projects }
    }

    fn verdicts(&self, known: &Known, known_culprits: &KnownCulprits) -> Vec<Vec<Verdict>> {
        let mut verdicts: Vec<Vec<Verdict>> =
            self.batches.iter().map(|batch| vec![Verdict::Stored; batch.events.len()]).collect();
        for run in self.runs() {
            let first = &run[0];
            let before = known.get(&(first.project, first.id));
            let (digest, repeats) = match before {
                Some(digest) => (*digest, run),
                None => (first.digest, &run[1..]),
            };
            for item in repeats {
                let differs = item.digest.differs(digest, item.dated);
                verdicts[item.batch][item.place] = Verdict::Duplicate { differs };
            }
        }
        for (culprit @ (batch, place), what) in self.culprits {
            verdicts[*batch][*place] = if known_culprits.contains(culprit) {
                Verdict::Duplicate { differs: false }
            } else {
                Verdict::Quarantined(refusal(what))
            };
        }
        verdicts
    }
}
