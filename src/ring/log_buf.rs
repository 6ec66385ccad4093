//! Memory for O_DIRECT: aligned to a log block and never moved.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::limits::LOG_BLOCK;

/// A zeroed buffer aligned to [`LOG_BLOCK`], with a length up to its fixed capacity.
#[derive(Debug)]
pub struct LogBuf {
    ptr: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: LogBuf owns its memory alone and has no interior mutability, so moving it to
// another thread moves the only access to that memory.
unsafe impl Send for LogBuf {}

impl LogBuf {
    /// A buffer of length 0 whose capacity is `capacity` rounded up to whole blocks, at
    /// least one.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1).next_multiple_of(LOG_BLOCK);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not 0, since capacity is at least one block.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Self { ptr, capacity, len: 0 }
    }

    #[allow(clippy::expect_used, reason = "capacities are bounded far below isize::MAX")]
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, LOG_BLOCK).expect("capacity fits a layout")
    }

    /// Bytes this buffer can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes are in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the bytes in use, at most the capacity; bytes not written since are as they were.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "LogBuf of {} bytes cannot hold {len}", self.capacity);
        self.len = len;
    }

    /// The bytes in use.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: ptr is valid for capacity >= len bytes, all initialised by alloc_zeroed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes in use.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the borrow of self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for LogBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in with_capacity with this very layout.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
    }
}
