//! What the threads of a run share beside the plan.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::record::{Histograms, Measured};

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Members join; whoever has joined waits.
    Join,
    /// Publishers publish.
    Run,
    /// What was published arrives.
    Drain,
    /// Over.
    Stop,
}

/// Latencies of one thread in one interval.
pub struct Interval {
    /// Number of the interval, from 0 at the start of the measured time.
    pub number: u64,
    /// The latencies.
    pub histograms: Box<Histograms>,
}

/// Counters of one thread.
#[derive(Default)]
#[repr(align(128))]
pub struct ThreadCounters {
    /// Its kernel id, for its CPU time.
    pub tid: AtomicI32,
    /// Messages verified.
    pub deliveries: AtomicU64,
}

/// How far a herd is, over all threads.
#[derive(Default)]
pub struct HerdCounters {
    /// When the last thread dropped its members; 0 before.
    pub dropped: AtomicU64,
    /// Members in their groups again, and when the last of them was.
    pub back: AtomicU64,
    /// See `back`.
    pub back_at: AtomicU64,
    /// Members that have what they missed, and when the last of them had.
    pub caught_up: AtomicU64,
    /// See `caught_up`.
    pub caught_up_at: AtomicU64,
}

impl HerdCounters {
    /// Counts members that were back and caught up at `now`.
    pub fn count(&self, (back, caught_up): (u64, u64), now: u64) {
        for (n, count, at) in
            [(back, &self.back, &self.back_at), (caught_up, &self.caught_up, &self.caught_up_at)]
        {
            if n > 0 {
                at.fetch_max(now, Ordering::AcqRel);
                count.fetch_add(n, Ordering::AcqRel);
            }
        }
    }
}

/// What threads share beside the plan.
pub struct Shared {
    /// The server.
    pub addr: SocketAddr,
    /// Number of workers.
    pub threads: usize,
    /// Connections that are ready.
    pub joined: AtomicU64,
    /// Threads all of whose connections are.
    pub joined_threads: AtomicUsize,
    /// Messages published.
    pub published: AtomicU64,
    /// Those with a PUBLISHED.
    pub answered: AtomicU64,
    /// Those with a RECEIPT.
    pub received: AtomicU64,
    /// Those that every reader has.
    pub completed: AtomicU64,
    /// Members that drop and come back.
    pub herd: HerdCounters,
    /// Bytes that slow members read.
    pub slow_bytes: AtomicU64,
    /// Members that are not verified whose connection ended.
    pub slow_closed: AtomicU64,
    /// A thread found something wrong.
    pub failed: AtomicBool,
    /// Group of each completed broadcast, for the closed loop.
    pub completed_groups: (Sender<u32>, Receiver<u32>),
    /// Finished intervals.
    pub intervals: Sender<Interval>,
    phase: AtomicU8,
    start: AtomicU64,
    from: AtomicU64,
    to: AtomicU64,
    counters: Vec<ThreadCounters>,
    publishers_asleep: AtomicBool,
    waker: Option<UnixStream>,
}

impl Shared {
    /// A run that joins at `addr`, and where its intervals come out.
    pub fn new(
        addr: SocketAddr,
        threads: usize,
        waker: Option<UnixStream>,
    ) -> (Self, Receiver<Interval>) {
        let (intervals, finished) = unbounded();
        let shared = Self {
            addr,
            threads,
            joined: AtomicU64::new(0),
            joined_threads: AtomicUsize::new(0),
            published: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            received: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            herd: HerdCounters::default(),
            slow_bytes: AtomicU64::new(0),
            slow_closed: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            completed_groups: unbounded(),
            intervals,
            phase: AtomicU8::new(Phase::Join as u8),
            start: AtomicU64::new(0),
            from: AtomicU64::new(0),
            to: AtomicU64::new(0),
            counters: (0..threads).map(|_| ThreadCounters::default()).collect(),
            publishers_asleep: AtomicBool::new(false),
            waker,
        };
        (shared, finished)
    }

    /// Where the run is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Join,
            1 => Phase::Run,
            2 => Phase::Drain,
            _ => Phase::Stop,
        }
    }

    /// Moves the run on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Starts the run: publishers begin at `start`.
    pub fn begin(&self, start: u64, measured: Measured) {
        self.start.store(start, Ordering::Relaxed);
        self.from.store(measured.from, Ordering::Relaxed);
        self.to.store(measured.to, Ordering::Relaxed);
        self.enter(Phase::Run);
    }

    /// Time of the first broadcast, and the measured time.
    pub fn schedule(&self) -> (u64, Measured) {
        let of = |time: &AtomicU64| time.load(Ordering::Relaxed);
        (of(&self.start), Measured { from: of(&self.from), to: of(&self.to) })
    }

    /// Counters of a thread.
    pub fn thread(&self, index: usize) -> &ThreadCounters {
        &self.counters[index]
    }

    /// Counters of all threads.
    pub fn counters(&self) -> &[ThreadCounters] {
        &self.counters
    }

    /// Messages verified by all threads.
    pub fn deliveries(&self) -> u64 {
        self.counters.iter().map(|c| c.deliveries.load(Ordering::Relaxed)).sum()
    }

    /// Called by the publishers' thread before it looks for completions and waits.
    pub fn fall_asleep(&self) {
        self.publishers_asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Called by the publishers' thread after it waited.
    pub fn wake_up(&self) {
        self.publishers_asleep.store(false, Ordering::SeqCst);
    }

    /// Called by another thread after it completed a broadcast.
    pub fn wake_publishers(&self) {
        fence(Ordering::SeqCst);
        if self.publishers_asleep.swap(false, Ordering::SeqCst)
            && let Some(mut waker) = self.waker.as_ref()
        {
            // When the socket is full there is a wake-up on its way already.
            let _ = waker.write(&[1]);
        }
    }
}
