//! A TCP proxy that loses answers: the request goes through, the collector acts on it, and the client never hears.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Stands between a client and a collector whose address may change with every restart.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    upstream: Mutex<SocketAddr>,
    /// Of a hundred answers, how many are lost.
    loss_percent: AtomicU32,
    random: AtomicU64,
    lost: AtomicU64,
}

impl Proxy {
    /// Listens on a free port until dropped.
    pub(super) async fn start(upstream: SocketAddr, loss_percent: u32, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            loss_percent: AtomicU32::new(loss_percent),
            random: AtomicU64::new(seed | 1),
            lost: AtomicU64::new(0),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&shared))));
        Self { address, shared, stop }
    }

    /// Leads new connections elsewhere.
    pub(super) fn lead_to(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap() = upstream;
    }

    /// Lets every answer through from now on.
    pub(super) fn heal(&self) {
        self.shared.loss_percent.store(0, Ordering::Relaxed);
    }

    /// How many answers were lost.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    /// Draws by an xorshift generator, so that a seed replays the same losses in the same order.
    fn loses(&self) -> bool {
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        x % 100 < u64::from(self.loss_percent.load(Ordering::Relaxed))
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A collector that is down refuses the connection: the client's is closed, as by a crashed host.
            let upstream = *shared.upstream.lock().unwrap();
            if let Ok(server) = TcpStream::connect(upstream).await {
                relay(client, server, &shared).await;
            }
        });
    }
}

/// Passes bytes both ways until either side ends or an answer is lost.
async fn relay(client: TcpStream, server: TcpStream, shared: &Shared) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let bytes = from_server.read(&mut buffer).await?;
            if bytes == 0 {
                return Ok(());
            }
            if shared.loses() {
                shared.lost.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            to_client.write_all(&buffer[..bytes]).await?;
        }
    };
    // Both are dropped together; what is lost with them is what a broken connection loses.
    let _: Result<(), std::io::Error> = tokio::select! { done = requests => done, done = answers => done };
}
