//! One io_uring: set-up with the flags that the whole project uses, queueing, entering.
//!
//! With DEFER_TASKRUN the kernel does its work for this ring inside of [`Uring::enter`] only,
//! on the thread that created it, and nowhere else.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, squeue};

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cqe {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}

/// How long [`Uring::enter`] may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    No,
    For(Duration),
    Forever,
}

pub(super) struct Uring {
    ring: IoUring,
    enter_flags: EnterFlags,
    /// Completions taken off the queue but not handled yet.
    done: Vec<Cqe>,
    pub enters: u64,
    pub cq_overflows: u64,
}

impl Uring {
    pub fn new(sq_entries: u32, cq_entries: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(cq_entries);
        // NO_SQARRAY came with Linux 6.6 and saves one indirection per entry.
        let ring = match builder.clone().setup_no_sqarray().build(sq_entries) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => builder.build(sq_entries)?,
            other => other?,
        };
        let mut enter_flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        if ring.params().is_feature_no_iowait() {
            // An idle server must not look like one that waits for its disk.
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        let done = Vec::with_capacity(ring.params().cq_entries() as usize);
        Ok(Self { ring, enter_flags, done, enters: 0, cq_overflows: 0 })
    }

    pub fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Queues `entry`; submits what is queued if there is no room.
    ///
    /// # Safety
    /// Whatever memory `entry` points to must stay valid and, if the kernel writes to it,
    /// unused until its last completion was handled.
    #[inline]
    pub unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the caller keeps what the entry points to alive.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.make_room();
        }
    }

    /// Entries that are queued but not submitted.
    #[inline]
    pub fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    #[cold]
    fn make_room(&mut self) {
        self.enters += 1;
        let queued = self.queued() as u32;
        // SAFETY: no argument is passed, and min_complete is 0.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, 0, None) };
        match entered.map_err(|e| e.raw_os_error()) {
            Ok(_) | Err(Some(libc::EINTR | libc::EAGAIN)) => {}
            // The completion queue is full: move it away and let the kernel flush its backlog.
            Err(Some(libc::EBUSY)) => {
                self.collect();
                self.enter_raw(0, Block::No);
            }
            Err(errno) => fatal(errno),
        }
    }

    /// Submits what is queued; then blocks, if asked to, until there is a completion.
    /// Returns at once if completions wait already, and makes no call into the kernel if it
    /// has nothing to do there.
    #[inline]
    pub fn enter(&mut self, block: Block) {
        let sq = self.ring.submission();
        let (queued, overflow, taskrun) = (sq.len(), sq.cq_overflow(), sq.taskrun());
        drop(sq);
        self.cq_overflows += u64::from(overflow);
        let block = if self.has_done() { Block::No } else { block };
        if block == Block::No && queued == 0 && !overflow && !taskrun {
            return;
        }
        self.enter_raw(queued as u32, block);
    }

    /// Whether completions wait to be taken.
    #[inline]
    pub fn has_done(&mut self) -> bool {
        !self.done.is_empty() || !self.ring.completion().is_empty()
    }

    fn enter_raw(&mut self, queued: u32, block: Block) {
        self.enters += 1;
        let timespec;
        let mut args = SubmitArgs::new();
        let want = match block {
            Block::No => 0,
            Block::Forever => 1,
            Block::For(time) => {
                timespec = Timespec::from(time);
                args = args.timespec(&timespec);
                1
            }
        };
        // SAFETY: with EXT_ARG the argument is a SubmitArgs; it and the timespec in it live
        // until the call returns.
        let entered = unsafe {
            self.ring.submitter().enter(queued, want, self.enter_flags.bits(), Some(&args))
        };
        match entered.map_err(|e| e.raw_os_error()) {
            // EBUSY: the completion queue is full; the caller drains it now and comes back.
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(errno) => fatal(errno),
        }
    }

    fn collect(&mut self) {
        let completions = self.ring.completion();
        self.done.extend(completions.map(|c| Cqe {
            user_data: c.user_data(),
            result: c.result(),
            flags: c.flags(),
        }));
    }

    /// Cancels everything that can be cancelled and closes the table of descriptors, for the
    /// end of the ring. What is left to the kernel is done at some time after the process has
    /// ended, and until then a listener keeps its address.
    pub fn cancel_all(&mut self) {
        self.enter(Block::No);
        let timeout = Some(Timespec::from(Duration::from_secs(1)));
        // Nothing to cancel is reported as ENOENT; a request that cannot be cancelled is the
        // business of the one who waits for it.
        let _ = self.ring.submitter().register_sync_cancel(timeout, CancelBuilder::any());
        // One call runs about 20 cancelled requests.
        while self.has_kernel_work() {
            self.enter_raw(0, Block::No);
            self.collect();
            self.done.clear();
        }
        let _ = self.ring.submitter().unregister_files();
    }

    fn has_kernel_work(&mut self) -> bool {
        let sq = self.ring.submission();
        sq.taskrun() || sq.cq_overflow()
    }

    /// Takes all completions; give the vector back by [`Uring::put_back`].
    #[inline]
    pub fn take_done(&mut self) -> Vec<Cqe> {
        self.collect();
        std::mem::take(&mut self.done)
    }

    /// Takes the vector of [`Uring::take_done`] back for reuse.
    #[inline]
    pub fn put_back(&mut self, mut done: Vec<Cqe>) {
        done.clear();
        if self.done.is_empty() {
            self.done = done;
        }
    }
}

/// The kernel refused a call that cannot be wrong, or lost completions: no state of this
/// ring can be trusted any more.
#[cold]
#[allow(clippy::panic, reason = "recovery from the log is the only way on")]
fn fatal(errno: Option<i32>) -> ! {
    panic!("io_uring_enter failed: {}", io::Error::from_raw_os_error(errno.unwrap_or(0)))
}
