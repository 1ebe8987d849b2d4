use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::edge::TlsError;
use crate::{bus, cache, store};

/// Why the collector couldn't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data folder or what is in it.
    #[error(transparent)]
    Store(store::Error),
    /// The disk of the data folder. A running collector goes on by itself; one that couldn't start doesn't.
    #[error("the disk is full; free some space, then start it again")]
    DiskFull,
    /// The store's server. A running collector connects again by itself; one that couldn't start doesn't.
    #[error("{0}")]
    StoreAway(Arc<str>),
    /// The address.
    #[error("{}", bind_words(*.address, .source))]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The broker.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The free space on the disk.
    #[error("the free space of the data folder's disk can't be read: {0}")]
    Disk(io::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::DiskFull => Self::DiskFull,
            store::Error::Unavailable { reason } => Self::StoreAway(reason),
            other => Self::Store(other),
        }
    }
}

fn bind_words(address: SocketAddr, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use; stop what listens there or choose another address with --listen")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "{address} may not be used by this user; ports below 1024 need a privilege, choose another with --listen"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{address} is not an address of this machine; choose one that is, or 0.0.0.0, with --listen"
            )
        }
        _ => format!("can't listen on {address}: {source}; choose another address with --listen"),
    }
}
