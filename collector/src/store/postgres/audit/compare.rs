use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;

use super::walk::Walk;
use crate::store::Error;
use crate::store::audit::{LiveCounters, identification_example, rollup_example, users_example};
use crate::store::generations::View;
use crate::store::postgres::{int, project_number, uint};

/// The views against what was counted so far.
impl Walk<'_> {
    /// Holds the sketches against those of what was counted so far: the same users give the same bytes.
    pub(super) async fn compare_users(&mut self) -> Result<(), Error> {
        if !self.figures.has_users {
            return Ok(());
        }
        let only = "WHERE project = $1 AND generation = $2";
        let columns = "hours, start_ms, name, sketch";
        let select = format!(
            "SELECT name, hours, to_char(to_timestamp(start_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00Z')
             FROM ((SELECT {columns} FROM rollup_users {only} EXCEPT SELECT {columns} FROM audit_users {only})
                   UNION (SELECT {columns} FROM audit_users {only} EXCEPT SELECT {columns} FROM rollup_users {only})) AS cell
             GROUP BY hours, start_ms, name ORDER BY hours, start_ms, name"
        );
        let values: [&(dyn ToSql + Sync); 2] = [&project_number(self.project), &int(self.figures.generation)];
        let mut rows = pin!(self.lease.query_raw(&select, values).await?);
        while let Some(row) = rows.try_next().await? {
            self.figures.users_differences += 1;
            if self.figures.users_example.is_none() {
                let (hours, start): (i16, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
                let start = start.unwrap_or_default();
                self.figures.users_example = Some(users_example(row.try_get(0)?, hours.into(), start));
            }
        }
        Ok(())
    }

    /// Holds what is kept of every id against what the walk made of it, byte for byte.
    pub(super) async fn compare_identifications(&mut self) -> Result<(), Error> {
        if !self.figures.identified {
            return Ok(());
        }
        let only = "WHERE project = $1 AND generation = $2";
        let table = &View::Identifications.tables()[0];
        let columns = format!("{}, {}", table.key, table.values);
        let select = format!(
            "SELECT user_id
             FROM ((SELECT {columns} FROM identification {only} EXCEPT SELECT {columns} FROM audit_identification {only})
                   UNION (SELECT {columns} FROM audit_identification {only} EXCEPT SELECT {columns} FROM identification {only}))
                  AS other
             GROUP BY user_id ORDER BY user_id"
        );
        let generation = int(self.figures.identified_generation);
        let values: [&(dyn ToSql + Sync); 2] = [&project_number(self.project), &generation];
        let mut rows = pin!(self.lease.query_raw(&select, values).await?);
        while let Some(row) = rows.try_next().await? {
            self.figures.identification_differences += 1;
            if self.figures.identification_example.is_none() {
                self.figures.identification_example = Some(identification_example(row.try_get(0)?));
            }
        }
        Ok(())
    }

    pub(super) async fn compare_rollup(&mut self) -> Result<(), Error> {
        let values: [&(dyn ToSql + Sync); 2] = [&project_number(self.project), &int(self.figures.generation)];
        let sum =
            "SELECT coalesce(sum(count), 0)::int8 FROM rollup_counts WHERE project = $1 AND generation = $2";
        self.figures.rollup_sum = uint(self.lease.query_one(sum, &values).await?.try_get(0)?);
        let select = "SELECT name, to_char(to_timestamp(hour_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00Z'),
                    sum(rollup)::int8, sum(log)::int8
             FROM (SELECT name, hour_ms, count AS rollup, 0 AS log FROM rollup_counts WHERE project = $1 AND generation = $2
                   UNION ALL SELECT name, hour_ms, 0, count FROM audit_recount) AS counted
             GROUP BY name, hour_ms HAVING sum(rollup) <> sum(log)";
        let mut rows = pin!(self.lease.query_raw(select, values).await?);
        while let Some(row) = rows.try_next().await? {
            self.figures.rollup_differences += 1;
            if self.figures.rollup_example.is_none() {
                let (name, hour): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
                let (rollup, log): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
                let hour = hour.unwrap_or_default();
                self.figures.rollup_example = Some(rollup_example(&name, &hour, rollup, log));
            }
        }
        Ok(())
    }

    /// Returns the first live counter that differs from what was counted so far.
    pub(super) async fn compare_counters(
        &mut self,
        per_name: &BTreeMap<String, u64>,
    ) -> Result<Option<String>, Error> {
        let select = "SELECT name, sum(count)::int8 FROM audit_recount GROUP BY name";
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut rows = pin!(self.lease.query_raw(select, none).await?);
        let mut counters = LiveCounters::new(per_name);
        while let Some(row) = rows.try_next().await? {
            let differs = counters.differs(row.try_get(0)?, uint(row.try_get(1)?));
            if differs.is_some() {
                return Ok(differs);
            }
        }
        Ok(counters.differ_in_number())
    }
}
