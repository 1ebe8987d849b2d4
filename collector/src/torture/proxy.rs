//! TCP proxies that every connection goes through: they can be cut, and they can hold back what passes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is read at once: a TCP window's worth.
const BUFFER_BYTES: usize = 64 * 1024;

/// A listener that leads to a server, until dropped.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    /// Where new connections go; nowhere while there is nobody.
    upstream: Mutex<Option<String>>,
    /// Counts cuts: a connection ends when the number changes.
    cuts: watch::Sender<u64>,
    /// How many stalls are in force.
    stalls: watch::Sender<u32>,
}

/// Holds connections back until it is dropped.
pub(super) struct Stall(Arc<Shared>);

/// Begins a stall later.
pub(super) struct Staller(Arc<Shared>);

impl Staller {
    /// Lets nothing pass until what is returned is dropped.
    pub(super) fn stall(&self) -> Stall {
        self.0.stalls.send_modify(|stalls| *stalls += 1);
        Stall(Arc::clone(&self.0))
    }
}

impl Proxy {
    /// Listens on a free port of this machine.
    pub(super) async fn start(upstream: Option<String>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            cuts: watch::Sender::new(0),
            stalls: watch::Sender::new(0),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(
            listener,
            Arc::clone(&shared),
            stop.clone(),
        )));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Leads new connections elsewhere.
    pub(super) fn lead_to(&self, upstream: Option<String>) {
        *self.shared.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    /// Ends every connection there is.
    pub(super) fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets nothing pass until what is returned is dropped.
    pub(super) fn stall(&self) -> Stall {
        self.staller().stall()
    }

    /// What stalls it later.
    pub(super) fn staller(&self) -> Staller {
        Staller(Arc::clone(&self.shared))
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.0.stalls.send_modify(|stalls| *stalls -= 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        // Out of descriptors, connections fail; so they would at the server.
        let Ok((client, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let relaying = relay(client, Arc::clone(&shared));
        tokio::spawn(stop.clone().run_until_cancelled_owned(relaying));
    }
}

/// Passes bytes both ways until either side ends or the connection is cut. Both sides end together.
async fn relay(client: TcpStream, shared: Arc<Shared>) {
    let (mut cuts, stalls) = (shared.cuts.subscribe(), shared.stalls.subscribe());
    let upstream = shared.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(upstream) = upstream else { return };
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    // Without it the proxy would add what Nagle's algorithm waits for; it is only speed.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // Whatever is lost with a branch is what a broken connection loses.
    tokio::select! {
        _ = pass(from_client, to_server, stalls.clone()) => {}
        _ = pass(from_server, to_client, stalls) => {}
        _ = cuts.changed() => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut stalls: watch::Receiver<u32>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = from.read(&mut buffer).await?;
        // The sender lives as long as the connection; an end of both is an end.
        let free = stalls.wait_for(|stalls| *stalls == 0).await.is_ok();
        if bytes == 0 || !free {
            return Ok(());
        }
        to.write_all(&buffer[..bytes]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn said(stream: &mut TcpStream) -> io::Result<[u8; 2]> {
        let mut answer = [0; 2];
        stream.write_all(b"hi").await?;
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_stall_delays_and_a_cut_ends_what_passes() {
        let proxy = Proxy::start(Some(echo().await.to_string())).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(said(&mut stream).await.unwrap(), *b"hi");
        let stall = proxy.stall();
        let waiting = tokio::time::timeout(Duration::from_millis(50), said(&mut stream)).await;
        assert!(waiting.is_err(), "nothing passes");
        drop(stall);
        let mut late = [0; 2];
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(late, *b"hi", "what was held back comes");
        proxy.cut();
        assert!(said(&mut stream).await.is_err());
        let mut again = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(said(&mut again).await.unwrap(), *b"hi");
    }
}
