//! What travels between source and output: the API's documents. A data folder gives the same ones as a collector does, so
//! a program that reads `--json` needn't know which it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::project::{KeyKind, OwnLimits, Project, ProjectId};
use crate::query::audit::Audit;
use crate::query::{Counts, EventShape, EventsPage, LetterShape, Rebuilt, UserProfileShape, UsersPage};
use crate::store::{Backup, NewProject, Restored, StoredEvent};

/// An event of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct EventDocument {
    pub position: u64,
    pub id: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    pub time: String,
    pub received: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// As the log carries them, byte for byte.
    pub properties: Box<RawValue>,
}

/// A page of events.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EventsDocument {
    pub events: Vec<EventDocument>,
    /// What `--cursor` takes for the next page.
    pub next: Option<String>,
    /// The position through which everything was looked at.
    pub through: u64,
    /// When the event arrived that was looked at last.
    pub looked_to: Option<String>,
}

/// A page of dead letters.
#[derive(Debug, Deserialize)]
pub(super) struct LettersDocument {
    pub dead_letters: Vec<LetterShape>,
    pub next: Option<String>,
}

/// A copy of a database.
#[derive(Debug, Serialize)]
pub(super) struct BackupDocument {
    pub file: String,
    pub bytes: u64,
    pub schema: u32,
    pub projects: Vec<BackupProjectDocument>,
}

/// What a copy holds of a project.
#[derive(Debug, Serialize)]
pub(super) struct BackupProjectDocument {
    pub name: String,
    pub events: u64,
    pub position: u64,
}

/// A database that a copy was put in the place of.
#[derive(Debug, Serialize)]
pub(super) struct RestoredDocument {
    #[serde(flatten)]
    pub database: BackupDocument,
    /// Where the one before is now.
    pub replaced: Option<String>,
}

impl From<Backup> for BackupDocument {
    fn from(made: Backup) -> Self {
        let project = |project: crate::store::BackupProject| BackupProjectDocument {
            name: project.name,
            events: project.events,
            position: project.position,
        };
        Self {
            file: made.file.display().to_string(),
            bytes: made.bytes,
            schema: made.schema,
            projects: made.projects.into_iter().map(project).collect(),
        }
    }
}

impl From<Restored> for RestoredDocument {
    fn from(done: Restored) -> Self {
        let replaced = done.replaced.map(|file| file.display().to_string());
        Self { database: done.database.into(), replaced }
    }
}

/// Counts with how much of the log they say.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CountsDocument {
    pub counts: Vec<CountDocument>,
    /// The sum over the rows.
    pub total: u64,
    /// How many different users the rows have together; absent when that isn't known.
    #[serde(default)]
    pub users: Option<u64>,
    pub applied_to: u64,
    pub position: u64,
}

/// A count of events of one name, in one hour or day where these were asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CountDocument {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<String>,
    pub count: u64,
    #[serde(default)]
    pub users: Option<u64>,
}

/// The projects of a collector, or of a key's account.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProjectsDocument {
    pub projects: Vec<Project>,
}

/// A new project with its keys.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NewProjectDocument {
    pub project_id: ProjectId,
    pub name: String,
    pub write_key: String,
    pub secret_key: String,
}

/// A key that replaces those of its kind.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NewKeyDocument {
    pub project_id: ProjectId,
    pub kind: KeyKind,
    pub key: String,
}

/// What a project may send from now on, where that is its own.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LimitsDocument {
    pub project_id: ProjectId,
    pub limits: OwnLimits,
}

/// What an audit found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AuditDocument {
    pub projects: Vec<ProjectAuditDocument>,
    /// Checks that concern the whole store.
    #[serde(default)]
    pub store: Vec<CheckDocument>,
}

impl AuditDocument {
    /// Says whether every check holds.
    pub(super) fn holds(&self) -> bool {
        let of_projects = self.projects.iter().flat_map(|project| &project.checks);
        of_projects.chain(&self.store).all(|check| check.holds)
    }
}

/// What an audit found in one project.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProjectAuditDocument {
    pub project_id: ProjectId,
    pub name: String,
    pub stored: u64,
    pub position: u64,
    pub applied_to: u64,
    pub checks: Vec<CheckDocument>,
}

/// One thing that must hold.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CheckDocument {
    pub name: String,
    pub holds: bool,
    pub detail: String,
}

/// Views that were computed anew: the counts and, unless the collector is of an earlier version, the identifications.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RebuildDocument {
    pub view: String,
    pub generation: u64,
    pub applied_to: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifications: Option<GenerationDocument>,
}

/// The generation of a view that is live.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GenerationDocument {
    pub generation: u64,
    pub applied_to: u64,
}

/// A page of users.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UsersDocument {
    pub users: Vec<UserDocument>,
    /// What `--cursor` takes for the next page.
    pub next: Option<String>,
    pub applied_to: u64,
    pub position: u64,
}

/// A user as lists show it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UserDocument {
    pub id: String,
    pub identified: bool,
    pub email: Option<String>,
    pub events: u64,
    pub first_seen: String,
    pub last_seen: String,
    pub links: u64,
}

/// Everything that is known of a user.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UserProfileDocument {
    pub id: String,
    pub identified: bool,
    pub email: Option<String>,
    pub events: u64,
    pub first_seen: String,
    pub last_seen: String,
    pub links: u64,
    pub traits: BTreeMap<String, TraitDocument>,
    pub ids: Vec<LinkedDocument>,
    pub refused: Vec<RefusalDocument>,
}

/// What a user is said to be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TraitDocument {
    pub value: Box<RawValue>,
    pub time: Option<String>,
    pub position: u64,
}

/// An id that is linked to a user.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LinkedDocument {
    pub id: String,
    pub position: u64,
}

/// What was said of a user and not taken.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RefusalDocument {
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub position: u64,
}

/// Goes through the text of the API's own shape, so that both sources give the same document.
fn through_json<T: for<'a> Deserialize<'a>>(shape: &impl Serialize) -> T {
    let text = serde_json::to_string(shape).expect("shapes have text keys alone");
    serde_json::from_str(&text).expect("a document has the fields of its shape")
}

impl From<&StoredEvent> for EventDocument {
    fn from(stored: &StoredEvent) -> Self {
        through_json(&EventShape::from(stored))
    }
}

impl From<EventsPage> for EventsDocument {
    fn from(page: EventsPage) -> Self {
        Self {
            events: page.events.iter().map(EventDocument::from).collect(),
            next: page.next.map(|cursor| cursor.to_string()),
            through: page.through,
            looked_to: page.looked_to.map(|time| time.to_string()),
        }
    }
}

impl From<Counts> for CountsDocument {
    fn from(read: Counts) -> Self {
        let counts: Vec<CountDocument> = through_json(&read.rows);
        let total = counts.iter().map(|row| row.count).sum();
        Self { counts, total, users: read.users, applied_to: read.applied_to, position: read.position }
    }
}

impl From<NewProject> for NewProjectDocument {
    fn from(new: NewProject) -> Self {
        Self {
            project_id: new.project.id,
            name: new.project.name,
            write_key: new.write_key.text,
            secret_key: new.secret_key.text,
        }
    }
}

impl From<Audit> for AuditDocument {
    fn from(audit: Audit) -> Self {
        Self { projects: through_json(&audit.projects), store: through_json(&audit.store) }
    }
}

impl From<UsersPage> for UsersDocument {
    fn from(page: UsersPage) -> Self {
        through_json(&page)
    }
}

impl From<UserProfileShape> for UserProfileDocument {
    fn from(profile: UserProfileShape) -> Self {
        through_json(&profile)
    }
}

impl From<Rebuilt> for RebuildDocument {
    fn from(rebuilt: Rebuilt) -> Self {
        let Rebuilt { counts, identifications: who } = rebuilt;
        let who = GenerationDocument { generation: who.generation, applied_to: who.applied_to };
        Self {
            view: "counts".to_owned(),
            generation: counts.generation,
            applied_to: counts.applied_to,
            identifications: Some(who),
        }
    }
}
