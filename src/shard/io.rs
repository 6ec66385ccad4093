//! What a shard asks of the outside world. Two implementers: the io_uring driver
//! ([`crate::ring`]) and the simulated one ([`crate::sim`]).

use bytes::Bytes;

use crate::fanout::Part;
use crate::position::{CommitNumber, Nanos, SegmentNumber, ShardId};
use crate::ring::LogBuf;

/// Names a connection. The slot is reused after [`Event::Closed`], with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Index in the direct descriptor table.
    pub slot: u32,
    /// Counts the connections that had this slot.
    pub generation: u32,
}

/// Bytes that were received and wait in a provided buffer until [`Io::release`].
#[derive(Debug)]
pub struct RecvBuf {
    /// Number of the buffer.
    pub id: u16,
    /// Bytes in it.
    pub len: u32,
}

/// Why receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvEnd {
    /// The peer closed its side.
    Eof,
    /// [`Io::pause_recv`] took effect; nothing comes until [`Io::resume_recv`].
    Paused,
    /// The socket failed, with this errno.
    Failed(i32),
}

/// Work that a shard leaves to the cold executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Create a segment file: header block, zeros up to `bytes`, then sync file and directory.
    CreateSegment {
        /// Number of the segment.
        number: SegmentNumber,
        /// Salt for its header.
        salt: u64,
        /// Size of the file.
        bytes: u64,
    },
    /// Put a sealed segment's index beside it, on disk as a whole or not at all.
    WriteIndex {
        /// Number of the segment.
        number: SegmentNumber,
        /// The whole file.
        bytes: Bytes,
    },
    /// Add the next piece of the snapshot that is being written; the first one begins it anew.
    WriteSnapshot {
        /// Bytes of it that were written before.
        at: u64,
        /// The piece.
        bytes: Bytes,
    },
    /// Add the last piece of the snapshot, give it its name when it is on disk, and remove
    /// older ones.
    EndSnapshot {
        /// The log is covered up to this commit.
        covered: CommitNumber,
        /// Bytes of it that were written before.
        at: u64,
        /// The piece.
        bytes: Bytes,
        /// What the snapshots to remove cover.
        obsolete: Vec<CommitNumber>,
    },
    /// Remove these segment files and their indices, then sync the directory.
    RemoveSegments {
        /// Numbers of the segments.
        numbers: Vec<SegmentNumber>,
    },
}

/// What [`Io::wait`] returns.
#[derive(Debug)]
pub enum Event {
    /// A connection was accepted. Receiving is on.
    Accepted {
        /// Its name from now on.
        conn: ConnId,
    },
    /// Bytes came. The shard must [`Io::release`] the buffer.
    Received {
        /// From whom.
        conn: ConnId,
        /// Where they are.
        buf: RecvBuf,
    },
    /// No more bytes will come, or none for now.
    RecvEnded {
        /// From whom.
        conn: ConnId,
        /// Why.
        why: RecvEnd,
    },
    /// A part of the write went to the socket; the driver goes on with the rest.
    SendProgress {
        /// To whom.
        conn: ConnId,
    },
    /// The whole write went to the socket, or failed with an errno.
    Sent {
        /// To whom.
        conn: ConnId,
        /// How it ended.
        result: Result<(), i32>,
    },
    /// Bytes that the socket holds and its peer has not taken, or an errno if the kernel cannot
    /// tell.
    Unsent {
        /// Of whom.
        conn: ConnId,
        /// How many.
        result: Result<u32, i32>,
    },
    /// Last event of a connection that was closed by [`Io::close`]: nothing of it is in
    /// flight any more.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// The log write is on disk, or failed with an errno (a short write is `EIO`).
    LogWritten {
        /// How it ended.
        result: Result<(), i32>,
        /// The buffer, for reuse.
        buf: LogBuf,
    },
    /// A log read ended. Bytes past the end of the file are not in the buffer.
    LogRead {
        /// The token given to [`Io::read_log`].
        token: u64,
        /// The bytes or an errno.
        result: Result<LogBuf, i32>,
    },
    /// A job ended, with an errno if it failed.
    JobDone {
        /// The job.
        job: Job,
        /// How it ended.
        result: Result<(), i32>,
    },
}

/// The outside world of one shard.
///
/// Everything asked for is queued and submitted by the next [`Io::wait`]. Calls that name a
/// connection after its [`Event::Closed`] are ignored.
pub trait Io {
    /// Monotonic time, as of the last [`Io::wait`].
    fn now(&self) -> Nanos;

    /// Monotonic time of this very moment.
    fn clock(&self) -> Nanos {
        self.now()
    }

    /// Unix time in milliseconds; may jump.
    fn wall_ms(&self) -> u64;

    /// A random number, for salts.
    fn random(&mut self) -> u64;

    /// Submits what is queued and appends what finished to `events`. Blocks until something
    /// finished, a wake-up came or `until` passed; `None` means no deadline, a time that
    /// has passed means do not block.
    fn wait(&mut self, until: Option<Nanos>, events: &mut Vec<Event>);

    /// Lets others that wait for this core run first: what a log write still needs of the
    /// kernel may be done by threads of its own there, and a shard with work never sleeps.
    fn give_way(&mut self) {}

    /// The bytes of a receive buffer.
    fn bytes(&self, buf: &RecvBuf) -> &[u8];

    /// Gives a receive buffer back.
    fn release(&mut self, buf: RecvBuf);

    /// Stops receiving from `conn`; [`RecvEnd::Paused`] follows, unless it ends otherwise.
    /// Bytes that are on their way may still come before.
    fn pause_recv(&mut self, conn: ConnId);

    /// Receives again after [`RecvEnd::Paused`].
    fn resume_recv(&mut self, conn: ConnId);

    /// Writes all of `parts` (at most [`crate::limits::SEND_PARTS_MAX`], not empty) in
    /// order and leaves the vector empty. Only one write per connection may be in flight;
    /// [`Event::Sent`] ends it. The driver holds the parts until then.
    fn send(&mut self, conn: ConnId, parts: &mut Vec<Part>);

    /// Asks how much the socket holds that its peer has not taken; [`Event::Unsent`] answers,
    /// unless the connection is closed before.
    fn query_unsent(&mut self, conn: ConnId);

    /// An empty buffer for control frames, recycled if possible.
    fn control_buf(&mut self) -> Vec<u8>;

    /// Shuts down the sending side, after the write in flight.
    fn shutdown_write(&mut self, conn: ConnId);

    /// Cancels what is in flight and closes. Events of the connection may still come until
    /// [`Event::Closed`]; a write in flight then ends with an errno.
    fn close(&mut self, conn: ConnId);

    /// Accepts no more connections.
    fn stop_accepting(&mut self);

    /// Writes `buf` to the segment at `offset`, durable on completion (O_DIRECT and
    /// RWF_DSYNC). Offset and length are multiples of [`crate::limits::LOG_BLOCK`]; one
    /// write at a time.
    fn write_log(&mut self, segment: SegmentNumber, offset: u64, buf: LogBuf);

    /// Reads up to `len` bytes of the segment at `offset`, both multiples of
    /// [`crate::limits::LOG_BLOCK`].
    fn read_log(&mut self, token: u64, segment: SegmentNumber, offset: u64, len: usize);

    /// Starts a job; [`Event::JobDone`] ends it.
    fn start_job(&mut self, job: Job);

    /// Wakes another shard of this node that is asleep.
    fn wake(&mut self, shard: ShardId);
}
