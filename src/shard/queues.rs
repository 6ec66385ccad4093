//! Run queues: who has something to be written, by priority.

use std::collections::VecDeque;

use super::Shard;
use super::conn::{Conn, Membership};
use crate::config::Priority;
use crate::limits::SENDS_PER_TURN;
use crate::position::Nanos;

/// Of a slice, what realtime leaves to the others when they wait: an eighth.
const OTHERS_SHARE: usize = 8;
/// Of what realtime leaves, bulk gets one part in nine while normal waits: 8 to 1.
const BULK_SHARE: usize = 9;
/// Bytes of a slice that are not realtime, as long as there are realtime groups: what a
/// realtime message may have to wait for, about a slice of small writes.
const SLICE_BYTES: usize = 1024 * 1024;
/// Bytes of these that ride along in writes that were started for realtime, so that a
/// connection with realtime always waiting gets the rest of its groups too.
const RIDE_BYTES: usize = 64 * 1024;

/// While realtime messages come, what is not realtime gets this part of a slice: a message
/// waits for the rest of a slice when it comes and for another one beside its commit.
const BRISK_PART: usize = 4;
/// How long after a realtime message the next one is expected.
const BRISK_MS: u64 = 1_000;

/// One priority's queues.
#[derive(Debug, Default)]
struct Lane {
    /// Slots of connections whose write ended with more to send, or that have replies.
    ready: VecDeque<u32>,
    /// Keys of groups whose tail moved.
    scans: VecDeque<u32>,
    /// Who of the two gets the odd write of a slice; they take turns.
    odd: bool,
}

/// All run queues.
#[derive(Debug, Default)]
pub struct Queues {
    lanes: [Lane; Priority::COUNT],
    /// Realtime messages came lately; until then slices are short.
    brisk_until: Nanos,
}

impl Queues {
    /// Whether realtime messages come, as seen by who waits now and lately.
    fn is_brisk(&mut self, now: Nanos) -> bool {
        if self.waits(Priority::Realtime) {
            self.brisk_until = now.plus_ms(BRISK_MS);
        }
        now < self.brisk_until
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        Priority::ALL.into_iter().all(|lane| !self.waits(lane))
    }

    /// Whether somebody waits in this lane.
    pub fn waits(&self, lane: Priority) -> bool {
        let lane = &self.lanes[lane.index()];
        !lane.ready.is_empty() || !lane.scans.is_empty()
    }

    /// Of a slice, what goes to connections that wait with more: half at most while groups
    /// wait to be visited, so that neither starves the other.
    pub fn ready_share(&mut self, lane: Priority, sends: usize) -> usize {
        let lane = &mut self.lanes[lane.index()];
        if lane.scans.is_empty() {
            return sends;
        }
        lane.odd = !lane.odd;
        (sends + usize::from(lane.odd)) / 2
    }

    /// Whether groups wait to be visited.
    pub fn scans_wait(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.scans.is_empty())
    }

    /// Queues a group whose members have to be visited.
    pub fn push_scan(&mut self, lane: Priority, key: u32) {
        self.lanes[lane.index()].scans.push_back(key);
    }

    /// Puts a group back whose visit is not over.
    pub fn resume_scan(&mut self, lane: Priority, key: u32) {
        self.lanes[lane.index()].scans.push_front(key);
    }

    /// The next group.
    pub fn pop_scan(&mut self, lane: Priority) -> Option<u32> {
        self.lanes[lane.index()].scans.pop_front()
    }
}

/// Memberships of a connection that have something to send, by priority. Most connections are
/// in one group, and need no queue for it.
#[derive(Debug, Default)]
pub enum Dirty {
    /// None.
    #[default]
    None,
    /// One, in a group of this priority.
    One(Priority, Membership),
    /// There were several once.
    Queues(Box<[VecDeque<Membership>; Priority::COUNT]>),
}

impl Dirty {
    /// Appends a membership in a group of this priority.
    pub fn push(&mut self, lane: Priority, membership: Membership) {
        match self {
            Self::None => *self = Self::One(lane, membership),
            Self::Queues(queues) => queues[lane.index()].push_back(membership),
            Self::One(..) => self.push_second(lane, membership),
        }
    }

    #[cold]
    fn push_second(&mut self, lane: Priority, membership: Membership) {
        let mut queues = Box::<[VecDeque<Membership>; Priority::COUNT]>::default();
        if let Self::One(lane, first) = self {
            queues[lane.index()].push_back(*first);
        }
        queues[lane.index()].push_back(membership);
        *self = Self::Queues(queues);
    }

    /// The next membership of this priority.
    pub fn pop(&mut self, lane: Priority) -> Option<Membership> {
        match self {
            Self::None => None,
            Self::One(of, membership) => {
                let membership = (*of == lane).then_some(*membership)?;
                *self = Self::None;
                Some(membership)
            }
            Self::Queues(queues) => queues[lane.index()].pop_front(),
        }
    }

    /// Count of memberships of this priority.
    pub fn len(&self, lane: Priority) -> usize {
        match self {
            Self::None => 0,
            Self::One(of, _) => usize::from(*of == lane),
            Self::Queues(queues) => queues[lane.index()].len(),
        }
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::None => true,
            Self::One(..) => false,
            Self::Queues(queues) => queues.iter().all(VecDeque::is_empty),
        }
    }

    /// The highest priority that has one.
    pub fn highest(&self) -> Option<Priority> {
        match self {
            Self::None => None,
            Self::One(lane, _) => Some(*lane),
            Self::Queues(_) => Priority::ALL.into_iter().find(|lane| self.len(*lane) > 0),
        }
    }

    /// Takes a membership out.
    pub fn remove(&mut self, membership: Membership) {
        match self {
            Self::One(_, one) if *one == membership => *self = Self::None,
            Self::None | Self::One(..) => {}
            Self::Queues(queues) => {
                queues.iter_mut().for_each(|lane| lane.retain(|m| *m != membership));
            }
        }
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        *self = Self::None;
    }
}

/// What a stretch of the write stage may still do.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Writes to start.
    pub sends: usize,
    /// Bytes of groups below realtime.
    pub bytes: usize,
}

impl Slice {
    /// Whether it is over for this lane.
    pub fn is_over(&self, lane: Priority) -> bool {
        self.sends == 0 || (self.bytes == 0 && lane != Priority::Realtime)
    }
}

impl Conn {
    /// The lane this connection belongs in now; `None` if it has nothing to send.
    pub fn lane(&self) -> Option<Priority> {
        let own = !self.control.is_empty() || self.has_tls_output();
        let control = own.then_some(self.answers);
        let highest = match (self.dirty.highest(), control) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(if self.tripped { Priority::Bulk } else { highest })
    }

    /// Whether it waits in this lane or one before it.
    pub fn is_queued_by(&self, lane: Priority) -> bool {
        self.queued & ((2 << lane.index()) - 1) != 0
    }
}

impl Shard {
    /// Puts a connection with output into its run queue. One that waits in a lower lane
    /// already is put into the higher one too; whichever comes first serves it.
    pub(super) fn make_ready(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && !conn.in_flight
            && let Some(lane) = conn.lane()
            && conn.queued & (1 << lane.index()) == 0
        {
            conn.queued |= 1 << lane.index();
            self.queues.lanes[lane.index()].ready.push_back(slot);
        }
    }

    /// The next connection of this lane that belongs in it.
    pub(super) fn pop_ready(&mut self, lane: Priority) -> Option<u32> {
        while let Some(slot) = self.queues.lanes[lane.index()].ready.pop_front() {
            let Some(conn) = self.conns.get_mut(slot) else { continue };
            conn.queued &= !(1 << lane.index());
            match conn.lane() {
                _ if conn.in_flight => {}
                None => {}
                // What put it here was sent meanwhile, with what another lane started.
                Some(belongs) if belongs > lane => self.make_ready(slot),
                Some(_) => return Some(slot),
            }
        }
        None
    }

    /// One slice of writes. Realtime goes first; what it leaves, at least an eighth, normal
    /// and bulk share by 8 to 1, and what one of them does not use the other may. While
    /// realtime messages come they have a quarter of a slice at most.
    pub(super) fn write(&mut self, io: &mut impl super::Io) {
        let part = if self.queues.is_brisk(io.now()) { BRISK_PART } else { 1 };
        let mixed = self.config.classes.are_mixed();
        let bytes = if mixed { SLICE_BYTES / part } else { usize::MAX };
        let others = self.queues.waits(Priority::Normal) || self.queues.waits(Priority::Bulk);
        let kept = if others { SENDS_PER_TURN / OTHERS_SHARE } else { 0 };
        let ride = bytes.min(RIDE_BYTES);
        let slice = Slice { sends: SENDS_PER_TURN - kept, bytes: ride };
        let left = self.write_lane(Priority::Realtime, slice, io);
        let mut sends = (left.sends + kept).min(SENDS_PER_TURN / part);
        let mut bytes = bytes - (ride - left.bytes);
        let part =
            |all: usize, share: bool| if share { (all / BULK_SHARE).max(1).min(all) } else { 0 };
        let shared = self.queues.waits(Priority::Bulk);
        for lane in [Priority::Normal, Priority::Bulk, Priority::Normal] {
            let share = shared && lane == Priority::Normal && self.queues.waits(Priority::Bulk);
            let (sends_kept, bytes_kept) = (part(sends, share), part(bytes, share));
            let slice = Slice { sends: sends - sends_kept, bytes: bytes - bytes_kept };
            let left = self.write_lane(lane, slice, io);
            (sends, bytes) = (left.sends + sends_kept, left.bytes + bytes_kept);
        }
        // Members may have needed encodings of what is in the tails.
        self.evict();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(group: u32) -> Membership {
        Membership { group, member: 0 }
    }

    #[test]
    fn one_membership_needs_no_queue_and_more_come_in_their_order() {
        let mut dirty = Dirty::default();
        assert!(dirty.is_empty() && dirty.pop(Priority::Normal).is_none());
        dirty.push(Priority::Normal, at(1));
        assert!(matches!(dirty, Dirty::One(..)));
        assert_eq!((dirty.len(Priority::Normal), dirty.len(Priority::Bulk)), (1, 0));
        assert_eq!(dirty.pop(Priority::Realtime), None, "it is of another priority");
        assert_eq!(dirty.pop(Priority::Normal), Some(at(1)));
        assert!(matches!(dirty, Dirty::None));
        for (lane, group) in [(Priority::Normal, 1), (Priority::Bulk, 2), (Priority::Normal, 3)] {
            dirty.push(lane, at(group));
        }
        assert_eq!(dirty.highest(), Some(Priority::Normal));
        dirty.push(Priority::Realtime, at(4));
        assert_eq!(dirty.highest(), Some(Priority::Realtime));
        dirty.remove(at(4));
        assert_eq!([1, 2].map(|_| dirty.pop(Priority::Normal)), [Some(at(1)), Some(at(3))]);
        assert_eq!(dirty.highest(), Some(Priority::Bulk));
        dirty.clear();
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_membership_that_is_alone_is_taken_out_by_name() {
        let mut dirty = Dirty::default();
        dirty.push(Priority::Bulk, at(1));
        dirty.remove(at(2));
        assert_eq!(dirty.len(Priority::Bulk), 1);
        dirty.remove(at(1));
        assert!(dirty.is_empty());
    }
}
