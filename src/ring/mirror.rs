//! A byte ring mapped twice in a row, so that every range of it is contiguous.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes by absolute position; the last `capacity` of them are there.
pub(super) struct Mirror {
    ptr: NonNull<u8>,
    capacity: usize,
}

impl Mirror {
    /// `capacity` must be a multiple of the page size and a power of two.
    pub fn new(capacity: usize) -> io::Result<Self> {
        // SAFETY: the name is a C string; a new descriptor is returned or -1.
        let fd = unsafe { libc::memfd_create(c"floor".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(capacity as u64)?;
        // SAFETY: reserves addresses that are in use by nobody.
        let base = unsafe { map(std::ptr::null_mut(), 2 * capacity, libc::PROT_NONE, -1)? };
        let mirror = Self { ptr: base, capacity };
        for half in 0..2 {
            // SAFETY: inside the reservation just made, which nobody uses.
            unsafe {
                let at = base.as_ptr().add(half * capacity);
                map(at, capacity, libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd())?;
            }
        }
        Ok(mirror)
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where the byte at `position` is; `capacity` bytes from there are mapped.
    #[inline]
    pub fn at(&self, position: u64) -> *mut u8 {
        // SAFETY: the offset is below capacity, inside the mapping.
        unsafe { self.ptr.as_ptr().add(position as usize & (self.capacity - 1)) }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the owner is gone, so nobody points in.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), 2 * self.capacity) };
    }
}

/// # Safety
/// A fixed address must be inside of a reservation of the caller.
unsafe fn map(at: *mut u8, len: usize, protection: i32, fd: i32) -> io::Result<NonNull<u8>> {
    let flags = if fd < 0 {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE
    } else {
        libc::MAP_SHARED | libc::MAP_FIXED
    };
    // SAFETY: the caller's promise about the address.
    let ptr = unsafe { libc::mmap(at.cast(), len, protection, flags, fd, 0) };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(ptr.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}
