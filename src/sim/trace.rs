//! What happened last, for whoever has to understand a failing seed; and how often each fault
//! was injected.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use crate::position::Nanos;
use crate::wal::Damage;

/// Events kept, unless `FANFARE_TRACE` says otherwise.
const KEPT: usize = 300;

/// The last events of a world.
#[derive(Debug)]
pub(super) struct Trace {
    kept: usize,
    show: bool,
    lines: Lines,
}

type Lines = Rc<RefCell<VecDeque<(Nanos, Note)>>>;

thread_local! {
    /// Those of the world that was made last in this thread.
    static LAST: RefCell<Lines> = RefCell::default();
}

/// The last events of the world that was made last in this thread, for a panic hook: a panic that
/// aborts runs nothing else.
#[must_use]
pub fn last_events() -> String {
    let lines = LAST.try_with(|last| last.try_borrow().map(|lines| shown(&lines)));
    lines.ok().and_then(Result::ok).unwrap_or_default()
}

fn shown(lines: &Lines) -> String {
    let Ok(lines) = lines.try_borrow() else { return String::new() };
    let line = |(at, note): &(Nanos, Note)| format!("{:>12.3} ms  {note:?}\n", at.0 as f64 / 1e6);
    lines.iter().map(line).collect()
}

impl Default for Trace {
    fn default() -> Self {
        let kept = std::env::var("FANFARE_TRACE").ok().and_then(|n| n.parse().ok());
        let lines = Lines::default();
        LAST.with(|last| last.replace(lines.clone()));
        Self { kept: kept.unwrap_or(KEPT).max(1), show: false, lines }
    }
}

/// One event worth reading.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the fields are read by Debug, which the compiler does not count")]
pub(super) enum Note {
    Start { start: u32, shards: u16 },
    Recovered { shard: usize, commits: u64, torn: bool, damage: usize, snapshot: u64, next: u64 },
    Damage { shard: usize, damage: Damage },
    Crash,
    Connect { client: usize, link: u32, shard: usize },
    ClientLeaves { client: usize, how: Fault },
    Disconnected { client: usize },
    ServerCloses { link: u32 },
    Write { link: u32, parts: usize },
    Commit { shard: usize, segment: u64, offset: u64, bytes: usize },
    CommitDone { shard: usize, ok: bool },
    Torn { shard: usize, there: usize, sectors: usize },
    Job { shard: usize, ok: bool },
    Joining { client: usize, group: usize, from: u64 },
    Joined { client: usize, group: usize, epoch: u32, head: u64 },
    Left { client: usize, group: usize },
    Epoch { client: usize, group: usize, epoch: u32, first: u64 },
    Deliver { client: usize, group: usize, seq: u64, id: u64 },
    Ack { client: usize, group: usize, seq: u64 },
    Redeliver { client: usize, group: usize, from: u64, attempt: u32 },
    Receipt { client: usize, group: u64, seq: u64, acked: u32, members: u32 },
    Gap { client: usize, group: usize, from: u64, to: u64 },
    Publish { client: usize, group: usize, request: u32, id: u64 },
    Published { client: usize, group: usize, request: u32, seq: u64, id: u64 },
    Refused { client: usize, request: u32, code: u16 },
    Fault(Fault),
    Phase(&'static str),
}

impl Trace {
    /// Keeps so many events, or shows each as it happens.
    pub fn keep(&mut self, kept: usize, show: bool) {
        self.kept = kept.max(1);
        self.show = show;
    }

    pub fn note(&mut self, at: Nanos, note: Note) {
        if self.show {
            return println!("{:>12.3} ms  {note:?}", at.0 as f64 / 1e6);
        }
        let mut lines = self.lines.borrow_mut();
        if lines.len() == self.kept {
            lines.pop_front();
        }
        lines.push_back((at, note));
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.lines))
    }
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A kind of trouble that a world can make, or a rare path that it wants to see taken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])* $name),* }

        /// How often each kind happened.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Faults([u64; Fault::ALL.len()]);

        impl Fault {
            /// All kinds.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];
        }
    };
}

faults! {
    /// A frame reached the server in more than one piece.
    SplitReceive,
    /// The server got bytes of several sends at once.
    MergedReceive,
    /// A socket took only a part of a write.
    ShortWrite,
    /// A write waited for a client that did not read.
    StalledWrite,
    /// Bytes waited for a provided buffer.
    NoReceiveBuffer,
    /// The shard paused a connection.
    Paused,
    /// A client closed in good order.
    ClientClosed,
    /// A client reset its connection.
    ClientReset,
    /// A client vanished and the server was not told.
    ClientVanished,
    /// A connection was reset while the server had a part of a frame.
    ResetMidFrame,
    /// Bytes took longer than a millisecond to the server.
    Delayed,
    /// Bytes reached the server before others that another connection had sent earlier.
    Overtaken,
    /// The server closed a connection.
    ServerClosed,
    /// A publish was refused since one before it was.
    RefusedGap,
    /// A client gave up a message that was refused, and used its number for another.
    GivenUp,
    /// A group did not know a producer any more, and the client drew a new producer id.
    ProducerRenewed,
    /// A client sent a publish twice at once.
    SentTwice,
    /// A publish was answered that was in the group before it was sent again.
    AnsweredAgain,
    /// A client said something that no client should.
    Garbage,
    /// A member did not read for long.
    SlowReader,
    /// A ring between two shards was full.
    MeshFull,
    /// A client connected and said nothing.
    Mute,
    /// A shard had no turn for long.
    ShardStalled,
    /// The wall clock jumped.
    ClockJumped,
    /// A member was told of a gap.
    Gap,
    /// A member was told of a gap that damage made.
    DamageTold,
    /// A member was served from the log.
    CatchUp,
    /// A member saw an epoch change.
    EpochChanged,
    /// A durable member came back and went on after its cursor.
    Resumed,
    /// A durable member was asked whether it has read everything.
    Probed,
    /// A durable member got messages again.
    Redelivered,
    /// A second connection of a member took over.
    Takeover,
    /// A member connected beside its older connection, which stayed.
    SideBySide,
    /// A publisher learned who has its message.
    Receipt,
    /// A client was told of a roster that it asked for.
    RosterRead,
    /// A client was told what changed on a roster.
    RosterAnnounced,
    /// The node stopped at once.
    Crash,
    /// The node stopped in good order.
    Drain,
    /// The power went while the node stopped in good order.
    CrashInDrain,
    /// A crash left a part of a log write.
    TornWrite,
    /// Of a log write that was torn, a sector is there and an earlier one is not.
    ReorderedSectors,
    /// The disk took longer than a millisecond.
    SlowDisk,
    /// The power went while the node started.
    CrashAtStart,
    /// The node started with another number of shards than before.
    Resharded,
    /// The power went in a start with another number of shards.
    InterruptedReshard,
    /// A start with another number of shards failed, since the disk did.
    FailedReshard,
    /// The node did not start because its disk failed.
    StartFailed,
    /// A crash took bytes of a file that no sync had made durable.
    UnsyncedLost,
    /// A crash took a name that no sync had made durable, or brought one back.
    NameLost,
    /// A crash undid a rename that no sync had made durable.
    RenameLost,
    /// A sync failed.
    SyncError,
    /// A snapshot was finished.
    SnapshotWritten,
    /// A crash met a snapshot that was being written.
    InterruptedSnapshot,
    /// A crash met segments that were being removed.
    InterruptedRetention,
    /// A crash met a job that was under way.
    InterruptedJob,
    /// A bit flipped in the header of a segment.
    RottenHeader,
    /// A bit flipped in a commit.
    RottenCommit,
    /// A bit flipped in the last commit of a segment.
    RottenTail,
    /// A bit flipped in a snapshot.
    RottenSnapshot,
    /// A bit flipped in the index of a segment.
    RottenIndex,
    /// There was no room for a segment.
    DiskFull,
    /// A publish was refused because it was too long.
    RefusedTooLong,
    /// A publish was refused because there was no room.
    RefusedFull,
    /// A log write failed.
    WriteError,
    /// A publish was refused because the log had failed.
    RefusedFailed,
    /// A publish was answered by INDETERMINATE.
    Indeterminate,
    /// A log read failed.
    ReadError,
    /// A place of the log could not be read as often as it is tried.
    Unreadable,
    /// A publish without an answer was sent again.
    Republished,
    /// A message was answered before it was on disk.
    AnsweredEarly,
    /// A crash took messages of level memory that someone had seen.
    MemoryLost,
}

impl Default for Faults {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl Faults {
    pub(super) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub(super) fn count_many(&mut self, fault: Fault, times: u64) {
        self.0[fault as usize] += times;
    }

    /// How often `fault` happened.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds what happened in another world.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

impl fmt::Display for Faults {
    /// Those that happened, with their counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let happened = Fault::ALL.iter().filter(|fault| self.of(**fault) > 0);
        f.debug_map().entries(happened.map(|fault| (fault, self.of(*fault)))).finish()
    }
}
