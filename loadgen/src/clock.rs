//! The one clock of a run.

use rustix::time::{ClockId, clock_gettime};

/// Monotonic time in nanoseconds, the same for all threads.
pub fn now_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// One second.
pub const SECOND: u64 = 1_000_000_000;
/// One millisecond.
pub const MILLI: u64 = 1_000_000;
