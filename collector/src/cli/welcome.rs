//! What a start prints: where the page is, the keys, lines to paste.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use eventbucket_protocol::EVENTS_PATH;

use crate::config::{CONFIG_VARIABLE, Config, DATA_DEFAULT, FILE_NAME, Role, Roles, STORE_URL_VARIABLE};
use crate::store::NewProject;

use super::failure::Failure;
use super::output::{Output, Paint};

/// Stands in the lines to paste where the key isn't known any more.
const KEY_PLACE: &str = "YOUR_WRITE_KEY";

/// What the first screen says.
pub(super) struct Welcome {
    address: SocketAddr,
    scheme: &'static str,
    /// Where the log is kept, and the command that makes a new key there.
    kept: String,
    rotate: String,
    roles: Roles,
    new: Option<NewProject>,
    trust: String,
}

impl Welcome {
    pub(super) fn new(config: &Config, address: SocketAddr, new: Option<NewProject>) -> Self {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let kept = config.store.url.as_ref().map_or_else(|| whole(&config.data), ToString::to_string);
        let rotate = rotate(config);
        let certificate = config.tls.as_ref().map(|tls| format!("--cacert {} ", whole(&tls.certificate)));
        Self {
            address,
            scheme,
            kept,
            rotate,
            roles: config.roles,
            new,
            trust: certificate.unwrap_or_default(),
        }
    }

    /// Prints it. The last line is for programs: it comes when requests are being taken, and its form stays.
    ///
    /// Without keys to show, a collector whose stdout takes nothing goes on serving. With keys it goes on when stderr took
    /// them: they are shown this once.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let output = Output::new(false);
        let text = format!("{}listening on {}://{}\n", self.text(output), self.scheme, self.address);
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if self.new.is_some() => {
                let text = format!(
                    "{}listening on {}://{}\n",
                    self.text(Output::plain()),
                    self.scheme,
                    self.address
                );
                std::io::stderr().lock().write_all(text.as_bytes()).map_err(|_| {
                    Failure::usage("show the keys", format!("neither stdout ({error}) nor stderr takes them"))
                        .remedy("`eventbucket project rotate-key` makes new ones")
                })
            }
            _ => Ok(()),
        }
    }

    fn text(&self, output: Output) -> String {
        let base = format!("{}://{}", self.scheme, reachable(self.address));
        let strong = |text: &str| output.paint(Paint::Strong, text);
        let faint = |text: &str| output.paint(Paint::Faint, text);
        let key = self.new.as_ref().map_or(KEY_PLACE, |new| new.write_key.text.as_str());
        let mut lines =
            vec![format!("Event Bucket {} keeps its log in {}", env!("CARGO_PKG_VERSION"), self.kept)];
        lines.push(String::new());
        if self.roles.has(Role::Query) {
            lines.push(format!("  page        {}", strong(&self.page(&base))));
        }
        if let Some(new) = &self.new {
            lines.push(format!(
                "  write key   {}   {}",
                strong(&new.write_key.text),
                faint("applications send with it")
            ));
            lines.push(format!(
                "  secret key  {}  {}",
                strong(&new.secret_key.text),
                faint("reads and manages")
            ));
            lines.push(format!(
                "  {}",
                faint("The keys are stored hashed: this is the only time they are shown.")
            ));
        } else {
            lines.push(format!("  {}", faint(&format!("a new key: {}", self.rotate))));
        }
        if self.roles.has(Role::Edge) {
            lines.extend(how_to_send(&base, key, &self.trust));
        }
        lines.iter().fold(String::new(), |mut text, line| {
            writeln!(text, "{line}").expect("a String takes every write");
            text
        })
    }

    /// A fragment never leaves the browser, so the keys reach the page and no log on the way.
    fn page(&self, base: &str) -> String {
        match &self.new {
            Some(new) => format!("{base}/#write={}&secret={}", new.write_key.text, new.secret_key.text),
            None => format!("{base}/"),
        }
    }
}

/// `trust` names the certificate to curl, which knows none that was made for this machine.
fn how_to_send(base: &str, key: &str, trust: &str) -> [String; 7] {
    [
        String::new(),
        "  send an event:".to_owned(),
        format!(
            "    curl --json '{{\"name\":\"hello\"}}' -H 'Authorization: Bearer {key}' {trust}{base}{EVENTS_PATH}"
        ),
        "  from Rust:".to_owned(),
        format!("    let bucket = eventbucket::Bucket::builder(\"{base}\", \"{key}\").build()?;"),
        "    bucket.capture(eventbucket::event!(\"hello\"));".to_owned(),
        String::new(),
    ]
}

/// Who listens on every address is reached on its own machine by the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn whole(folder: &Path) -> String {
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()).display().to_string()
}

/// The command that makes a new key: it has to find what this process found.
fn rotate(config: &Config) -> String {
    const COMMAND: &str = "eventbucket project rotate-key default --kind write";
    let beside_data = config.data.join(FILE_NAME);
    match config.file() {
        _ if config.store.url.is_none() => format!("{COMMAND}{}", data_flag(&config.data)),
        Some(file) if config.store_url_is_in_file() && file == beside_data => {
            format!("{COMMAND}{}", data_flag(&config.data))
        }
        Some(file) if config.store_url_is_in_file() => {
            format!("{CONFIG_VARIABLE}={} {COMMAND}", quoted(&whole(file)))
        }
        // An address may hold a password.
        _ => format!("{COMMAND}, with the same {STORE_URL_VARIABLE}"),
    }
}

/// The default folder needn't be named.
fn data_flag(folder: &Path) -> String {
    if folder == Path::new(DATA_DEFAULT) {
        return String::new();
    }
    format!(" --data {}", quoted(&folder.display().to_string()))
}

/// As shells take it, whatever is in it.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if path.chars().all(is_plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;
    use crate::project::{KeyKind, NewKey, OwnLimits, Project, ProjectId};

    fn config(data: &str, file: Option<&Path>, store_url: &str) -> Config {
        let flags = Flags {
            data: Some(data.to_owned()),
            config: file.map(|file| file.display().to_string()),
            ..Flags::default()
        };
        Config::load(&flags, [(STORE_URL_VARIABLE.to_owned(), store_url.to_owned())]).unwrap()
    }

    #[test]
    fn the_command_for_a_new_key_finds_the_store_that_serve_found() {
        const URL: &str = "postgres://u:geheim@h/d";
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().display().to_string();
        let ends = |config: &Config, end: &str| {
            let command = rotate(config);
            assert!(command.ends_with(end) && !command.contains("geheim"), "{command}");
        };
        ends(&config(&data, None, URL), ", with the same EVENTBUCKET_STORE_URL");
        let file = folder.path().join(FILE_NAME);
        std::fs::write(&file, format!("[store]\nurl = \"{URL}\"\n")).unwrap();
        ends(&config(&data, None, ""), &format!(" --data {data}"));
        ends(&config(&data, None, URL), ", with the same EVENTBUCKET_STORE_URL");
        let named = rotate(&config("elsewhere", Some(&file), ""));
        assert!(named.starts_with(&format!("EVENTBUCKET_CONFIG={} event", file.display())), "{named}");
    }

    fn welcome(new: bool) -> Welcome {
        let new = new.then(|| NewProject {
            project: Project {
                id: ProjectId(1),
                name: "default".into(),
                created: String::new(),
                events: 0,
                limits: OwnLimits::default(),
            },
            write_key: NewKey { text: "eb_write_x".into(), kind: KeyKind::Write },
            secret_key: NewKey { text: "eb_secret_y".into(), kind: KeyKind::Secret },
        });
        let (address, rotate) = ("0.0.0.0:7".parse().unwrap(), rotate(&config("d", None, "")));
        Welcome {
            address,
            scheme: "http",
            kept: "d".into(),
            rotate,
            roles: Roles::default(),
            new,
            trust: String::new(),
        }
    }

    #[test]
    fn the_first_start_fills_the_keys_in() {
        let text = welcome(true).text(Output::plain());
        assert!(text.contains("http://127.0.0.1:7/#write=eb_write_x&secret=eb_secret_y"), "{text}");
        assert!(
            text.contains("-H 'Authorization: Bearer eb_write_x' http://127.0.0.1:7/v1/events"),
            "{text}"
        );
        assert!(text.contains("Bucket::builder(\"http://127.0.0.1:7\", \"eb_write_x\")"), "{text}");
        assert!(!text.contains("\x1b["), "{text}");
    }

    #[test]
    fn a_folder_is_written_as_a_shell_takes_it() {
        assert_eq!(data_flag(Path::new("/var/lib/x-1")), " --data /var/lib/x-1");
        assert_eq!(data_flag(Path::new("my data's")), r" --data 'my data'\''s'");
        assert_eq!(data_flag(Path::new(DATA_DEFAULT)), "");
    }

    #[test]
    fn later_starts_know_no_keys_and_say_how_to_get_one() {
        let text = welcome(false).text(Output::plain());
        assert!(!text.contains("eb_write"), "{text}");
        assert!(text.contains("Bearer YOUR_WRITE_KEY"), "{text}");
        assert!(text.contains("rotate-key default --kind write --data d"), "{text}");
    }
}
