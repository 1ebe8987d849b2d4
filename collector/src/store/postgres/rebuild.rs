use std::ops::Range;

use super::counts::{self, find_live, lock_live, position};
use super::pool::Lease;
use super::{Postgres, identifications, int, project_number, uint};
use crate::project::ProjectId;
use crate::store::generations::{View, ViewTable};
use crate::store::{Error, ViewState};

/// How far a generation has come of which not all that is sealed was copied: nobody reads it or adds to it.
const BEING_COPIED: i64 = -1;

/// How often copying a seal begins anew because old events were dropped meanwhile, which takes minutes and happens once an hour.
const COPIES_MAX: usize = 3;

/// How far a rebuild has come.
struct Rebuilt {
    applied_to: u64,
    head: u64,
    live: bool,
}

impl Postgres {
    pub(in crate::store) async fn rebuild(
        &self,
        view: View,
        project: ProjectId,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<ViewState, Error> {
        self.ensure(&[project]).await?;
        let mut lease = self.0.log.lease().await?;
        let generation = begin(&mut lease, view, project).await?;
        loop {
            lease.begin().await?;
            let done = rebuild_step(&mut lease, view, project, generation).await?;
            lease.commit().await?;
            progress(done.applied_to, done.head);
            if done.live {
                break;
            }
        }
        while sweep(&mut lease, view, project).await? {}
        find_live(&mut lease, view, project).await?.ok_or(Error::CountsMissing(project))
    }
}

/// One step of one generation of a view; returns how far it has come.
pub(super) async fn step(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    state: ViewState,
    through: u64,
) -> Result<u64, Error> {
    match view {
        View::Counts => Ok(counts::step(lease, project, state, through).await?.through),
        View::Identifications => Ok(identifications::step(lease, project, state, through).await?.through),
    }
}

/// Makes the next generation, or goes on with one that was left unfinished: its `applied_to` says what it contains.
async fn begin(lease: &mut Lease, view: View, project: ProjectId) -> Result<u64, Error> {
    for _ in 0..COPIES_MAX {
        lease.begin().await?;
        let begun = reserve(lease, view, project).await?;
        lease.commit().await?;
        let (generation, sealed) = match begun {
            Begun::Unfinished(generation) => return Ok(uint(generation)),
            Begun::ToCopy { generation, sealed } => (generation, sealed),
        };
        for table in view.tables() {
            // Nobody has made this generation yet; rows of it could only be left over from what somebody removed by hand.
            while remove(lease, table, project, generation..generation + 1).await? > 0 {}
            copy_seal(lease, table, project, generation).await?;
        }
        lease.begin().await?;
        let done = complete(lease, view, project, (generation, sealed)).await?;
        lease.commit().await?;
        if done {
            return Ok(uint(generation));
        }
    }
    Err(Error::unavailable("old events were dropped while the counts of older ones were copied"))
}

enum Begun {
    /// All that was sealed is in it.
    Unfinished(i64),
    /// What was sealed through that position is to be copied.
    ToCopy { generation: i64, sealed: i64 },
}

/// Takes the number of a new generation, which nobody else has. One whose copy was cut short is left to the sweep behind a rebuild.
async fn reserve(lease: &mut Lease, view: View, project: ProjectId) -> Result<Begun, Error> {
    let live = match lock_live(lease, view, project).await? {
        Some(live) => live,
        None => mend(lease, view, project).await?,
    };
    let known = "SELECT max(generation) FILTER (WHERE applied_to >= 0 AND generation > $3), max(generation),
                        coalesce(max(applied_to) FILTER (WHERE generation = 0), 0)
         FROM view_state WHERE view = $1 AND project = $2";
    let number = project_number(project);
    let row = lease.query_one(known, &[&view.name(), &number, &int(live.generation)]).await?;
    if let Some(unfinished) = row.try_get(0)? {
        return Ok(Begun::Unfinished(unfinished));
    }
    let (generation, sealed) = (row.try_get::<_, i64>(1)? + 1, row.try_get(2)?);
    let state = "INSERT INTO view_state (view, project, generation, applied_to, has_users) VALUES ($1, $2, $3, $4, false)";
    lease.execute(state, &[&view.name(), &number, &generation, &BEING_COPIED]).await?;
    Ok(Begun::ToCopy { generation, sealed })
}

/// Makes a generation one that contains what is sealed, unless a rebuild beside this one has come further. `false` when more was
/// sealed since it was copied, and may be dropped.
async fn complete(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    (generation, sealed): (i64, i64),
) -> Result<bool, Error> {
    let live = lock_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))?;
    if live.generation >= uint(generation) {
        return Ok(true);
    }
    let state = "UPDATE view_state SET (applied_to, has_users) = (
             SELECT coalesce(max(applied_to), 0), coalesce(bool_and(has_users), true) FROM view_state
             WHERE view = $1 AND project = $2 AND generation = 0)
         WHERE view = $1 AND project = $2 AND generation = $3 AND applied_to = $5 AND $4 = (
             SELECT coalesce(max(applied_to), 0) FROM view_state WHERE view = $1 AND project = $2 AND generation = 0)";
    let number = project_number(project);
    Ok(lease.execute(state, &[&view.name(), &number, &generation, &sealed, &BEING_COPIED]).await? == 1)
}

/// Removes some rows of generations from a table; says how many.
async fn remove(
    lease: &mut Lease,
    table: &ViewTable,
    project: ProjectId,
    generations: Range<i64>,
) -> Result<u64, Error> {
    let (name, rows) = (table.name, table.step_rows);
    let remove = format!(
        "DELETE FROM {name} WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM {name} WHERE project = $1 AND generation >= $2 AND generation < $3 LIMIT {rows}))"
    );
    let remove = lease.prepared(&remove).await?;
    let Range { start, end } = generations;
    Ok(lease.execute(&remove, &[&project_number(project), &start, &end]).await?)
}

/// The type of a key's column, and a value before all there are.
fn lowest(column: &str) -> (&'static str, &'static str) {
    match column {
        "hour_ms" | "start_ms" => ("int8", "-9223372036854775808"),
        "hours" => ("int2", "-1"),
        _ => ("text", ""),
    }
}

/// Copies what is sealed of a project, in the order of the key, so that each piece begins behind the one before.
async fn copy_seal(
    lease: &mut Lease,
    table: &ViewTable,
    project: ProjectId,
    generation: i64,
) -> Result<(), Error> {
    let ViewTable { name, key, values, step_rows: rows } = table;
    let columns: Vec<&str> = key.split(", ").collect();
    let text = columns.iter().map(|column| format!("{column}::text")).collect::<Vec<_>>().join(", ");
    let after = columns.iter().enumerate();
    let after = after.map(|(at, column)| format!("($3::text[])[{}]::{}", at + 1, lowest(column).0));
    let after = after.collect::<Vec<_>>().join(", ");
    let copy = format!(
        "WITH piece AS MATERIALIZED (
             SELECT {key}, {values} FROM {name}
             WHERE project = $1 AND generation = 0 AND ({key}) > ({after}) ORDER BY {key} LIMIT {rows}
         ), copied AS (
             INSERT INTO {name} (project, generation, {key}, {values}) SELECT $1, $2, {key}, {values} FROM piece
         )
         SELECT ARRAY[{text}] FROM piece OFFSET {rows} - 1"
    );
    let copy = lease.prepared(&copy).await?;
    let mut after: Vec<String> = columns.iter().map(|column| lowest(column).1.to_owned()).collect();
    while let Some(last) = lease.query_opt(&copy, &[&project_number(project), &generation, &after]).await? {
        after = last.try_get(0)?;
    }
    Ok(())
}

/// Makes the highest generation there is the live one, or else an empty first one, so that there is one to go on with or to
/// replace.
pub(super) async fn mend(lease: &mut Lease, view: View, project: ProjectId) -> Result<ViewState, Error> {
    let number = project_number(project);
    let select = "SELECT max(generation) FROM view_state WHERE view = $1 AND project = $2 AND generation > 0 AND applied_to >= 0";
    let row = lease.query_one(select, &[&view.name(), &number]).await?;
    let highest: Option<i64> = row.try_get(0)?;
    if highest.is_none() {
        for table in view.tables() {
            while remove(lease, table, project, 1..i64::MAX).await? > 0 {}
        }
        let state = "INSERT INTO view_state (view, project, generation, applied_to, has_users)
             VALUES ($1, $2, 1, 0, true) ON CONFLICT DO NOTHING";
        lease.execute(state, &[&view.name(), &number]).await?;
    }
    let live = "INSERT INTO view_live (view, project, generation) VALUES ($1, $2, $3)
         ON CONFLICT (view, project) DO UPDATE SET generation = excluded.generation";
    lease.execute(live, &[&view.name(), &number, &highest.unwrap_or(1)]).await?;
    find_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))
}

/// One step of a rebuild. The step that reaches the head, and has then come as far as the live generation, makes the new
/// one live. Two rebuilds at a time share the generation and finish together.
async fn rebuild_step(
    lease: &mut Lease,
    view: View,
    project: ProjectId,
    generation: u64,
) -> Result<Rebuilt, Error> {
    let live = lock_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))?;
    let (number, generation_number) = (project_number(project), int(generation));
    let head = position(lease, project).await?;
    if live.generation >= generation {
        return Ok(Rebuilt { applied_to: live.applied_to, head, live: true });
    }
    let select = "SELECT applied_to FROM view_state WHERE view = $1 AND project = $2 AND generation = $3";
    let row = lease.query_one(select, &[&view.name(), &number, &generation_number]).await?;
    let state = ViewState { generation, applied_to: uint(row.try_get(0)?) };
    let applied_to = step(lease, view, project, state, head).await?;
    let reached = applied_to >= head && applied_to >= live.applied_to;
    if reached {
        let switch = "UPDATE view_live SET generation = $3 WHERE view = $1 AND project = $2";
        lease.execute(switch, &[&view.name(), &number, &generation_number]).await?;
    }
    Ok(Rebuilt { applied_to, head, live: reached })
}

/// Removes some of the rows of generations older than the live one; says whether there may be more.
async fn sweep(lease: &mut Lease, view: View, project: ProjectId) -> Result<bool, Error> {
    let live = find_live(lease, view, project).await?.ok_or(Error::CountsMissing(project))?;
    let (number, generation) = (project_number(project), int(live.generation));
    let mut removed = 0;
    for table in view.tables() {
        removed += remove(lease, table, project, 1..generation).await?;
    }
    if removed > 0 {
        return Ok(true);
    }
    let forget =
        "DELETE FROM view_state WHERE view = $1 AND project = $2 AND generation > 0 AND generation < $3";
    lease.execute(forget, &[&view.name(), &number, &generation]).await?;
    Ok(false)
}
