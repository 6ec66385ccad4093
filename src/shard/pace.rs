//! How fast history goes beside live traffic. Whoever catches up, from the log or from far
//! behind in a tail, is handed on out of an allowance per turn, and the log is read when no
//! live message waits for the disk or for its turn. Both have a floor, and both are at full
//! speed when nothing live waits.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::conn::Membership;
use super::{Io, Shard};
use crate::group::Lag;
use crate::limits::{
    HISTORY_BYTES_BESIDE_LIVE, HISTORY_BYTES_PER_TURN, HISTORY_READY_MAX, HISTORY_WRITE_COST,
};
use crate::position::{Handle, Nanos};

/// Traffic is live for this long after a tail moved: the next message is expected.
const LIVE_MS: u64 = 250;
/// While live messages wait, the log is still read this often.
const READ_EVERY_MS: u64 = 5;
/// Reads of one shard in flight.
const READS_MAX: usize = 4;
/// The same while traffic is live: a commit waits for what the disk has begun.
const READS_BESIDE_LIVE: usize = 1;

/// Why a member waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A chunk from the log is here for it.
    Chunk,
    /// It is on the tail, with more to send than a write took.
    Tail,
}

/// Members that wait to be handed on.
#[derive(Debug)]
struct Waiting {
    group: u32,
    handle: Handle,
    what: What,
    /// What each of them gets.
    bytes: usize,
    members: SmallVec<[u32; 2]>,
}

/// What history may have.
#[derive(Debug, Default)]
pub struct Pace {
    live_until: Nanos,
    /// Bytes that may still be handed on; below 0 if the last were more.
    credit: i64,
    /// When a read was begun last.
    read_at: Nanos,
    waiting: VecDeque<Waiting>,
    /// Bytes of chunks that wait.
    ready_bytes: usize,
}

impl Pace {
    /// A tail moved.
    pub fn saw_live(&mut self, now: Nanos) {
        self.live_until = now.plus_ms(LIVE_MS);
    }

    /// Whether live messages come.
    pub fn is_live(&self, now: Nanos) -> bool {
        now < self.live_until
    }

    /// A turn begins to hand on; `beside` others that wait.
    fn refill(&mut self, beside: bool) {
        let turn = if beside { HISTORY_BYTES_BESIDE_LIVE } else { HISTORY_BYTES_PER_TURN };
        self.credit = (self.credit + turn as i64).min(turn as i64);
    }

    /// Something that is history was handed on.
    pub fn spend(&mut self, bytes: usize) {
        self.credit -= bytes.max(HISTORY_WRITE_COST) as i64;
    }

    /// Whether a read may begin beside those in flight; `beside` live messages that wait.
    pub fn may_read(&self, in_flight: usize, beside: bool, now: Nanos) -> bool {
        let max = if self.is_live(now) { READS_BESIDE_LIVE } else { READS_MAX };
        in_flight < max && (!beside || now >= self.read_at.plus_ms(READ_EVERY_MS))
    }

    /// A read begins.
    pub fn reads(&mut self, now: Nanos) {
        self.read_at = now;
    }

    /// Whether so much is read and not handed on that members have to wait for more.
    pub fn is_full(&self) -> bool {
        self.ready_bytes >= HISTORY_READY_MAX
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// These members of a group have a chunk of this size.
    pub fn push_chunk(&mut self, group: u32, handle: Handle, bytes: usize, members: Vec<u32>) {
        if !members.is_empty() {
            self.ready_bytes += bytes;
            let (what, members) = (What::Chunk, SmallVec::from_vec(members));
            self.waiting.push_back(Waiting { group, handle, what, bytes, members });
        }
    }

    /// This member has more in the tail; the last write took `bytes`.
    pub fn push_tail(&mut self, at: Membership, handle: Handle, bytes: usize) {
        let (group, what, members) = (at.group, What::Tail, SmallVec::from_slice(&[at.member]));
        self.waiting.push_back(Waiting { group, handle, what, bytes, members });
    }

    /// The next member that may be handed on.
    fn next(&mut self) -> Option<(Membership, Handle, What)> {
        if self.credit <= 0 {
            return None;
        }
        let front = self.waiting.front_mut()?;
        let (group, handle, what, bytes) = (front.group, front.handle, front.what, front.bytes);
        let member = front.members.pop();
        if front.members.is_empty() {
            self.waiting.pop_front();
            if what == What::Chunk {
                self.ready_bytes -= bytes;
            }
        }
        self.spend(bytes);
        Some((Membership { group, member: member? }, handle, what))
    }
}

impl Shard {
    /// Whether a live message waits for its turn.
    pub(super) fn live_waits(&self, io: &impl Io) -> bool {
        self.pace.is_live(io.now()) && !self.queues.is_empty()
    }

    /// Whether a live message waits for the disk or for its turn.
    pub(super) fn is_before_reads(&self, io: &impl Io) -> bool {
        let commits = self.in_flight.as_ref().is_some_and(|commit| !commit.runs.is_empty());
        commits || self.live_waits(io)
    }

    /// Hands members on that catch up: they are served with the next slice of writes.
    pub(super) fn hand_on(&mut self, io: &impl Io) {
        self.pace.refill(self.live_waits(io));
        while let Some((at, handle, what)) = self.pace.next() {
            let Some(group) = self.groups.get_mut(at.group as usize) else { continue };
            let priority = group.priority;
            let Some(member) = group.members.get(at.member) else { continue };
            if group.handle != handle {
                continue;
            }
            let slot = member.conn;
            match what {
                What::Chunk if matches!(member.lag, Lag::Ready(_)) => self.mark_dirty(at),
                What::Tail if member.dirty => {
                    if let Some(conn) = self.conns.get_mut(slot) {
                        conn.dirty.push(priority, at);
                    }
                }
                _ => continue,
            }
            self.make_ready(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pace_with(members: u32, bytes: usize) -> Pace {
        let mut pace = Pace::default();
        for group in 0..members {
            pace.push_chunk(group, Handle(1), bytes, vec![0]);
        }
        pace
    }

    /// Members handed on in so many turns.
    fn handed_on(pace: &mut Pace, beside: bool, turns: usize) -> usize {
        let mut count = 0;
        for _ in 0..turns {
            pace.refill(beside);
            count += std::iter::from_fn(|| pace.next()).count();
        }
        count
    }

    #[test]
    fn beside_live_traffic_the_allowance_is_a_mean_over_turns() {
        let chunk = 10 * HISTORY_BYTES_BESIDE_LIVE;
        let mut pace = pace_with(100, chunk);
        assert_eq!(handed_on(&mut pace, true, 1), 1, "whatever its size");
        assert_eq!(handed_on(&mut pace, true, 9), 0);
        assert_eq!(handed_on(&mut pace, true, 100), 10);
    }

    #[test]
    fn small_chunks_count_as_a_write() {
        let mut pace = pace_with(100_000, 1);
        let most = HISTORY_BYTES_BESIDE_LIVE / HISTORY_WRITE_COST;
        assert_eq!(handed_on(&mut pace, true, 1), most);
        assert!(handed_on(&mut pace, false, 1) <= HISTORY_BYTES_PER_TURN / HISTORY_WRITE_COST);
    }

    #[test]
    fn what_was_not_used_is_not_kept() {
        let mut pace = Pace::default();
        assert_eq!(handed_on(&mut pace, false, 100), 0);
        for group in 0..100 {
            pace.push_chunk(group, Handle(1), HISTORY_WRITE_COST, vec![0]);
        }
        let most = HISTORY_BYTES_BESIDE_LIVE / HISTORY_WRITE_COST;
        assert_eq!(handed_on(&mut pace, true, 1), most);
    }

    #[test]
    fn a_commit_waits_for_one_read_at_most_and_reads_go_on() {
        let mut pace = Pace::default();
        let now = Nanos(1_000_000_000);
        assert!(pace.may_read(READS_MAX - 1, false, now) && !pace.may_read(READS_MAX, false, now));
        pace.saw_live(now);
        assert!(pace.may_read(0, false, now) && !pace.may_read(1, false, now));
        pace.reads(now);
        assert!(!pace.may_read(0, true, now) && pace.may_read(0, false, now));
        assert!(pace.may_read(0, true, now.plus_ms(READ_EVERY_MS)));
        assert!(pace.may_read(READS_MAX - 1, false, now.plus_ms(LIVE_MS)));
    }

    #[test]
    fn chunks_that_wait_are_bounded_and_counted_once() {
        let mut pace = Pace::default();
        pace.push_chunk(1, Handle(1), HISTORY_READY_MAX, vec![0, 1, 2]);
        assert!(pace.is_full());
        assert_eq!(handed_on(&mut pace, false, 1_000), 3);
        assert!(!pace.is_full() && pace.is_empty());
        assert_eq!(pace.ready_bytes, 0);
    }
}
