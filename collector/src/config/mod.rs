//! What the collector is told. Nothing has to be: every key has a default. Flags win over `EVENTBUCKET_*` variables,
//! those over one TOML file, that over the defaults; the result remembers where each value came from.

/// Every key with its variable, default and meaning: the one list the rest is made from.
mod keys;

/// The layers of values and where each came from.
mod settings;

/// The TOML file, with lines.
mod file;

/// Durations and sizes with units.
mod units;

/// From text to typed values, collecting every mistake on the way.
mod reader;

/// The effective configuration and the commented example as text.
mod show;

/// What is wrong with a configuration.
mod error;

/// What a process does.
mod roles;

/// Addresses that may hold passwords.
mod server_url;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use error::{Error, Mistake};
pub use keys::{
    ACCOUNTS_URL_VARIABLE, CA_FILE_VARIABLE, CACHE_CA_FILE_VARIABLE, CACHE_PREFIX_VARIABLE,
    CACHE_URL_VARIABLE, CONFIG_VARIABLE, DATA_DEFAULT, DATA_VARIABLE, KEY_VARIABLE, STORE_URL_VARIABLE,
    URL_VARIABLE, is_variable,
};
pub use roles::{Role, Roles};
pub use server_url::{ServerUrl, check_parameters, without_password};
pub use settings::Flags;
pub use show::example;

use reader::Reader;
use settings::Settings;

/// The name of the file that is read from the data folder when no other is given.
pub const FILE_NAME: &str = "eventbucket.toml";

/// Everything `serve` is told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that holds everything the collector keeps.
    pub data: PathBuf,
    /// The address to listen on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What this process does.
    pub roles: Roles,
    /// Where the log and the accounts are kept.
    pub store: StoreConfig,
    /// What carries batches and ranges.
    pub bus: BusConfig,
    /// The Redis that keeps what may be lost; this process' memory without it.
    pub cache_url: Option<ServerUrl>,
    /// The certificate authorities of a `rediss://` server, PEM; the system's without it.
    pub cache_ca_file: Option<PathBuf>,
    /// What every key and channel in Redis is called first.
    pub cache_prefix: String,
    /// The HTTP side.
    pub edge: EdgeConfig,
    /// TLS on the listener; plain HTTP without it.
    pub tls: Option<TlsConfig>,
    /// What is logged and how.
    pub log: LogConfig,
    /// How long views may catch up with the log at shutdown. What they don't reach they apply at the next start.
    pub catch_up_timeout: Duration,
    settings: Settings,
}

/// Where the log and the accounts are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// A PostgreSQL database; the database file in the data folder without it.
    pub url: Option<ServerUrl>,
    /// Another one for accounts, projects and keys.
    pub accounts_url: Option<ServerUrl>,
    /// How long events are kept, counted from storing; for ever without it.
    pub retention: Option<Duration>,
}

/// What carries batches and ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusConfig {
    /// A RabbitMQ; queues in this process without it.
    pub url: Option<ServerUrl>,
    /// Certificate authorities of an `amqps://` server beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// What every exchange and queue is called first.
    pub prefix: String,
    /// Queues that the projects are spread over.
    pub shards: usize,
    /// Writers of one storage process.
    pub writers: usize,
}

/// The limits of the HTTP side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// How long a request's headers may take.
    pub header_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// Connections open at once; further ones are turned away with 503.
    pub connections_max: usize,
    /// Bodies in decoding at once, which bounds memory.
    pub decoding_max: usize,
    /// How long requests are still taken at shutdown, while clients are told to go elsewhere; none where it is `None`.
    pub drain_notice: Option<Duration>,
    /// How long requests in flight may take to end at shutdown.
    pub drain_timeout: Duration,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Free bytes on the data folder's disk below which batches are refused with 503; 0 turns the check off.
    pub free_disk_min: u64,
    /// The address that others reach this process at.
    pub advertise: Option<ServerUrl>,
    /// Where batches wait while the broker is away; they are refused without it.
    pub spool: Option<SpoolConfig>,
    /// What each project may send.
    pub limits: LimitsConfig,
}

/// Where an edge keeps batches while the broker is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes that may wait in it for one process.
    pub bytes_max: u64,
}

/// What each project may send; `None` sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Events a second, over all edges.
    pub events_per_s: Option<u64>,
    /// Events that may come at once under that limit.
    pub burst: Option<u64>,
    /// Events a day, UTC.
    pub events_per_day: Option<u64>,
    /// Events a month, UTC.
    pub events_per_month: Option<u64>,
}

/// The files TLS needs, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or directives like `info,eventbucket_collector::edge=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; in colour on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Puts the layers over each other and checks every value.
    ///
    /// # Errors
    /// Every mistake found, each with the place it was made in.
    pub fn load(flags: &Flags, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let settings = Settings::gather(flags, variables)?;
        let mut mistakes = Vec::new();
        let read = Self::read(&settings, &mut mistakes);
        for uncovered in settings.uncovered() {
            Self::read(&uncovered, &mut mistakes);
        }
        if mistakes.is_empty() { Ok(Self { settings, ..read }) } else { Err(Error { mistakes }) }
    }

    /// Reads every value; what it returns is of use only without mistakes.
    fn read(settings: &Settings, mistakes: &mut Vec<Mistake>) -> Self {
        let mut reader = Reader::new(settings);
        let read = Self {
            data: reader.path("data"),
            listen: reader.address("listen"),
            roles: reader.roles(),
            store: reader.store(),
            bus: reader.bus(),
            cache_url: reader.url("cache.url", &["redis", "rediss"]),
            cache_ca_file: reader.ca_file("cache.ca_file", "cache.url"),
            cache_prefix: reader.prefix("cache.prefix"),
            edge: reader.edge(),
            tls: reader.tls(),
            log: reader.log(),
            catch_up_timeout: reader.duration("shutdown.catch_up_timeout"),
            settings: Settings::default(),
        };
        for mistake in reader.finish() {
            // The same value is read again for each one that is covered.
            if !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        read
    }

    /// Says whether it is a file that names the store's server.
    #[must_use]
    pub fn store_url_is_in_file(&self) -> bool {
        let named = self.settings.get("store.url");
        named.is_some_and(|setting| matches!(setting.origin, settings::Origin::File { .. }))
    }

    /// Returns the file that was read, if any.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.settings.file()
    }

    /// Returns what looks like a variable for the collector but is none, each with a hint.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        self.settings.warnings()
    }

    /// Writes every key with its value and where it came from, as TOML that can be used again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        show::toml(&self.settings)
    }

    /// Writes every key with its value and where it came from, as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        show::json(&self.settings)
    }
}

/// The servers that a configuration names, unchecked.
#[derive(Clone, Debug, Default)]
pub struct NamedServers {
    /// `[store] url`
    pub store_url: Option<String>,
    /// `[store] accounts_url`
    pub accounts_url: Option<String>,
    /// `[cache] url`
    pub cache_url: Option<String>,
    /// `[cache] prefix`
    pub cache_prefix: Option<String>,
    /// `[cache] ca_file`
    pub cache_ca_file: Option<PathBuf>,
}

impl NamedServers {
    /// Reads what a file and variables say of servers, and nothing else of it: a command needs no more to find them.
    ///
    /// # Errors
    /// When there is a file and it can't be read.
    pub fn find(flags: &Flags, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let settings = Settings::gather(flags, variables)?;
        let text = |name| settings.get(name).map(|setting| setting.text);
        Ok(Self {
            store_url: text("store.url"),
            accounts_url: text("store.accounts_url"),
            cache_url: text("cache.url"),
            cache_prefix: text("cache.prefix"),
            cache_ca_file: settings.get("cache.ca_file").map(|setting| reader::located(&setting)),
        })
    }
}

impl Default for EdgeConfig {
    fn default() -> Self {
        let defaults = Settings::default();
        Reader::new(&defaults).edge()
    }
}

#[cfg(test)]
mod tests;
