use std::collections::BTreeMap;

use rusqlite::{Connection, named_params};

use super::audit::RECOUNT_IDENTIFICATION;
use super::{int, uint};
use crate::project::ProjectId;
use crate::store::audit::{LiveCounters, identification_example, rollup_example, users_example};
use crate::store::generations::View;
use crate::store::{Error, ProjectFigures};

/// Holds the counts against what was counted so far.
pub(super) fn rollup(
    snapshot: &Connection,
    project: ProjectId,
    figures: &mut ProjectFigures,
) -> Result<(), Error> {
    let parameters = named_params! { ":project": project.0, ":generation": int(figures.generation) };
    let sum = "SELECT coalesce(sum(count), 0) FROM rollup_counts WHERE project = :project AND generation = :generation";
    figures.rollup_sum = uint(snapshot.query_row(sum, parameters, |row| row.get(0))?);
    let mut select = snapshot.prepare(
        "SELECT name, strftime('%Y-%m-%dT%H:00Z', hour_ms / 1000, 'unixepoch'), sum(rollup), sum(log) FROM (
             SELECT name, hour_ms, count AS rollup, 0 AS log FROM rollup_counts
             WHERE project = :project AND generation = :generation
             UNION ALL SELECT name, hour_ms, 0, count FROM temp.recount)
         GROUP BY name, hour_ms HAVING sum(rollup) <> sum(log)",
    )?;
    let mut rows = select.query(parameters)?;
    while let Some(row) = rows.next()? {
        figures.rollup_differences += 1;
        if figures.rollup_example.is_none() {
            let (name, hour): (String, Option<String>) = (row.get(0)?, row.get(1)?);
            let (rollup, log): (i64, i64) = (row.get(2)?, row.get(3)?);
            let hour = hour.unwrap_or_default();
            figures.rollup_example = Some(rollup_example(&name, &hour, rollup, log));
        }
    }
    Ok(())
}

/// Holds the sketches against those of what was counted so far: the same users give the same bytes.
pub(super) fn users(
    snapshot: &Connection,
    project: ProjectId,
    figures: &mut ProjectFigures,
) -> Result<(), Error> {
    if !figures.has_users {
        return Ok(());
    }
    let columns = "project, generation, hours, start_ms, name, sketch";
    let only = "WHERE project = :project AND generation = :generation";
    let mut select = snapshot.prepare(&format!(
        "SELECT name, hours, strftime('%Y-%m-%dT%H:00Z', start_ms / 1000, 'unixepoch') FROM (
             SELECT * FROM (SELECT {columns} FROM rollup_users {only} EXCEPT SELECT {columns} FROM temp.recount_users)
             UNION
             SELECT * FROM (SELECT {columns} FROM temp.recount_users EXCEPT SELECT {columns} FROM rollup_users {only}))
         GROUP BY hours, start_ms, name"
    ))?;
    let parameters = named_params! { ":project": project.0, ":generation": int(figures.generation) };
    let mut rows = select.query(parameters)?;
    while let Some(row) = rows.next()? {
        figures.users_differences += 1;
        if figures.users_example.is_none() {
            let start = row.get::<_, Option<String>>(2)?.unwrap_or_default();
            figures.users_example = Some(users_example(&row.get::<_, String>(0)?, row.get(1)?, &start));
        }
    }
    Ok(())
}

/// Holds what is kept of every id against what the walk made of it, byte for byte.
pub(super) fn identifications(
    snapshot: &Connection,
    project: ProjectId,
    figures: &mut ProjectFigures,
) -> Result<(), Error> {
    if !figures.identified {
        return Ok(());
    }
    let table = &View::Identifications.tables()[0];
    let (kept, columns) = (table.name, format!("project, generation, {}, {}", table.key, table.values));
    let only = "WHERE project = :project AND generation = :generation";
    let mut select = snapshot.prepare(&format!(
        "SELECT user_id FROM (
             SELECT * FROM (SELECT {columns} FROM {kept} {only} EXCEPT SELECT {columns} FROM {RECOUNT_IDENTIFICATION})
             UNION
             SELECT * FROM (SELECT {columns} FROM {RECOUNT_IDENTIFICATION} EXCEPT SELECT {columns} FROM {kept} {only}))
         GROUP BY user_id"
    ))?;
    let generation = int(figures.identified_generation);
    let mut rows = select.query(named_params! { ":project": project.0, ":generation": generation })?;
    while let Some(row) = rows.next()? {
        figures.identification_differences += 1;
        if figures.identification_example.is_none() {
            figures.identification_example = Some(identification_example(&row.get::<_, String>(0)?));
        }
    }
    Ok(())
}

/// Returns the first live counter that differs from what was counted so far.
pub(super) fn counters(
    snapshot: &Connection,
    per_name: &BTreeMap<String, u64>,
) -> Result<Option<String>, Error> {
    let mut select = snapshot.prepare("SELECT name, sum(count) FROM temp.recount GROUP BY name")?;
    let mut rows = select.query([])?;
    let mut counters = LiveCounters::new(per_name);
    while let Some(row) = rows.next()? {
        let differs = counters.differs(&row.get::<_, String>(0)?, row.get(1).map(uint)?);
        if differs.is_some() {
            return Ok(differs);
        }
    }
    Ok(counters.differ_in_number())
}
