//! Why a server cannot start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::position::ShardId;
use crate::ring::{ColdError, DriverError};
use crate::wal::{ManifestError, RecoveryError};

/// Why a server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A log cannot be read.
    #[error("shard {}: {source}", shard.0)]
    Recovery {
        /// The shard.
        shard: ShardId,
        /// Why.
        source: RecoveryError,
    },
    /// A log folder or segment cannot be made.
    #[error("shard {}: cannot prepare its log in {}: {source}", shard.0, path.display())]
    Log {
        /// The shard.
        shard: ShardId,
        /// Its folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A ring cannot be made.
    #[error("shard {}: {source}", shard.0)]
    Driver {
        /// The shard.
        shard: ShardId,
        /// Why.
        source: DriverError,
    },
    /// The executor for cold work cannot be started.
    #[error(transparent)]
    Cold(#[from] ColdError),
    /// RLIMIT_NOFILE.
    #[error(
        "the limit of open files is {limit}, {shards} shards need {needed}; raise it with \
         `ulimit -n {needed}` or start fewer shards with --shards"
    )]
    Nofile {
        /// The limit.
        limit: u64,
        /// Shards asked for.
        shards: u16,
        /// What they need.
        needed: u64,
    },
    /// A shard's thread cannot be started on its core.
    #[error("cannot start shard {} on core {core}: {reason}; name cores that exist with --cores", shard.0)]
    Thread {
        /// The shard.
        shard: ShardId,
        /// The core.
        core: usize,
        /// What the executor says.
        reason: String,
    },
}

fn listen_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process has the port, stop it or take another with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need privileges, take another with --listen"
        }
        _ => "",
    }
}
