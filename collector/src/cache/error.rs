use std::path::PathBuf;

use thiserror::Error;

/// Why a cache can't be used. Only starting fails with it: afterwards a cache that is away answers "not known".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The address can't be read. It isn't repeated, since it may hold a password.
    #[error(
        "[cache] url is not a Redis address ({reason}); write redis://[user:password@]host:port/0, or rediss:// for TLS"
    )]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// The server doesn't take the user or the password.
    #[error(
        "redis at {server} refused the user or password ({reason}); check [cache] url and the server's ACL"
    )]
    Refused {
        /// Host and port.
        server: String,
        /// What it said.
        reason: String,
    },
    /// The server has no database of that number.
    #[error(
        "redis at {server} doesn't have the database of [cache] url ({reason}); name one below its setting `databases`, 16 as a rule"
    )]
    NoDatabase {
        /// Host and port.
        server: String,
        /// What it said.
        reason: String,
    },
    /// Nobody who is believed signed the server's certificate, or it is another's.
    #[error(
        "redis at {server} shows a certificate that is not accepted ({reason}); name the authority that signed it in \
         [cache] ca_file"
    )]
    Certificate {
        /// Host and port.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of certificate authorities can't be read.
    #[error("[cache] ca_file {} can't be read: {reason}", .file.display())]
    CaFile {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another collector uses these keys.
    #[error(
        "redis at {server} belongs to another collector ({prefix}:{{store}} says {owner}); give each collector a [cache] prefix of \
         its own; if that one is gone for good, delete this key"
    )]
    OtherStore {
        /// Host and port.
        server: String,
        /// What its keys begin with.
        prefix: String,
        /// The other's store.
        owner: String,
    },
    /// The server can't be reached, or can't be used now.
    #[error("redis at {server} is away ({reason}); check that it runs and that [cache] url names it")]
    Away {
        /// Host and port.
        server: String,
        /// What was tried last, and what came of it.
        reason: String,
    },
}
