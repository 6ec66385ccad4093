//! io_uring: the driver of a shard, the aligned buffers of its log, and the client ring of
//! the load generator. All unsafe code of the project is in this folder.

mod buffers;
mod client;
mod cold;
mod driver;
mod driver_buffers;
mod driver_token;
mod log_buf;
mod token;
mod uring;
mod writes;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::position::SegmentNumber;
use crate::wal::paths;

pub use client::{ClientEvent, ClientRing};
pub use cold::{ColdClient, ColdShard, Waker, start_cold};
pub use driver::{Driver, DriverConfig, DriverCounters};
pub use log_buf::LogBuf;

/// Why a driver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ring cannot be made.
    #[error(
        "cannot set up an io_uring with SINGLE_ISSUER and DEFER_TASKRUN: {0}; it needs Linux 6.1 \
         or newer, and /proc/sys/kernel/io_uring_disabled must be 0"
    )]
    Ring(#[source] io::Error),
    /// The table of direct descriptors cannot be made.
    #[error(
        "cannot register a table of {table} direct descriptors: {source}; the limit of open files \
         caps it, raise it with `ulimit -n {table}` or lower connections_max"
    )]
    Table {
        /// Slots asked for.
        table: u32,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The receive buffers cannot be registered.
    #[error(
        "cannot register the receive buffers: {0}; recv_buffers must be a power of two up to \
         32768, and locked memory must suffice (`ulimit -l`)"
    )]
    Buffers(#[source] io::Error),
    /// The cold executor cannot be started.
    #[error("cannot start the executor for cold work: {0}")]
    Cold(#[source] io::Error),
}

/// Opens a segment for aligned reads and writes past the page cache. File systems that know
/// no O_DIRECT get ordinary access; RWF_DSYNC makes a write durable either way.
fn open_segment(log_dir: &Path, number: SegmentNumber) -> io::Result<File> {
    let path = paths::segment_path(log_dir, number);
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
    match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
        other => other,
    }
}
