use std::time::SystemTime;

use eventbucket_protocol::Timestamp;

use super::report::{ProjectLine, Report, bytes, moment};
use crate::app;
use crate::cli::output::grouped;
use crate::config::Config;
use crate::store::{DATABASE_FILE, SchemaFacts, Store, StoreFacts};

/// A write-ahead log of this size isn't being folded: four times what one is cut to after a long read.
const LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Events that may wait to be counted: about two seconds at the full speed of PostgreSQL.
const BEHIND_MAX: u64 = 200_000;

/// How far apart the clocks of two machines may be.
const SKEW_MAX_MS: i64 = 60_000;

/// Connections that a process may take: 8 to the log and 4 to the accounts.
const CONNECTIONS: u64 = 12;

/// Looks at the database in the data folder; `answers` says that a collector follows it.
pub(super) fn file(report: &mut Report, config: &Config, answers: bool) {
    match Store::look(&config.data.join(DATABASE_FILE)) {
        Ok(facts) => judge(report, facts, answers),
        Err(error) => report.failed("database", error),
    }
}

/// Looks at the PostgreSQL that collectors share.
pub(super) async fn server(report: &mut Report, config: &Config, answers: bool) {
    match app::look_at_server(config).await {
        Ok(facts) => judge(report, facts, answers),
        Err(error) => report.failed("database", error),
    }
}

fn judge(report: &mut Report, facts: StoreFacts, answers: bool) {
    let StoreFacts { engine, schemas, difference, bytes: size, log_bytes, projects, settings } = facts;
    let words: Vec<String> = schemas.iter().map(|of| format!("{} {}", of.part, of.found)).collect();
    report.ok("database", format!("{engine}, {}, schema: {}", bytes(size), words.join(", ")));
    schemas_are_known(report, schemas);
    if let Some(difference) = difference {
        report.warning("database", difference, "`eventbucket audit` looks at all of it");
    }
    if let Some(log) = log_bytes.filter(|log| *log > 0) {
        if log > LOG_BYTES_MAX {
            report.warning(
                "database",
                format!("its write-ahead log takes {} and isn't folded", bytes(log)),
                "a long read is in the way, as an audit or a sqlite3 that was left open: end it",
            );
        } else {
            report.ok("database", format!("write-ahead log {}", bytes(log)));
        }
    }
    server_settings(report, &settings);
    let now = Timestamp::from_system(SystemTime::now());
    for of in projects {
        let name = &of.name;
        match of.behind {
            None => report.problem(
                "counts",
                format!("the counts of {name:?} are missing"),
                "`eventbucket rebuild` computes them from the log",
            ),
            Some(behind) if behind > BEHIND_MAX && answers => report.warning(
                "counts",
                format!("{} events of {name:?} are not counted yet", grouped(behind)),
                "look again in a minute: the figure should fall",
            ),
            Some(behind) if behind > 0 && !answers => {
                report.ok(
                    "counts",
                    format!("{} events of {name:?} are counted at the next start", grouped(behind)),
                );
            }
            Some(_) => {}
        }
        if of.newest.is_some_and(|newest| newest.ms() > now.ms().saturating_add(SKEW_MAX_MS)) {
            report.warning(
                "clock",
                format!("the newest event of {name:?} arrived in the future"),
                "set the clocks of this machine and the collector's, by NTP as a rule",
            );
        }
        report.projects.push(ProjectLine {
            events: of.events,
            position: of.position,
            behind: of.behind,
            bytes: of.bytes,
            oldest: moment(of.oldest),
            newest: moment(of.newest),
            name: of.name,
        });
    }
}

fn schemas_are_known(report: &mut Report, schemas: Vec<SchemaFacts>) {
    for of in schemas {
        let (part, found, known) = (of.part, of.found, of.known);
        if found > known {
            let told = format!("its {part} has schema {found}, this program knows {known}");
            report.problem("database", told, "use the newer eventbucket");
        } else if found == 0 {
            let told = format!("no collector has made its {part} yet");
            report.warning("database", told, "start `eventbucket serve` with this configuration");
        } else if found < known {
            let told = format!("its {part} has schema {found}; this program upgrades it to {known}");
            report.warning("database", told, "back it up, then start `eventbucket serve`");
        }
    }
}

fn server_settings(report: &mut Report, settings: &[(String, String)]) {
    for (name, value) in settings {
        match (name.as_str(), value.as_str()) {
            ("fsync" | "full_page_writes", "off") => report.problem(
                "database",
                format!("{name} is off: a power cut takes what was confirmed, or damages the database"),
                format!("ALTER SYSTEM SET {name} = on"),
            ),
            ("max_connections", figure) => {
                let figure = figure.parse::<u64>().unwrap_or(0);
                if figure < 2 * CONNECTIONS {
                    let told = format!("max_connections is {figure}; a process takes up to {CONNECTIONS}");
                    report.warning("database", told, "raise it above 12 × processes + your own");
                }
            }
            _ => {}
        }
    }
}
