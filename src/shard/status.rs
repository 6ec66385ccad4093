//! What a shard tells an operator: its figures and its slowest members. Asked for by the
//! control thread, collected over some turns, answered through a ring.

use super::counters::Figures;
use super::isolate::Health;
use super::{Io, Shard};
use crate::position::ShardId;

/// Members in an answer.
pub const SLOWEST_MAX: usize = 16;
/// Slots looked at in one turn.
const SLOTS_PER_TURN: u32 = 4096;
/// Memberships of a member looked at for its lag.
const GROUPS_LOOKED_AT: usize = 64;

/// Where the control thread waits for an answer.
pub type StatusReply = rtrb::Producer<Box<ShardStatus>>;

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

/// An answer that is being collected.
#[derive(Debug)]
pub struct Collecting {
    to: StatusReply,
    next: u32,
    slowest: Vec<SlowMember>,
}

impl SlowMember {
    /// Who comes first in the list.
    fn rank(&self) -> (bool, Health, std::cmp::Reverse<u64>) {
        (self.tripped, self.health, std::cmp::Reverse(self.rate.unwrap_or(0)))
    }
}

impl Shard {
    /// The control thread asks; an older question is given up.
    pub(super) fn begin_status(&mut self, to: StatusReply) {
        self.collecting = Some(Collecting { to, next: 0, slowest: Vec::new() });
    }

    /// Looks at some connections; answers when all have been seen.
    pub(super) fn collect_status(&mut self, io: &mut impl Io) {
        let Some(mut collecting) = self.collecting.take() else { return };
        let end = (collecting.next + SLOTS_PER_TURN).min(self.conns.end());
        for slot in collecting.next..end {
            if let Some(slow) = self.slow_member(slot, io) {
                let rank = slow.rank();
                let at = collecting.slowest.partition_point(|other| other.rank() >= rank);
                if at < SLOWEST_MAX {
                    collecting.slowest.truncate(SLOWEST_MAX - 1);
                    collecting.slowest.insert(at, slow);
                }
            }
        }
        collecting.next = end;
        if end < self.conns.end() {
            self.collecting = Some(collecting);
            return;
        }
        for slow in &mut collecting.slowest {
            slow.lag = self.lag(slow.slot);
        }
        let status = ShardStatus {
            shard: self.id,
            figures: self.figures,
            median_write_ns: self.normal.write_ns,
            median_rate: self.normal.rate,
            slowest: collecting.slowest,
        };
        // Whoever asked may have given up.
        let _ = collecting.to.push(Box::new(status));
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
