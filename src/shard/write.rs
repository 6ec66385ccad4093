//! Stage 7: a slice of the run queues. Each connection that is served gets one write with
//! everything between its cursors and the tails.

use smallvec::SmallVec;

use super::conn::Membership;
use super::queues::Slice;
use super::{ConnId, Io, Shard};
use crate::config::Priority;
use crate::fanout::{Ordinal, Part, Tail};
use crate::group::{Group, Lag, Member};
use crate::limits::{SEND_PARTS_MAX, TLS_WRITE_BYTES_MAX};
use crate::position::{Epoch, Handle, Nanos, Seq};
use crate::wire::{EpochStart, Gap, GapReason, Redeliver};

/// Groups visited without a write before the shard looks at its input again.
const VISITS_PER_TURN: usize = 4096;

/// Memberships of a connection that are looked at for one write. A visit to one costs a small part
/// of a write, so that this bounds what a member of many groups takes.
const GATHERED_MAX: usize = 32;

/// What a membership put into a write.
#[derive(Default)]
struct Taken {
    messages: u64,
    bytes: usize,
    gap: Option<GapReason>,
    /// It has more to send than went in.
    more: bool,
    /// It has to ask for history before it can go on.
    ask: bool,
    /// It came back from history to the tail.
    caught_up: bool,
    /// It is no longer served from the tail ...
    fell_behind: bool,
    /// ... but because it has to acknowledge first, not because it was too slow.
    held: bool,
}

/// Why a visit to members ended.
enum Visited {
    /// All of them were visited.
    All,
    /// The slice is over.
    SliceOver,
    /// The group is gone or not to be visited.
    Gone,
    /// This connection has something, and waits for its turn.
    Has(u32),
    /// This connection has something and can be served.
    Can(u32),
}

/// A tail from one place on: the same for all members that are there.
struct Rest {
    from: Ordinal,
    first: Seq,
    last: Seq,
    bytes: usize,
    /// One write can carry all of it.
    fits: bool,
}

impl Rest {
    fn of(tail: &Tail, from: Ordinal, bytes_max: usize) -> Self {
        let (mut first, mut last, mut bytes, mut parts) = (Seq(0), Seq(0), 0, 0);
        for segment in tail.from(from).take(SEND_PARTS_MAX) {
            if parts == 0 {
                first = segment.first();
            }
            last = segment.last();
            bytes += segment.bytes().len();
            parts += 1;
        }
        let fits = (1..SEND_PARTS_MAX).contains(&parts) && bytes <= bytes_max;
        Self { from, first, last, bytes, fits }
    }
}

impl Shard {
    /// Serves who waits in a lane; returns what is left of the slice.
    pub(super) fn write_lane(
        &mut self,
        lane: Priority,
        mut slice: Slice,
        io: &mut impl Io,
    ) -> Slice {
        let mut ready = self.queues.ready_share(lane, slice.sends);
        while ready > 0
            && !slice.is_over(lane)
            && let Some(slot) = self.pop_ready(lane)
        {
            ready -= usize::from(self.serve(slot, lane, &mut slice, io));
        }
        let mut visits = VISITS_PER_TURN;
        while visits > 0
            && !slice.is_over(lane)
            && let Some(key) = self.queues.pop_scan(lane)
        {
            self.scan(key, lane, &mut slice, &mut visits, io);
        }
        slice
    }

    /// Visits the members of a group from where the last slice ended.
    fn scan(
        &mut self,
        key: u32,
        lane: Priority,
        slice: &mut Slice,
        visits: &mut usize,
        io: &mut impl Io,
    ) {
        loop {
            match self.visit(key, lane, slice, visits, io) {
                Visited::Has(slot) => self.make_ready(slot),
                Visited::Can(slot) => {
                    self.gather(slot);
                    self.serve(slot, lane, slice, io);
                }
                Visited::SliceOver => return self.queues.resume_scan(lane, key),
                Visited::All => {
                    let Some(group) = self.groups.get_mut(key as usize) else { return };
                    let again = std::mem::take(&mut group.scan.again);
                    group.scan.next = 0;
                    group.scan.queued = again;
                    if again {
                        self.queues.push_scan(lane, key);
                    }
                    return;
                }
                Visited::Gone => return,
            }
        }
    }

    /// Visits members up to one whose connection has more to look at than this group's tail.
    /// All others, nearly all, get their write here.
    fn visit(
        &mut self,
        key: u32,
        lane: Priority,
        slice: &mut Slice,
        visits: &mut usize,
        io: &mut impl Io,
    ) -> Visited {
        let Some(group) = self.groups.get_mut(key as usize).filter(|group| group.scan.queued)
        else {
            return Visited::Gone;
        };
        let (now, bytes_max) = (io.now(), self.config.send_bytes_max as usize);
        let others_wait = self.queues.scans_wait();
        let (tail, end, members_end) = (&group.tail, group.tail.end(), group.members.end());
        let mut rest = Rest::of(tail, end, bytes_max);
        let (mut writes, mut bytes) = (0, 0);
        let visited = loop {
            if group.scan.next >= members_end {
                break Visited::All;
            }
            if slice.is_over(lane) || *visits == 0 {
                break Visited::SliceOver;
            }
            *visits -= 1;
            let at = group.scan.next;
            group.scan.next += 1;
            let Some(member) = group.members.get_mut(at) else { continue };
            if member.dirty || !matches!(member.lag, Lag::Live) || member.next == end {
                continue;
            }
            let slot = member.conn;
            let Some(conn) = self.conns.get_mut(slot) else { continue };
            let gathers = others_wait && conn.memberships.len() > 1;
            let plain = member.epoch == group.epoch && member.durable.is_none();
            if conn.is_at_rest() && plain && !gathers {
                if rest.from != member.next {
                    rest = Rest::of(tail, member.next, bytes_max);
                }
                if rest.fits {
                    debug_assert_eq!(member.sent.next(), rest.first);
                    self.figures.deliveries += rest.last.0 - member.sent.0;
                    (member.next, member.sent) = (end, rest.last);
                    if lane != Priority::Realtime {
                        slice.bytes = slice.bytes.saturating_sub(rest.bytes);
                    }
                    slice.sends -= 1;
                    let mut len = rest.bytes as u64;
                    match &conn.ws {
                        None => self.parts.extend(tail.from(rest.from).cloned().map(Part::Frames)),
                        Some(ws) => {
                            let segments = tail.from(rest.from);
                            len = self.codec.share(ws, segments, rest.bytes, &mut self.parts);
                        }
                    }
                    conn.begin_write(now, len);
                    (writes, bytes) = (writes + 1, bytes + len);
                    io.send(conn.id, &mut self.parts);
                    continue;
                }
            }
            member.dirty = true;
            conn.dirty.push(lane, Membership { group: key, member: at });
            if conn.tripped {
                break Visited::Has(slot);
            }
            if !conn.in_flight && !conn.is_queued_by(lane) {
                break Visited::Can(slot);
            }
        };
        self.count_writes(now, writes, bytes);
        visited
    }

    /// What a connection has in other groups that wait to be visited goes into the write that is
    /// about to be made: their visits then pass over it.
    fn gather(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        if conn.memberships.len() < 2 || !self.queues.scans_wait() {
            return;
        }
        let near = conn.memberships.iter().take(GATHERED_MAX).copied();
        for at in near.collect::<SmallVec<[Membership; GATHERED_MAX]>>() {
            let Some(group) = self.groups.get(at.group as usize) else { continue };
            let has_more = |member: &Member| {
                matches!(member.lag, Lag::Live) && member.next != group.tail.end()
            };
            if group.scan.queued && group.members.get(at.member).is_some_and(has_more) {
                self.mark_dirty(at);
            }
        }
    }

    /// Writes what a connection has waiting, the most urgent first; whether a write was
    /// started.
    pub(super) fn serve(
        &mut self,
        slot: u32,
        lane: Priority,
        slice: &mut Slice,
        io: &mut impl Io,
    ) -> bool {
        let Some(conn) = self.conns.get_mut(slot) else { return false };
        if conn.in_flight {
            return false;
        }
        let (id, now) = (conn.id, io.now());
        let mut bytes_max = self.config.send_bytes_max as usize;
        if conn.tls.is_some() {
            bytes_max = bytes_max.min(TLS_WRITE_BYTES_MAX);
        }
        let mut bytes = conn.control.len();
        debug_assert!(self.parts.is_empty());
        let mut moved = false;
        let mut urgent = Priority::Realtime;
        let mut rounds = conn.dirty.len(urgent);
        // One place stays free for the control frames, which go first.
        while bytes < bytes_max && self.parts.len() < SEND_PARTS_MAX - 1 {
            if rounds == 0 {
                let Some(&next) = Priority::ALL.get(urgent.index() + 1) else { break };
                urgent = next;
                rounds = conn.dirty.len(urgent);
                continue;
            }
            // A write that was started for realtime takes others along within bounds.
            let below = urgent != Priority::Realtime;
            if below && slice.bytes == 0 && lane == Priority::Realtime {
                break;
            }
            let Some(membership) = conn.dirty.pop(urgent) else { break };
            rounds -= 1;
            let group = &mut self.groups[membership.group as usize];
            let room = bytes_max - bytes;
            watch_first_unacked(group, membership, now, &mut self.unwatched);
            let taken = take(group, membership.member, room, &mut conn.control, &mut self.parts);
            bytes += taken.bytes;
            if below {
                slice.bytes = slice.bytes.saturating_sub(taken.bytes);
            }
            self.figures.deliveries += taken.messages;
            match taken.gap {
                Some(GapReason::Retention) => self.figures.gaps_retention += 1,
                Some(GapReason::Damaged) => self.figures.gaps_unreadable += 1,
                None => {}
            }
            self.figures.catch_up_members += u64::from(taken.fell_behind);
            self.figures.catch_up_members -= u64::from(taken.caught_up);
            if taken.held {
                conn.drainage.begins_behind();
            } else if taken.fell_behind {
                conn.drainage.fell();
            } else if taken.caught_up {
                conn.drainage.caught_up();
            }
            moved |= taken.fell_behind || taken.caught_up;
            let member = &mut group.members[membership.member];
            member.dirty = taken.more;
            // A write was not enough: it catches up, though on the tail.
            let behind = taken.more && below && taken.bytes > 0 && matches!(member.lag, Lag::Live);
            if behind && self.pace.is_live(now) {
                self.pace.push_tail(membership, group.handle, taken.bytes);
            } else if taken.more {
                conn.dirty.push(urgent, membership);
            }
            if taken.ask {
                self.reads.wanted.push(membership);
            }
        }
        if moved {
            self.judge(slot);
        }
        if !self.unwatched.is_empty() {
            self.note_acks(id);
        }
        let Some(conn) = self.conns.get_mut(slot) else { return false };
        if let Some(ws) = &mut conn.ws {
            self.codec.wrap(ws, &mut conn.control, &mut self.parts);
        }
        if !conn.control.is_empty() {
            self.parts.insert(0, Part::Control(std::mem::take(&mut conn.control)));
        }
        if conn.tls.is_some() && !self.encrypt(slot) {
            self.parts.clear();
            self.close(id, io);
            return false;
        }
        let Some(conn) = self.conns.get_mut(slot) else { return false };
        if self.parts.is_empty() {
            // A chunk of history that held nothing: its member asks again in the next turn.
            self.make_ready(slot);
            return false;
        }
        slice.sends -= 1;
        let bytes = self.parts.iter().map(|part| part.as_slice().len() as u64).sum::<u64>();
        conn.begin_write(now, bytes);
        self.count_writes(now, 1, bytes);
        io.send(id, &mut self.parts);
        debug_assert!(self.parts.is_empty());
        true
    }

    /// Durable members get something to acknowledge with the write that is being made.
    #[cold]
    fn note_acks(&mut self, id: ConnId) {
        while let Some(membership) = self.unwatched.pop() {
            self.watch_acks(id, membership);
        }
    }

    /// Writes are started: they are counted, and looked at in time if they do not end.
    fn count_writes(&mut self, now: Nanos, writes: u64, bytes: u64) {
        self.figures.writes += writes;
        self.figures.write_bytes += bytes;
        self.writes_in_flight += writes;
        if self.sweep_at.is_none() && writes > 0 {
            self.sweep_at = Some(now.plus_ms(u64::from(self.config.stall_timeout_ms / 4)));
        }
    }

    /// Puts a membership into its connection's list of those with something to send.
    pub(super) fn mark_dirty(&mut self, membership: Membership) {
        let group = &mut self.groups[membership.group as usize];
        let member = &mut group.members[membership.member];
        if !member.dirty {
            member.dirty = true;
            if let Some(conn) = self.conns.get_mut(member.conn) {
                conn.dirty.push(group.priority, membership);
            }
        }
    }
}

/// A durable member that has acknowledged everything gets something to acknowledge: its time
/// begins.
fn watch_first_unacked(group: &mut Group, at: Membership, now: Nanos, out: &mut Vec<Membership>) {
    let member = &mut group.members[at.member];
    if let Some(durable) = &mut member.durable
        && member.acked == member.sent
        && durable.again.attempt == 0
    {
        durable.again.since = now;
        if !std::mem::replace(&mut durable.again.watched, true) {
            out.push(at);
        }
    }
}

/// Before messages that come again: REDELIVER, once.
fn announce_again(member: &mut Member, handle: Handle, epoch: Epoch, control: &mut Vec<u8>) {
    let from = member.sent.next();
    if let Some(durable) = &mut member.durable
        && std::mem::take(&mut durable.again.announce)
    {
        let attempt = durable.again.attempt;
        Redeliver { handle, from, epoch, attempt }.encode(control);
    }
}

/// Takes what a member gets next: a chunk of history if one is here, else segments of the
/// tail up to `room` bytes, at least one.
fn take(
    group: &mut Group,
    member: u32,
    room: usize,
    control: &mut Vec<u8>,
    parts: &mut Vec<Part>,
) -> Taken {
    let mut taken = Taken::default();
    let (handle, live_epoch, published) = (group.handle, group.epoch, group.published);
    let tail = &group.tail;
    let member = &mut group.members[member];
    match std::mem::replace(&mut member.lag, Lag::Live) {
        Lag::Waiting => {
            member.lag = Lag::Waiting;
            return taken;
        }
        Lag::Behind => {
            member.lag = Lag::Waiting;
            taken.ask = true;
            return taken;
        }
        Lag::Held => {
            member.lag = Lag::Held;
            return taken;
        }
        Lag::Ready(chunk) => {
            let epoch = if chunk.segment.is_some() { chunk.epoch } else { live_epoch };
            if chunk.gap.is_some() || chunk.segment.is_some() {
                announce_again(member, handle, epoch, control);
            }
            if let Some((from, to, reason)) = chunk.gap {
                Gap { handle, from, to, epoch: live_epoch, reason }.encode(control);
                taken.gap = Some(reason);
                member.gap(from, to, live_epoch);
            }
            let hold_at = member.hold_at();
            if let Some(segment) = &chunk.segment {
                let segment = hold_at.map_or_else(|| segment.clone(), |last| segment.up_to(last));
                if member.epoch != chunk.epoch {
                    EpochStart { epoch: chunk.epoch, handle, first: segment.first() }
                        .encode(control);
                    member.epoch = chunk.epoch;
                }
                member.sent = segment.last();
                taken.messages += segment.last().0 - segment.first().0 + 1;
                taken.bytes += segment.bytes().len();
                parts.push(Part::Frames(segment.clone()));
            }
            if hold_at.is_some_and(|last| member.sent >= last) {
                member.lag = Lag::Held;
                return taken;
            }
            let back = if member.sent == published {
                Some(tail.end())
            } else {
                tail.ordinal_of(member.sent.next())
            };
            match back {
                Some(next) => {
                    member.next = next;
                    taken.caught_up = true;
                }
                None => member.lag = Lag::Behind,
            }
            // An EPOCH for what follows must not overtake what was just taken, so the
            // rest goes with the next write.
            taken.more = !matches!(member.lag, Lag::Live) || member.next < tail.end();
            return taken;
        }
        Lag::Live => {}
    }
    if member.next < tail.base() {
        member.lag = Lag::Waiting;
        taken.ask = true;
        taken.fell_behind = true;
        return taken;
    }
    let hold_at = member.hold_at();
    while taken.bytes < room
        && parts.len() < SEND_PARTS_MAX - 1
        && let Some(segment) = tail.get(member.next)
    {
        announce_again(member, handle, live_epoch, control);
        if member.epoch != live_epoch {
            EpochStart { epoch: live_epoch, handle, first: segment.first() }.encode(control);
            member.epoch = live_epoch;
        }
        debug_assert_eq!(member.sent.next(), segment.first());
        let part = hold_at.map_or_else(|| segment.clone(), |last| segment.up_to(last));
        taken.messages += part.last().0 - part.first().0 + 1;
        taken.bytes += part.bytes().len();
        member.sent = part.last();
        member.next += 1;
        parts.push(Part::Frames(part));
        if hold_at.is_some_and(|last| member.sent >= last) {
            member.lag = Lag::Held;
            taken.fell_behind = true;
            taken.held = true;
            return taken;
        }
    }
    debug_assert!(member.acked <= member.sent && member.sent <= published.max(Seq(0)));
    taken.more = member.next < tail.end();
    taken
}
