//! What a world is like, and what goes wrong in it.

use crate::config::ShardConfig;
use crate::position::Level;

/// Shares of chance are in millionths.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Shards of the node, at first.
    pub shards: u16,
    /// Clients.
    pub clients: usize,
    /// Groups.
    pub groups: usize,
    /// Virtual time during which clients are active and things go wrong.
    pub active_ms: u64,
    /// Mean time between two actions of a client.
    pub tick_ms: u64,
    /// Share of publishes that ask for level memory.
    pub memory_ppm: u32,
    /// Longest payload; 0 allows any. Too long ones, which are refused, do not count.
    pub payload_bytes: usize,
    /// Share of clients that read slowly.
    pub slow_ppm: u32,
    /// Share of clients that are durable members.
    pub durable_ppm: u32,
    /// Share of publishes that ask for a receipt.
    pub receipt_ppm: u32,
    /// Clients ask for history and state, and change state.
    pub query_ppm: u32,
    /// Clients leave and join groups.
    pub churn_ppm: u32,
    /// Share of jobs that make files that are slow.
    pub slow_job_ppm: u32,
    /// Share of jobs that remove files that are slow.
    pub slow_removal_ppm: u32,
    /// A step of a slow job takes up to this long.
    pub slow_step_ms: u64,
    /// Entries of each ring between two shards.
    pub mesh_entries: usize,
    /// No message and no answer may take longer than this; 0 allows any time.
    pub late_ms: u64,
    /// What the operator set.
    pub shard: ShardConfig,
    /// What goes wrong.
    pub trouble: Trouble,
}

/// Chances of trouble; all 0 is a good day.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// A client goes away, at each of its ticks.
    pub disconnect_ppm: u32,
    /// A client sends garbage, at each of its ticks.
    pub garbage_ppm: u32,
    /// A client says nothing after it has connected.
    pub mute_ppm: u32,
    /// A turn is followed by a long sleep.
    pub stall_ppm: u32,
    /// The wall clock jumps, at each turn.
    pub clock_ppm: u32,
    /// Mean time between two crashes; 0 is never.
    pub crash_every_ms: u64,
    /// A stop while a log write is in flight or has just ended, at each write.
    pub crash_at_write_ppm: u32,
    /// A stop soon after a job on files was started, at each job.
    pub crash_at_job_ppm: u32,
    /// Share of stops that are in good order instead.
    pub drain_ppm: u32,
    /// The power goes while the node starts, at each start.
    pub crash_at_start_ppm: u32,
    /// Another number of shards is asked for, at each start but the first.
    pub reshard_ppm: u32,
    /// There is no room for a file.
    pub disk_full_ppm: u32,
    /// A read of a file fails that is not one of the running log.
    pub file_read_error_ppm: u32,
    /// The same for writes.
    pub file_write_error_ppm: u32,
    /// The same for syncs.
    pub file_sync_error_ppm: u32,
    /// Mean time between two bits that flip on a disk; 0 is never.
    pub rot_every_ms: u64,
    /// A log write fails.
    pub write_error_ppm: u32,
    /// A log read fails.
    pub read_error_ppm: u32,
}

impl WorldConfig {
    /// A small world without trouble.
    #[must_use]
    pub fn calm(shards: u16) -> Self {
        Self {
            shards,
            clients: 16,
            groups: 5,
            active_ms: 4_000,
            tick_ms: 40,
            memory_ppm: 0,
            payload_bytes: 0,
            slow_ppm: 0,
            durable_ppm: 500_000,
            receipt_ppm: 200_000,
            query_ppm: 0,
            churn_ppm: 10_000,
            slow_job_ppm: 0,
            slow_removal_ppm: 0,
            slow_step_ms: 0,
            mesh_entries: 64,
            late_ms: 0,
            shard: ShardConfig {
                heartbeat_ms: 1_000,
                handshake_timeout_ms: 2_000,
                stall_timeout_ms: 1_500,
                drain_grace_ms: 500,
                payload_max: 16 * 1024,
                recv_buffers: 4,
                recv_buffer_bytes: 2048,
                segment_bytes: 512 * 1024,
                level: Level::Durable,
                ack_timeout_ms: 600,
                cursor_flush_ms: 100,
                roster_interval_ms: 150,
                ..ShardConfig::default()
            },
            trouble: Trouble::default(),
        }
    }
}
