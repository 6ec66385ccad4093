//! Receive buffers that the kernel picks from: a connection owns none while it is silent.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::uring::Uring;

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// Anonymous memory, aligned to pages, zeroed, resident only once touched.
pub(super) struct Pages {
    ptr: NonNull<u8>,
    len: usize,
}

impl Pages {
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous private mapping touches no memory that is in use.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(ptr) = NonNull::new(ptr.cast()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        Ok(Self { ptr, len })
    }

    pub fn start(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; the owner is gone, so nobody points in.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// A provided-buffer ring. The owner drops its [`Uring`] first, so that the kernel never
/// writes to memory that was given back.
pub(super) struct RecvBuffers {
    ring: Pages,
    memory: Pages,
    count: u16,
    bytes: u32,
    tail: u16,
}

impl RecvBuffers {
    /// Registers `count` (a power of two, at most 32,768) buffers of `bytes` each.
    pub fn register(uring: &Uring, count: u16, bytes: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || count > 1 << 15 || bytes == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let ring = Pages::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Pages::new(usize::from(count) * bytes as usize)?;
        let mut buffers = Self { ring, memory, count, bytes, tail: 0 };
        let addr = buffers.ring.ptr.as_ptr() as u64;
        // SAFETY: the mapping holds `count` entries and lives as long as `Self`, which the
        // owner drops after its ring.
        unsafe { uring.submitter().register_buf_ring_with_flags(addr, count, GROUP, 0)? };
        for id in 0..count {
            buffers.put(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    fn start(&self, id: u16) -> *mut u8 {
        assert!(id < self.count, "buffer {id} of {}", self.count);
        // SAFETY: id is below count, so the offset is inside the mapping.
        unsafe { self.memory.ptr.as_ptr().add(usize::from(id) * self.bytes as usize) }
    }

    /// The first `len` bytes of a buffer that the kernel has handed over.
    #[inline]
    pub fn bytes(&self, id: u16, len: u32) -> &[u8] {
        assert!(len <= self.bytes, "{len} bytes in a buffer of {}", self.bytes);
        let start = self.start(id);
        // SAFETY: inside the mapping by the two checks. The kernel does not write to a buffer
        // between the completion that named it and `put`, which borrows `self` mutably.
        unsafe { std::slice::from_raw_parts(start, len as usize) }
    }

    /// Queues a buffer to go back to the kernel with the next [`RecvBuffers::publish`].
    #[inline]
    pub fn put(&mut self, id: u16) {
        let start = self.start(id);
        let index = usize::from(self.tail & (self.count - 1));
        let entries = self.ring.ptr.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is below count. The kernel reads entries below the published
        // tail only, and there are never more than `count` buffers out. Entry 0 shares its
        // last two bytes with the tail, which these setters do not touch.
        let entry = unsafe { &mut *entries.add(index) };
        entry.set_addr(start as u64);
        entry.set_len(self.bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see the buffers that were put back.
    #[inline]
    pub fn publish(&mut self) {
        let entries = self.ring.ptr.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the tail is inside the mapping, aligned for a u16, and the kernel only
        // reads it; Release orders the entries before it.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
