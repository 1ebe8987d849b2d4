use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use eventbucket_protocol::{BatchId, Event, Verdict};
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::job::Turn;
use super::{POSITION_BITS, int, key, position, uint};
use crate::bus::message::{StoredRange, ValidBatch};
use crate::project::ProjectId;
use crate::store::batches::{self, BatchPart};
use crate::store::events::refusal;
use crate::store::{Appended, Error, Ledger};

/// Bits of a position within its block: 4,096 positions share one pair of times.
pub(super) const BLOCK_BITS: u32 = 12;

/// A project's head row: where its log ends, and its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) position: u64,
    pub(super) ledger: Ledger,
}

impl Head {
    pub(super) fn read(connection: &Connection, project: ProjectId) -> Result<Self, Error> {
        let mut select = connection.prepare_cached(
            "SELECT position, received, stored, duplicate, quarantined, rejected FROM head WHERE project = ?1",
        )?;
        let head = select.query_row([project.0], |row| {
            let number = |column| row.get(column).map(uint);
            let ledger = Ledger {
                received: number(1)?,
                stored: number(2)?,
                duplicate: number(3)?,
                quarantined: number(4)?,
                rejected: number(5)?,
            };
            Ok(Self { position: number(0)?, ledger })
        });
        head.optional()?.ok_or(Error::UnknownProject(project))
    }

    fn write(&self, connection: &Connection, project: ProjectId) -> Result<(), Error> {
        let mut update = connection.prepare_cached(
            "UPDATE head SET position = ?2, received = ?3, stored = ?4, duplicate = ?5, quarantined = ?6, rejected = ?7
             WHERE project = ?1",
        )?;
        let Ledger { received, stored, duplicate, quarantined, rejected } = self.ledger;
        let numbers = [self.position, received, stored, duplicate, quarantined, rejected].map(int);
        let [position, received, stored, duplicate, quarantined, rejected] = numbers;
        update.execute(params![project.0, position, received, stored, duplicate, quarantined, rejected])?;
        Ok(())
    }
}

/// Earliest and latest corrected time of each block that got new events.
type Blocks = BTreeMap<(ProjectId, u64), (i64, i64)>;

/// A UTC day.
pub(super) const DAY_MS: i64 = 86_400_000;

/// How many events of each project arrived on each UTC day.
type Usage = BTreeMap<(ProjectId, i64), u64>;

/// Appends batches: the events first, numbered from the head as they prove to be new; then the `ranges` rows, the blocks,
/// the usage, and last the heads. Every batch is checked for its project before anything is written.
pub(super) fn append(turn: &mut Turn<'_>, batches: &[ValidBatch]) -> Result<Vec<Appended>, Error> {
    let mut heads = BTreeMap::new();
    for batch in batches {
        if let Entry::Vacant(entry) = heads.entry(batch.project) {
            entry.insert(verified_head(turn, batch.project)?);
        }
    }
    let mut statements = Statements::prepare(turn.connection)?;
    let (mut blocks, mut usage) = (Blocks::new(), Usage::new());
    let mut appended = Vec::with_capacity(batches.len());
    for batch in batches {
        let head = heads.get_mut(&batch.project).expect("every batch's head was read above");
        appended.push(statements.append(batch, head, &mut blocks)?);
        let day = usage.entry((batch.project, batch.received.ms().div_euclid(DAY_MS))).or_default();
        *day += batch.events.len() as u64 + batch.rejected();
    }
    write_blocks(turn.connection, &blocks)?;
    write_usage(turn.connection, &usage)?;
    for (project, head) in heads {
        head.write(turn.connection, project)?;
        turn.heads.insert(project, head);
    }
    Ok(appended)
}

/// Notes that a batch was put aside whole because the database refuses it: its events count as quarantined and get no positions.
/// A batch that was answered before is counted no second time.
pub(super) fn quarantine(turn: &mut Turn<'_>, batch: &ValidBatch, what: &str) -> Result<Appended, Error> {
    let mut head = verified_head(turn, batch.project)?;
    let range = StoredRange { project: batch.project, first: head.position + 1, last: head.position };
    let mut known = turn.connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM ranges WHERE project = ?1 AND batch = ?2 AND part = ?3)",
    )?;
    let id = batch.batch.uuid();
    if known.query_row(params![batch.project.0, id.as_bytes(), batch.part], |row| row.get(0))? {
        let verdicts = vec![Verdict::Duplicate { differs: false }; batch.events.len()];
        let aside = (0..batch.events.len()).map(|place| (place, refusal(what))).collect();
        return Ok(Appended { verdicts, range, aside });
    }
    let verdicts = vec![Verdict::Quarantined(refusal(what)); batch.events.len()];
    let (quarantined, rejected) = (verdicts.len() as u64, batch.rejected());
    let received = quarantined + rejected;
    let entry = Ledger { received, quarantined, rejected, ..Ledger::default() };
    Statements::prepare(turn.connection)?.write_range(batch, range, entry, &verdicts)?;
    head.ledger += entry;
    head.write(turn.connection, batch.project)?;
    turn.heads.insert(batch.project, head);
    Ok(Appended { verdicts, range, aside: Vec::new() })
}

/// Reads a head row and makes sure that it is where this process left it: positions given out by somebody else in between
/// would mean two writers.
fn verified_head(turn: &Turn<'_>, project: ProjectId) -> Result<Head, Error> {
    let head = Head::read(turn.connection, project)?;
    match turn.heads.get(&project) {
        Some(left) if *left != head => {
            let (found, left) = (head.position, left.position);
            let what = format!(
                "the head of project {project} is at {found} but was left at {left}; somebody else wrote to it"
            );
            Err(Error::corrupt(what))
        }
        Some(_) => Ok(head),
        None => held_against_rows(turn.connection, project, head),
    }
}

/// A head that this process hasn't written is held against the log: nothing may be built on one that is wrong.
fn held_against_rows(connection: &Connection, project: ProjectId, head: Head) -> Result<Head, Error> {
    let mut select = connection.prepare_cached("SELECT max(key) FROM event WHERE key BETWEEN ?1 AND ?2")?;
    let bounds = (key(project, 0), key(project, (1 << POSITION_BITS) - 1));
    let last = select.query_row(bounds, |row| row.get::<_, Option<i64>>(0))?.map_or(0, position);
    if last == head.position {
        return Ok(head);
    }
    let found = head.position;
    Err(Error::corrupt(format!(
        "the head of project {project} is at {found} but its log ends at {last}; `eventbucket audit` says more, and a backup \
         mends it"
    )))
}

struct Statements<'c> {
    insert: CachedStatement<'c>,
    same: CachedStatement<'c>,
    range: CachedStatement<'c>,
}

impl<'c> Statements<'c> {
    fn prepare(connection: &'c Connection) -> Result<Self, Error> {
        Ok(Self {
            insert: connection.prepare_cached(
                "INSERT INTO event (key, project, id, id_text, name, time_ms, skew_ms, received_ms, user, stream,
                                    correlation, description, properties)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
                 ON CONFLICT (project, id) DO NOTHING",
            )?,
            same: connection.prepare_cached(
                "SELECT name = ?3 AND user IS ?4 AND (?5 IS NULL OR time_ms = ?5) AND properties = ?6
                        AND description IS ?7 AND stream IS ?8 AND correlation IS ?9
                 FROM event WHERE project = ?1 AND id = ?2",
            )?,
            range: connection.prepare_cached(
                "INSERT INTO ranges (project, first, last, batch, received_ms, received, stored, duplicate, quarantined,
                                     rejected, part, parts, verdicts, refused)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?,
        })
    }

    fn append(
        &mut self,
        batch: &ValidBatch,
        head: &mut Head,
        blocks: &mut Blocks,
    ) -> Result<Appended, Error> {
        let first = head.position + 1;
        let mut verdicts = Vec::with_capacity(batch.events.len());
        for (place, event) in batch.events.iter().enumerate() {
            let skew_ms = batch.skew_ms_at(place);
            if self.insert(batch, event, skew_ms, head.position + 1)? {
                head.position += 1;
                let time_ms = event.time.shifted(skew_ms.unwrap_or(0)).ms();
                note_time(blocks, batch.project, head.position, time_ms);
                verdicts.push(Verdict::Stored);
            } else {
                // A time that was made on arrival is another one each time.
                let time_ms = batch.is_dated(place).then_some(event.time.ms());
                verdicts.push(Verdict::Duplicate { differs: self.differs(batch.project, event, time_ms)? });
            }
        }
        let events = batch.events.len() as u64;
        let (stored, rejected) = (head.position + 1 - first, batch.rejected());
        let received = events + rejected;
        let entry = Ledger { received, stored, duplicate: events - stored, quarantined: 0, rejected };
        let range = StoredRange { project: batch.project, first, last: head.position };
        self.write_range(batch, range, entry, &verdicts)?;
        head.ledger += entry;
        Ok(Appended { verdicts, range, aside: Vec::new() })
    }

    /// Says whether the event was new.
    fn insert(
        &mut self,
        batch: &ValidBatch,
        event: &Event,
        skew_ms: Option<i64>,
        position: u64,
    ) -> Result<bool, Error> {
        let inserted = self.insert.execute(params![
            key(batch.project, position),
            batch.project.0,
            event.id.uuid().as_bytes(),
            event.id.text(),
            event.name,
            event.time.ms(),
            skew_ms,
            batch.received.ms(),
            event.user,
            event.stream,
            event.correlation,
            event.description,
            event.properties.as_json(),
        ])?;
        Ok(inserted == 1)
    }

    fn differs(&mut self, project: ProjectId, event: &Event, time_ms: Option<i64>) -> Result<bool, Error> {
        let (id, properties) = (event.id.uuid(), event.properties.as_json());
        let (description, stream, correlation) = (&event.description, &event.stream, &event.correlation);
        let values = params![
            project.0,
            id.as_bytes(),
            event.name,
            event.user,
            time_ms,
            properties,
            description,
            stream,
            correlation
        ];
        Ok(!self.same.query_row(values, |row| row.get::<_, bool>(0))?)
    }

    fn write_range(
        &mut self,
        batch: &ValidBatch,
        range: StoredRange,
        entry: Ledger,
        verdicts: &[Verdict],
    ) -> Result<(), Error> {
        self.range.execute(params![
            batch.project.0,
            int(range.first),
            int(range.last),
            batch.batch.uuid().as_bytes(),
            batch.received.ms(),
            int(entry.received),
            int(entry.stored),
            int(entry.duplicate),
            int(entry.quarantined),
            int(entry.rejected),
            batch.part,
            batch.parts,
            batches::verdicts_text(verdicts),
            batches::refused_text(&batch.refused),
        ])?;
        Ok(())
    }
}

fn note_time(blocks: &mut Blocks, project: ProjectId, position: u64, time_ms: i64) {
    let times = blocks.entry((project, position >> BLOCK_BITS)).or_insert((time_ms, time_ms));
    *times = (times.0.min(time_ms), times.1.max(time_ms));
}

fn write_blocks(connection: &Connection, blocks: &Blocks) -> Result<(), Error> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO event_block (project, block, from_ms, to_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET from_ms = min(from_ms, excluded.from_ms), to_ms = max(to_ms, excluded.to_ms)",
    )?;
    for ((project, block), (from_ms, to_ms)) in blocks {
        upsert.execute(params![project.0, int(*block), from_ms, to_ms])?;
    }
    Ok(())
}

fn write_usage(connection: &Connection, usage: &Usage) -> Result<(), Error> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO usage (project, day, received) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET received = received + excluded.received",
    )?;
    for ((project, day), received) in usage {
        upsert.execute(params![project.0, day, int(*received)])?;
    }
    Ok(())
}

/// Reads the rows of a batch, the first of each part: what became of it the first time.
pub(super) fn batch(
    connection: &Connection,
    project: ProjectId,
    batch: BatchId,
) -> Result<Vec<BatchPart>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT part, parts, received - rejected, verdicts, refused, min(id) FROM ranges
         WHERE project = ?1 AND batch = ?2 GROUP BY part ORDER BY part",
    )?;
    let rows = select.query_map(params![project.0, batch.uuid().as_bytes()], |row| {
        let events = row.get(2).map(uint)?;
        Ok(BatchPart {
            part: row.get(0)?,
            parts: row.get(1)?,
            events,
            verdicts: row.get(3)?,
            refused: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
