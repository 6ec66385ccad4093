//! The limit of open files: connections do not count, but a shard's table of connections may
//! not be larger than it, and rings, logs and sockets do count.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ServeError;

/// Descriptors of a shard besides the rings of all shards: its executor, socket, events, and
/// open files of its log with room for some that are read.
const PER_SHARD: u64 = 24;
/// Descriptors of the process: standard streams, lock, signals, the executor for cold work.
const PER_PROCESS: u64 = 64;

/// Raises the soft limit to the hard one. The low soft limit protects programs that use
/// select(), and this is none of them.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // If it is refused, what there is has to do; `check` says when it does not.
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Whether so many shards can open what they need. Every shard holds the ring of every other.
pub(super) fn check(shards: u16) -> Result<(), ServeError> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let needed = needed(shards);
    if limit < needed { Err(ServeError::Nofile { limit, shards, needed }) } else { Ok(()) }
}

fn needed(shards: u16) -> u64 {
    let shards = u64::from(shards);
    shards * (shards + PER_SHARD) + PER_PROCESS
}
