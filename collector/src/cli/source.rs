//! Where commands read from. Both ways answer the same questions with the same documents.

use std::env::VarError;
use std::path::PathBuf;

use crate::app::Servers;
use crate::config::{
    ACCOUNTS_URL_VARIABLE, CA_FILE_VARIABLE, CACHE_CA_FILE_VARIABLE, CACHE_PREFIX_VARIABLE,
    CACHE_URL_VARIABLE, CONFIG_VARIABLE, DATA_DEFAULT, DATA_VARIABLE, Flags, KEY_VARIABLE, NamedServers,
    STORE_URL_VARIABLE, URL_VARIABLE, check_parameters,
};
use crate::project::{KeyKind, LimitsChange, Project, ProjectId};
use crate::query::{EventsQuery, UsersQuery};
use crate::store::{CountsQuery, EventFilter};

use super::Access;
use super::document::{
    AuditDocument, CountsDocument, EventDocument, EventsDocument, LimitsDocument, NewKeyDocument,
    NewProjectDocument, RebuildDocument, UserProfileDocument, UsersDocument,
};
use super::failure::Failure;
use super::folder::Folder;
use super::remote::Remote;

/// A collector to ask.
pub(super) enum Source {
    /// Its data folder or its database server, whether it is running or not.
    Folder(Folder),
    /// Its address, with a secret key.
    Remote(Remote),
}

/// What a command is going to do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Look,
    Manage,
}

/// Told by sources that know how far something long has come: done, total.
pub(super) type OnProgress = Box<dyn Fn(u64, u64) + Send + Sync>;

/// Told of each event a tail brings.
pub(super) type OnEvent<'a> = &'a mut (dyn FnMut(EventDocument) -> Result<(), Failure> + Send);

/// Flags say which; without them `EVENTBUCKET_URL`, then `EVENTBUCKET_STORE_URL`, then `EVENTBUCKET_DATA`, then the
/// default folder. A folder whose configuration names a PostgreSQL stands for that.
enum Place {
    Folder(PathBuf),
    Servers(Servers),
    Remote { url: String, key: Option<String>, ca_file: Option<PathBuf> },
}

impl Source {
    /// Finds the collector that flags and variables name. `project` is for a folder alone: a key belongs to one project.
    pub(super) async fn open(
        access: &Access,
        project: Option<&str>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let variables = variables()?;
        let named = place(access, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        });
        match configured(named, access, &variables)? {
            Place::Folder(_) | Place::Servers(_) if access.key.is_some() || access.ca_file.is_some() => {
                let flag = if access.key.is_some() { "--key" } else { "--ca-file" };
                let cause = format!("{flag} goes with --url, and there is none, nor {URL_VARIABLE}");
                Err(Failure::usage("choose the collector", cause))
            }
            Place::Folder(_) | Place::Remote { .. } if access.cache_url.is_some() => {
                let cause = format!(
                    "--cache-url goes with --store-url, {STORE_URL_VARIABLE} or a [store] url in the data folder's \
                     eventbucket.toml"
                );
                Err(Failure::usage("choose the collector", cause))
            }
            Place::Folder(folder) => Ok(Self::Folder(Folder::open(folder, project, purpose)?)),
            Place::Servers(servers) => {
                let cache_url = servers.cache_url.as_deref().unwrap_or_default();
                for url in [&servers.store_url, cache_url] {
                    check_parameters(url).map_err(|told| Failure::usage("read an address", told))?;
                }
                Ok(Self::Folder(Folder::on_servers(servers, project, purpose).await?))
            }
            Place::Remote { .. } if project.is_some() => Err(Failure::usage(
                "choose the project",
                "--project goes with --data; over --url the key belongs to one project already",
            )),
            Place::Remote { url, key, ca_file } => {
                Ok(Self::Remote(Remote::new(&url, key, ca_file.as_deref())?))
            }
        }
    }

    /// Lists projects.
    pub(super) async fn projects(&self) -> Result<Vec<Project>, Failure> {
        match self {
            Self::Folder(folder) => folder.projects().await,
            Self::Remote(remote) => remote.projects().await,
        }
    }

    /// Makes a project and its keys.
    pub(super) async fn create_project(&self, name: &str) -> Result<NewProjectDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.create_project(name).await,
            Self::Remote(remote) => remote.create_project(name).await,
        }
    }

    /// Makes a new key and revokes those of its kind.
    pub(super) async fn rotate_key(
        &self,
        name: &str,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<NewKeyDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.rotate_key(name, kind, browser).await,
            Self::Remote(remote) => remote.rotate_key(name, kind, browser).await,
        }
    }

    /// Changes what a project may send.
    pub(super) async fn set_limits(
        &self,
        project: ProjectId,
        change: LimitsChange,
    ) -> Result<LimitsDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.set_limits(project, change).await,
            Self::Remote(remote) => remote.set_limits(project, change).await,
        }
    }

    /// Reads a page of events.
    pub(super) async fn events(&self, query: EventsQuery) -> Result<EventsDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.events(query).await,
            Self::Remote(remote) => remote.events(query).await,
        }
    }

    /// Reads one event.
    pub(super) async fn event(&self, id: &str) -> Result<EventDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.event(id).await,
            Self::Remote(remote) => remote.event(id).await,
        }
    }

    /// Hands over every event from behind a position, or from the head, until the caller fails.
    pub(super) async fn tail(
        &self,
        filter: EventFilter,
        after: Option<u64>,
        on_event: OnEvent<'_>,
    ) -> Result<(), Failure> {
        match self {
            Self::Folder(folder) => folder.tail(filter, after, on_event).await,
            Self::Remote(remote) => remote.tail(filter, after, on_event).await,
        }
    }

    /// Counts events.
    pub(super) async fn counts(&self, query: CountsQuery) -> Result<CountsDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.counts(query).await,
            Self::Remote(remote) => remote.counts(query).await,
        }
    }

    /// Holds everything stored against everything else.
    pub(super) async fn audit(&self, on_progress: OnProgress) -> Result<AuditDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.audit(on_progress).await,
            Self::Remote(remote) => remote.audit().await,
        }
    }

    /// Reads a page of users.
    pub(super) async fn users(&self, query: UsersQuery) -> Result<UsersDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.users(query).await,
            Self::Remote(remote) => remote.users(query).await,
        }
    }

    /// Reads one user.
    pub(super) async fn user(&self, id: &str) -> Result<UserProfileDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.user(id).await,
            Self::Remote(remote) => remote.user(id).await,
        }
    }

    /// Reads a page of a user's events.
    pub(super) async fn timeline(
        &self,
        id: &str,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<EventsDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.timeline(id, cursor, limit).await,
            Self::Remote(remote) => remote.timeline(id, cursor, limit).await,
        }
    }

    /// Computes the views anew.
    pub(super) async fn rebuild(&self, on_progress: OnProgress) -> Result<RebuildDocument, Failure> {
        match self {
            Self::Folder(folder) => folder.rebuild(on_progress).await,
            Self::Remote(remote) => remote.rebuild().await,
        }
    }
}

/// What keeps the events, whoever serves them.
pub(super) enum Keeper {
    /// A data folder.
    Folder(PathBuf),
    /// A PostgreSQL, or two.
    Server { store_url: String, accounts_url: Option<String> },
}

/// Finds what keeps the events, by flags, variables and the configuration in the folder; a collector's address is no help.
pub(super) fn keeper(data: Option<&str>, store_url: Option<&str>) -> Result<Keeper, Failure> {
    let mut variables = variables()?;
    variables.retain(|(name, _)| *name != URL_VARIABLE);
    let access = Access {
        data: data.map(str::to_owned),
        store_url: store_url.map(str::to_owned),
        ..Access::default()
    };
    let named = place(&access, |name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    });
    Ok(match configured(named, &access, &variables)? {
        Place::Folder(folder) => Keeper::Folder(folder),
        Place::Servers(Servers { store_url, accounts_url, .. }) => Keeper::Server { store_url, accounts_url },
        Place::Remote { .. } => unreachable!("neither flags nor variables gave an address"),
    })
}

/// Every variable that says which collector a command is about.
const VARIABLES: [&str; 10] = [
    URL_VARIABLE,
    KEY_VARIABLE,
    CA_FILE_VARIABLE,
    DATA_VARIABLE,
    CONFIG_VARIABLE,
    STORE_URL_VARIABLE,
    ACCOUNTS_URL_VARIABLE,
    CACHE_URL_VARIABLE,
    CACHE_PREFIX_VARIABLE,
    CACHE_CA_FILE_VARIABLE,
];

/// The variables that name a collector. An empty one counts as absent, as for `serve`; one that can't be read must not
/// lead to another collector than was meant.
pub(super) fn variables() -> Result<Vec<(&'static str, String)>, Failure> {
    let mut found = Vec::new();
    for name in VARIABLES {
        match std::env::var(name) {
            Ok(value) if value.is_empty() => {}
            Ok(value) => found.push((name, value)),
            Err(VarError::NotPresent) => {}
            Err(VarError::NotUnicode(_)) => {
                return Err(Failure::usage(
                    "choose the collector",
                    format!("the variable {name} is not UTF-8"),
                ));
            }
        }
    }
    Ok(found)
}

fn place(access: &Access, variable: impl Fn(&str) -> Option<String>) -> Place {
    let key = access.key.clone().or_else(|| variable(KEY_VARIABLE));
    if let Some(folder) = &access.data {
        return Place::Folder(PathBuf::from(folder));
    }
    let url_variable = || if access.store_url.is_none() { variable(URL_VARIABLE) } else { None };
    if let Some(url) = access.url.clone().or_else(url_variable) {
        let ca_file = access.ca_file.clone().or_else(|| variable(CA_FILE_VARIABLE).map(PathBuf::from));
        return Place::Remote { url, key, ca_file };
    }
    if let Some(store_url) = access.store_url.clone().or_else(|| variable(STORE_URL_VARIABLE)) {
        return Place::Servers(Servers {
            store_url,
            accounts_url: variable(ACCOUNTS_URL_VARIABLE),
            cache_url: access.cache_url.clone().or_else(|| variable(CACHE_URL_VARIABLE)),
            cache_prefix: variable(CACHE_PREFIX_VARIABLE),
            cache_ca_file: variable(CACHE_CA_FILE_VARIABLE).map(PathBuf::from),
        });
    }
    Place::Folder(PathBuf::from(variable(DATA_VARIABLE).unwrap_or_else(|| DATA_DEFAULT.to_owned())))
}

/// Looks into the configuration that `serve` would use with this folder.
fn configured(place: Place, access: &Access, variables: &[(&'static str, String)]) -> Result<Place, Failure> {
    let Place::Folder(folder) = place else { return Ok(place) };
    let flags = Flags { data: Some(folder.display().to_string()), ..Flags::default() };
    // Whoever says --data doesn't mean the server of a variable.
    let beside = variables.iter().filter(|(name, _)| *name != STORE_URL_VARIABLE);
    let beside = beside.map(|(name, value)| ((*name).to_owned(), value.clone()));
    let named =
        NamedServers::find(&flags, beside).map_err(|error| Failure::new("read the configuration", error))?;
    Ok(match named.store_url {
        Some(store_url) => Place::Servers(Servers {
            store_url,
            accounts_url: named.accounts_url,
            cache_url: access.cache_url.clone().or(named.cache_url),
            cache_prefix: named.cache_prefix,
            cache_ca_file: named.cache_ca_file,
        }),
        None => Place::Folder(folder),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(access: &Access, variables: &[(&str, &str)]) -> String {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match place(access, variable) {
            Place::Folder(folder) => folder.display().to_string(),
            Place::Servers(servers) => {
                format!("{} {}", servers.store_url, servers.cache_url.unwrap_or_default())
            }
            Place::Remote { url, key, .. } => format!("{url} {}", key.unwrap_or_default()),
        }
    }

    #[test]
    fn flags_name_the_collector_before_variables_and_variables_before_the_default() {
        let variables = [(URL_VARIABLE, "http://v"), (KEY_VARIABLE, "kv"), (DATA_VARIABLE, "/v")];
        let flag_data = Access { data: Some("/f".into()), ..Access::default() };
        let flag_url = Access { url: Some("http://f".into()), ..Access::default() };
        let flag_key = Access { key: Some("kf".into()), ..flag_url.clone() };
        assert_eq!(named(&flag_data, &variables), "/f");
        assert_eq!(named(&flag_url, &variables), "http://f kv");
        assert_eq!(named(&flag_key, &variables), "http://f kf");
        assert_eq!(named(&Access::default(), &variables), "http://v kv");
        assert_eq!(named(&Access::default(), &variables[2..]), "/v");
        let server = [(STORE_URL_VARIABLE, "postgres://v"), (DATA_VARIABLE, "/v")];
        let flag_server = Access { store_url: Some("postgres://f".into()), ..Access::default() };
        assert_eq!(named(&Access::default(), &server), "postgres://v ");
        assert_eq!(named(&flag_server, &server), "postgres://f ");
        assert_eq!(named(&flag_server, &variables), "postgres://f ");
        assert_eq!(named(&flag_data, &server), "/f");
        let with_cache = [server[0], (CACHE_URL_VARIABLE, "redis://v")];
        let flag_cache = Access { cache_url: Some("redis://f".into()), ..Access::default() };
        assert_eq!(named(&Access::default(), &with_cache), "postgres://v redis://v");
        assert_eq!(named(&flag_cache, &with_cache), "postgres://v redis://f");
        assert_eq!(named(&Access::default(), &[]), DATA_DEFAULT);
    }

    #[test]
    fn a_folder_whose_configuration_names_servers_stands_for_them() {
        let (folder, access) = (tempfile::tempdir().unwrap(), Access::default());
        let looked = |variables: &[(&'static str, String)]| {
            configured(Place::Folder(folder.path().to_owned()), &access, variables).map(|place| match place {
                Place::Servers(servers) => (servers.store_url, servers.cache_url),
                _ => ("the folder".to_owned(), None),
            })
        };
        let told = (STORE_URL_VARIABLE, "postgres://v".to_owned());
        assert_eq!(looked(std::slice::from_ref(&told)).unwrap().0, "the folder");
        let file = folder.path().join("eventbucket.toml");
        std::fs::write(&file, "[store]\nurl = \"postgres://f\"\n[cache]\nurl = \"redis://f\"\n").unwrap();
        let expected = ("postgres://f".to_owned(), Some("redis://f".to_owned()));
        assert_eq!(looked(&[told]).unwrap(), expected);
        let elsewhere = folder.path().join("other.toml");
        std::fs::rename(&file, &elsewhere).unwrap();
        let config = (CONFIG_VARIABLE, elsewhere.display().to_string());
        assert_eq!(looked(&[config]).unwrap(), expected);
        std::fs::write(&file, "[store").unwrap();
        assert!(looked(&[]).is_err());
    }
}
