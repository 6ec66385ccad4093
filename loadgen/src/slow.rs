//! Members that read slowly: each takes so many bytes per second, by not receiving until what it
//! took before is paid for. Nothing of them is verified; the others are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fanfare::ring::ClientRing;

use crate::clock::SECOND;

/// Receive buffer of such a member in the kernel: little waits there, and the rest at the server.
pub const RECV_BUFFER_BYTES: usize = 16 * 1024;
/// It takes what comes at its rate in so many pieces a second.
const PIECES_PER_S: u32 = 10;

/// The slow readers of a thread.
pub struct SlowReaders {
    bytes_per_s: u32,
    /// When a slot may receive again.
    due: BinaryHeap<Reverse<(u64, u32)>>,
}

impl SlowReaders {
    /// Readers of `bytes_per_s` each; with 0 they do not read.
    pub fn new(bytes_per_s: u32) -> Self {
        Self { bytes_per_s, due: BinaryHeap::new() }
    }

    /// Whether they read at all.
    pub fn read(&self) -> bool {
        self.bytes_per_s > 0
    }

    /// When the next one may go on.
    pub fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// The member on `slot` got `bytes` at `now`: it goes on when they are paid for.
    pub fn took(&mut self, slot: u32, bytes: usize, now: u64) {
        if self.read() {
            let price = bytes as u64 * SECOND / u64::from(self.bytes_per_s);
            self.due.push(Reverse((now + price, slot)));
        }
    }

    /// Lets those receive whose time has come.
    pub fn go_on(&mut self, now: u64, ring: &mut ClientRing) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            ring.recv_once(slot, (self.bytes_per_s / PIECES_PER_S).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_more_at_once_waits_longer() {
        let mut slow = SlowReaders::new(1000);
        slow.took(1, 500, 10 * SECOND);
        assert_eq!(slow.next_due(), Some(10 * SECOND + SECOND / 2));
        slow.took(2, 100, 10 * SECOND);
        assert_eq!(slow.next_due(), Some(10 * SECOND + SECOND / 10));
    }

    #[test]
    fn who_does_not_read_never_goes_on() {
        let mut stalled = SlowReaders::new(0);
        stalled.took(1, 500, 10 * SECOND);
        assert_eq!(stalled.next_due(), None);
    }
}
