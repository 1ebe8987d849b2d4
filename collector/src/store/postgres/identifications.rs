use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::counts::{STEP_POSITIONS, find_live, position};
use super::pool::Lease;
use super::segments::{Span, spans};
use super::{int, project_number, rebuild, uint};
use crate::insight::identification::{Gathering, Identification, Identities, Link, Seen};
use crate::project::ProjectId;
use crate::store::generations::View;
use crate::store::identifications::{read_refused, read_traits, refused_text};
use crate::store::{Error, Moved, ViewState};

/// The table of the view; an audit has one of its own.
pub(super) const TABLE: &str = "identification";

/// Users read or written by one statement. Those whose traits are read or written take at most 64 KiB each: 16 MiB.
const USERS_AT_ONCE: usize = 250;

/// How far users may lie behind the counts while these move. A row a user and step costs the database as much as storing its
/// event, so under load they follow in steps in which most users come several times; at rest the next look finds them behind.
const BEHIND_MAX: u64 = 20_000;

/// Moves the live generation on where it is too far behind what is counted.
pub(super) async fn follow_from_afar(
    lease: &mut Lease,
    project: ProjectId,
    counted: u64,
) -> Result<Moved, Error> {
    match find_live(lease, View::Identifications, project).await? {
        Some(ViewState { applied_to, .. }) if counted.saturating_sub(applied_to) < BEHIND_MAX => {
            Ok(Moved { from: applied_to, through: applied_to })
        }
        _ => follow(lease, project, counted).await,
    }
}

/// Moves the live generation on, as a part of what the counts do. While somebody else has it, as a rebuild does, it is left to
/// the next look.
pub(super) async fn follow(lease: &mut Lease, project: ProjectId, through: u64) -> Result<Moved, Error> {
    let lock = "SELECT generation FROM view_live WHERE view = $1 AND project = $2 FOR UPDATE SKIP LOCKED";
    let lock = lease.prepared(lock).await?;
    let view = View::Identifications;
    let locked = lease.query_opt(&lock, &[&view.name(), &project_number(project)]).await?;
    let state = match (find_live(lease, view, project).await?, locked) {
        (Some(state), Some(_)) => state,
        (Some(ViewState { applied_to, .. }), None) => {
            return Ok(Moved { from: applied_to, through: applied_to });
        }
        // A collector of an earlier version made the project, or somebody removed it.
        (None, _) => rebuild::mend(lease, view, project).await?,
    };
    step(lease, project, state, through).await
}

/// Adds what lies behind a generation's `applied_to` to it, and moves `applied_to`: up to `through`, the head, the end of the
/// segment, 50,000 positions, or what fits into memory.
pub(super) async fn step(
    lease: &mut Lease,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<Moved, Error> {
    let ViewState { generation, applied_to: from } = state;
    let through = through.min(position(lease, project).await?).min(from.saturating_add(STEP_POSITIONS));
    let nothing = Moved { from, through: from };
    if through <= from {
        return Ok(nothing);
    }
    let Some(span) = spans(lease, project).await?.into_iter().find(|span| span.last > from) else {
        return Ok(nothing);
    };
    // What was dropped before it was sealed, by a collector of an earlier version, can't be known any more.
    let span = Span { last: span.last.min(through), ..span };
    let (gathering, last) = gather(lease, project, span.segment, from, span.last.max(from)).await?;
    if last <= from {
        return Ok(nothing);
    }
    add(lease, TABLE, project, generation, gathering).await?;
    let update = "UPDATE view_state SET applied_to = $4 WHERE view = $1 AND project = $2 AND generation = $3";
    let update = lease.prepared(update).await?;
    let view = View::Identifications.name();
    lease.execute(&update, &[&view, &project_number(project), &int(generation), &int(last)]).await?;
    Ok(Moved { from, through: last })
}

/// Gathers what the rows of a segment behind a position say about users, up to another or until it is full; says up to which
/// position.
pub(super) async fn gather(
    lease: &mut Lease,
    project: ProjectId,
    segment: i32,
    from: u64,
    last: u64,
) -> Result<(Gathering, u64), Error> {
    let sql = format!(
        "SELECT position, corrected_ms(time_ms, skew_ms), user_id,
                CASE WHEN name IN ('$identify', '$alias') THEN name END,
                CASE WHEN name IN ('$identify', '$alias') THEN properties END
         FROM event_{segment}
         WHERE project = $1 AND position > $2 AND position <= $3 AND user_id IS NOT NULL ORDER BY position"
    );
    let select = lease.prepared(&sql).await?;
    let values: [&(dyn ToSql + Sync); 3] = [&project_number(project), &int(from), &int(last)];
    let (mut rows, mut gathering) = (pin!(lease.query_raw(&select, values).await?), Gathering::default());
    while let Some(row) = rows.try_next().await? {
        let position = uint(row.try_get(0)?);
        let said = row.try_get::<_, Option<&str>>(3)?.zip(row.try_get::<_, Option<&str>>(4)?);
        gathering.add(position, row.try_get(1)?, row.try_get(2)?, said);
        if gathering.is_full() {
            return Ok((gathering, position));
        }
    }
    Ok((gathering, last))
}

/// Adds what was gathered to a table. Whoever calls holds what keeps others from these rows.
pub(super) async fn add(
    lease: &mut Lease,
    table: &'static str,
    project: ProjectId,
    generation: u64,
    gathering: Gathering,
) -> Result<(), Error> {
    let mut rows = Rows { lease, table, project, generation };
    let mut identities = Identities::default();
    let named = gathering.named().into_iter().map(str::to_owned).collect();
    rows.take_in(&mut identities, named).await?;
    let missing = identities.missing();
    rows.take_in(&mut identities, missing).await?;
    identities.apply(&gathering);
    let changed: Vec<(&str, &Identification)> = identities.changed().collect();
    for some in changed.chunks(USERS_AT_ONCE) {
        rows.put(some).await?;
    }
    let carried: Vec<&str> = gathering.carried().into_iter().collect();
    let mut links = HashMap::new();
    for some in carried.chunks(USERS_AT_ONCE) {
        links.extend(rows.links(some).await?);
    }
    let seen: Vec<(String, Seen)> = gathering.seen(&links).into_iter().collect();
    for some in seen.chunks(USERS_AT_ONCE) {
        rows.see(some).await?;
    }
    Ok(())
}

/// The rows of one generation.
struct Rows<'l> {
    lease: &'l mut Lease,
    table: &'static str,
    project: ProjectId,
    generation: u64,
}

impl Rows<'_> {
    fn of(&self) -> (i32, i64) {
        (project_number(self.project), int(self.generation))
    }

    async fn take_in(&mut self, identities: &mut Identities, ids: BTreeSet<String>) -> Result<(), Error> {
        let sql = format!(
            "SELECT user_id, linked_to, linked_at, identified, links, events, first_ms, last_ms, last_position, traits, refused
             FROM unnest($3::text[]) AS wanted (user_id) JOIN {} USING (user_id)
             WHERE project = $1 AND generation = $2",
            self.table
        );
        let select = self.lease.prepared(&sql).await?;
        let (project, generation) = self.of();
        let ids: Vec<String> = ids.into_iter().collect();
        for some in ids.chunks(USERS_AT_ONCE) {
            for row in self.lease.query(&select, &[&project, &generation, &some]).await? {
                let (id, kept) = read(&row)?;
                identities.insert(id, kept);
            }
        }
        Ok(())
    }

    async fn links(&mut self, ids: &[&str]) -> Result<BTreeMap<String, String>, Error> {
        let sql = format!(
            "SELECT user_id, linked_to FROM unnest($3::text[]) AS wanted (user_id) JOIN {} USING (user_id)
             WHERE project = $1 AND generation = $2 AND linked_to IS NOT NULL",
            self.table
        );
        let select = self.lease.prepared(&sql).await?;
        let (project, generation) = self.of();
        let rows = self.lease.query(&select, &[&project, &generation, &ids]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn put(&mut self, changed: &[(&str, &Identification)]) -> Result<(), Error> {
        let columns = "user_id, linked_to, linked_at, identified, links, events, first_ms, last_ms, last_position, email, \
                       traits, refused";
        let others = columns.split(", ").skip(1).map(|column| format!("{column} = excluded.{column}"));
        let sql = format!(
            "INSERT INTO {} (project, generation, {columns})
             SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::int8[], $6::bool[], $7::int8[], $8::int8[],
                 $9::int8[], $10::int8[], $11::int8[], $12::text[], $13::text[], $14::text[])
             ON CONFLICT (project, generation, user_id) DO UPDATE SET {}",
            self.table,
            others.collect::<Vec<_>>().join(", ")
        );
        let upsert = self.lease.prepared(&sql).await?;
        let (project, generation) = self.of();
        let kept = || changed.iter().map(|(_, kept)| *kept);
        let ids: Vec<&str> = changed.iter().map(|(id, _)| *id).collect();
        let links_to: Vec<Option<&str>> = kept().map(|one| one.link.as_ref().map(|link| &*link.to)).collect();
        let linked_at: Vec<Option<i64>> =
            kept().map(|one| one.link.as_ref().map(|link| int(link.position))).collect();
        let identified: Vec<bool> = kept().map(|one| one.identified).collect();
        let links: Vec<i64> = kept().map(|one| int(one.links)).collect();
        let events: Vec<i64> = kept().map(|one| one.seen.map_or(0, |seen| int(seen.events))).collect();
        let first: Vec<Option<i64>> = kept().map(|one| one.seen.map(|seen| seen.first_ms)).collect();
        let last: Vec<Option<i64>> = kept().map(|one| one.seen.map(|seen| seen.last_ms)).collect();
        let at: Vec<Option<i64>> = kept().map(|one| one.seen.map(|seen| int(seen.last_position))).collect();
        let emails: Vec<Option<String>> = kept().map(|one| one.traits.email()).collect();
        let traits: Vec<String> = kept().map(|one| one.traits.to_text()).collect();
        let refused: Vec<String> = kept().map(|one| refused_text(&one.refused)).collect();
        let values: [&(dyn ToSql + Sync); 14] = [
            &project,
            &generation,
            &ids,
            &links_to,
            &linked_at,
            &identified,
            &links,
            &events,
            &first,
            &last,
            &at,
            &emails,
            &traits,
            &refused,
        ];
        self.lease.execute(&upsert, &values).await?;
        Ok(())
    }

    async fn see(&mut self, users: &[(String, Seen)]) -> Result<(), Error> {
        let sql = format!(
            "INSERT INTO {} AS known (project, generation, user_id, events, first_ms, last_ms, last_position)
             SELECT $1, $2, * FROM unnest($3::text[], $4::int8[], $5::int8[], $6::int8[], $7::int8[])
             ON CONFLICT (project, generation, user_id) DO UPDATE SET
                 events = known.events + excluded.events,
                 first_ms = least(known.first_ms, excluded.first_ms),
                 last_ms = greatest(known.last_ms, excluded.last_ms),
                 last_position = CASE
                     WHEN (known.last_ms, known.last_position) > (excluded.last_ms, excluded.last_position)
                     THEN known.last_position ELSE excluded.last_position END",
            self.table
        );
        let upsert = self.lease.prepared(&sql).await?;
        let (project, generation) = self.of();
        let ids: Vec<&str> = users.iter().map(|(id, _)| id.as_str()).collect();
        let numbers = |of: fn(&Seen) -> i64| -> Vec<i64> { users.iter().map(|(_, seen)| of(seen)).collect() };
        let (events, first) = (numbers(|seen| int(seen.events)), numbers(|seen| seen.first_ms));
        let (last, at) = (numbers(|seen| seen.last_ms), numbers(|seen| int(seen.last_position)));
        let values: [&(dyn ToSql + Sync); 7] = [&project, &generation, &ids, &events, &first, &last, &at];
        self.lease.execute(&upsert, &values).await?;
        Ok(())
    }
}

fn read(row: &Row) -> Result<(String, Identification), Error> {
    let id: String = row.try_get(0)?;
    let position = row.try_get::<_, Option<i64>>(2)?.map_or(0, uint);
    let link = row.try_get::<_, Option<String>>(1)?.map(|to| Link { to, position });
    let events = uint(row.try_get(5)?);
    let seen = match (row.try_get(6)?, row.try_get(7)?, row.try_get::<_, Option<i64>>(8)?) {
        (Some(first_ms), Some(last_ms), Some(last)) => {
            Some(Seen { events, first_ms, last_ms, last_position: uint(last) })
        }
        _ => None,
    };
    let kept = Identification {
        link,
        identified: row.try_get(3)?,
        links: uint(row.try_get(4)?),
        seen,
        traits: read_traits(row.try_get(9)?, &id)?,
        refused: read_refused(row.try_get(10)?, &id)?,
    };
    Ok((id, kept))
}
