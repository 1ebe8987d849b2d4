//! From text to typed values, collecting every mistake on the way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::error::Mistake;
use super::keys::nearest;
use super::roles::Roles;
use super::server_url::ServerUrl;
use super::settings::{Origin, Setting, Settings};
use super::{
    BusConfig, EdgeConfig, LimitsConfig, LogConfig, LogFormat, SpoolConfig, StoreConfig, TlsConfig, units,
};

/// The most that a count of connections or bodies can sensibly be: Linux' largest default for open files.
const COUNT_MAX: usize = 1_048_576;

/// The least a spool may hold: the largest batch, of 16 MiB, with what keeping it takes, and as much again.
const SPOOL_BYTES_MIN: u64 = 32 * 1024 * 1024;

/// The longest prefix: names of queues and exchanges end at 255 bytes, and what follows it takes 20.
const PREFIX_CHARS_MAX: usize = 64;

/// Reads values one by one; after a mistake it goes on with a stand-in, which `finish` keeps from being used.
pub(super) struct Reader<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { settings, mistakes: Vec::new() }
    }

    /// Ends the reading: without mistakes, everything that was read holds.
    pub(super) fn finish(self) -> Vec<Mistake> {
        self.mistakes
    }

    pub(super) fn edge(&mut self) -> EdgeConfig {
        EdgeConfig {
            header_timeout: self.duration("edge.header_timeout"),
            body_timeout: self.duration("edge.body_timeout"),
            connections_max: self.count("edge.connections_max"),
            decoding_max: self.count("edge.decoding_max"),
            drain_notice: self.parsed("edge.drain_notice", units::duration),
            drain_timeout: self.duration("edge.drain_timeout"),
            trusted_proxies: self.networks("edge.trusted_proxies"),
            free_disk_min: self.parsed("edge.free_disk_min", units::size).unwrap_or_default(),
            advertise: self.url("edge.advertise", &["http", "https"]),
            spool: self.spool(),
            limits: LimitsConfig {
                events_per_s: self.limit("limits.events_per_s"),
                burst: self.limit("limits.burst"),
                events_per_day: self.limit("limits.events_per_day"),
                events_per_month: self.limit("limits.events_per_month"),
            },
        }
    }

    /// Without a broker a batch is answered when it is stored, so nothing can wait for one.
    fn spool(&mut self) -> Option<SpoolConfig> {
        let bytes_max = self.parsed("edge.spool_max", |text| match units::size(text)? {
            bytes if bytes >= SPOOL_BYTES_MIN => Ok(bytes),
            _ => Err(format!("`{text}` is less than the largest batch takes: write at least 32MiB")),
        });
        let bytes_max = bytes_max.unwrap_or_default();
        let setting = self.settings.get("edge.spool")?;
        if self.settings.get("bus.url").is_none() {
            let message = "`edge.spool` is where batches wait while RabbitMQ is away, and there is no `bus.url`: set it, or \
                           leave the spool out";
            self.mistakes.push(Mistake::new(&setting.origin, message));
        }
        Some(SpoolConfig { folder: located(&setting), bytes_max })
    }

    /// A number of events; 0 sets no limit.
    fn limit(&mut self, name: &str) -> Option<u64> {
        let limit = self.parsed(name, |text| {
            text.replace('_', "")
                .parse()
                .map_err(|_| format!("`{text}` isn't a whole number: write one, or 0 for no limit"))
        });
        limit.filter(|limit| *limit > 0)
    }

    /// Processes that share the work have to meet somewhere.
    pub(super) fn roles(&mut self) -> Roles {
        let roles = self.parsed("roles", Roles::parse).unwrap_or_default();
        for server in ["store.url", "bus.url"] {
            if !roles.all() && self.settings.get(server).is_none() {
                let origin = self.settings.get("roles").map_or(Origin::Default, |setting| setting.origin);
                let message = format!(
                    "`roles`: {roles} alone needs `{server}`, where it meets the processes that do the rest"
                );
                self.mistakes.push(Mistake::new(&origin, message));
            }
        }
        roles
    }

    pub(super) fn store(&mut self) -> StoreConfig {
        let schemes = ["postgres", "postgresql"];
        let url = self.url("store.url", &schemes);
        let accounts_url = self.url("store.accounts_url", &schemes);
        if url.is_none() && accounts_url.is_some() {
            self.lacks("store.accounts_url", "store.url");
        }
        let days = self.limit("store.retention_days");
        if url.is_none() && days.is_some() {
            self.lacks("store.retention_days", "store.url");
        }
        let retention = days.map(|days| Duration::from_secs(days.saturating_mul(24 * 60 * 60)));
        StoreConfig { url, accounts_url, retention }
    }

    pub(super) fn bus(&mut self) -> BusConfig {
        BusConfig {
            url: self.url("bus.url", &["amqp", "amqps"]),
            ca_file: self.ca_file("bus.ca_file", "bus.url"),
            prefix: self.prefix("bus.prefix"),
            shards: self.within("bus.shards", 256),
            writers: self.within("bus.writers", 64),
        }
    }

    /// What names in a server begin with. What isn't plain means something else there: a pattern, a hash tag, a path.
    pub(super) fn prefix(&mut self, name: &str) -> String {
        self.parsed(name, |text| {
            let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
            if (1..=PREFIX_CHARS_MAX).contains(&text.len()) && text.chars().all(plain) {
                return Ok(text.to_owned());
            }
            Err(format!(
                "`{text}` isn't a prefix: write 1 to {PREFIX_CHARS_MAX} letters, digits, `-`, `_` or `.`"
            ))
        })
        .unwrap_or_default()
    }

    pub(super) fn url(&mut self, name: &str, schemes: &[&str]) -> Option<ServerUrl> {
        self.parsed(name, |text| ServerUrl::parse(text, schemes))
    }

    /// Certificate authorities that are to be believed about a server.
    pub(super) fn ca_file(&mut self, name: &str, server: &str) -> Option<PathBuf> {
        let file = self.file(name);
        if file.is_some() && self.settings.get(server).is_none() {
            self.lacks(name, server);
        }
        file
    }

    pub(super) fn tls(&mut self) -> Option<TlsConfig> {
        let certificate = self.file("tls.certificate");
        let key = self.file("tls.key");
        match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(TlsConfig { certificate, key }),
            (Some(_), None) => {
                self.lacks("tls.certificate", "tls.key");
                None
            }
            (None, Some(_)) => {
                self.lacks("tls.key", "tls.certificate");
                None
            }
        }
    }

    pub(super) fn log(&mut self) -> LogConfig {
        let level = self.parsed("log.level", level);
        let format = self.parsed("log.format", |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("`{other}` isn't a format: write text or json")),
        });
        LogConfig { level: level.unwrap_or_default(), format: format.unwrap_or(LogFormat::Text) }
    }

    pub(super) fn duration(&mut self, name: &str) -> Duration {
        self.parsed(name, units::duration).unwrap_or_default()
    }

    pub(super) fn address(&mut self, name: &str) -> SocketAddr {
        self.parsed(name, |text| {
            text.parse().map_err(|_| {
                format!("`{text}` isn't an address: write an IP address and a port, like 127.0.0.1:4000 or [::]:4000")
            })
        })
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// A path in a file is relative to that file; anywhere else to the current folder.
    pub(super) fn path(&mut self, name: &str) -> PathBuf {
        self.settings.get(name).map(|setting| located(&setting)).unwrap_or_default()
    }

    fn file(&mut self, name: &str) -> Option<PathBuf> {
        let setting = self.settings.get(name)?;
        let path = located(&setting);
        if let Err(error) = std::fs::File::open(&path) {
            let message = format!("`{name}`: open {}: {error}", path.display());
            self.mistakes.push(Mistake::new(&setting.origin, message));
        }
        Some(path)
    }

    fn count(&mut self, name: &str) -> usize {
        self.within(name, COUNT_MAX)
    }

    fn within(&mut self, name: &str, max: usize) -> usize {
        self.parsed(name, |text| match text.replace('_', "").parse() {
            Ok(count) if (1..=max).contains(&count) => Ok(count),
            _ => Err(format!("`{text}` isn't a count: write a whole number from 1 to {max}")),
        })
        .unwrap_or(1)
    }

    fn networks(&mut self, name: &str) -> Vec<IpNet> {
        self.parsed(name, |text| {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(network).collect()
        })
        .unwrap_or_default()
    }

    fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let setting = self.settings.get(name)?;
        match parse(&setting.text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.mistakes.push(Mistake::new(&setting.origin, format!("`{name}`: {message}")));
                None
            }
        }
    }

    fn lacks(&mut self, given: &str, lacking: &str) {
        let origin = self.settings.get(given).map_or(Origin::Default, |setting| setting.origin);
        self.mistakes
            .push(Mistake::new(origin, format!("`{given}` needs `{lacking}` beside it: set both or none")));
    }
}

/// What a level is called.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Takes levels and directives. The filter itself takes a lone word for a module of that name, and would be silent for a
/// level with a typo.
fn level(text: &str) -> Result<String, String> {
    let wrong = |word: &str, why: &str| {
        let meant = nearest(&word.to_lowercase(), LEVELS.into_iter())
            .map_or_else(String::new, |level| format!("; did you mean `{level}`?"));
        format!("`{word}` isn't a level{why}: write error, warn, info, debug or trace{meant}")
    };
    let is_word = |part: &&str| part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    if let Some(word) = text.split(',').map(str::trim).filter(is_word).find(|part| !is_level(part)) {
        return Err(wrong(word, ""));
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let last = text.rsplit('=').next().unwrap_or(text);
            Err(wrong(if text.matches('=').count() == 1 { last } else { text }, &format!(" ({error})")))
        }
    }
}

pub(super) fn located(setting: &Setting) -> PathBuf {
    match &setting.origin {
        Origin::File { file, .. } => file.parent().unwrap_or(Path::new("")).join(&setting.text),
        _ => PathBuf::from(&setting.text),
    }
}

/// One address alone stands for itself.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| format!("`{text}` isn't a network: write it like 10.0.0.0/8 or 192.0.2.1"))
}
