//! Writes in flight: the parts that the kernel reads from, held until the last completion.
//! Slots and vectors are used again, so that a write allocates nothing.

use libc::{iovec, msghdr};
use slab::Slab;

use crate::fanout::Part;

/// Control buffers kept for reuse, and the largest that is kept.
const CONTROL_BUFS_MAX: usize = 256;
const CONTROL_BUF_BYTES_MAX: usize = 16 * 1024;

/// What to submit next of a write.
pub(super) enum Write {
    One { ptr: *const u8, len: u32 },
    Many { msg: *const msghdr },
}

struct InFlight {
    parts: Vec<Part>,
    /// First part that is not wholly sent.
    at: usize,
    /// Bytes of it that are sent.
    offset: usize,
    iov: Vec<iovec>,
    msg: msghdr,
}

impl Default for InFlight {
    fn default() -> Self {
        // SAFETY: msghdr is a plain C struct for which all zeros (no name, no vectors, no
        // control data) is a valid value.
        let msg = unsafe { std::mem::zeroed() };
        Self { parts: Vec::new(), at: 0, offset: 0, iov: Vec::new(), msg }
    }
}

/// All writes of a driver.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "the kernel holds a pointer to `msg`, so it must not move")]
pub(super) struct Writes {
    in_flight: Slab<Box<InFlight>>,
    free: Vec<Box<InFlight>>,
    control: Vec<Vec<u8>>,
}

impl Writes {
    /// Takes `parts` over and leaves an empty vector with room.
    pub fn start(&mut self, parts: &mut Vec<Part>) -> u32 {
        let mut write = self.free.pop().unwrap_or_default();
        std::mem::swap(&mut write.parts, parts);
        write.at = 0;
        write.offset = 0;
        self.in_flight.insert(write) as u32
    }

    /// What is left of a write, as pointers that stay valid until [`Writes::finish`].
    pub fn next(&mut self, index: u32) -> Write {
        let write = &mut *self.in_flight[index as usize];
        let rest = &write.parts[write.at..];
        if let [part] = rest {
            let bytes = &part.as_slice()[write.offset..];
            return Write::One { ptr: bytes.as_ptr(), len: bytes.len() as u32 };
        }
        write.iov.clear();
        let mut offset = write.offset;
        for part in rest {
            let bytes = &part.as_slice()[offset..];
            offset = 0;
            write
                .iov
                .push(iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
        write.msg.msg_iov = write.iov.as_mut_ptr();
        write.msg.msg_iovlen = write.iov.len();
        Write::Many { msg: &write.msg }
    }

    /// Says that the kernel took `bytes`; whether that was all. Parts that are done are let
    /// go at once, so that a stalled write pins no more than it must.
    pub fn advance(&mut self, index: u32, bytes: usize) -> bool {
        let write = &mut *self.in_flight[index as usize];
        let mut left = bytes;
        while let Some(part) = write.parts.get_mut(write.at) {
            let rest = part.as_slice().len() - write.offset;
            if left < rest {
                write.offset += left;
                return false;
            }
            left -= rest;
            write.offset = 0;
            write.at += 1;
            let done = std::mem::replace(part, Part::Control(Vec::new()));
            recycle(&mut self.control, done);
        }
        true
    }

    /// Lets the parts go.
    pub fn finish(&mut self, index: u32) {
        let mut write = self.in_flight.remove(index as usize);
        for part in write.parts.drain(..) {
            recycle(&mut self.control, part);
        }
        if self.free.len() < CONTROL_BUFS_MAX {
            self.free.push(write);
        }
    }

    /// An empty control buffer.
    pub fn control_buf(&mut self) -> Vec<u8> {
        self.control.pop().unwrap_or_default()
    }
}

fn recycle(pool: &mut Vec<Vec<u8>>, part: Part) {
    if let Part::Control(mut buf) = part
        && (1..=CONTROL_BUF_BYTES_MAX).contains(&buf.capacity())
        && pool.len() < CONTROL_BUFS_MAX
    {
        buf.clear();
        pool.push(buf);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_write_goes_on_at_the_very_byte_where_the_socket_stopped() {
        let whole: Vec<u8> = (0..=99).collect();
        for step in 1..=100 {
            let mut writes = Writes::default();
            let mut parts = vec![
                Part::Control(whole[..10].to_vec()),
                Part::Control(whole[10..11].to_vec()),
                Part::Control(whole[11..].to_vec()),
            ];
            let index = writes.start(&mut parts);
            assert!(parts.is_empty());
            let mut seen = Vec::new();
            loop {
                let mut left = step;
                let mut take = |ptr: *const u8, len: usize| {
                    let take = len.min(left);
                    // SAFETY: `next` gave this pointer and length, the parts are in `writes`.
                    seen.extend_from_slice(unsafe { std::slice::from_raw_parts(ptr, take) });
                    left -= take;
                };
                match writes.next(index) {
                    Write::One { ptr, len } => take(ptr, len as usize),
                    Write::Many { msg } => {
                        // SAFETY: as above, for each vector of the message.
                        let iov = unsafe {
                            std::slice::from_raw_parts((*msg).msg_iov, (*msg).msg_iovlen)
                        };
                        iov.iter().for_each(|v| take(v.iov_base.cast(), v.iov_len));
                    }
                }
                if writes.advance(index, step - left) {
                    break;
                }
            }
            assert_eq!(seen, whole, "step {step}");
            writes.finish(index);
        }
    }
}
