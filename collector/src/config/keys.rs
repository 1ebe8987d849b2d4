//! Every key with its variable, default and meaning: the one list the rest is made from.

/// A key of the configuration.
#[derive(Debug)]
pub(super) struct Key {
    /// Its place in the file: `table.name`, or `name` at the top.
    pub name: &'static str,
    /// The environment variable that sets it.
    pub variable: &'static str,
    /// Its value when nothing sets it; `None` where nothing is a value.
    pub default: Option<&'static str>,
    /// What to write in the example where there is no default.
    pub sample: &'static str,
    /// How it is written in TOML.
    pub form: Form,
    /// What it means, one line each.
    pub about: &'static [&'static str],
}

/// How a value is written in TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Number,
    List,
}

/// The default data folder, below the current one.
pub const DATA_DEFAULT: &str = "./eventbucket-data";

/// Names the data folder, for `serve` and for the commands that read and manage.
pub const DATA_VARIABLE: &str = "EVENTBUCKET_DATA";

/// Names the PostgreSQL of the log, for `serve` and for the commands that read and manage.
pub const STORE_URL_VARIABLE: &str = "EVENTBUCKET_STORE_URL";

/// Names the PostgreSQL of the accounts.
pub const ACCOUNTS_URL_VARIABLE: &str = "EVENTBUCKET_STORE_ACCOUNTS_URL";

/// Names the Redis, for `serve` and for the commands that manage.
pub const CACHE_URL_VARIABLE: &str = "EVENTBUCKET_CACHE_URL";

/// Names what keys in Redis begin with.
pub const CACHE_PREFIX_VARIABLE: &str = "EVENTBUCKET_CACHE_PREFIX";

/// Names the certificate authorities of a Redis with TLS.
pub const CACHE_CA_FILE_VARIABLE: &str = "EVENTBUCKET_CACHE_CA_FILE";

/// Names the configuration file; not a key itself.
pub const CONFIG_VARIABLE: &str = "EVENTBUCKET_CONFIG";

/// Names a collector for the commands that read and manage; not a key of the configuration.
pub const URL_VARIABLE: &str = "EVENTBUCKET_URL";

/// Carries a secret key for the commands that read and manage; not a key of the configuration.
pub const KEY_VARIABLE: &str = "EVENTBUCKET_KEY";

/// Names the certificates to trust for the commands that read and manage; not a key of the configuration.
pub const CA_FILE_VARIABLE: &str = "EVENTBUCKET_CA_FILE";

/// What every variable begins with.
pub(super) const VARIABLE_PREFIX: &str = "EVENTBUCKET_";

const fn text(name: &'static str, variable: &'static str, default: &'static str) -> Key {
    Key { name, variable, default: Some(default), sample: "", form: Form::Text, about: &[] }
}

const fn number(name: &'static str, variable: &'static str, default: &'static str) -> Key {
    Key { form: Form::Number, ..text(name, variable, default) }
}

const fn absent(name: &'static str, variable: &'static str, sample: &'static str) -> Key {
    Key { default: None, sample, ..text(name, variable, "") }
}

/// In the order of the example: first what stands above the tables, then table by table.
pub(super) const KEYS: &[Key] = &[
    Key {
        about: &[
            "The folder that holds everything the collector keeps.",
            "Only in a file given by --config: the file in the data folder can't say where it is.",
        ],
        ..text("data", DATA_VARIABLE, DATA_DEFAULT)
    },
    Key {
        about: &["The address to listen on. Port 0 lets the system choose; it is printed at the start."],
        ..text("listen", "EVENTBUCKET_LISTEN", "127.0.0.1:4000")
    },
    Key {
        about: &[
            "What this process does. More than one process needs store, bus and cache on servers.",
            "edge takes events in, query answers readers; storage, insight and notify work behind the bus.",
        ],
        form: Form::List,
        ..text("roles", "EVENTBUCKET_ROLES", "edge,storage,insight,notify,query")
    },
    Key {
        about: &[
            "PostgreSQL instead of the database file in the data folder. TLS by ?sslmode=require or",
            "verify-full, with a certificate authority of your own by &sslrootcert=FILE.",
        ],
        ..absent(
            "store.url",
            STORE_URL_VARIABLE,
            "postgres://eventbucket:password@127.0.0.1:5432/eventbucket",
        )
    },
    Key {
        about: &[
            "Another PostgreSQL database for accounts, projects and keys; the one of the log without it.",
        ],
        ..absent(
            "store.accounts_url",
            ACCOUNTS_URL_VARIABLE,
            "postgres://eventbucket:password@127.0.0.1:5432/accounts",
        )
    },
    Key {
        about: &[
            "Days that events are kept on PostgreSQL, counted from storing; 0 keeps them for ever. Counts stay.",
        ],
        ..number("store.retention_days", "EVENTBUCKET_STORE_RETENTION_DAYS", "0")
    },
    Key {
        about: &["RabbitMQ instead of queues in this process: amqp:// or, with TLS, amqps://."],
        ..absent("bus.url", "EVENTBUCKET_BUS_URL", "amqp://eventbucket:password@127.0.0.1:5672/%2f")
    },
    Key {
        about: &[
            "Certificate authorities as PEM that are believed about an amqps:// server, beside the system's.",
            "Relative to this file.",
        ],
        ..absent("bus.ca_file", "EVENTBUCKET_BUS_CA_FILE", "rabbitmq-ca.pem")
    },
    Key {
        about: &[
            "What every exchange and queue is called first: the same in every process of a collector, another for each",
            "collector on one virtual host.",
        ],
        ..text("bus.prefix", "EVENTBUCKET_BUS_PREFIX", "eventbucket")
    },
    Key {
        about: &["Queues that the projects are spread over; the same in every process of a collector."],
        ..number("bus.shards", "EVENTBUCKET_BUS_SHARDS", "8")
    },
    Key {
        about: &["Writers of one storage process: two keep two cores of the database busy."],
        ..number("bus.writers", "EVENTBUCKET_BUS_WRITERS", "2")
    },
    Key {
        about: &[
            "Redis instead of this process' memory: redis:// or, with TLS, rediss://. All of it can be rebuilt.",
        ],
        ..absent("cache.url", CACHE_URL_VARIABLE, "redis://:password@127.0.0.1:6379/0")
    },
    Key {
        about: &[
            "Certificate authorities as PEM that are believed about a rediss:// server, instead of the system's.",
            "Relative to this file.",
        ],
        ..absent("cache.ca_file", CACHE_CA_FILE_VARIABLE, "redis-ca.pem")
    },
    Key {
        about: &[
            "What every key and channel is called first: the same in every process of a collector, another for each",
            "collector on one Redis.",
        ],
        ..text("cache.prefix", CACHE_PREFIX_VARIABLE, "eventbucket")
    },
    Key {
        about: &["How long a request's headers may take."],
        ..text("edge.header_timeout", "EVENTBUCKET_EDGE_HEADER_TIMEOUT", "10s")
    },
    Key {
        about: &["How long a request's body may take: 4 MiB at 140 KiB/s."],
        ..text("edge.body_timeout", "EVENTBUCKET_EDGE_BODY_TIMEOUT", "30s")
    },
    Key {
        about: &["Connections open at once; further ones are turned away with 503."],
        ..number("edge.connections_max", "EVENTBUCKET_EDGE_CONNECTIONS_MAX", "4096")
    },
    Key {
        about: &["Bodies in decoding at once. What all bodies take in memory is bounded besides, by 48 MiB."],
        ..number("edge.decoding_max", "EVENTBUCKET_EDGE_DECODING_MAX", "32")
    },
    Key {
        about: &[
            "How long an edge goes on taking requests after SIGTERM, while it is no longer ready and says with each answer",
            "that it stops: SDKs and balancers go elsewhere meanwhile. Without it 2s with a RabbitMQ, where others",
            "take over, and no time at all without one.",
        ],
        ..absent("edge.drain_notice", "EVENTBUCKET_EDGE_DRAIN_NOTICE", "2s")
    },
    Key {
        about: &["How long requests in flight may take to end at shutdown, after that."],
        ..text("edge.drain_timeout", "EVENTBUCKET_EDGE_DRAIN_TIMEOUT", "20s")
    },
    Key {
        about: &[
            "Networks of the proxies whose X-Forwarded-For is believed,",
            "e.g. [\"10.0.0.0/8\"]. As a variable: separated by commas.",
        ],
        form: Form::List,
        ..text("edge.trusted_proxies", "EVENTBUCKET_EDGE_TRUSTED_PROXIES", "")
    },
    Key {
        about: &[
            "Free space on the data folder's disk below which batches are refused with 503,",
            "so that the disk is never filled. \"0B\" turns the check off.",
        ],
        ..text("edge.free_disk_min", "EVENTBUCKET_EDGE_FREE_DISK_MIN", "128MiB")
    },
    Key {
        about: &[
            "The address that other processes and SDKs reach this one at, like https://edge-1.example.org:4000.",
            "Told by GET /v1/nodes. Without it the one it listens on, if that names a host.",
        ],
        ..absent("edge.advertise", "EVENTBUCKET_EDGE_ADVERTISE", "http://edge-1:4000")
    },
    Key {
        about: &[
            "A folder in which batches wait while RabbitMQ is away, instead of being refused with 503. It has to outlive",
            "restarts of the process and the machine: a disk or a volume. Edges of one machine may share it. Relative to",
            "this file.",
        ],
        ..absent("edge.spool", "EVENTBUCKET_EDGE_SPOOL", "/var/lib/eventbucket/spool")
    },
    Key {
        about: &["What may wait there for one process; more is refused with 503."],
        ..text("edge.spool_max", "EVENTBUCKET_EDGE_SPOOL_MAX", "2GiB")
    },
    Key {
        about: &[
            "Events a second that each project may send, over all edges; more are answered 429 with when to come",
            "again. 0 sets no limit.",
        ],
        ..number("limits.events_per_s", "EVENTBUCKET_LIMITS_EVENTS_PER_S", "0")
    },
    Key {
        about: &["Events that may come at once under that limit; 0 stands for ten seconds' worth."],
        ..number("limits.burst", "EVENTBUCKET_LIMITS_BURST", "0")
    },
    Key {
        about: &["Events that each project may send in a day (UTC); 0 sets no limit."],
        ..number("limits.events_per_day", "EVENTBUCKET_LIMITS_EVENTS_PER_DAY", "0")
    },
    Key {
        about: &["Events that each project may send in a month (UTC); 0 sets no limit."],
        ..number("limits.events_per_month", "EVENTBUCKET_LIMITS_EVENTS_PER_MONTH", "0")
    },
    Key {
        about: &["The certificate chain as PEM; with the key it turns on TLS. Relative to this file."],
        ..absent("tls.certificate", "EVENTBUCKET_TLS_CERTIFICATE", "certificate.pem")
    },
    Key {
        about: &["The certificate's private key as PEM. Relative to this file."],
        ..absent("tls.key", "EVENTBUCKET_TLS_KEY", "key.pem")
    },
    Key {
        about: &[
            "error, warn, info, debug, trace, or directives like \"info,eventbucket_collector::edge=debug\".",
        ],
        ..text("log.level", "EVENTBUCKET_LOG", "info")
    },
    Key {
        about: &["\"text\", or \"json\" for one object a line."],
        ..text("log.format", "EVENTBUCKET_LOG_FORMAT", "text")
    },
    Key {
        about: &[
            "How long views may catch up with the log at shutdown.",
            "What they don't reach they apply at the next start.",
        ],
        ..text("shutdown.catch_up_timeout", "EVENTBUCKET_SHUTDOWN_CATCH_UP_TIMEOUT", "10s")
    },
];

/// Says whether a variable of this name is read by `serve`.
#[must_use]
pub fn is_variable(name: &str) -> bool {
    name == CONFIG_VARIABLE || KEYS.iter().any(|key| key.variable == name)
}

/// Finds a key by its name.
pub(super) fn named(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Jaro-Winkler similarity from which a name counts as a misspelling of another: `header_timout` reaches 0.98,
/// names that share only a table about 0.7.
const SIMILAR_MIN: f64 = 0.78;

/// Returns the one of `known` that `name` is most likely meant to be.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILAR_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
