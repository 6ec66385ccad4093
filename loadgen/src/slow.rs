//! Members that read slowly: each takes so many bytes per second, by not receiving until what it
//! took before is paid for. Nothing of them is verified; the others are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fanfare::ring::ClientRing;

use crate::clock::SECOND;

/// Receive buffer of such a member in the kernel, so that what it takes at once is little.
pub const RECV_BUFFER_BYTES: usize = 16 * 1024;

/// The slow readers of a thread.
pub struct SlowReaders {
    bytes_per_s: f64,
    /// When a slot may receive again.
    due: BinaryHeap<Reverse<(u64, u32)>>,
}

impl SlowReaders {
    /// Readers of `bytes_per_s` each; with 0 they do not read.
    pub fn new(bytes_per_s: u32) -> Self {
        Self { bytes_per_s: f64::from(bytes_per_s), due: BinaryHeap::new() }
    }

    /// Whether they read at all.
    pub fn read(&self) -> bool {
        self.bytes_per_s > 0.0
    }

    /// When the next one may go on.
    pub fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// The member on `slot`, paid up to `paid`, got `bytes` at `now`: returns until when it has
    /// paid now, which is when it goes on.
    pub fn took(&mut self, slot: u32, bytes: usize, now: u64, paid: u64) -> u64 {
        let price = (bytes as f64 / self.bytes_per_s * SECOND as f64) as u64;
        let until = now.max(paid) + price;
        self.due.push(Reverse((until, slot)));
        until
    }

    /// Lets those receive whose time has come. `paid` says until when a slot has paid, since one
    /// that got more meanwhile is on the list again.
    pub fn go_on(&mut self, now: u64, ring: &mut ClientRing, paid: impl Fn(u32) -> Option<u64>) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            if paid(slot).is_some_and(|until| until <= now) {
                ring.resume_recv(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_more_at_once_waits_longer() {
        let mut slow = SlowReaders::new(1000);
        let once = slow.took(1, 500, 10 * SECOND, 0);
        assert_eq!(once, 10 * SECOND + SECOND / 2);
        // Bytes that were on their way when it stopped are paid after those.
        assert_eq!(slow.took(1, 1000, 10 * SECOND, once), once + SECOND);
        assert_eq!(slow.next_due(), Some(once));
    }
}
