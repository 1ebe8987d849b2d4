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

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use error::{Error, Mistake};
pub use keys::{CONFIG_VARIABLE, DATA_DEFAULT, DATA_VARIABLE, KEY_VARIABLE, URL_VARIABLE};
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
    /// How long requests in flight may take to end at shutdown.
    pub drain_timeout: Duration,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Free bytes on the data folder's disk below which batches are refused with 503; 0 turns the check off.
    pub free_disk_min: u64,
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
        let mut reader = Reader::new(&settings);
        let edge = reader.edge();
        let (data, listen) = (reader.path("data"), reader.address("listen"));
        let (tls, log) = (reader.tls(), reader.log());
        let catch_up_timeout = reader.duration("shutdown.catch_up_timeout");
        reader.finish()?;
        Ok(Self { data, listen, edge, tls, log, catch_up_timeout, settings })
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

impl Default for EdgeConfig {
    fn default() -> Self {
        let defaults = Settings::default();
        Reader::new(&defaults).edge()
    }
}

#[cfg(test)]
mod tests;
