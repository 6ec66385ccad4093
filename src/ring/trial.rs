//! Ways to write the same bytes to many sockets, side by side: what the kernel takes for each of
//! them. `benches/writes.rs` measures with it; the engine has one of the ways.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};

use super::buffers::Pages;
use super::uring::{Block, Uring};

const SQ_ENTRIES: u32 = 256;
const CQ_ENTRIES: u32 = 8192;
/// Writes that are submitted together, as by the driver.
const SLICE: usize = 64;
/// Most pieces of a write.
const PIECES_MAX: usize = 8;
/// A bundle takes all buffers of its group, so each write of a slice has a group of its own, and a
/// page for its entries.
const BUNDLE_PAGE: usize = 4096;

/// A way to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialWrite {
    /// SEND to a direct descriptor: the engine's way for bytes that lie in one place.
    Send,
    /// SEND to a file descriptor of the process.
    SendFd,
    /// SENDMSG of so many pieces (1 to 8): the engine's way for bytes in several places.
    SendMsg(usize),
    /// SEND of a bundle of so many provided buffers (1 to 8; Linux 6.10), which are handed over
    /// anew for each write, each in a group of its own.
    Bundle(usize),
    /// SEND_ZC: without a copy, with a second completion when the kernel needs the bytes no more.
    SendZc,
    /// SEND_ZC of a registered buffer.
    SendZcFixed,
    /// WRITE_FIXED: a plain write of a registered buffer.
    WriteFixed,
}

/// What [`TrialRing::round`] saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrialRound {
    /// Writes that ended.
    pub writes: u64,
    /// Writes without a copy of which the kernel says that it has copied them after all.
    pub copied: u64,
}

/// Sockets to write to.
pub struct TrialRing {
    // Dropped first: afterwards the kernel touches nothing of the rest.
    uring: Uring,
    payload: Pages,
    bundles: Pages,
    bundle_tails: [u16; SLICE],
    pieces: Box<[libc::iovec; PIECES_MAX]>,
    message: Box<libc::msghdr>,
    sockets: Vec<OwnedFd>,
}

impl TrialRing {
    /// A ring for these connected sockets, with `bytes_max` registered bytes to write.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` if it is older than Linux 6.1.
    pub fn new(sockets: Vec<OwnedFd>, bytes_max: usize) -> io::Result<Self> {
        let uring = Uring::new(SQ_ENTRIES, CQ_ENTRIES)?;
        let fds: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        uring.submitter().register_files(&fds)?;
        let payload = Pages::new(bytes_max)?;
        let registered = libc::iovec { iov_base: payload.start().cast(), iov_len: bytes_max };
        // SAFETY: the mapping is as long as that and is dropped after the ring.
        unsafe { uring.submitter().register_buffers(&[registered])? };
        let bundles = Pages::new(SLICE * BUNDLE_PAGE)?;
        for group in 0..SLICE {
            let addr = bundles.start().wrapping_add(group * BUNDLE_PAGE) as u64;
            let (entries, group) = (PIECES_MAX as u16, group as u16);
            // SAFETY: the page holds that many entries, and the mapping is dropped after the ring.
            unsafe { uring.submitter().register_buf_ring_with_flags(addr, entries, group, 0)? };
        }
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: all fields are integers and pointers, for which zero is valid.
        let message = Box::new(unsafe { std::mem::zeroed() });
        let pieces = Box::new([nothing; PIECES_MAX]);
        Ok(Self { uring, payload, bundles, bundle_tails: [0; SLICE], pieces, message, sockets })
    }

    /// Writes `len` bytes to each socket, in slices, and waits until all are written.
    ///
    /// # Errors
    /// What the kernel says of the first write that failed; `WriteZero` if it took a part only, or
    /// if `len` is above what is registered or no multiple of the pieces.
    pub fn round(&mut self, how: TrialWrite, len: usize) -> io::Result<TrialRound> {
        let pieces = how.pieces();
        let fits = len <= self.payload.len() && (1..=PIECES_MAX).contains(&pieces);
        if !fits || !len.is_multiple_of(pieces) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        for (nth, piece) in self.pieces.iter_mut().enumerate().take(pieces) {
            piece.iov_len = len / pieces;
            piece.iov_base = self.payload.start().wrapping_add(nth * (len / pieces)).cast();
        }
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = pieces as _;
        let is_bundle = matches!(how, TrialWrite::Bundle(_));
        let mut round = TrialRound::default();
        for first in (0..self.sockets.len()).step_by(SLICE) {
            let slots = first..(first + SLICE).min(self.sockets.len());
            let mut open = slots.len();
            for slot in slots {
                if let TrialWrite::Bundle(pieces) = how {
                    self.provide(slot % SLICE, pieces, len / pieces);
                }
                let entry = self.entry(how, slot as u32, len as u32);
                // SAFETY: payload, pieces and message live as long as the ring, and nothing
                // writes to them before the slice has ended.
                unsafe { self.uring.push(&entry) };
            }
            let mut failed = None;
            while open > 0 {
                self.uring.enter(Block::Forever);
                let done = self.uring.take_done();
                for cqe in &done {
                    if cqueue::notif(cqe.flags) {
                        // IORING_NOTIF_USAGE_ZC_COPIED.
                        round.copied += u64::from(cqe.result as u32 >> 31);
                    } else if cqe.result == -libc::ENOBUFS && is_bundle {
                        // After a bundle the kernel looks for more buffers, and this is its end.
                    } else if cqe.result < 0 {
                        failed = failed.or(Some(io::Error::from_raw_os_error(-cqe.result)));
                    } else if cqe.result as usize != len {
                        failed = failed.or(Some(io::ErrorKind::WriteZero.into()));
                    } else {
                        round.writes += 1;
                    }
                    if !cqueue::more(cqe.flags) {
                        open -= 1;
                    }
                }
                self.uring.put_back(done);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        if round.writes != self.sockets.len() as u64 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(round)
    }

    fn entry(&self, how: TrialWrite, slot: u32, len: u32) -> squeue::Entry {
        let from = self.payload.start().cast_const();
        let (to, flags) = (Fixed(slot), libc::MSG_NOSIGNAL);
        // IORING_SEND_ZC_REPORT_USAGE.
        let report = 1 << 3;
        match how {
            TrialWrite::Send => opcode::Send::new(to, from, len).flags(flags).build(),
            TrialWrite::SendFd => {
                let to = Fd(self.sockets[slot as usize].as_raw_fd());
                opcode::Send::new(to, from, len).flags(flags).build()
            }
            TrialWrite::SendMsg(_) => {
                opcode::SendMsg::new(to, &raw const *self.message).flags(flags as u32).build()
            }
            TrialWrite::Bundle(_) => opcode::SendBundle::new(to, (slot as usize % SLICE) as u16)
                .len(len)
                .flags(flags)
                .build(),
            TrialWrite::SendZc => {
                opcode::SendZc::new(to, from, len).flags(flags).zc_flags(report).build()
            }
            TrialWrite::SendZcFixed => {
                let send = opcode::SendZc::new(to, from, len).flags(flags).zc_flags(report);
                send.buf_index(Some(0)).build()
            }
            TrialWrite::WriteFixed => opcode::WriteFixed::new(to, from, len, 0).build(),
        }
    }

    /// Hands over the buffers of a bundle; the group's earlier ones are all taken.
    fn provide(&mut self, group: usize, pieces: usize, piece_bytes: usize) {
        let page = self.bundles.start().wrapping_add(group * BUNDLE_PAGE);
        let entries = page.cast::<BufRingEntry>();
        let tail = &mut self.bundle_tails[group];
        for nth in 0..pieces {
            let index = usize::from(*tail) % PIECES_MAX;
            // SAFETY: the index is below the number of entries, and the kernel reads entries below
            // the published tail only. Entry 0 shares its last two bytes with the tail, which
            // these setters do not touch.
            let entry = unsafe { &mut *entries.add(index) };
            let piece = self.payload.start().wrapping_add(nth * piece_bytes);
            entry.set_addr(piece as u64);
            entry.set_len(piece_bytes as u32);
            entry.set_bid(index as u16);
            *tail = tail.wrapping_add(1);
        }
        // SAFETY: the tail is inside the mapping, aligned for a u16, and the kernel only reads it;
        // Release orders the entries before it.
        unsafe {
            let published = BufRingEntry::tail(entries).cast::<AtomicU16>();
            (*published).store(*tail, Ordering::Release);
        }
    }
}

impl Drop for TrialRing {
    fn drop(&mut self) {
        self.uring.cancel_all();
    }
}

impl TrialWrite {
    fn pieces(self) -> usize {
        match self {
            Self::SendMsg(pieces) | Self::Bundle(pieces) => pieces,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn every_way_writes_the_same_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut peers, mut sockets) = (Vec::new(), Vec::new());
        // More than a slice, so that buffers of bundles come round again.
        for _ in 0..SLICE + 6 {
            peers.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            sockets.push(OwnedFd::from(listener.accept().unwrap().0));
        }
        let mut ring = TrialRing::new(sockets, 4096).unwrap();
        let expected: Vec<u8> = (0..1024).map(|i| (i * 7 % 251) as u8).collect();
        // SAFETY: the payload is that long and no write is in flight.
        unsafe { std::ptr::copy_nonoverlapping(expected.as_ptr(), ring.payload.start(), 1024) };
        for how in [
            TrialWrite::Send,
            TrialWrite::SendFd,
            TrialWrite::SendMsg(1),
            TrialWrite::SendMsg(8),
            TrialWrite::Bundle(1),
            TrialWrite::Bundle(8),
            TrialWrite::Bundle(2),
            TrialWrite::SendZc,
            TrialWrite::SendZcFixed,
            TrialWrite::WriteFixed,
        ] {
            match ring.round(how, 1024) {
                Ok(round) => assert_eq!(round.writes, peers.len() as u64, "{how:?}"),
                // Linux before 6.10 knows no bundles.
                Err(e) if matches!(how, TrialWrite::Bundle(_)) && e.raw_os_error() == Some(22) => {
                    continue;
                }
                Err(e) => panic!("{how:?}: {e}"),
            }
            for peer in &mut peers {
                let mut got = [0; 1024];
                peer.read_exact(&mut got).unwrap();
                assert_eq!(got[..], expected, "{how:?}");
            }
        }
        assert!(ring.round(TrialWrite::SendMsg(3), 1024).is_err());
        assert!(ring.round(TrialWrite::Send, 8192).is_err());
    }
}
