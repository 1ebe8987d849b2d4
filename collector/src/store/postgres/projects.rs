use std::collections::HashMap;

use eventbucket_protocol::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::pool::Lease;
use super::{Postgres, project_id, project_number, uint};
use crate::project::{
    AccountId, Grant, KeyHash, KeyKind, LimitsChange, NewKey, OwnLimits, Project, ProjectId, Standing,
};
use crate::store::projects::{check_name, kind_text, limit_number, limit_of, new_key, now};
use crate::store::{Error, NewProject};

const INSERT_KEY: &str =
    "INSERT INTO api_key (hash, project, kind, browser, created_ms) VALUES ($1, $2, $3, $4, $5)";

impl Postgres {
    pub(in crate::store) async fn create_account(&self, email: &str, team: &str) -> Result<AccountId, Error> {
        let (email, team) = (email.trim(), team.trim());
        check_name(email)?;
        let lease = self.0.accounts.lease().await?;
        let insert = "INSERT INTO account (email, team, created_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id";
        match lease.query_opt(insert, &[&email, &team, &now().ms()]).await? {
            Some(row) => Ok(AccountId(row.try_get::<_, i32>(0)?.unsigned_abs())),
            None => Err(Error::Taken { what: "account", name: email.to_owned() }),
        }
    }

    pub(in crate::store) async fn create_project(
        &self,
        account: AccountId,
        name: &str,
    ) -> Result<NewProject, Error> {
        let name = name.trim();
        check_name(name)?;
        let (write_key, secret_key) = (new_key(KeyKind::Write)?, new_key(KeyKind::Secret)?);
        let created = now();
        let mut lease = self.0.accounts.lease().await?;
        lease.begin().await?;
        let insert = "INSERT INTO project (account, name, created_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id";
        let account = i32::try_from(account.0).unwrap_or(i32::MAX);
        let row = lease.query_opt(insert, &[&account, &name, &created.ms()]).await;
        let row = row.map_err(|error| match error.code() {
            Some(code) if *code == SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED => Error::TooManyProjects,
            _ => error.into(),
        })?;
        let Some(row) = row else {
            lease.rollback().await?;
            return Err(Error::Taken { what: "project", name: name.to_owned() });
        };
        let number: i32 = row.try_get(0)?;
        for key in [&write_key, &secret_key] {
            let hash = key.hash();
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&hash.0.as_slice(), &number, &kind_text(key.kind), &false, &created.ms()];
            lease.execute(INSERT_KEY, &values).await?;
        }
        lease.commit().await?;
        drop(lease);
        let id = project_id(number);
        self.ensure(&[id]).await?;
        let (name, created, limits) = (name.to_owned(), created.to_string(), OwnLimits::default());
        let project = Project { id, name, created, events: 0, limits };
        Ok(NewProject { project, write_key, secret_key })
    }

    pub(in crate::store) async fn projects(&self, account: Option<AccountId>) -> Result<Vec<Project>, Error> {
        // First, so that only so many lists wait for the connections that keys are looked up on.
        self.projects_by(&mut self.0.reads.lease().await?, account).await
    }

    /// Lists projects, whose positions are read by a lease of the log.
    pub(super) async fn projects_by(
        &self,
        log: &mut Lease,
        account: Option<AccountId>,
    ) -> Result<Vec<Project>, Error> {
        let account = account.map(|account| i32::try_from(account.0).unwrap_or(i32::MAX));
        let select = "SELECT id, name, created_ms, events_per_s, events_per_day FROM project
             WHERE $1::int4 IS NULL OR account = $1 ORDER BY id";
        let rows = {
            let mut lease = self.0.accounts.lease().await?;
            let select = lease.prepared(select).await?;
            lease.query(&select, &[&account]).await?
        };
        let numbers: Vec<i32> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let positions = positions(log, &numbers).await?;
        rows.iter()
            .map(|row| {
                let number: i32 = row.try_get(0)?;
                let created = Timestamp::from_ms(row.try_get(2)?).map(|time| time.to_string());
                Ok(Project {
                    id: project_id(number),
                    name: row.try_get(1)?,
                    created: created.unwrap_or_default(),
                    events: positions.get(&number).copied().unwrap_or(0),
                    limits: limits(row, 3)?,
                })
            })
            .collect()
    }

    /// Makes sure that all of these projects exist.
    pub(super) async fn require_projects(&self, projects: &[ProjectId]) -> Result<(), Error> {
        let numbers: Vec<i32> = projects.iter().map(|project| project_number(*project)).collect();
        let mut lease = self.0.accounts.lease().await?;
        let select = lease.prepared("SELECT id FROM project WHERE id = ANY($1)").await?;
        let rows = lease.query(&select, &[&numbers]).await?;
        let found: Vec<i32> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        match projects.iter().find(|project| !found.contains(&project_number(**project))) {
            Some(missing) => Err(Error::UnknownProject(*missing)),
            None => Ok(()),
        }
    }

    pub(in crate::store) async fn rotate_key(
        &self,
        project: ProjectId,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<NewKey, Error> {
        let key = new_key(kind)?;
        let (number, kind, now_ms, hash) = (project_number(project), kind_text(kind), now().ms(), key.hash());
        self.require_projects(&[project]).await?;
        let mut lease = self.0.accounts.lease().await?;
        lease.begin().await?;
        // Two rotations at once would each miss the other's key.
        lease.execute("SELECT id FROM project WHERE id = $1 FOR UPDATE", &[&number]).await?;
        let select = "SELECT coalesce(bool_or(browser), false) FROM api_key
             WHERE project = $1 AND kind = $2 AND revoked_ms IS NULL";
        let was: bool = lease.query_one(select, &[&number, &kind]).await?.try_get(0)?;
        let revoke =
            "UPDATE api_key SET revoked_ms = $3 WHERE project = $1 AND kind = $2 AND revoked_ms IS NULL";
        lease.execute(revoke, &[&number, &kind, &now_ms]).await?;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&hash.0.as_slice(), &number, &kind, &browser.unwrap_or(was), &now_ms];
        lease.execute(INSERT_KEY, &values).await?;
        lease.commit().await?;
        Ok(key)
    }

    pub(in crate::store) async fn set_browser(&self, project: ProjectId, browser: bool) -> Result<(), Error> {
        self.require_projects(&[project]).await?;
        let lease = self.0.accounts.lease().await?;
        let update =
            "UPDATE api_key SET browser = $2 WHERE project = $1 AND kind = 'write' AND revoked_ms IS NULL";
        lease.execute(update, &[&project_number(project), &browser]).await?;
        Ok(())
    }

    pub(in crate::store) async fn set_limits(
        &self,
        project: ProjectId,
        change: LimitsChange,
    ) -> Result<OwnLimits, Error> {
        let LimitsChange { events_per_s, events_per_day } = change;
        let number = |limit: Option<_>| limit.and_then(limit_number);
        let (rate, quota) = (number(events_per_s), number(events_per_day));
        let lease = self.0.accounts.lease().await?;
        let update = "UPDATE project SET events_per_s = CASE WHEN $2 THEN $3 ELSE events_per_s END,
                                         events_per_day = CASE WHEN $4 THEN $5 ELSE events_per_day END
             WHERE id = $1 RETURNING events_per_s, events_per_day";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&project_number(project), &events_per_s.is_some(), &rate, &events_per_day.is_some(), &quota];
        let row = lease.query_opt(update, &values).await?.ok_or(Error::UnknownProject(project))?;
        limits(&row, 0)
    }

    pub(in crate::store) async fn find_key(&self, hash: KeyHash) -> Result<Standing, Error> {
        let mut lease = self.0.accounts.lease().await?;
        let select = "SELECT account, project, kind, browser, revoked_ms IS NOT NULL, events_per_s, events_per_day FROM api_key
             JOIN project ON project.id = api_key.project WHERE hash = $1";
        let select = lease.prepared(select).await?;
        let Some(row) = lease.query_opt(&select, &[&hash.0.as_slice()]).await? else {
            return Ok(Standing::Unknown);
        };
        if row.try_get(4)? {
            return Ok(Standing::Revoked);
        }
        let secret = row.try_get::<_, &str>(2)? == "secret";
        Ok(Standing::Valid(Grant {
            account: AccountId(row.try_get::<_, i32>(0)?.unsigned_abs()),
            project: project_id(row.try_get(1)?),
            kind: if secret { KeyKind::Secret } else { KeyKind::Write },
            browser: row.try_get(3)?,
            limits: limits(&row, 5)?,
        }))
    }
}

/// Reads what a project may send from two columns.
fn limits(row: &Row, first: usize) -> Result<OwnLimits, Error> {
    let limit = |column: usize| Ok::<_, Error>(limit_of(row.try_get(column)?));
    Ok(OwnLimits { events_per_s: limit(first)?, events_per_day: limit(first + 1)? })
}

async fn positions(log: &mut Lease, numbers: &[i32]) -> Result<HashMap<i32, u64>, Error> {
    let select = log.prepared("SELECT project, position FROM head WHERE project = ANY($1)").await?;
    let rows = log.query(&select, &[&numbers]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, uint(row.try_get(1)?)))).collect()
}
