//! A data folder, beside a collector that may be running.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app::{self, Servers};
use crate::project::{KeyKind, LimitsChange, Project, ProjectId};
use crate::query::{self, ChangedLimits, EventsQuery, Order, Reader, Rebuilt, RotatedKey, UsersQuery};
use crate::store::{self, CountsQuery, EventFilter, Store};

use super::document::{
    AuditDocument, CountsDocument, EventDocument, EventsDocument, LimitsDocument, NewKeyDocument,
    NewProjectDocument, RebuildDocument, UserProfileDocument, UsersDocument,
};
use super::failure::{Failure, note};
use super::source::{OnEvent, OnProgress, Purpose};

/// How often a tail looks at the log: nothing is announced to another process. Five looks a second cost a running
/// collector nothing and a person doesn't notice the wait.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// The project that the first start makes, and that commands mean when none is named.
const DEFAULT_PROJECT: &str = "default";

/// The store in a data folder.
pub(super) struct Folder {
    store: Store,
    reader: Reader,
    project: Option<String>,
    tells: Tells,
}

/// Whom a change of keys reaches at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    /// All there are. A folder has one collector, which keeps what a key may do for a second.
    Everybody,
    /// Collectors that may share a Redis, which this command wasn't told of.
    Nobody,
}

impl Folder {
    pub(super) fn open(path: PathBuf, project: Option<&str>, purpose: Purpose) -> Result<Self, Failure> {
        refuse_file(&path)?;
        let (store, reader) = app::beside(&path, purpose == Purpose::Manage)
            .map_err(|error| Failure::new(format!("open the data folder {}", path.display()), error))?;
        Ok(Self { store, reader, project: project.map(str::to_owned), tells: Tells::Everybody })
    }

    /// The store that collectors share on a PostgreSQL. Who only looks has nothing to tell them.
    pub(super) async fn on_servers(
        servers: Servers,
        project: Option<&str>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let cache_url = servers.cache_url.filter(|_| purpose == Purpose::Manage);
        let tells = if cache_url.is_some() { Tells::Everybody } else { Tells::Nobody };
        let (store, reader) = app::beside_servers(&Servers { cache_url, ..servers })
            .await
            .map_err(|error| Failure::new("use the servers", error))?;
        Ok(Self { store, reader, project: project.map(str::to_owned), tells })
    }

    pub(super) async fn projects(&self) -> Result<Vec<Project>, Failure> {
        self.store.projects(None).await.map_err(|error| Failure::new("list the projects", error))
    }

    pub(super) async fn create_project(&self, name: &str) -> Result<NewProjectDocument, Failure> {
        let made = self.reader.create_project(app::FIRST_ACCOUNT, name).await;
        made.map(NewProjectDocument::from).map_err(|error| Failure::new("create the project", error))
    }

    pub(super) async fn rotate_key(
        &self,
        name: &str,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<NewKeyDocument, Failure> {
        let project = self.project_named(name).await?;
        let made = self.reader.rotate_key(project.id, kind, browser).await;
        let RotatedKey { key, told } = made.map_err(|error| Failure::new("rotate the key", error))?;
        self.note_unheard(told, "the old key is revoked", "take it");
        Ok(NewKeyDocument { project_id: project.id, kind, key: key.text })
    }

    pub(super) async fn set_limits(
        &self,
        project: ProjectId,
        change: LimitsChange,
    ) -> Result<LimitsDocument, Failure> {
        let changed = self.reader.set_limits(project, change).await;
        let ChangedLimits { limits, told } =
            changed.map_err(|error| Failure::new("change the limits", error))?;
        self.note_unheard(told, "the limits are changed", "go by the old ones");
        Ok(LimitsDocument { project_id: project, limits })
    }

    /// Says whom a change has not reached, and what they may do for a while.
    fn note_unheard(&self, told: bool, done: &str, may: &str) {
        match self.tells {
            Tells::Everybody if told => {}
            Tells::Everybody => {
                note(&format!("{done}; Redis couldn't be told: collectors may {may} for up to a minute"));
            }
            Tells::Nobody => note(&format!(
                "{done}; collectors that share a Redis may {may} for up to a minute, unless --cache-url names it"
            )),
        }
    }

    pub(super) async fn events(&self, query: EventsQuery) -> Result<EventsDocument, Failure> {
        let project = self.chosen().await?;
        let page = self.reader.events(project.id, query).await;
        page.map(EventsDocument::from).map_err(|error| Failure::new("list the events", error))
    }

    pub(super) async fn event(&self, id: &str) -> Result<EventDocument, Failure> {
        let project = self.chosen().await?;
        let found = self.reader.event(project.id, id).await;
        found
            .map(|stored| EventDocument::from(&stored))
            .map_err(|error| Failure::new("show the event", error))
    }

    pub(super) async fn tail(
        &self,
        filter: EventFilter,
        after: Option<u64>,
        on_event: OnEvent<'_>,
    ) -> Result<(), Failure> {
        let failed = |error: query::Error| Failure::new("follow the log", error);
        let project = self.chosen().await?.id;
        let head = |error: store::Error| failed(error.into());
        let mut after = match after {
            Some(after) => after,
            None => self.store.head(project).await.map_err(head)?,
        };
        let mut look = tokio::time::interval(LOOK_PERIOD);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            // The head is read first: what the filter leaves out below it needn't be looked at again.
            let head = self.store.head(project).await.map_err(head)?;
            if after > head {
                let cause = format!(
                    "position {after} lies beyond the end of the log ({head}), which may have been restored"
                );
                return Err(Failure::because("follow the log", cause)
                    .remedy("begin again, with another --after or none"));
            }
            while after < head {
                let cursor = Some(after.to_string());
                let query = EventsQuery {
                    filter: filter.clone(),
                    order: Order::Position,
                    cursor,
                    ..EventsQuery::default()
                };
                let page = self.reader.events(project, query).await.map_err(failed)?;
                for stored in &page.events {
                    on_event(EventDocument::from(stored))?;
                }
                after = page.through;
            }
        }
    }

    pub(super) async fn counts(&self, query: CountsQuery) -> Result<CountsDocument, Failure> {
        let project = self.chosen().await?;
        let counts = self.reader.counts(project.id, query).await;
        counts.map(CountsDocument::from).map_err(|error| Failure::new("count the events", error))
    }

    pub(super) async fn audit(&self, on_progress: OnProgress) -> Result<AuditDocument, Failure> {
        // The live counters are in the collector's memory; over --url they are held against the rest too.
        let audit = query::audit(&self.store, None, on_progress).await;
        audit.map(AuditDocument::from).map_err(|error| Failure::new("audit the store", error))
    }

    pub(super) async fn rebuild(&self, on_progress: OnProgress) -> Result<RebuildDocument, Failure> {
        let project = self.chosen().await?;
        let failed = |error| Failure::new("rebuild the views", error);
        // The log is read twice, once for each view.
        let counting = |done, total| on_progress(done, 2 * total);
        let counts = self.store.rebuild_counts(project.id, counting).await.map_err(failed)?;
        let identifying = |done, total: u64| on_progress(total + done, 2 * total);
        let who = self.store.rebuild_identifications(project.id, identifying).await.map_err(failed)?;
        Ok(Rebuilt { counts, identifications: who }.into())
    }

    pub(super) async fn users(&self, query: UsersQuery) -> Result<UsersDocument, Failure> {
        let project = self.chosen().await?;
        let page = self.reader.users(project.id, query).await;
        page.map(UsersDocument::from).map_err(|error| Failure::new("list the users", error))
    }

    pub(super) async fn user(&self, id: &str) -> Result<UserProfileDocument, Failure> {
        let project = self.chosen().await?;
        let found = self.reader.user(project.id, id).await;
        found.map(UserProfileDocument::from).map_err(|error| Failure::new("show the user", error))
    }

    pub(super) async fn timeline(
        &self,
        id: &str,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<EventsDocument, Failure> {
        let project = self.chosen().await?;
        let page = self.reader.timeline(project.id, id, cursor, limit).await;
        page.map(EventsDocument::from).map_err(|error| Failure::new("list the user's events", error))
    }

    /// The project that was named, else `default`, else the only one there is.
    async fn chosen(&self) -> Result<Project, Failure> {
        if let Some(name) = &self.project {
            return self.project_named(name).await;
        }
        let mut projects = self.projects().await?;
        if let Some(at) = projects.iter().position(|project| project.name == DEFAULT_PROJECT) {
            return Ok(projects.swap_remove(at));
        }
        if projects.len() == 1 {
            return Ok(projects.remove(0));
        }
        Err(Failure::usage("choose the project", words(&projects)).remedy("name one with --project"))
    }

    async fn project_named(&self, name: &str) -> Result<Project, Failure> {
        let projects = self.projects().await?;
        match projects.iter().find(|project| project.name == name) {
            Some(project) => Ok(project.clone()),
            None => {
                let cause = format!("there is no project {name:?}; {}", words(&projects));
                Err(Failure::because("find the project", cause)
                    .remedy("`eventbucket project create` makes one"))
            }
        }
    }
}

fn words(projects: &[Project]) -> String {
    let names: Vec<&str> = projects.iter().map(|project| project.name.as_str()).collect();
    if names.is_empty() { "there is none yet".to_owned() } else { format!("there are {}", names.join(", ")) }
}

/// Says it in words before the system does with a number.
pub(super) fn refuse_file(path: &Path) -> Result<(), Failure> {
    if path.as_os_str().is_empty() {
        return Err(
            Failure::usage("open the data folder", "its name is empty").remedy("name a folder with --data")
        );
    }
    if path.exists() && !path.is_dir() {
        let what = format!("open the data folder {}", path.display());
        return Err(Failure::because(what, "it is a file").remedy("name a folder with --data"));
    }
    Ok(())
}
