//! Socket writes in flight. A slot holds the parts and what the kernel reads about them until
//! the last completion; slots, vectors and control buffers are used again, last one first, so
//! that a turn of writes stays in the cache and allocates nothing.

use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use crate::fanout::Part;

/// Control buffers kept for reuse, and the size above which one is not kept.
const CONTROL_BUFS_MAX: usize = 256;
const CONTROL_BUF_BYTES_MAX: usize = 16 * 1024;

/// One write.
struct Write {
    parts: Vec<Part>,
    /// First part that is not written whole, and how much of it is written.
    first: usize,
    offset: usize,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Write {
    fn new() -> Self {
        // SAFETY: all fields of a msghdr are integers or pointers, for which zero is valid.
        let header = unsafe { std::mem::zeroed() };
        Self { parts: Vec::new(), first: 0, offset: 0, iovecs: Vec::new(), header }
    }
}

/// What came of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All of it is written.
    Whole,
    /// Some of it is left.
    Partial,
}

/// All writes of a shard.
#[derive(Default)]
pub(super) struct Writes {
    // Boxed: the kernel reads iovecs through the address of the header, which must not move
    // when the vector grows.
    #[allow(clippy::vec_box, reason = "headers must not move")]
    slots: Vec<Box<Write>>,
    free: Vec<u32>,
    control: Vec<Vec<u8>>,
    in_flight: usize,
}

impl Writes {
    /// Takes all of `parts` and gives an empty vector in exchange; returns the slot.
    #[inline]
    pub fn start(&mut self, parts: &mut Vec<Part>) -> u32 {
        debug_assert!(!parts.is_empty());
        self.in_flight += 1;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Box::new(Write::new()));
                (self.slots.len() - 1) as u32
            }
        };
        let write = &mut self.slots[index as usize];
        std::mem::swap(&mut write.parts, parts);
        write.first = 0;
        write.offset = 0;
        index
    }

    /// The entry that writes what is left, and whether it is a SENDMSG.
    ///
    /// The memory it points to stays valid until [`Writes::finish`].
    #[inline]
    pub fn entry(&mut self, index: u32, socket: Fixed) -> (squeue::Entry, bool) {
        let write = &mut *self.slots[index as usize];
        let left = &write.parts[write.first..];
        if let [part] = left {
            let bytes = &part.as_slice()[write.offset..];
            let entry = opcode::Send::new(socket, bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_NOSIGNAL)
                .build();
            return (entry, false);
        }
        write.iovecs.clear();
        let mut skip = write.offset;
        for part in left {
            let bytes = &part.as_slice()[skip..];
            skip = 0;
            let iov_base = bytes.as_ptr().cast_mut().cast();
            write.iovecs.push(libc::iovec { iov_base, iov_len: bytes.len() });
        }
        write.header.msg_iov = write.iovecs.as_mut_ptr();
        write.header.msg_iovlen = write.iovecs.len();
        let entry =
            opcode::SendMsg::new(socket, &raw const write.header).flags(MSG_NOSIGNAL).build();
        (entry, true)
    }

    /// Notes that `count` more bytes are written.
    #[inline]
    pub fn advance(&mut self, index: u32, count: usize) -> Progress {
        let write = &mut *self.slots[index as usize];
        let mut count = count + write.offset;
        while let Some(part) = write.parts.get(write.first) {
            let len = part.as_slice().len();
            if count < len {
                write.offset = count;
                return Progress::Partial;
            }
            count -= len;
            write.first += 1;
        }
        Progress::Whole
    }

    /// Drops the parts and frees the slot. Nothing of it may be in flight.
    #[inline]
    pub fn finish(&mut self, index: u32) {
        self.in_flight -= 1;
        let write = &mut *self.slots[index as usize];
        for part in write.parts.drain(..) {
            if let Part::Control(buf) = part {
                keep(&mut self.control, buf);
            }
        }
        self.free.push(index);
    }

    /// An empty buffer for control frames.
    #[inline]
    pub fn control_buf(&mut self) -> Vec<u8> {
        self.control.pop().unwrap_or_default()
    }

    /// Writes that are not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

const MSG_NOSIGNAL: u32 = libc::MSG_NOSIGNAL as u32;

#[inline]
fn keep(pool: &mut Vec<Vec<u8>>, mut buf: Vec<u8>) {
    if pool.len() < CONTROL_BUFS_MAX && buf.capacity() <= CONTROL_BUF_BYTES_MAX {
        buf.clear();
        pool.push(buf);
    }
}
