use eventbucket_protocol::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::job::{Job, Turn};
use super::{PROJECT_MAX, Sqlite, uint};
use crate::project::{
    AccountId, Grant, KeyHash, KeyKind, LimitsChange, NewKey, OwnLimits, Project, ProjectId, Standing,
};
use crate::store::generations::View;
use crate::store::projects::{check_name, kind_text, limit_number, limit_of, new_key, now};
use crate::store::{Error, NewProject};

impl Sqlite {
    pub(in crate::store) async fn create_account(&self, email: &str, team: &str) -> Result<AccountId, Error> {
        let (email, team) = (email.trim().to_owned(), team.trim().to_owned());
        check_name(&email)?;
        let now_ms = now().ms();
        let create = move |turn: &mut Turn<'_>| {
            let inserted = turn.connection.execute(
                "INSERT INTO account (email, team, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![email, team, now_ms],
            )?;
            if inserted == 0 {
                return Err(Error::Taken { what: "account", name: email.clone() });
            }
            let id = turn.connection.last_insert_rowid();
            u32::try_from(id).map(AccountId).map_err(|_| Error::TooManyProjects)
        };
        self.write(Job::Other, create).await
    }

    pub(in crate::store) async fn create_project(
        &self,
        account: AccountId,
        name: &str,
    ) -> Result<NewProject, Error> {
        let name = name.trim().to_owned();
        check_name(&name)?;
        let (write_key, secret_key) = (new_key(KeyKind::Write)?, new_key(KeyKind::Secret)?);
        let created = now();
        let hashes = [&write_key, &secret_key].map(|key| (key.kind, key.hash()));
        let insert = move |turn: &mut Turn<'_>| {
            let id = insert_project(turn.connection, account, &name, created)?;
            for (kind, hash) in hashes {
                insert_key(turn.connection, id, kind, hash, false, created)?;
            }
            Ok(Project {
                id,
                name: name.clone(),
                created: created.to_string(),
                events: 0,
                limits: OwnLimits::default(),
            })
        };
        let project = self.write(Job::Other, insert).await?;
        Ok(NewProject { project, write_key, secret_key })
    }

    pub(in crate::store) async fn projects(&self, account: Option<AccountId>) -> Result<Vec<Project>, Error> {
        self.read(move |connection| projects(connection, account)).await
    }

    pub(in crate::store) async fn rotate_key(
        &self,
        project: ProjectId,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<NewKey, Error> {
        let key = new_key(kind)?;
        let (hash, now) = (key.hash(), now());
        let rotate = move |turn: &mut Turn<'_>| {
            require_project(turn.connection, project)?;
            let browser = match browser {
                Some(browser) => browser,
                None => turn.connection.query_row(
                    "SELECT coalesce(max(browser), 0) FROM api_key WHERE project = ?1 AND kind = ?2 AND revoked_ms IS NULL",
                    params![project.0, kind_text(kind)],
                    |row| row.get(0),
                )?,
            };
            turn.connection.execute(
                "UPDATE api_key SET revoked_ms = ?3 WHERE project = ?1 AND kind = ?2 AND revoked_ms IS NULL",
                params![project.0, kind_text(kind), now.ms()],
            )?;
            insert_key(turn.connection, project, kind, hash, browser, now)
        };
        self.write(Job::Other, rotate).await?;
        Ok(key)
    }

    pub(in crate::store) async fn set_browser(&self, project: ProjectId, browser: bool) -> Result<(), Error> {
        let set = move |turn: &mut Turn<'_>| {
            require_project(turn.connection, project)?;
            turn.connection.execute(
                "UPDATE api_key SET browser = ?2 WHERE project = ?1 AND kind = 'write' AND revoked_ms IS NULL",
                params![project.0, browser],
            )?;
            Ok(())
        };
        self.write(Job::Other, set).await
    }

    pub(in crate::store) async fn set_limits(
        &self,
        project: ProjectId,
        change: LimitsChange,
    ) -> Result<OwnLimits, Error> {
        let LimitsChange { events_per_s, events_per_day } = change;
        let set = move |turn: &mut Turn<'_>| {
            let mut update = turn.connection.prepare_cached(
                "UPDATE project SET events_per_s = CASE WHEN ?2 THEN ?3 ELSE events_per_s END,
                                    events_per_day = CASE WHEN ?4 THEN ?5 ELSE events_per_day END
                 WHERE id = ?1 RETURNING events_per_s, events_per_day",
            )?;
            let number = |limit: Option<_>| limit.and_then(limit_number);
            let (rate, quota) = (number(events_per_s), number(events_per_day));
            let values = params![project.0, events_per_s.is_some(), rate, events_per_day.is_some(), quota];
            let limits = update.query_row(values, |row| limits(row, 0)).optional()?;
            limits.ok_or(Error::UnknownProject(project))
        };
        self.write(Job::Other, set).await
    }

    pub(in crate::store) async fn find_key(&self, hash: KeyHash) -> Result<Standing, Error> {
        self.read(move |connection| find_key(connection, hash)).await
    }
}

/// A project comes with everything that is counted for it: an empty log and an empty first generation of each view.
pub(super) fn insert_project(
    connection: &Connection,
    account: AccountId,
    name: &str,
    created: Timestamp,
) -> Result<ProjectId, Error> {
    let inserted = connection.execute(
        "INSERT INTO project (account, name, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![account.0, name, created.ms()],
    )?;
    if inserted == 0 {
        return Err(Error::Taken { what: "project", name: name.to_owned() });
    }
    let id = u32::try_from(connection.last_insert_rowid()).map_err(|_| Error::TooManyProjects)?;
    if id > PROJECT_MAX {
        return Err(Error::TooManyProjects);
    }
    connection.execute("INSERT INTO head VALUES (?1, 0, 0, 0, 0, 0, 0)", [id])?;
    for view in View::ALL {
        connection.execute("INSERT INTO view_state VALUES (?1, ?2, 1, 0, 1)", params![view.name(), id])?;
        connection.execute("INSERT INTO view_live VALUES (?1, ?2, 1)", params![view.name(), id])?;
    }
    Ok(ProjectId(id))
}

fn insert_key(
    connection: &Connection,
    project: ProjectId,
    kind: KeyKind,
    hash: KeyHash,
    browser: bool,
    created: Timestamp,
) -> Result<(), Error> {
    connection.execute(
        "INSERT INTO api_key (hash, project, kind, browser, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![hash.0, project.0, kind_text(kind), browser, created.ms()],
    )?;
    Ok(())
}

pub(super) fn require_project(connection: &Connection, project: ProjectId) -> Result<(), Error> {
    let found = connection.query_row("SELECT 1 FROM project WHERE id = ?1", [project.0], |_| Ok(()));
    found.optional()?.ok_or(Error::UnknownProject(project))
}

fn projects(connection: &Connection, account: Option<AccountId>) -> Result<Vec<Project>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT id, name, created_ms, coalesce(position, 0), events_per_s, events_per_day FROM project LEFT JOIN head ON head.project = project.id
         WHERE ?1 IS NULL OR account = ?1 ORDER BY id",
    )?;
    let rows = select.query_map([account.map(|account| account.0)], |row| {
        let created = Timestamp::from_ms(row.get(2)?).map(|time| time.to_string()).unwrap_or_default();
        let (id, events, limits) = (ProjectId(row.get(0)?), row.get(3).map(uint)?, limits(row, 4)?);
        Ok(Project { id, name: row.get(1)?, created, events, limits })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Reads what a project may send from two columns.
fn limits(row: &Row<'_>, first: usize) -> Result<OwnLimits, rusqlite::Error> {
    let limit = |column| row.get(column).map(limit_of);
    Ok(OwnLimits { events_per_s: limit(first)?, events_per_day: limit(first + 1)? })
}

fn find_key(connection: &Connection, hash: KeyHash) -> Result<Standing, Error> {
    let mut select = connection.prepare_cached(
        "SELECT account, project, kind, browser, revoked_ms IS NOT NULL, events_per_s, events_per_day FROM api_key
         JOIN project ON project.id = api_key.project WHERE hash = ?1",
    )?;
    let found = select.query_row([hash.0], |row| {
        if row.get(4)? {
            return Ok(Standing::Revoked);
        }
        let secret = row.get::<_, String>(2)? == "secret";
        Ok(Standing::Valid(Grant {
            account: AccountId(row.get(0)?),
            project: ProjectId(row.get(1)?),
            kind: if secret { KeyKind::Secret } else { KeyKind::Write },
            browser: row.get(3)?,
            limits: limits(row, 5)?,
        }))
    });
    Ok(found.optional()?.unwrap_or(Standing::Unknown))
}
