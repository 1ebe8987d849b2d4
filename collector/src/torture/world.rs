//! Everything that is tortured: two processes of each role, a proxy before each edge and between each process and each
//! server, and the commands that kill and start the servers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tokio::process::Command;

use super::group::Group;
use super::process::{Launch, Process};
use super::proxy::{Proxy, Stall, Staller};
use super::schedule::{Link, Place, Role, Server};

/// How long the processes may take to serve: RabbitMQ takes half a minute to start, and a process then tries again.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The addresses of the servers, with their passwords.
#[derive(Clone)]
pub(crate) struct Addresses {
    pub(crate) store: String,
    pub(crate) bus: String,
    pub(crate) cache: String,
}

/// What kills a server and what starts it again, for a shell.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub(crate) kill: String,
    pub(crate) start: String,
}

/// What keeps a copy of all that PostgreSQL holds, and what puts it back, for a shell.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    pub(crate) save: String,
    pub(crate) restore: String,
}

/// The processes and everything between them.
pub(super) struct World {
    processes: BTreeMap<Place, Process>,
    doors: Vec<Arc<Proxy>>,
    links: BTreeMap<(Place, Server), Proxy>,
    controls: BTreeMap<Server, Control>,
    /// After the processes: it ends what is left of them.
    group: Group,
    folder: Folder,
}

/// The processes' folder, which goes with them unless it is to be looked at.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Addresses {
    /// The address of a server, its variable and its port where it names none.
    fn of(&self, server: Server) -> (&str, &'static str, u16) {
        match server {
            Server::Postgres => (&self.store, "EVENTBUCKET_STORE_URL", 5432),
            Server::RabbitMq => (&self.bus, "EVENTBUCKET_BUS_URL", 5672),
            Server::Redis => (&self.cache, "EVENTBUCKET_CACHE_URL", 6379),
        }
    }

    /// What tells a server's address to a process.
    pub(super) fn variable(&self, server: Server) -> (String, String) {
        let (text, variable, _) = self.of(server);
        (variable.to_owned(), text.to_owned())
    }

    /// Refuses what names the server in its certificate: a process would find a proxy under another name.
    pub(super) fn check(&self) -> Result<(), String> {
        for server in Server::ALL {
            let (text, ..) = self.of(server);
            let named = ["amqps:", "rediss:"].iter().any(|scheme| text.starts_with(scheme));
            if named || text.contains("sslmode=verify-full") {
                return Err(format!(
                    "the address of {server} asks for a certificate of its name, which no proxy has; give one without TLS"
                ));
            }
        }
        Ok(())
    }

    /// Where a server listens.
    pub(super) fn upstream(&self, server: Server) -> io::Result<String> {
        let (text, _, port) = self.of(server);
        let url = Url::parse(text).map_err(|_| unusable(server))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| unusable(server))?;
        Ok(format!("{host}:{}", url.port().unwrap_or(port)))
    }

    /// The same address through a proxy, and the variable that tells it to a process.
    pub(super) fn through(&self, server: Server, proxy: &Proxy) -> io::Result<(&'static str, String)> {
        let (text, variable, _) = self.of(server);
        let mut url = Url::parse(text).map_err(|_| unusable(server))?;
        url.set_host(Some(&proxy.address.ip().to_string())).map_err(|_| unusable(server))?;
        url.set_port(Some(proxy.address.port())).map_err(|()| unusable(server))?;
        Ok((variable, url.to_string()))
    }
}

fn unusable(server: Server) -> io::Error {
    io::Error::other(format!(
        "the address of {server} names no host and port that a proxy could stand before"
    ))
}

impl World {
    /// Starts the processes and waits until all serve.
    pub(super) async fn start(
        program: &Path,
        addresses: &Addresses,
        controls: BTreeMap<Server, Control>,
        spool: Option<&Path>,
    ) -> io::Result<Self> {
        let spool = spool.map(std::path::absolute).transpose()?;
        let path = std::env::temp_dir().join(format!("eventbucket-torture-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        let folder = Folder { path, keep: false };
        let group = Group::start()?;
        let (processes, links) = (BTreeMap::new(), BTreeMap::new());
        let mut world = Self { processes, doors: Vec::new(), links, controls, group, folder };
        for place in Place::all() {
            let mut variables = vec![("EVENTBUCKET_LOG", "info".to_owned())];
            for server in Server::ALL {
                let proxy = Proxy::start(Some(addresses.upstream(server)?)).await?;
                variables.push(addresses.through(server, &proxy)?);
                world.links.insert((place, server), proxy);
            }
            if let (Some(spool), Role::Edge) = (&spool, place.role) {
                variables.push(("EVENTBUCKET_EDGE_SPOOL", spool.display().to_string()));
            }
            let folder = world.folder.path.join(place.to_string());
            let (program, group) = (program.to_owned(), world.group.id);
            let launch = Launch { program, place, group, folder, variables };
            let door =
                if place.role == Role::Edge { Some(Arc::new(Proxy::start(None).await?)) } else { None };
            world.doors.extend(door.clone());
            world.processes.insert(place, Process::start(launch, door));
            // The first start makes the tables; the others find them.
            if world.processes.len() == 1 {
                world.settled().await.map_err(io::Error::other)?;
            }
        }
        world.settled().await.map_err(io::Error::other)?;
        Ok(world)
    }

    /// The addresses that clients send to.
    pub(super) fn edges(&self) -> Vec<String> {
        self.doors.iter().map(|door| format!("http://{}", door.address)).collect()
    }

    pub(super) fn process(&self, place: Place) -> &Process {
        &self.processes[&place]
    }

    pub(super) fn cut(&self, link: Link) {
        self.proxies(link).into_iter().for_each(Proxy::cut);
    }

    pub(super) fn stall(&self, link: Link) -> Vec<Stall> {
        self.proxies(link).into_iter().map(Proxy::stall).collect()
    }

    pub(super) fn stallers(&self, link: Link) -> Vec<Staller> {
        self.proxies(link).into_iter().map(Proxy::staller).collect()
    }

    fn proxies(&self, link: Link) -> Vec<&Proxy> {
        match link {
            Link::Clients(edge) => vec![&*self.doors[edge]],
            Link::Server(place, server) => vec![&self.links[&(place, server)]],
            Link::Everyone(server) => Place::all().map(|place| &self.links[&(place, server)]).collect(),
        }
    }

    /// The servers that can be killed.
    pub(super) fn killable(&self) -> Vec<Server> {
        self.controls.keys().copied().collect()
    }

    pub(super) fn control(&self, server: Server) -> Option<Control> {
        self.controls.get(&server).cloned()
    }

    /// Waits until every process has carried out its orders and serves.
    pub(super) async fn settled(&self) -> Result<(), String> {
        let all = async {
            for process in self.processes.values() {
                process.settled().await;
            }
        };
        let settled = tokio::time::timeout(SETTLE_TIMEOUT, all).await;
        settled.map_err(|_| {
            let seconds = SETTLE_TIMEOUT.as_secs();
            format!(
                "the processes don't all serve within {seconds} s; their logs are in {}",
                self.folder.path.display()
            )
        })
    }

    /// Takes what is known of processes that ended though nobody killed them.
    pub(super) fn take_ends(&self) -> Vec<String> {
        self.processes.values().flat_map(Process::take_ends).collect()
    }

    /// Ends every process, and waits until they are gone.
    pub(super) async fn end(&mut self) {
        for process in self.processes.values_mut() {
            process.end().await;
        }
    }

    /// Leaves the logs where they are, and says where.
    pub(super) fn keep_logs(&mut self) -> &Path {
        self.folder.keep = true;
        &self.folder.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // What can't be removed lies in the system's temporary folder.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl Control {
    /// Kills the server, waits, and starts it again.
    pub(super) async fn strike(&self, down: Duration) -> Result<(), String> {
        shell(&self.kill).await?;
        tokio::time::sleep(down).await;
        shell(&self.start).await
    }
}

impl Backup {
    pub(super) async fn save(&self) -> Result<(), String> {
        shell(&self.save).await
    }

    pub(super) async fn restore(&self) -> Result<(), String> {
        shell(&self.restore).await
    }
}

async fn shell(line: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", line]).kill_on_drop(true).output().await;
    let output = output.map_err(|error| format!("`{line}` could not be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_keeps_everything_but_host_and_port_through_a_proxy() {
        let addresses = Addresses {
            store: "postgres://ann:secret@db.example/events?sslmode=disable".to_owned(),
            bus: "amqp://guest:guest@mq.example:5673/%2f".to_owned(),
            cache: "redis://cache.example/3".to_owned(),
        };
        let proxy = Proxy::start(None).await.unwrap();
        let port = proxy.address.port();
        let through = |server| addresses.through(server, &proxy).unwrap().1;
        assert_eq!(
            through(Server::Postgres),
            format!("postgres://ann:secret@127.0.0.1:{port}/events?sslmode=disable")
        );
        assert_eq!(through(Server::RabbitMq), format!("amqp://guest:guest@127.0.0.1:{port}/%2f"));
        assert_eq!(through(Server::Redis), format!("redis://127.0.0.1:{port}/3"));
        let upstreams = Server::ALL.map(|server| addresses.upstream(server).unwrap());
        assert_eq!(upstreams, ["db.example:5432", "mq.example:5673", "cache.example:6379"]);
    }

    #[test]
    fn an_address_whose_certificate_names_the_server_is_refused() {
        let plain = Addresses {
            store: "postgres://h/d?sslmode=require".to_owned(),
            bus: "amqp://h".to_owned(),
            cache: "redis://h".to_owned(),
        };
        assert_eq!(plain.check(), Ok(()));
        let bus = Addresses { bus: "amqps://ann:secret@h".to_owned(), ..plain.clone() };
        let store = Addresses { store: "postgres://h/d?sslmode=verify-full".to_owned(), ..plain };
        for (addresses, server) in [(bus, "rabbitmq"), (store, "postgres")] {
            let told = addresses.check().unwrap_err();
            assert!(told.contains(server) && !told.contains("secret"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_server_command_that_fails_is_told() {
        let control = Control { kill: "true".to_owned(), start: "echo no >&2; exit 3".to_owned() };
        let told = control.strike(Duration::ZERO).await.unwrap_err();
        assert!(told.contains("exit 3") && told.ends_with("no"), "{told}");
    }
}
