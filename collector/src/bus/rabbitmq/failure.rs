//! What goes wrong with a broker, and how it is told.

use std::time::Duration;

use super::options::RabbitOptions;
use super::topology::STORE_MARKER;
use crate::bus::Error;

/// How long a client waits after a message was refused or lost: the queue drains, or the connection is back.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Says that there is no connection, in words for the log.
pub(super) fn away(words: &str) -> Error {
    Error::Away { words: words.into(), retry_after: RETRY_AFTER }
}

pub(super) fn unavailable(reason: &str) -> Error {
    Error::Unavailable { reason: reason.into(), retry_after: RETRY_AFTER }
}

/// What a call to the broker failed for, for whoever asked.
pub(super) fn refusal(options: &RabbitOptions, error: &lapin::Error) -> Error {
    away(&words(options, error))
}

/// What a broker says, in a sentence that holds no password.
fn words(options: &RabbitOptions, error: &lapin::Error) -> String {
    words_of(options, &error.to_string())
}

fn words_of(options: &RabbitOptions, text: &str) -> String {
    let marker = format!("{}.{STORE_MARKER}", options.prefix);
    if text.contains("inequivalent") && text.contains(&format!("'{marker}'")) {
        return format!(
            "RabbitMQ at {} carries the batches of another store ({text}); give each collector a [bus] prefix or a virtual host \
             of its own; if that store is gone for good, delete the queue {marker}",
            options.url
        );
    }
    if text.contains("PRECONDITION_FAILED") || text.contains("inequivalent") {
        return format!(
            "RabbitMQ at {} has queues that were declared with other settings ({text}); give every process the same [bus] \
             settings, or another virtual host",
            options.url
        );
    }
    if text.contains("certificate") {
        return format!(
            "RabbitMQ at {} shows a certificate that is not accepted ({text}); name the authority that signed it in [bus] ca_file",
            options.url
        );
    }
    if text.contains("NOT_ALLOWED") && text.contains("not found") {
        return format!(
            "RabbitMQ at {} has no such virtual host ({text}); make it with rabbitmqctl add_vhost, or name another in [bus] url",
            options.url
        );
    }
    // A login that is refused names no user.
    if text.contains("refused for user") {
        return format!(
            "RabbitMQ at {} doesn't permit this user what is needed ({text}); give it the rights to configure, write and read \
             ^{}\\. with rabbitmqctl set_permissions",
            options.url, options.prefix
        );
    }
    if text.contains("ACCESS_REFUSED") || text.contains("access-refused") {
        return format!("RabbitMQ at {} refused the user or password ({text}); check [bus] url", options.url);
    }
    format!("RabbitMQ at {} is away ({text}); check that it runs and that [bus] url names it", options.url)
}

/// Why there is no connection.
pub(super) enum NoConnection {
    /// The broker is away: it may be back at any moment.
    Away(String),
    /// It is there and says no, or the address leads nowhere: somebody has to change something.
    Refused(String),
}

impl NoConnection {
    /// Says it in words, which hold no password.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Away(reason) | Self::Refused(reason) => reason,
        }
    }

    pub(super) fn error(&self) -> Error {
        away(self.reason())
    }

    pub(super) fn of(options: &RabbitOptions, error: &lapin::Error) -> Self {
        const NO: [&str; 6] = [
            "PRECONDITION_FAILED",
            "inequivalent",
            "ACCESS_REFUSED",
            "access-refused",
            "NOT_ALLOWED",
            "certificate",
        ];
        let reason = words(options, error);
        if NO.iter().any(|no| reason.contains(no)) { Self::Refused(reason) } else { Self::Away(reason) }
    }
}

/// Why a connection isn't used any more.
pub(super) enum Ended {
    /// It broke, for this reason; another takes its place.
    Broke(String),
    /// There is nothing left to do.
    Done,
}

impl Ended {
    pub(super) fn of(options: &RabbitOptions, error: &lapin::Error) -> Self {
        Self::Broke(words(options, error))
    }

    pub(super) fn queue_gone() -> Self {
        Self::Broke("a queue is gone; everything is declared again".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerUrl;

    #[test]
    fn what_a_broker_refuses_is_told_apart() {
        let options = RabbitOptions::new(ServerUrl::parse("amqp://u:geheim@h/v", &["amqp"]).unwrap());
        for (said, told) in [
            ("NOT_ALLOWED - vhost v not found", "no such virtual host"),
            ("NOT_ALLOWED - access to vhost 'v' refused for user 'u'", "doesn't permit"),
            (
                "ACCESS_REFUSED - configure access to queue 'eventbucket.dead' in vhost 'v' refused for user 'u'",
                "doesn't permit",
            ),
            ("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN", "user or password"),
            ("IO error: Connection refused (os error 111)", "is away"),
        ] {
            let words = words_of(&options, said);
            assert!(words.contains(told) && words.contains(said) && !words.contains("geheim"), "{words}");
        }
    }
}
