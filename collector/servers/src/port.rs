use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

/// Below the ports that Linux gives to outgoing connections (32768 to 60999): a client that dials a server which is just
/// being restarted may be given that very port, and then the server can't have it again.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// How long one exchange on a starting server's port may take.
const SAY_TIMEOUT: Duration = Duration::from_secs(1);

/// A loopback port that no other handle of this user has, in this process or another, also while its server is down.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// Locked while this lives, unlocked by the system when the process dies.
    _claim: File,
}

impl Port {
    pub(crate) fn claim() -> io::Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let folder = std::env::temp_dir().join(format!("eventbucket-ports-{user}"));
        fs::create_dir_all(&folder)?;
        let random = RandomState::new();
        for attempt in 0..COUNT {
            let place = u16::try_from(random.hash_one(attempt) % u64::from(COUNT)).expect("below COUNT");
            let number = FIRST + place;
            let claim = File::create(folder.join(number.to_string()))?;
            // Others may listen there who know nothing of claims.
            if claim.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _claim: claim });
            }
        }
        Err(io::Error::other(format!("no free port from {FIRST} to {}", FIRST + COUNT - 1)))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// Says something to a port and returns the beginning of what comes back.
pub(crate) fn say(port: u16, words: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), SAY_TIMEOUT)?;
    stream.set_read_timeout(Some(SAY_TIMEOUT))?;
    stream.write_all(words)?;
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer)?;
    answer.truncate(read);
    Ok(answer)
}
