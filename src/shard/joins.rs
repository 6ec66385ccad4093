//! Who is in which group, seen from a connection: JOIN, LEAVE, and connections that go away.
//! What the owner of a group makes of it is in `durable.rs`.

use super::conn::{ConnState, Membership};
use super::durable::{Caller, Wanted};
use super::replies::{Refusal, refusal_text};
use super::{ConnId, Shard};
use crate::auth::Right;
use crate::group::{DurableMember, Group, Lag, Member, Place, Role, RosterKey, Sequencer};
use crate::mesh::Message;
use crate::position::{Epoch, Handle, Seq, ShardId};
use crate::wal::GroupIndex;
use crate::wire::{ErrorCode, Join, JoinEntry, Joined, Leave, Left, Start};

/// A join that the owner accepted.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// The request of the JOIN.
    pub request: u32,
    /// Last published message at the time of the join.
    pub head: Seq,
    /// The member begins after this message.
    pub sent: Seq,
    /// Its name on the roster, if it is a durable member.
    pub durable: Option<RosterKey>,
    /// Its cursor then.
    pub cursor: Seq,
    /// It wants announcements of the roster.
    pub roster: bool,
}

impl Shard {
    pub(super) fn join(&mut self, id: ConnId, join: &Join<'_>) {
        for entry in join.entries() {
            self.join_one(id, join.request, entry);
        }
    }

    fn join_one(&mut self, id: ConnId, request: u32, entry: JoinEntry<'_>) {
        let rights = [Right::Join, Right::History];
        let needed = if matches!(entry.start, Start::Seq(_)) { &rights[..] } else { &rights[..1] };
        for &right in needed {
            if !self.tokens.may(id, right, entry.group) {
                return self.forbid(id, request, right, entry.group);
            }
        }
        if let Err(retry_ms) = self.count_join(id) {
            return self.refuse_rate(id, request, retry_ms, entry.group);
        }
        let max = self.config.groups_per_member_max;
        let Some(conn) = self.conn(id) else { return };
        if conn.memberships.len() + conn.joining as usize >= max as usize {
            let text = "the member is in as many groups as it may be; leave one first";
            let refusal =
                Refusal::new(ErrorCode::TooManyGroupsPerMember, text).limit(u64::from(max));
            return self.refuse(id, request, refusal.field(entry.group));
        }
        if let Some(&key) = self.by_name.get(entry.group)
            && self.membership(id, key).is_some()
        {
            let text = "the member is in this group already";
            let refusal = Refusal::new(ErrorCode::AlreadyAMember, text).field(entry.group);
            return self.refuse(id, request, refusal);
        }
        let owner = self.owner_of(entry.group);
        let local = owner == self.id;
        let key =
            if local { self.owned_group(entry.group) } else { self.replica(entry.group, owner) };
        let Some(key) = key else {
            let refusal =
                Refusal::new(ErrorCode::TooManyGroups, refusal_text(ErrorCode::TooManyGroups))
                    .limit(u64::from(self.config.groups_max));
            return self.refuse(id, request, refusal.field(entry.group));
        };
        let Some(conn) = self.conn(id) else { return };
        let member = conn.member.clone();
        let wanted = Wanted { mode: entry.mode, start: entry.start, roster: entry.roster };
        if local {
            let place = Place { shard: self.id, conn: id };
            self.owner_join(key, Caller { place, request, roster: entry.roster }, &member, wanted);
        } else {
            conn.joining += 1;
            self.groups[key as usize].pending_joins += 1;
            let group = entry.group.into();
            self.tell(owner, Message::Join { conn: id, request, group, member, wanted });
        }
    }

    pub(super) fn membership(&mut self, id: ConnId, key: u32) -> Option<Membership> {
        self.conn(id)?.memberships.iter().find(|m| m.group == key).copied()
    }

    /// The group `name` that this shard owns; created if there is room for it.
    pub(super) fn owned_group(&mut self, name: &[u8]) -> Option<u32> {
        if let Some(&key) = self.by_name.get(name) {
            return Some(key);
        }
        self.groups_created += 1;
        let handle = Handle::new(self.id, self.start, self.groups_created);
        let mut sequencer = Sequencer::after(Seq(0), Seq(1), GroupIndex::default());
        sequencer.roster_base = self.forgotten_changes;
        let group = Group::new(name.into(), handle, self.start, Role::Owner(Box::new(sequencer)));
        let key = self.insert_group(group)?;
        self.by_handle.insert(handle, key);
        Some(key)
    }

    fn replica(&mut self, name: &[u8], owner: ShardId) -> Option<u32> {
        if let Some(&key) = self.by_name.get(name) {
            return Some(key);
        }
        self.insert_group(Group::new(name.into(), Handle(0), Epoch(0), Role::Replica { owner }))
    }

    fn insert_group(&mut self, group: Group) -> Option<u32> {
        if self.groups.len() >= self.config.groups_max as usize {
            return None;
        }
        Some(self.place_group(group))
    }

    /// Puts a group among those of this shard and gives it its class: owner and replicas
    /// decide by the same name alike.
    pub(super) fn place_group(&mut self, mut group: Group) -> u32 {
        group.class = self.config.classes.of(&group.name);
        group.priority = self.config.priority_of(group.class);
        let name = group.name.clone();
        let key = self.groups.insert(group) as u32;
        self.by_name.insert(name, key);
        key
    }

    /// Another shard has answered a JOIN of this connection.
    pub(super) fn join_answered(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.joining -= 1;
        }
    }

    /// Puts a member whose join was accepted on the tail, or behind it if it wants history.
    pub(super) fn add_member(&mut self, id: ConnId, key: u32, accepted: Accepted) {
        let Accepted { request, head, sent, durable, cursor, roster } = accepted;
        if self.conn(id).is_none_or(|conn| conn.state != ConnState::Open) {
            return self.tell_left(key, id, durable);
        }
        let group = &self.groups[key as usize];
        if !self.tokens.may(id, Right::Join, &group.name) {
            // Its token was renewed meanwhile and allows less.
            let name = group.name.clone();
            self.tell_left(key, id, durable);
            return self.forbid(id, request, Right::Join, &name);
        }
        if self.membership(id, key).is_some() {
            // The member stays online: this very connection is in the group.
            self.tell_left(key, id, None);
            let name = self.groups[key as usize].name.clone();
            let text = "the member is in this group already";
            let refusal = Refusal::new(ErrorCode::AlreadyAMember, text).field(&name);
            return self.refuse(id, request, refusal);
        }
        let group = &mut self.groups[key as usize];
        let (lag, next) = match group.attach(sent) {
            Some(next) => (Lag::Live, next),
            None => (Lag::Behind, 0),
        };
        let behind = sent < group.published;
        if matches!(lag, Lag::Behind) {
            self.figures.catch_up_members += 1;
            self.begins_behind(id.slot);
        }
        let member = Member {
            conn: id.slot,
            epoch: Epoch(0),
            next,
            sent,
            acked: if durable.is_some() { sent } else { Seq(0) },
            lag,
            wants_roster: roster,
            dirty: false,
            durable: durable.map(DurableMember::new),
        };
        let group = &mut self.groups[key as usize];
        let member = group.members.insert(member);
        if roster {
            self.watch_roster(key, true);
        }
        let group = &self.groups[key as usize];
        let (epoch, handle, name) = (group.epoch, group.handle, group.name.clone());
        let membership = Membership { group: key, member };
        if let Some(conn) = self.conn(id) {
            conn.memberships.push(membership);
        }
        self.figures.members += 1;
        let first = sent.next();
        let joined = Joined { request, epoch, handle, head, group: &name, first, cursor };
        self.control(id, |out| joined.encode(out));
        if behind {
            self.mark_dirty(membership);
            self.make_ready(id.slot);
        }
    }

    pub(super) fn leave(&mut self, id: ConnId, leave: &Leave<'_>) {
        for name in leave.entries() {
            let key = self.by_name.get(name).copied();
            let membership = key.and_then(|key| self.membership(id, key));
            let Some(membership) = membership else {
                let text = "the member is not in this group, so it cannot leave it";
                let refusal = Refusal::new(ErrorCode::NotAMember, text).field(name);
                self.refuse(id, leave.request, refusal);
                continue;
            };
            let handle = self.groups[membership.group as usize].handle;
            if let Some(conn) = self.conn(id) {
                conn.memberships.retain(|m| *m != membership);
                conn.dirty.remove(membership);
            }
            match self.take_member(membership) {
                Some(durable) => self.leave_for_good(id, leave.request, membership.group, durable),
                None => {
                    self.tell_left(membership.group, id, None);
                    self.left(id, leave.request, handle);
                }
            }
        }
    }

    /// A durable member leaves: the owner answers when that is on disk.
    fn leave_for_good(&mut self, id: ConnId, request: u32, key: u32, durable: RosterKey) {
        let group = &self.groups[key as usize];
        let handle = group.handle;
        if let Role::Replica { owner } = group.role {
            // First: the owner knows by who is online that this connection was not replaced.
            self.tell(owner, Message::LeaveForGood { conn: id, request, handle, durable });
            self.tell_left(key, id, Some(durable));
        } else {
            let place = Place { shard: self.id, conn: id };
            self.owner_leave(key, Caller { place, request, roster: false }, durable);
            self.member_went(key, place, None);
        }
    }

    /// Tells a connection that it is out of a group.
    pub(super) fn left(&mut self, id: ConnId, request: u32, handle: Handle) {
        self.control(id, |out| Left { request, handle }.encode(out));
    }

    /// Takes a connection out of all its groups.
    pub(super) fn leave_all(&mut self, id: ConnId) {
        self.give_receipts_back(id);
        let Some(conn) = self.conn(id) else { return };
        conn.dirty.clear();
        for membership in std::mem::take(&mut conn.memberships) {
            self.remove_member(id, membership);
        }
    }

    pub(super) fn remove_member(&mut self, id: ConnId, membership: Membership) {
        let durable = self.take_member(membership);
        self.tell_left(membership.group, id, durable);
    }

    /// Takes a member off a group on this shard. Returns its name on the roster.
    fn take_member(&mut self, membership: Membership) -> Option<RosterKey> {
        let group = &mut self.groups[membership.group as usize];
        let member = group.members.remove(membership.member)?;
        if member.wants_roster {
            self.watch_roster(membership.group, false);
        }
        if !matches!(member.lag, Lag::Live) {
            self.figures.catch_up_members -= 1;
            self.ends_behind(member.conn);
        }
        self.figures.members -= 1;
        member.durable.map(|durable| durable.key)
    }

    /// Tells the owner that a connection is no longer in a group; a replica without members is
    /// dropped. `durable` stays a member, offline.
    fn tell_left(&mut self, key: u32, id: ConnId, durable: Option<RosterKey>) {
        let group = &mut self.groups[key as usize];
        let handle = group.handle;
        match &mut group.role {
            Role::Owner(_) => {
                let place = Place { shard: self.id, conn: id };
                self.member_went(key, place, durable);
            }
            Role::Replica { owner } => {
                let owner = *owner;
                if group.members.is_empty() && group.pending_joins == 0 {
                    self.forget_group(key);
                }
                self.tell(owner, Message::Leave { conn: id, handle, durable });
            }
        }
    }

    /// Forgets a group that no member of this shard is in.
    pub(super) fn forget_group(&mut self, key: u32) {
        let mut group = self.groups.remove(key as usize);
        self.tail_bytes -= group.tail.break_off();
        self.by_name.remove(&group.name);
        self.by_handle.remove(&group.handle);
    }
}
