//! The servers, and a collector of three processes on a database, a virtual host and a Redis of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use eventbucket_collector::store::{PostgresOptions, Store};
use eventbucket_servers::{Postgres, RabbitMq, Redis};

use crate::process::{self, Process};

/// What lives for the whole run.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) rabbit: RabbitMq,
    rounds: usize,
}

/// The collector of one round.
pub(crate) struct Stack {
    pub(crate) edge: Process,
    pub(crate) storage: Option<Process>,
    pub(crate) insight: Option<Process>,
    pub(crate) projects: Vec<Project>,
    pub(crate) store_url: String,
    _redis: Redis,
}

#[derive(Clone)]
pub(crate) struct Project {
    pub(crate) write_key: String,
    pub(crate) secret_key: String,
}

/// A database and a virtual host that nobody has used.
pub(crate) struct Fresh {
    pub(crate) store_url: String,
    pub(crate) bus_url: String,
    pub(crate) store: Store,
    pub(crate) projects: Vec<Project>,
}

impl Servers {
    pub(crate) fn start() -> Self {
        Self { postgres: Postgres::start().unwrap(), rabbit: RabbitMq::start().unwrap(), rounds: 0 }
    }

    pub(crate) async fn fresh(&mut self, projects: usize) -> Fresh {
        self.rounds += 1;
        let name = format!("round{}", self.rounds);
        let store_url = self.postgres.database(&name).unwrap();
        let bus_url = self.rabbit.vhost(&name).unwrap();
        let store = Store::postgres(PostgresOptions::parse(&store_url, None).unwrap()).await.unwrap();
        let account = store.create_account("bench@example.com", "bench").await.unwrap();
        let mut made = Vec::new();
        for number in 0..projects {
            let project = store.create_project(account, &format!("project {number}")).await.unwrap();
            let (write_key, secret_key) = (project.write_key, project.secret_key);
            made.push(Project { write_key: write_key.text, secret_key: secret_key.text });
        }
        Fresh { store_url, bus_url, store, projects: made }
    }

    /// Starts the collector; `more` are further variables of its configuration.
    pub(crate) async fn stack(&mut self, projects: usize, more: &[(&str, String)]) -> Stack {
        let fresh = self.fresh(projects).await;
        let redis = Redis::start().unwrap();
        let mut variables = vec![
            ("EVENTBUCKET_STORE_URL", fresh.store_url.clone()),
            ("EVENTBUCKET_BUS_URL", fresh.bus_url),
            ("EVENTBUCKET_CACHE_URL", redis.url()),
            // Warnings of an outage that is meant are of no interest.
            ("EVENTBUCKET_LOG", "error".to_owned()),
        ];
        variables.extend(more.iter().cloned());
        Stack {
            edge: Process::start("edge,query", &variables),
            storage: Some(Process::start("storage", &variables)),
            insight: Some(Process::start("insight", &variables)),
            projects: fresh.projects,
            store_url: fresh.store_url,
            _redis: redis,
        }
    }

    /// Has Postgres write down what earlier rounds left, so that no round pays for another.
    pub(crate) fn settle(&self) {
        self.postgres.sql("CHECKPOINT").unwrap();
    }
}

impl Stack {
    /// How far a project is stored and counted: its log's last position, and the one its live counters contain.
    pub(crate) async fn progress(&self, client: &reqwest::Client, project: usize) -> Progress {
        let url = format!("http://{}/v1/counts?by=total", self.edge.address);
        let answer = client.get(url).bearer_auth(&self.projects[project].secret_key).send().await.unwrap();
        let body: serde_json::Value = answer.json().await.unwrap();
        let figure = |name: &str| body[name].as_u64().unwrap_or_else(|| panic!("{body}"));
        Progress { stored: figure("position"), counted: figure("applied_to") }
    }

    /// Waits until each project has stored and counted this many events; returns when the last was stored, and now.
    pub(crate) async fn until(&self, events: u64, deadline: Duration) -> (Instant, Instant) {
        let client = reqwest::Client::new();
        let (give_up, mut stored_at) = (Instant::now() + deadline, None);
        let (mut stored, mut counted) = (0, 0);
        loop {
            while stored < self.projects.len() && self.progress(&client, stored).await.stored >= events {
                stored += 1;
            }
            if stored == self.projects.len() {
                stored_at.get_or_insert_with(Instant::now);
                while counted < stored && self.progress(&client, counted).await.counted >= events {
                    counted += 1;
                }
                if counted == stored {
                    return (stored_at.unwrap(), Instant::now());
                }
            }
            assert!(Instant::now() < give_up, "not all events were stored and counted in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends all but the edge: what is accepted stays in the broker.
    pub(crate) fn edge_alone(&mut self) {
        (self.storage, self.insight) = (None, None);
    }

    /// The most memory that each process has had.
    pub(crate) fn memory(&self) -> String {
        let processes = [
            ("edge", Some(&self.edge)),
            ("storage", self.storage.as_ref()),
            ("insight", self.insight.as_ref()),
        ];
        let highest = processes.iter().filter_map(|(name, process)| Some((name, (*process)?.highest_mib())));
        highest.map(|(name, mib)| format!("{name} {mib:.0}")).collect::<Vec<_>>().join(", ")
    }

    /// Processor time used so far, by process.
    pub(crate) fn cpu_s(&self) -> BTreeMap<&'static str, f64> {
        let mut used = process::servers_cpu_s();
        used.insert("edge", self.edge.cpu_s());
        for (name, process) in [("storage", &self.storage), ("insight", &self.insight)] {
            used.extend(process.as_ref().map(|process| (name, process.cpu_s())));
        }
        used.insert("load", process::own_cpu_s());
        used
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) stored: u64,
    pub(crate) counted: u64,
}
