//! When a shard may sleep and who wakes it.
//!
//! A shard that goes to sleep and a producer that pushes into one of its rings could each miss
//! the other: the producer sees nobody asleep, the shard sees an empty ring. Both therefore
//! write first, fence, and read after it. The fences have one order, so whichever is later
//! sees what the other wrote:
//!
//! ```text
//!  sleeper                        producer
//!  asleep = true                  push into the ring
//!  fence                          fence
//!  look at the rings again        asleep was true: set false and wake
//!  sleep, or go on: asleep = false
//! ```
//!
//! `tests/loom_wake.rs` includes this file and runs it through all interleavings.

#[cfg(fanfare_loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(fanfare_loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Whether one shard is asleep. Shared by an `Arc` between it and the shards that push into
/// its rings.
#[derive(Debug)]
pub struct Sleeper {
    asleep: AtomicBool,
}

impl Default for Sleeper {
    fn default() -> Self {
        Self::new()
    }
}

impl Sleeper {
    /// A shard that is awake.
    #[must_use]
    pub fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// The shard is about to sleep. It must look at its rings once more after this call, and
    /// may sleep only if they are empty.
    pub fn prepare(&self) {
        // Swaps instead of stores: each change of the flag then follows the one it read, which
        // keeps the reasoning (and loom's bookkeeping) exact. A system call is next anyway.
        self.asleep.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The shard does not sleep, or no longer. A wake-up may still be under way; it wakes a
    /// shard that is awake, which does no harm.
    pub fn woken(&self) {
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.swap(false, Ordering::Relaxed);
        }
    }

    /// Says whether a producer that has just pushed must wake the shard. Of several producers
    /// one is told so.
    #[must_use]
    pub fn notify(&self) -> bool {
        fence(Ordering::SeqCst);
        // The load spares the cache line a write while the shard is awake, which is the rule
        // under load.
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(fanfare_loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_producer_is_told_to_wake_and_only_a_sleeper_is_woken() {
        let sleeper = Sleeper::new();
        assert!(!sleeper.notify());
        sleeper.prepare();
        assert!(sleeper.notify());
        assert!(!sleeper.notify());
        sleeper.prepare();
        sleeper.woken();
        assert!(!sleeper.notify());
    }
}
