//! From text to typed values, collecting every mistake on the way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::error::{Error, Mistake};
use super::settings::{Origin, Setting, Settings};
use super::{EdgeConfig, LogConfig, LogFormat, TlsConfig, units};

/// The most that a count of connections or bodies can sensibly be: Linux' largest default for open files.
const COUNT_MAX: usize = 1_048_576;

/// Reads values one by one; after a mistake it goes on with a stand-in, which `finish` keeps from being used.
pub(super) struct Reader<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { settings, mistakes: Vec::new() }
    }

    /// Ends the reading: everything that was read holds, or every mistake.
    pub(super) fn finish(self) -> Result<(), Error> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(Error { mistakes: self.mistakes }) }
    }

    pub(super) fn edge(&mut self) -> EdgeConfig {
        EdgeConfig {
            header_timeout: self.duration("edge.header_timeout"),
            body_timeout: self.duration("edge.body_timeout"),
            connections_max: self.count("edge.connections_max"),
            decoding_max: self.count("edge.decoding_max"),
            drain_timeout: self.duration("edge.drain_timeout"),
            trusted_proxies: self.networks("edge.trusted_proxies"),
            free_disk_min: self.parsed("edge.free_disk_min", units::size).unwrap_or_default(),
        }
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
        let level = self.parsed("log.level", |text| match EnvFilter::try_new(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => {
                Err(format!("`{text}` isn't a level ({error}): write error, warn, info, debug or trace"))
            }
        });
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
        self.parsed(name, |text| match text.replace('_', "").parse() {
            Ok(count @ 1..=COUNT_MAX) => Ok(count),
            _ => Err(format!("`{text}` isn't a count: write a whole number from 1 to {COUNT_MAX}")),
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

fn located(setting: &Setting) -> PathBuf {
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
