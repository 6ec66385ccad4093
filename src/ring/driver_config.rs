//! What a driver is made of, why it cannot be made, and what it counts.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;

use super::cold::{ColdHandle, StepsFn};
use crate::position::ShardId;

/// What a driver is made of.
pub struct DriverConfig {
    /// The shard it serves.
    pub shard: ShardId,
    /// Where connections come from; socket options are set already and inherited by them.
    pub listeners: Vec<TcpListener>,
    /// Most connections of the shard.
    pub connections_max: u32,
    /// Receive buffers, a power of two.
    pub recv_buffers: u16,
    /// Bytes of each.
    pub recv_buffer_bytes: u32,
    /// It looks for completions for so many microseconds before it sleeps.
    pub spin_us: u32,
    /// Directory of the shard's log segments.
    pub log_dir: PathBuf,
    /// Who does the jobs.
    pub cold: ColdHandle,
    /// What a job does.
    pub steps: StepsFn,
}

/// A driver could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ring itself.
    #[error(
        "cannot set up io_uring: {0}. Linux 6.1 or newer with io_uring allowed is needed \
         (sysctl kernel.io_uring_disabled=0, no seccomp filter against it)"
    )]
    Ring(#[source] io::Error),
    /// The table of descriptors.
    #[error(
        "cannot register a table of {slots} descriptors: {source}. The limit of open files is \
         {nofile}; raise it with `ulimit -n`"
    )]
    Table {
        /// Slots asked for.
        slots: u64,
        /// RLIMIT_NOFILE.
        nofile: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// No room for a single connection.
    #[error(
        "the limit of open files is {nofile}, which leaves no room for connections beside \
         {spare} spare descriptors; raise it with `ulimit -n 65536`"
    )]
    Nofile {
        /// RLIMIT_NOFILE.
        nofile: u64,
        /// Slots that are not for members.
        spare: u64,
    },
    /// The receive buffers.
    #[error(
        "cannot register {count} receive buffers of {bytes} bytes: {source}. The count must be a \
         power of two up to 32768; Linux 5.19 or newer is needed"
    )]
    Buffers {
        /// Their count.
        count: u16,
        /// Bytes of each.
        bytes: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The eventfd for wake-ups, or a listener.
    #[error("cannot prepare the shard's files: {0}")]
    Files(#[source] io::Error),
}

/// Counts since the driver was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounters {
    /// Calls into the kernel.
    pub enters: u64,
    /// Completions.
    pub cqes: u64,
    /// Writes of one part.
    pub sends: u64,
    /// Writes of several parts.
    pub sendmsgs: u64,
    /// Writes the kernel took only a part of.
    pub short_sends: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Accepts that failed, for instance because the table was full.
    pub accept_failures: u64,
    /// Receives that ended because no buffer was free.
    pub recv_enobufs: u64,
    /// Times that completions had to wait in the kernel.
    pub cq_overflows: u64,
}
