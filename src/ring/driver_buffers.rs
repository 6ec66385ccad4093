//! Provided buffers: one pool per ring, from which the kernel takes a buffer only when bytes
//! have arrived, so that an idle connection owns none.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::LogBuf;

/// The buffer ring of a ring, registered as `GROUP`.
#[derive(Debug)]
pub struct BufRing {
    entries: LogBuf,
    memory: Vec<u8>,
    count: u16,
    bytes: u32,
    tail: u16,
}

impl BufRing {
    /// The buffer group that receives select from.
    pub const GROUP: u16 = 0;

    /// Registers `count` buffers of `bytes` each; `count` is a power of two up to 32,768.
    ///
    /// # Errors
    /// What the kernel answers to the registration, and `InvalidInput` for another count.
    pub fn register(ring: &IoUring, count: u16, bytes: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || count > 1 << 15 || bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let len = usize::from(count) * size_of::<BufRingEntry>();
        let mut entries = LogBuf::with_capacity(len);
        entries.set_len(len);
        let memory = vec![0; usize::from(count) * bytes as usize];
        let mut buffers = Self { entries, memory, count, bytes, tail: 0 };
        let address = buffers.entries.as_mut_slice().as_mut_ptr() as u64;
        // SAFETY: the entries are page aligned, hold `count` entries and live in `buffers`,
        // which its owner keeps at least as long as the ring.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, Self::GROUP, 0)? };
        for id in 0..count {
            buffers.give_back(id);
        }
        Ok(buffers)
    }

    /// The first `len` bytes of a buffer that the kernel filled.
    #[must_use]
    pub fn bytes(&self, id: u16, len: u32) -> &[u8] {
        let start = usize::from(id) * self.bytes as usize;
        &self.memory[start..start + len.min(self.bytes) as usize]
    }

    /// Lets the kernel fill a buffer again.
    pub fn give_back(&mut self, id: u16) {
        let at = usize::from(self.tail & (self.count - 1));
        let start = usize::from(id) * self.bytes as usize;
        let address = self.memory[start..].as_mut_ptr() as u64;
        let base = self.entries.as_mut_slice().as_mut_ptr().cast::<BufRingEntry>();
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `at` is below `count`, so the entry is inside `entries`. The kernel reads an
        // entry only after the tail passed it, which the release store below publishes. The
        // tail lies in a field of the first entry that set_addr, set_len and set_bid leave
        // alone.
        unsafe {
            let entry = &mut *base.add(at);
            entry.set_addr(address);
            entry.set_len(self.bytes);
            entry.set_bid(id);
            let tail = BufRingEntry::tail(base).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
