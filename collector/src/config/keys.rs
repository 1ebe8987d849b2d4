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

/// Names the configuration file; not a key itself.
pub const CONFIG_VARIABLE: &str = "EVENTBUCKET_CONFIG";

/// Names a collector for the commands that read and manage; not a key of the configuration.
pub const URL_VARIABLE: &str = "EVENTBUCKET_URL";

/// Carries a secret key for the commands that read and manage; not a key of the configuration.
pub const KEY_VARIABLE: &str = "EVENTBUCKET_KEY";

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
        about: &["Bodies in decoding at once; each may take 16 MiB, so 32 of them 512 MiB."],
        ..number("edge.decoding_max", "EVENTBUCKET_EDGE_DECODING_MAX", "32")
    },
    Key {
        about: &["How long requests in flight may take to end at shutdown."],
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
