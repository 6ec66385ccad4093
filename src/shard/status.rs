//! What a shard tells an operator of itself: its figures and its slowest members. See
//! [`super::look`] for how it is asked.

use super::counters::Figures;
use super::histogram::Distributions;
use super::isolate::Health;
use super::{Io, Shard};
use crate::config::Priority;
use crate::position::ShardId;
use crate::wire::ErrorCounts;

/// Members in an answer.
pub const SLOWEST_MAX: usize = 16;
/// Memberships of a member looked at for its lag.
const GROUPS_LOOKED_AT: usize = 64;

/// What is known of a shard.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Its figures.
    pub figures: Figures,
    /// Median time of a socket write, in nanoseconds.
    pub median_write_ns: u64,
    /// Median of the drain rates, in bytes per second.
    pub median_rate: u64,
    /// Its slowest members, the worst first; none that keeps up with the others.
    pub slowest: Vec<SlowMember>,
    /// Times and sizes since the start.
    pub distributions: Distributions,
    /// ERROR frames since the start.
    pub errors: ErrorCounts,
    /// Bytes of publishes that wait, by priority.
    pub inbox_bytes: [u64; Priority::COUNT],
    /// Batches in the fullest ring to another shard.
    pub ring_batches: u64,
    /// Batches that fit into such a ring; 0 if there is none.
    pub ring_slots: u64,
    /// Bytes of its log on disk.
    pub log_bytes: u64,
    /// Its log failed and takes nothing more.
    pub log_poisoned: bool,
    /// There is no room on disk for the next segment.
    pub log_full: bool,
    /// It is stopping.
    pub draining: bool,
}

/// A member that does not keep up.
#[derive(Clone, Debug)]
pub struct SlowMember {
    /// Its id.
    pub member: Box<[u8]>,
    /// How it keeps up.
    pub health: Health,
    /// Whether it is served last until it has recovered.
    pub tripped: bool,
    /// Bytes per second that it takes; `None` if no write of it has ended.
    pub rate: Option<u64>,
    /// Published messages that were not handed to its socket, in the group where it has most
    /// of them.
    pub lag: u64,
    /// Groups it is in.
    pub groups: usize,
    slot: u32,
}

impl SlowMember {
    /// Who comes first in the list.
    fn rank(&self) -> (bool, Health, std::cmp::Reverse<u64>) {
        (self.tripped, self.health, std::cmp::Reverse(self.rate.unwrap_or(0)))
    }
}

impl Shard {
    /// Puts the member of a connection into the list if it is one of the slowest.
    pub(super) fn rank_slow(&mut self, slot: u32, slowest: &mut Vec<SlowMember>, io: &impl Io) {
        let Some(slow) = self.slow_member(slot, io) else { return };
        let rank = slow.rank();
        let at = slowest.partition_point(|other| other.rank() >= rank);
        if at < SLOWEST_MAX {
            slowest.truncate(SLOWEST_MAX - 1);
            slowest.insert(at, slow);
        }
    }

    /// How the shard is now.
    pub(super) fn status(&mut self, mut slowest: Vec<SlowMember>) -> ShardStatus {
        for slow in &mut slowest {
            slow.lag = self.lag(slow.slot);
        }
        let rings = self.mesh.fullness();
        ShardStatus {
            shard: self.id,
            figures: self.figures,
            median_write_ns: self.normal.write_ns,
            median_rate: self.normal.rate,
            slowest,
            distributions: self.distributions,
            errors: self.errors,
            inbox_bytes: Priority::ALL.map(|priority| self.inbox.bytes_of(priority)),
            ring_batches: rings.0,
            ring_slots: rings.1,
            log_bytes: self.log.bytes(),
            log_poisoned: self.log.is_poisoned(),
            log_full: self.log.is_full(),
            draining: self.drain.is_some(),
        }
    }

    fn slow_member(&mut self, slot: u32, io: &impl Io) -> Option<SlowMember> {
        let conn = self.conns.get(slot)?;
        conn.drainage.health()?;
        if self.seems_stalled(conn, io.now()) {
            self.has_stalled(slot);
        }
        let conn = self.conns.get(slot)?;
        let health = conn.drainage.health()?;
        (conn.tripped || health != Health::Live).then(|| SlowMember {
            member: conn.member.clone(),
            health,
            tripped: conn.tripped,
            rate: conn.drainage.rate(),
            lag: 0,
            groups: conn.memberships.len(),
            slot,
        })
    }

    fn lag(&self, slot: u32) -> u64 {
        let Some(conn) = self.conns.get(slot) else { return 0 };
        let lags = conn.memberships.iter().take(GROUPS_LOOKED_AT).filter_map(|membership| {
            let group = self.groups.get(membership.group as usize)?;
            let member = group.members.get(membership.member)?;
            Some(group.published.0.saturating_sub(member.sent.0))
        });
        lags.max().unwrap_or(0)
    }
}
