//! Wakes a shard from any thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Makes the wait of one shard return. Cheap to clone, may be used from any thread, and
/// outlives the shard without harm.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        // Blocking on purpose: io_uring reads of a non-blocking file end with EAGAIN instead
        // of waiting.
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// Makes the current or the next wait return.
    pub fn wake(&self) {
        // This blocks only after 2^64 - 2 wakes that nobody read, and fails never.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
