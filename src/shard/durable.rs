//! Members on the owner of their group: who is let in, and what of that is on disk. Joins and
//! leaves of durable members are records of the log; they take effect, and are answered, when
//! they are on disk.

use std::collections::{HashMap, VecDeque};

use super::joins::Accepted;
use super::records::Ticket;
use super::replies::{Refusal, refusal_text};
use super::{ConnId, Shard};
use crate::config::SecondConnection;
use crate::group::{Incoming, PeerCursor, Place, RosterKey};
use crate::mesh::Message;
use crate::position::{Epoch, Handle, MemberId, Seq, ShardId};
use crate::wal::Record;
use crate::wire::{ErrorCode, Mode, Start};

/// Who asked to join or to leave, and is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Its connection.
    pub place: Place,
    /// The request.
    pub request: u32,
    /// It wants announcements of the roster.
    pub roster: bool,
}

/// What a JOIN asks of the owner.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How long to be a member.
    pub mode: Mode,
    /// Where to start.
    pub start: Start,
    /// Whether to be told of changes of the roster.
    pub roster: bool,
}

#[derive(Debug)]
enum Change {
    Join {
        member: MemberId,
        /// Last message that had its place then.
        joined_at: Seq,
        /// The member begins after this one.
        begin: Seq,
        epoch: Epoch,
        start: Start,
    },
    Leave {
        key: RosterKey,
    },
}

/// A join or a leave that waits for the disk.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    group: u32,
    caller: Caller,
    change: Change,
    /// Version of the roster when it and all before it have taken effect.
    version: u64,
}

/// Joins and leaves of durable members that wait for the disk, in order.
#[derive(Debug, Default)]
pub struct RosterChanges {
    waiting: VecDeque<Waiting>,
    /// Members whose record of a join is among them: a second connection needs none of its own.
    joining: HashMap<(u32, MemberId), Ticket>,
}

impl RosterChanges {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Shard {
    /// A member, here or on another shard, wants to join an owned group.
    pub(super) fn owner_join(&mut self, key: u32, caller: Caller, member: &[u8], wanted: Wanted) {
        let start = wanted.start;
        if wanted.mode == Mode::Live {
            return match self.admit(key, caller.place.shard) {
                Ok(head) => {
                    let sent = match start {
                        Start::Tail | Start::Cursor => head,
                        Start::Seq(seq) => Seq(seq.0 - 1).min(head),
                    };
                    let request = caller.request;
                    let (durable, cursor, roster) = (None, Seq(0), caller.roster);
                    let accepted = Accepted { request, head, sent, durable, cursor, roster };
                    self.answer_join(key, caller, accepted);
                    self.sender_seen(key, member, caller.place);
                }
                Err((code, limit)) => self.refuse_join(key, caller, code, limit),
            };
        }
        let sequencer = self.groups[key as usize].sequencer();
        let Some(roster) = sequencer.map(|sequencer| sequencer.roster()) else { return };
        let known = roster.find(member).filter(|k| roster.get(*k).is_some_and(|m| !m.leaving));
        match known {
            Some(durable) => self.admit_durable(key, caller, durable, start, None),
            None => self.begin_membership(key, caller, member, start),
        }
    }

    /// Has the join of a new durable member written to the log.
    fn begin_membership(&mut self, key: u32, caller: Caller, member: &[u8], start: Start) {
        let max = self.config.members_per_group_max;
        let group = &mut self.groups[key as usize];
        let (epoch, published) = (group.epoch, group.published);
        let Some(sequencer) = group.sequencer() else { return };
        let joined_at = sequencer.sequenced;
        let (members, waits) = (sequencer.roster().len(), sequencer.roster_waits);
        let begin = match start {
            Start::Seq(seq) => Seq(seq.0 - 1).min(published),
            Start::Tail | Start::Cursor => published,
        };
        if members + waits >= max {
            return self.refuse_join(key, caller, ErrorCode::TooManyMembers, u64::from(max));
        }
        let id: MemberId = member.into();
        let ticket = if self.roster_changes.joining.contains_key(&(key, id.clone())) {
            self.records_staged()
        } else {
            if let Err((code, limit)) = self.may_record() {
                return self.refuse_join(key, caller, code, limit);
            }
            let roster = self.next_roster_version(key);
            let mut ticket =
                self.stage_record(key, &Record::MemberJoined { member, joined_at, roster });
            if begin != joined_at {
                let cursor = Record::Cursor { member, acked: begin, epoch };
                ticket = self.stage_record(key, &cursor);
            }
            self.roster_changes.joining.insert((key, id.clone()), ticket);
            ticket
        };
        let change = Change::Join { member: id, joined_at, begin, epoch, start };
        self.wait_for_disk(ticket, key, caller, change);
    }

    fn wait_for_disk(&mut self, ticket: Ticket, group: u32, caller: Caller, change: Change) {
        let mut version = 0;
        if let Some(sequencer) = self.groups[group as usize].sequencer() {
            sequencer.roster_waits += 1;
            version = sequencer.roster().staged_version;
        }
        let waiting = Waiting { ticket, group, caller, change, version };
        self.roster_changes.waiting.push_back(waiting);
    }

    fn next_roster_version(&mut self, key: u32) -> u64 {
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return 0 };
        let roster = sequencer.roster();
        roster.staged_version += 1;
        roster.staged_version
    }

    /// Lets a durable member in whose membership is on disk. `begin` is where one begins that
    /// has just become one.
    fn admit_durable(
        &mut self,
        key: u32,
        caller: Caller,
        durable: RosterKey,
        start: Start,
        begin: Option<Seq>,
    ) {
        let place = caller.place;
        let head = match self.admit(key, place.shard) {
            Ok(head) => head,
            Err((code, limit)) => return self.refuse_join(key, caller, code, limit),
        };
        let takeover = self.config.second_connection == SecondConnection::Takeover;
        let group = &mut self.groups[key as usize];
        let Some(sequencer) = group.sequencer() else { return };
        let roster = sequencer.roster();
        roster.came(durable, place);
        let Some(member) = roster.get(durable) else { return };
        let (cursor, id) = (member.acked, member.id.clone());
        let mut older = member.online.clone();
        older.retain(|other| takeover && *other != place);
        for other in &older {
            roster.went(durable, *other);
        }
        for other in older {
            self.figures.takeovers += 1;
            self.close_replaced_at(other);
        }
        let sent = match (start, begin) {
            (Start::Seq(seq), _) => Seq(seq.0 - 1).min(head),
            (_, Some(begin)) => begin,
            (Start::Tail, None) => head,
            (Start::Cursor, None) => cursor.min(head),
        };
        let request = caller.request;
        let (durable, roster) = (Some(durable), caller.roster);
        let accepted = Accepted { request, head, sent, durable, cursor, roster };
        self.roster_changed(key);
        self.answer_join(key, caller, accepted);
        self.sender_seen(key, &id, place);
    }

    fn answer_join(&mut self, key: u32, caller: Caller, accepted: Accepted) {
        let Place { shard, conn } = caller.place;
        if shard == self.id {
            self.add_member(conn, key, accepted);
            return;
        }
        // The peer must have everything up to the head before it hears of it.
        self.announce(shard, key);
        let group = &self.groups[key as usize];
        let (name, handle, epoch) = (group.name.clone(), group.handle, group.epoch);
        self.tell(shard, Message::Joined { conn, group: name, handle, epoch, accepted });
    }

    pub(super) fn refuse_join(&mut self, key: u32, caller: Caller, code: ErrorCode, limit: u64) {
        let group = self.groups[key as usize].name.clone();
        let Place { shard, conn } = caller.place;
        let request = caller.request;
        if shard == self.id {
            let refusal = Refusal::new(code, refusal_text(code)).limit(limit);
            self.refuse(conn, request, refusal.field(&group));
        } else {
            self.tell(shard, Message::JoinRefused { conn, request, group, code, limit });
        }
        self.forget_unused(key);
    }

    /// A durable member left an owned group for good, on a connection that is out already.
    pub(super) fn owner_leave(&mut self, key: u32, caller: Caller, durable: RosterKey) {
        let group = &mut self.groups[key as usize];
        let Some(sequencer) = group.sequencer() else { return };
        let roster = sequencer.roster();
        let Some(member) = roster.get(durable) else {
            // It left on another connection meanwhile.
            return self.answer_leave(key, caller);
        };
        // A newer connection took over and was told that it is in: what was still on its way on the
        // older one, which is being closed, does not put it out again.
        if !member.online.contains(&caller.place) {
            return;
        }
        let (leaving, id) = (member.leaving, member.id.clone());
        roster.went(durable, caller.place);
        self.roster_changed(key);
        let ticket = if leaving {
            self.records_staged()
        } else {
            if let Err((code, _)) = self.may_record() {
                return self.refuse_leave(key, caller, code);
            }
            let roster = self.next_roster_version(key);
            if let Some(sequencer) = self.groups[key as usize].sequencer() {
                sequencer.roster().begin_leave(durable);
            }
            self.stage_record(key, &Record::MemberLeft { member: &id, roster })
        };
        let change = Change::Leave { key: durable };
        self.wait_for_disk(ticket, key, caller, change);
    }

    fn answer_leave(&mut self, key: u32, caller: Caller) {
        let handle = self.groups[key as usize].handle;
        let Place { shard, conn } = caller.place;
        let request = caller.request;
        if shard == self.id {
            self.left(conn, request, handle);
        } else {
            self.tell(shard, Message::Left { conn, request, handle });
        }
    }

    fn refuse_leave(&mut self, key: u32, caller: Caller, code: ErrorCode) {
        let group = self.groups[key as usize].name.clone();
        let Place { shard, conn } = caller.place;
        let request = caller.request;
        if shard == self.id {
            self.refuse(conn, request, Refusal::new(code, refusal_text(code)).field(&group));
        } else {
            self.tell(shard, Message::LeaveRefused { conn, request, group, code });
        }
    }

    /// Joins and leaves that are on disk take effect.
    pub(super) fn release_roster_changes(&mut self) {
        let synced = self.records_synced();
        while self.roster_changes.waiting.front().is_some_and(|waiting| waiting.ticket <= synced)
            && let Some(waiting) = self.roster_changes.waiting.pop_front()
        {
            let Waiting { ticket, group: key, caller, change, version } = waiting;
            let Some(sequencer) = self.groups[key as usize].sequencer() else { continue };
            sequencer.roster_waits -= 1;
            let roster = sequencer.roster();
            roster.applied_version = roster.applied_version.max(version);
            match change {
                Change::Join { member, joined_at, begin, epoch, start } => {
                    // A join that waited beside the one that made the member goes on at the
                    // member's cursor: where it would have begun is later.
                    let makes_member = roster.find(&member).is_none();
                    let (acked, acked_epoch) = (begin, epoch);
                    let incoming = Incoming { id: &member, joined_at, acked, acked_epoch };
                    let durable = roster.join(incoming);
                    self.roster_changed(key);
                    self.no_longer_joining(key, member, ticket);
                    let begin = makes_member.then_some(begin);
                    self.admit_durable(key, caller, durable, start, begin);
                }
                Change::Leave { key: durable } => {
                    if let Some(member) = roster.leave(durable) {
                        for Place { shard, conn } in member.online {
                            self.dismiss_at(shard, conn, key);
                        }
                    }
                    self.roster_changed(key);
                    self.settle_receipts(key, true);
                    self.answer_leave(key, caller);
                    self.forget_unused(key);
                }
            }
        }
    }

    /// The record of a join is on disk. One that was staged later, after a leave, may not be.
    fn no_longer_joining(&mut self, key: u32, member: MemberId, ticket: Ticket) {
        let (joining, who) = (&mut self.roster_changes.joining, (key, member));
        if joining.get(&who).is_some_and(|record| *record <= ticket) {
            joining.remove(&who);
        }
    }

    /// The log failed. Whether the records up to `in_flight` are on disk is not known.
    pub(super) fn refuse_roster_changes(&mut self, in_flight: Option<Ticket>) {
        self.roster_changes.joining.clear();
        for waiting in std::mem::take(&mut self.roster_changes.waiting) {
            let Waiting { ticket, group: key, caller, change, .. } = waiting;
            if let Some(sequencer) = self.groups[key as usize].sequencer() {
                sequencer.roster_waits -= 1;
            }
            let unknown = in_flight.is_some_and(|up_to| ticket <= up_to);
            let code = if unknown { ErrorCode::Indeterminate } else { ErrorCode::StorageFailed };
            match change {
                Change::Join { .. } => self.refuse_join(key, caller, code, 0),
                Change::Leave { .. } => self.refuse_leave(key, caller, code),
            }
        }
    }

    /// Counts a member in; `shard` has its connection. Returns the published head: history of
    /// the member ends there, live starts at the next.
    fn admit(&mut self, key: u32, shard: ShardId) -> Result<Seq, (ErrorCode, u64)> {
        let max = self.config.members_per_group_max;
        let me = self.id;
        let group = &mut self.groups[key as usize];
        let (head, end) = (group.published, group.tail.end());
        let Some(sequencer) = group.sequencer() else {
            return Err((ErrorCode::Unsupported, 0));
        };
        if sequencer.members >= max {
            return Err((ErrorCode::TooManyMembers, u64::from(max)));
        }
        sequencer.members += 1;
        if shard != me {
            match sequencer.peers.iter_mut().find(|peer| peer.shard == shard) {
                Some(peer) => peer.members += 1,
                None => {
                    sequencer.peers.push(PeerCursor {
                        shard,
                        next: end,
                        members: 1,
                        dirty: false,
                        watches: false,
                    });
                }
            }
        }
        Ok(head)
    }

    /// A connection is no longer in an owned group; `durable` stays a member, offline.
    pub(super) fn member_went(&mut self, key: u32, place: Place, durable: Option<RosterKey>) {
        let me = self.id;
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        if let Some(durable) = durable {
            sequencer.roster().went(durable, place);
            self.roster_changed(key);
        }
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        if place.shard != me
            && let Some(at) = sequencer.peers.iter().position(|peer| peer.shard == place.shard)
        {
            sequencer.peers[at].members -= 1;
            if sequencer.peers[at].members == 0 {
                sequencer.peers.swap_remove(at);
            }
        }
        sequencer.members -= 1;
        self.forget_unused(key);
    }

    /// Forgets an owned group that nobody is in and that never had a message or a state, so that
    /// joins of made-up names do not fill the table of groups. If it had durable members, the log
    /// says that they have left; a group that gets the name later has a handle of its own, and a
    /// start passes over what is left of this one.
    pub(super) fn forget_unused(&mut self, key: u32) {
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        let members = sequencer.members + sequencer.roster_waits;
        let roster = sequencer.roster.as_deref();
        let durable = roster.is_some_and(|roster| !roster.is_empty());
        let used = sequencer.sequenced > Seq(0) || sequencer.state.is_some() || durable;
        let changes = roster.map_or(0, |roster| roster.log.count());
        if members == 0 && !used && sequencer.inbox == 0 {
            self.forgotten_changes = self.forgotten_changes.max(changes);
            self.forget_group(key);
        }
    }

    /// A newer connection of its member took the place of this one.
    fn close_replaced_at(&mut self, Place { shard, conn }: Place) {
        if shard == self.id {
            self.close_replaced(conn);
        } else {
            self.tell(shard, Message::Replaced { conn });
        }
    }

    pub(super) fn close_replaced(&mut self, conn: ConnId) {
        let text = "another connection of this member took over; only one at a time is served";
        self.refuse(conn, 0, Refusal::new(ErrorCode::Replaced, text));
    }

    /// The member of a connection left on another one.
    fn dismiss_at(&mut self, shard: ShardId, conn: ConnId, key: u32) {
        let handle = self.groups[key as usize].handle;
        if shard == self.id {
            self.dismissed(conn, handle);
        } else {
            self.tell(shard, Message::Dismissed { conn, handle });
        }
    }

    /// From here on the connection is in the group as a live member.
    pub(super) fn dismissed(&mut self, id: ConnId, handle: Handle) {
        let Some(&key) = self.by_handle.get(&handle) else { return };
        if let Some(membership) = self.membership(id, key)
            && let Some(member) = self.groups[key as usize].members.get_mut(membership.member)
        {
            member.durable = None;
        }
    }
}
