use redis::Cmd;
use uuid::Uuid;

use super::Redis;
use crate::cache::keys::{Asked, KEY_TTL, Recalled};
use crate::project::{AccountId, Grant, KeyHash, KeyKind, OwnLimits, ProjectId, Standing};

/// How long an answer of the store serves all processes. Forgetting makes every older entry worthless at once; this bounds
/// what comes through when a process that revokes a key can't reach Redis while others can.
const SHARED_KEY_TTL_MS: u64 = 60_000;

/// One slot for all keys of projects: an entry counts only with the version beside it. They are asked for once a second
/// for each key and process.
fn version_name(prefix: &str) -> String {
    format!("{prefix}:{{keys}}:version")
}

fn entry_name(prefix: &str, hash: &KeyHash) -> String {
    let hex: String = hash.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}:{{keys}}:{hex}")
}

/// Makes every entry worthless by removing the version they were written under; whoever looks next makes a new one.
/// Removing works for a server that is out of memory, too.
pub(super) fn forget_all(prefix: &str) -> Cmd {
    let mut command = redis::cmd("DEL");
    command.arg(version_name(prefix));
    command
}

impl Redis {
    pub(in crate::cache) async fn standing(&self, hash: &KeyHash) -> Recalled {
        let Recalled::Ask(asked) = self.0.recent.recall(hash) else { return self.0.recent.recall(hash) };
        let mut command = redis::cmd("MGET");
        command.arg(version_name(&self.0.prefix)).arg(entry_name(&self.0.prefix, hash));
        match self.0.asks.command::<(Option<String>, Option<String>)>(command).await {
            None => Recalled::Ask(asked),
            Some((None, _)) => Recalled::Ask(Asked { version: self.new_version().await, ..asked }),
            Some((Some(version), entry)) => match entry.and_then(|entry| decode(&entry, &version)) {
                Some(standing) => {
                    self.0.recent.remember(*hash, standing, &asked);
                    Recalled::Known(standing)
                }
                None => Recalled::Ask(Asked { version: Some(version), ..asked }),
            },
        }
    }

    /// Makes a version if there is none, and returns the one there is. Random, so that none ever comes again.
    async fn new_version(&self) -> Option<String> {
        let name = version_name(&self.0.prefix);
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(&name).arg(Uuid::now_v7().simple().to_string()).arg("NX").ignore();
        pipe.cmd("GET").arg(&name);
        let ask = async |mut connection| pipe.query_async::<(Option<String>,)>(&mut connection).await;
        self.0.asks.ask(ask).await.and_then(|(version,)| version)
    }

    pub(in crate::cache) async fn remember(&self, hash: KeyHash, standing: Standing, asked: Asked) {
        self.0.recent.remember(hash, standing, &asked);
        // Wrong keys stay here: anyone can make up as many as they like.
        let Some(version) = asked.version.filter(|_| standing != Standing::Unknown) else { return };
        if asked.at.elapsed() >= KEY_TTL {
            return;
        }
        // An entry that comes late names a version that is gone by then, and is worth nothing.
        let mut command = redis::cmd("SET");
        command.arg(entry_name(&self.0.prefix, &hash)).arg(encode(&standing, &version));
        command.arg("PX").arg(SHARED_KEY_TTL_MS);
        self.0.asks.command::<()>(command).await;
    }

    /// When this fails, the connection is lost, and nothing older is believed over the next.
    pub(in crate::cache) async fn forget_keys(&self) -> bool {
        self.0.recent.forget();
        let forgotten = self.0.asks.command::<u64>(forget_all(&self.0.prefix)).await.is_some();
        self.0.outgoing.forget_keys();
        forgotten
    }
}

/// How an entry is written. One of another format is asked of the store again.
const FORMAT: &str = "2";

/// Writes an entry: format, version of all keys, what the key may do.
fn encode(standing: &Standing, version: &str) -> String {
    match standing {
        Standing::Revoked => format!("{FORMAT} {version} revoked"),
        Standing::Unknown => format!("{FORMAT} {version} unknown"),
        Standing::Valid(Grant { account, project, kind, browser, limits }) => {
            let OwnLimits { events_per_s, events_per_day } = limits;
            let kind = match kind {
                KeyKind::Write => "write",
                KeyKind::Secret => "secret",
            };
            let of = format!("{} {project} {kind} {browser}", account.0);
            format!("{FORMAT} {version} valid {of} {events_per_s} {events_per_day}")
        }
    }
}

/// Reads an entry; `None` when it was written under another version, or isn't one.
fn decode(entry: &str, version: &str) -> Option<Standing> {
    let mut words = entry.split(' ');
    if words.next() != Some(FORMAT) || words.next() != Some(version) {
        return None;
    }
    let standing = match words.next()? {
        "revoked" => Standing::Revoked,
        "valid" => Standing::Valid(Grant {
            account: AccountId(words.next()?.parse().ok()?),
            project: ProjectId(words.next()?.parse().ok()?),
            kind: match words.next()? {
                "write" => KeyKind::Write,
                "secret" => KeyKind::Secret,
                _ => return None,
            },
            browser: words.next()?.parse().ok()?,
            limits: OwnLimits {
                events_per_s: words.next()?.parse().ok()?,
                events_per_day: words.next()?.parse().ok()?,
            },
        }),
        _ => return None,
    };
    words.next().is_none().then_some(standing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::OwnLimit;

    #[test]
    fn an_entry_is_read_as_it_was_written_and_only_under_its_version() {
        let limits = OwnLimits { events_per_s: "250".parse().unwrap(), events_per_day: OwnLimit::None };
        let grant = |kind, browser, limits| {
            Standing::Valid(Grant { account: AccountId(7), project: ProjectId(3), kind, browser, limits })
        };
        for standing in [
            Standing::Revoked,
            grant(KeyKind::Write, true, limits),
            grant(KeyKind::Secret, false, OwnLimits::default()),
        ] {
            let entry = encode(&standing, "v1");
            assert_eq!(decode(&entry, "v1"), Some(standing), "{entry}");
            assert_eq!(decode(&entry, "v2"), None);
            assert_eq!(decode(&format!("{entry} more"), "v1"), None);
            assert_eq!(decode(&entry.replacen('2', "3", 1), "v1"), None);
        }
        for wrong in [
            "",
            "2",
            "2 v1",
            "2 v1 valid",
            "2 v1 valid 7 3 write true",
            "2 v1 valid 7 3 admin true none none",
            "2 v1 valid x 3 write true none none",
            "2 v1 valid 7 3 write true none 0",
            "1 v1 valid 7 3 write true",
        ] {
            assert_eq!(decode(wrong, "v1"), None, "{wrong}");
        }
    }
}
