//! Who is in which group: JOIN, LEAVE, ACK, and connections that go away.

use super::conn::{ConnState, Membership};
use super::replies::{Refusal, refusal_text};
use super::{ConnId, Shard};
use crate::group::{Group, Lag, Member, PeerCursor, Role, Sequencer};
use crate::mesh::Message;
use crate::position::{Epoch, Handle, Seq, ShardId};
use crate::wal::GroupIndex;
use crate::wire::{Acks, ErrorCode, Join, JoinEntry, Joined, Leave, Left, Mode, Start};

/// A join that the owner accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    pub request: u32,
    pub start: Start,
    /// Last published message at the time of the join.
    pub head: Seq,
}

impl Shard {
    pub(super) fn join(&mut self, id: ConnId, join: &Join<'_>) {
        if join.entries().any(|entry| entry.mode == Mode::Durable) {
            let text = "durable members are not served by this build; use mode 0";
            let refusal = Refusal::new(ErrorCode::Malformed, text).field(b"mode");
            return self.refuse(id, join.request, refusal);
        }
        for entry in join.entries() {
            self.join_one(id, join.request, entry);
        }
    }

    fn join_one(&mut self, id: ConnId, request: u32, entry: JoinEntry<'_>) {
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
        if local {
            match self.admit(key, None) {
                Ok(head) => {
                    self.add_member(id, key, Accepted { request, start: entry.start, head });
                }
                Err((code, limit)) => {
                    let refusal = Refusal::new(code, refusal_text(code)).limit(limit);
                    self.refuse(id, request, refusal.field(entry.group));
                }
            }
        } else if let Some(peer) = self.mesh.peer(owner) {
            self.groups[key as usize].pending_joins += 1;
            let group = entry.group.into();
            peer.tell(Message::Join { conn: id, request, group, start: entry.start });
            if let Some(conn) = self.conn(id) {
                conn.joining += 1;
            }
        }
    }

    fn membership(&mut self, id: ConnId, key: u32) -> Option<Membership> {
        self.conn(id)?.memberships.iter().find(|m| m.group == key).copied()
    }

    /// The group `name` that this shard owns; created if there is room for it.
    pub(super) fn owned_group(&mut self, name: &[u8]) -> Option<u32> {
        if let Some(&key) = self.by_name.get(name) {
            return Some(key);
        }
        self.groups_created += 1;
        let handle = Handle::new(self.id, self.start, self.groups_created);
        let sequencer = Sequencer::after(Seq(0), Seq(1), GroupIndex::default());
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

    /// Counts a member in on the owner; `peer` is its shard if that is another one. Returns
    /// the published head: history of the member ends there, live starts at the next.
    pub(super) fn admit(
        &mut self,
        key: u32,
        peer: Option<ShardId>,
    ) -> Result<Seq, (ErrorCode, u64)> {
        let max = self.config.members_per_group_max;
        let group = &mut self.groups[key as usize];
        let (head, end) = (group.published, group.tail.end());
        let Some(sequencer) = group.sequencer() else {
            return Err((ErrorCode::Unsupported, 0));
        };
        if sequencer.members >= max {
            return Err((ErrorCode::TooManyMembers, u64::from(max)));
        }
        sequencer.members += 1;
        if let Some(shard) = peer {
            match sequencer.peers.iter_mut().find(|peer| peer.shard == shard) {
                Some(peer) => peer.members += 1,
                None => {
                    sequencer.peers.push(PeerCursor { shard, next: end, members: 1, dirty: false });
                }
            }
        }
        Ok(head)
    }

    /// Another shard has answered a JOIN of this connection.
    pub(super) fn join_answered(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.joining -= 1;
        }
    }

    /// Puts a member whose join was accepted on the tail, or behind it if it wants history.
    pub(super) fn add_member(&mut self, id: ConnId, key: u32, accepted: Accepted) -> bool {
        if self.conn(id).is_none_or(|conn| conn.state != ConnState::Open) {
            self.tell_left(key);
            return false;
        }
        if self.membership(id, key).is_some() {
            self.tell_left(key);
            let name = self.groups[key as usize].name.clone();
            let text = "the member is in this group already";
            let refusal = Refusal::new(ErrorCode::AlreadyAMember, text).field(&name);
            self.refuse(id, accepted.request, refusal);
            return false;
        }
        let group = &mut self.groups[key as usize];
        let head = accepted.head;
        let sent = match accepted.start {
            Start::Tail | Start::Cursor => head,
            Start::Seq(seq) => Seq(seq.0 - 1).min(head),
        };
        let (lag, next) = match group.attach(sent) {
            Some(next) => (Lag::Live, next),
            None => (Lag::Behind, 0),
        };
        let behind = sent < group.published;
        self.figures.catch_up_members += u64::from(matches!(lag, Lag::Behind));
        let acked = Seq(0);
        let member =
            Member { conn: id.slot, epoch: Epoch(0), next, sent, acked, lag, dirty: false };
        let member = group.members.insert(member) as u32;
        let (epoch, handle, name) = (group.epoch, group.handle, group.name.clone());
        let membership = Membership { group: key, member };
        if let Some(conn) = self.conn(id) {
            conn.memberships.push(membership);
        }
        self.figures.members += 1;
        let (request, first, cursor) = (accepted.request, sent.next(), Seq(0));
        let joined = Joined { request, epoch, handle, head, group: &name, first, cursor };
        self.control(id, |out| joined.encode(out));
        if behind {
            self.mark_dirty(membership);
            self.make_ready(id.slot);
        }
        true
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
            self.remove_member(membership);
            let left = Left { request: leave.request, handle };
            self.control(id, |out| left.encode(out));
        }
    }

    /// Takes a connection out of all its groups.
    pub(super) fn leave_all(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        conn.dirty.clear();
        for membership in std::mem::take(&mut conn.memberships) {
            self.remove_member(membership);
        }
    }

    fn remove_member(&mut self, membership: Membership) {
        let group = &mut self.groups[membership.group as usize];
        let member = group.members.remove(membership.member as usize);
        if !matches!(member.lag, Lag::Live) {
            self.figures.catch_up_members -= 1;
        }
        self.figures.members -= 1;
        self.tell_left(membership.group);
    }

    /// Counts a member out on the owner; a replica without members is dropped.
    fn tell_left(&mut self, key: u32) {
        let group = &mut self.groups[key as usize];
        let handle = group.handle;
        match &mut group.role {
            Role::Owner(_) => self.count_out(key),
            Role::Replica { owner } => {
                let owner = *owner;
                if group.members.is_empty() && group.pending_joins == 0 {
                    self.forget_group(key);
                }
                if let Some(peer) = self.mesh.peer(owner) {
                    peer.tell(Message::Leave { handle });
                }
            }
        }
    }

    /// Counts a member out on the owner. A group that never had a message leaves no trace,
    /// so that joins of made-up names do not fill the table of groups.
    pub(super) fn count_out(&mut self, key: u32) {
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        sequencer.members -= 1;
        self.forget_unused(key);
    }

    /// Forgets an owned group that nobody is in and that never had a message.
    pub(super) fn forget_unused(&mut self, key: u32) {
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        // A publish in the inbox holds the key of its group.
        let unused = sequencer.sequenced == Seq(0) && sequencer.state.is_none();
        if sequencer.members == 0 && unused && self.inbox.is_empty() {
            self.forget_group(key);
        }
    }

    /// Forgets a group that no member of this shard is in.
    pub(super) fn forget_group(&mut self, key: u32) {
        let mut group = self.groups.remove(key as usize);
        self.tail_bytes -= group.tail.break_off();
        self.by_name.remove(&group.name);
        self.by_handle.remove(&group.handle);
    }

    /// Moves acknowledged cursors. An acknowledgement of what was not sent, or of another
    /// epoch, says nothing and is ignored.
    pub(super) fn ack(&mut self, id: ConnId, acks: &Acks<'_>) {
        for ack in acks.entries() {
            let Some(&key) = self.by_handle.get(&ack.handle) else { continue };
            let Some(membership) = self.membership(id, key) else { continue };
            let group = &mut self.groups[key as usize];
            let member = &mut group.members[membership.member as usize];
            if ack.epoch == member.epoch && ack.seq <= member.sent && ack.seq > member.acked {
                member.acked = ack.seq;
            }
        }
    }
}
