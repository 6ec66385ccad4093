//! The kinds of worlds that are run.

use super::config::{Trouble, WorldConfig};
use super::rng::Rng;
use super::trace::Fault;
use crate::config::{SecondConnection, ShardConfig};

/// A kind of world; the seed chooses among its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// No trouble but a network that cuts, merges and delays.
    Calm,
    /// Hardly anything happens; whoever has something to do must wake up for it.
    Quiet,
    /// Members come, go and do not read; tails and retention are small.
    Unsteady,
    /// The node stops at any point and starts again from what its disks have.
    Crashing,
    /// Level memory, and crashes.
    Memory,
    /// Full and failing disks.
    Disk,
    /// Clients ask for history and state, and change state, while the node crashes.
    Queries,
    /// The number of shards changes from start to start.
    Shards,
    /// Bits flip on the disks.
    Rot,
    /// Files are short and there is seldom room for another; the node stops when one is made or
    /// removed.
    Tight,
    /// Files are short and it takes long to make and to remove them: the log waits for its next
    /// file, and jobs run side by side. The node stops meanwhile.
    Sluggish,
    /// Everything at once, each at a strength of its own.
    All,
}

impl Profile {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 12] = [
        ("calm", Self::Calm),
        ("quiet", Self::Quiet),
        ("unsteady", Self::Unsteady),
        ("crashing", Self::Crashing),
        ("memory", Self::Memory),
        ("disk", Self::Disk),
        ("queries", Self::Queries),
        ("shards", Self::Shards),
        ("rot", Self::Rot),
        ("tight", Self::Tight),
        ("sluggish", Self::Sluggish),
        ("all", Self::All),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, profile)| *profile == self).map_or("", |(name, _)| name)
    }

    /// The world of a seed.
    #[must_use]
    pub fn config(self, seed: u64) -> WorldConfig {
        let shards = 1 + (seed % 3) as u16;
        match self {
            Self::Calm => WorldConfig::calm(shards),
            Self::Quiet => quiet(2 + (seed % 2) as u16),
            Self::Unsteady => allowing(seed, unsteady(shards)),
            Self::Crashing => crashing(shards),
            Self::Memory => memory(seed, shards),
            Self::Disk => disk(seed, shards),
            Self::Queries => WorldConfig { query_ppm: 60_000, ..crashing(shards) },
            Self::Shards => resharding(seed, shards),
            Self::Rot => rot(shards),
            Self::Tight => tight(seed, shards),
            Self::Sluggish => sluggish(seed),
            Self::All => all(seed, shards),
        }
    }

    /// Trouble that must happen when some dozens of its seeds are run.
    #[must_use]
    pub fn expected(self) -> &'static [Fault] {
        use Fault as F;
        match self {
            Self::Calm => &[F::SplitReceive, F::MergedReceive, F::ShortWrite, F::NoReceiveBuffer],
            Self::Quiet => &[F::MeshFull],
            Self::Unsteady => &[
                F::AnsweredAgain,
                F::RefusedTooLong,
                F::ClientClosed,
                F::ClientReset,
                F::ClientVanished,
                F::ServerClosed,
                F::SlowReader,
                F::StalledWrite,
                F::Paused,
                F::Garbage,
                F::CatchUp,
                F::Gap,
                F::ShardStalled,
                F::MeshFull,
                F::Mute,
                F::ClockJumped,
                F::Republished,
                F::Delayed,
                F::Overtaken,
                F::ResetMidFrame,
                F::SideBySide,
            ],
            Self::Crashing => &[
                F::AnsweredAgain,
                F::Crash,
                F::CrashAtStart,
                F::TornWrite,
                F::InterruptedJob,
                F::InterruptedSnapshot,
                F::SnapshotWritten,
                F::UnsyncedLost,
                F::NameLost,
                F::RenameLost,
                F::Drain,
                F::CrashInDrain,
                F::ReorderedSectors,
                F::SlowDisk,
            ],
            Self::Memory => &[F::Crash, F::AnsweredEarly, F::MemoryLost, F::EpochChanged, F::Gap],
            Self::Disk => &[
                F::RefusedGap,
                F::GivenUp,
                F::DiskFull,
                F::RefusedFull,
                F::WriteError,
                F::SyncError,
                F::StartFailed,
                F::RefusedFailed,
                F::Indeterminate,
                F::ReadError,
                F::Unreadable,
                F::Crash,
            ],
            Self::Queries => &[F::Crash, F::SnapshotWritten, F::RosterRead, F::RosterAnnounced],
            Self::Shards => &[
                F::Resharded,
                F::InterruptedReshard,
                F::CrashAtStart,
                F::Drain,
                F::SnapshotWritten,
                F::CatchUp,
                F::Gap,
                F::Resumed,
                F::AnsweredAgain,
            ],
            Self::Rot => {
                &[F::RottenHeader, F::RottenCommit, F::RottenTail, F::DamageTold, F::EpochChanged]
            }
            Self::Tight => &[
                F::Crash,
                F::DiskFull,
                F::RefusedFull,
                F::InterruptedJob,
                F::InterruptedSnapshot,
                F::NameLost,
                F::MemoryLost,
            ],
            Self::Sluggish => &[
                F::Crash,
                F::InterruptedJob,
                F::InterruptedRetention,
                F::InterruptedSnapshot,
                F::NameLost,
                F::EpochChanged,
                F::Resumed,
            ],
            Self::All => &Fault::ALL,
        }
    }
}

fn quiet(shards: u16) -> WorldConfig {
    let calm = WorldConfig::calm(shards);
    WorldConfig {
        clients: 4,
        active_ms: 60_000,
        tick_ms: 1_500,
        mesh_entries: 1,
        late_ms: 700,
        shard: ShardConfig { heartbeat_ms: 20_000, ..calm.shard.clone() },
        ..calm
    }
}

fn unsteady(shards: u16) -> WorldConfig {
    let calm = WorldConfig::calm(shards);
    WorldConfig {
        slow_ppm: 300_000,
        churn_ppm: 30_000,
        mesh_entries: 2,
        shard: ShardConfig {
            tail_bytes_max: 12 * 1024,
            pinned_bytes_max: 256 * 1024,
            control_bytes_max: 64,
            inbox_bytes_max: 8 * 1024,
            send_bytes_max: 8 * 1024,
            segment_bytes: 192 * 1024,
            retention_bytes: 256 * 1024,
            ..calm.shard.clone()
        },
        trouble: Trouble {
            disconnect_ppm: 6_000,
            garbage_ppm: 1_000,
            mute_ppm: 50_000,
            stall_ppm: 1_000,
            clock_ppm: 1_000,
            ..Trouble::default()
        },
        ..calm
    }
}

/// Of some seeds, a member may have several connections.
fn allowing(seed: u64, mut config: WorldConfig) -> WorldConfig {
    if seed % 4 == 1 {
        config.shard.second_connection = SecondConnection::Allow;
    }
    config
}

fn crashing(shards: u16) -> WorldConfig {
    let calm = WorldConfig::calm(shards);
    WorldConfig {
        slow_ppm: 150_000,
        shard: ShardConfig {
            segment_bytes: if shards == 2 { 192 * 1024 } else { 512 * 1024 },
            ..calm.shard.clone()
        },
        trouble: Trouble {
            disconnect_ppm: 2_000,
            crash_every_ms: 1_000,
            crash_at_write_ppm: 20_000,
            crash_at_job_ppm: 20_000,
            crash_at_start_ppm: 200_000,
            drain_ppm: 100_000,
            ..Trouble::default()
        },
        ..calm
    }
}

fn memory(seed: u64, shards: u16) -> WorldConfig {
    let config = if seed.is_multiple_of(2) { unsteady(shards) } else { crashing(shards) };
    let trouble = Trouble {
        crash_every_ms: 1_500,
        crash_at_write_ppm: 15_000,
        crash_at_job_ppm: 20_000,
        ..config.trouble.clone()
    };
    // With few of them, a crash can take the very first one of a group.
    let (memory_ppm, groups) = if seed % 5 < 2 { (30_000, 12) } else { (500_000, 5) };
    WorldConfig { memory_ppm, groups, trouble, ..config }
}

fn disk(seed: u64, shards: u16) -> WorldConfig {
    let config = unsteady(shards);
    let errors = seed % 4 < 2;
    let trouble = Trouble {
        crash_every_ms: 1_000,
        crash_at_start_ppm: 50_000,
        disk_full_ppm: if errors { 50_000 } else { 400_000 },
        write_error_ppm: if errors { 4_000 } else { 0 },
        read_error_ppm: 20_000,
        file_read_error_ppm: if errors { 5_000 } else { 0 },
        file_write_error_ppm: if errors { 5_000 } else { 0 },
        file_sync_error_ppm: if errors { 10_000 } else { 0 },
        ..config.trouble.clone()
    };
    // A log that failed keeps what it has shown in memory only, however little the tails may hold.
    let memory_ppm = if seed.is_multiple_of(3) { 500_000 } else { 100_000 };
    let tail_bytes_max = if seed.is_multiple_of(2) { 1024 } else { config.shard.tail_bytes_max };
    let shard = ShardConfig { tail_bytes_max, ..config.shard.clone() };
    with_time_to_give_up(seed, WorldConfig { memory_ppm, shard, trouble, ..config })
}

/// A place that cannot be read is tried for seconds before it is given up.
fn with_time_to_give_up(seed: u64, config: WorldConfig) -> WorldConfig {
    if seed % 8 != 3 {
        return config;
    }
    let crash_every_ms = 4 * config.trouble.crash_every_ms;
    let trouble = Trouble { crash_every_ms, ..config.trouble.clone() };
    WorldConfig { active_ms: 3 * config.active_ms, trouble, ..config }
}

/// Segments and retention are small, so that sealed logs are used up too.
fn resharding(seed: u64, shards: u16) -> WorldConfig {
    let config = if seed.is_multiple_of(2) { unsteady(shards) } else { crashing(shards) };
    let trouble = Trouble {
        crash_every_ms: 800,
        crash_at_start_ppm: 200_000,
        crash_at_job_ppm: 20_000,
        drain_ppm: 300_000,
        reshard_ppm: 600_000,
        file_read_error_ppm: if seed.is_multiple_of(5) { 3_000 } else { 0 },
        ..config.trouble.clone()
    };
    let shard = ShardConfig {
        segment_bytes: 96 * 1024,
        retention_bytes: 256 * 1024,
        ..config.shard.clone()
    };
    WorldConfig { memory_ppm: 100_000, query_ppm: 30_000, shard, trouble, ..config }
}

/// Segments are small, so that there are several, and old ones are kept.
fn rot(shards: u16) -> WorldConfig {
    let config = crashing(shards);
    let trouble = Trouble { rot_every_ms: 800, crash_every_ms: 1_000, ..config.trouble.clone() };
    let shard = ShardConfig { segment_bytes: 96 * 1024, ..config.shard.clone() };
    WorldConfig { memory_ppm: 50_000, shard, trouble, ..config }
}

/// At the end of a segment, with no room for the next one, cursors may go to the log while messages
/// wait; names of files change often, and the power goes soon after that.
fn tight(seed: u64, shards: u16) -> WorldConfig {
    let config = unsteady(shards);
    let full = seed.is_multiple_of(2);
    let trouble = Trouble {
        crash_every_ms: if full { 600 } else { 4_000 },
        crash_at_write_ppm: 5_000,
        crash_at_job_ppm: if full { 20_000 } else { 500_000 },
        disk_full_ppm: if full { 700_000 } else { 50_000 },
        stall_ppm: 0,
        ..config.trouble.clone()
    };
    let shard = ShardConfig {
        segment_bytes: if full { 192 * 1024 } else { 96 * 1024 },
        retention_bytes: 192 * 1024,
        cursor_flush_ms: 20,
        ack_every: 4,
        ..config.shard.clone()
    };
    let memory_ppm = if full { 900_000 } else { 300_000 };
    WorldConfig { memory_ppm, slow_ppm: 50_000, tick_ms: 25, shard, trouble, ..config }
}

/// Of odd seeds only removals are slow, so that the next one is due while one goes on. Nothing can
/// be lost there, so a new epoch shows that a start took the log for damaged. Of even seeds
/// messages of level memory wait for the next file; members acknowledge them meanwhile, and cursors
/// need not wait. What waits must fit into one file, as it always does in files of a real node: few
/// clients say little, but often.
fn sluggish(seed: u64) -> WorldConfig {
    let config = unsteady(1 + (seed / 2 % 2) as u16);
    let removals = !seed.is_multiple_of(2);
    let trouble = Trouble {
        crash_every_ms: 2_000,
        crash_at_job_ppm: 50_000,
        stall_ppm: 0,
        ..config.trouble.clone()
    };
    let bytes = if removals { 96 * 1024 } else { 192 * 1024 };
    let shard = ShardConfig {
        segment_bytes: bytes,
        retention_bytes: bytes,
        cursor_flush_ms: 20,
        ack_every: 4,
        ..config.shard.clone()
    };
    let config =
        WorldConfig { slow_ppm: 50_000, slow_removal_ppm: 500_000, shard, trouble, ..config };
    if removals {
        return WorldConfig { tick_ms: 20, slow_step_ms: 300, ..config };
    }
    WorldConfig {
        clients: 8,
        groups: 3,
        tick_ms: 10,
        memory_ppm: 900_000,
        payload_bytes: 400,
        slow_job_ppm: 500_000,
        slow_step_ms: 150,
        ..config
    }
}

/// Every chance is above 0, and how high follows from the seed: where everything is frequent,
/// nothing runs long enough to go wrong in other ways.
fn all(seed: u64, shards: u16) -> WorldConfig {
    let mut rng = Rng::new(seed ^ 0xA11);
    let mut some = |high: u32| match rng.below(3) {
        0 => (high / 20).max(1),
        1 => (high / 4).max(1),
        _ => high,
    };
    let config = unsteady(shards);
    let rots = seed.is_multiple_of(4);
    let trouble = Trouble {
        disconnect_ppm: some(8_000),
        garbage_ppm: some(1_500),
        mute_ppm: some(50_000),
        stall_ppm: some(1_500),
        clock_ppm: some(2_000),
        crash_every_ms: u64::from(4_000 - some(3_000)),
        crash_at_write_ppm: some(15_000),
        crash_at_job_ppm: some(20_000),
        crash_at_start_ppm: some(200_000),
        drain_ppm: some(200_000),
        disk_full_ppm: some(200_000),
        // Where something rots, less can be asked of what stays.
        rot_every_ms: if rots { 1_500 } else { 0 },
        write_error_ppm: some(3_000),
        read_error_ppm: some(20_000),
        file_read_error_ppm: some(3_000),
        file_write_error_ppm: some(4_000),
        file_sync_error_ppm: some(8_000),
        reshard_ppm: some(300_000),
    };
    let config = WorldConfig {
        clients: 10 + some(20) as usize,
        memory_ppm: some(400_000),
        query_ppm: if rots { 0 } else { some(60_000) },
        slow_ppm: some(300_000),
        trouble,
        ..config
    };
    with_time_to_give_up(seed, allowing(seed, config))
}
