//! Stub until the loom-checked one is merged.
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// See ARCHITECTURE.md.
#[derive(Debug, Default)]
pub struct Sleeper {
    asleep: AtomicBool,
}

impl Sleeper {
    /// About to sleep.
    pub fn prepare(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
    /// Awake.
    pub fn woken(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
    /// After a push: whether the sleeper must be woken.
    pub fn notify(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.swap(false, Ordering::Relaxed)
    }
}
