//! Stage 2: what other shards said; and stage 6: what they are told.

use super::catch_up::For;
use super::durable::Caller;
use super::inbox::{Header, Origin};
use super::replies::{Refusal, refusal_text};
use super::{Io, Shard};
use crate::config::Priority;
use crate::fanout::Segment;
use crate::group::{Place, Role};
use crate::mesh::{Announced, Batch, Forward, Message, Peer};
use crate::position::{Handle, Seq, ShardId};
use crate::wire::ErrorCode;

/// What a forwarded publish counts against the inbox beside its payload.
pub(super) const FORWARD_OVERHEAD: u64 = 128;

impl Shard {
    /// Takes every batch that waits. It never waits for room in a ring itself, so shards
    /// that are full of each other's messages cannot lock up. Making room in a full ring
    /// wakes the peer that could not push.
    pub(super) fn drain_mesh(&mut self, io: &mut impl Io) {
        for shard in (0..self.shards).map(ShardId) {
            while let Some(received) = self.mesh.peer(shard).and_then(Peer::receive) {
                if received.producer_asleep {
                    self.figures.mesh_wakes += 1;
                    io.wake(shard);
                }
                self.heard(shard, received.batch);
            }
        }
    }

    fn heard(&mut self, from: ShardId, batch: Batch) {
        let Batch { messages, arena } = batch;
        let mut credit = [0; Priority::COUNT];
        for message in messages {
            match message {
                Message::Forward(forward) => {
                    credit[forward.priority.index()] += self.take_forward(from, &forward, &arena);
                }
                Message::Join { conn, request, group, member, wanted } => {
                    let place = Place { shard: from, conn };
                    match self.owned_group(&group) {
                        Some(key) => {
                            self.owner_join(
                                key,
                                Caller { place, request, roster: wanted.roster },
                                &member,
                                wanted,
                            );
                        }
                        None => {
                            let (code, limit) =
                                (ErrorCode::TooManyGroups, u64::from(self.config.groups_max));
                            self.tell(
                                from,
                                Message::JoinRefused { conn, request, group, code, limit },
                            );
                        }
                    }
                }
                Message::Leave { conn, handle, durable } => {
                    if let Some(&key) = self.by_handle.get(&handle) {
                        self.member_went(key, Place { shard: from, conn }, durable);
                    }
                }
                Message::LeaveForGood { conn, request, handle, durable } => {
                    if let Some(&key) = self.by_handle.get(&handle) {
                        let place = Place { shard: from, conn };
                        self.owner_leave(key, Caller { place, request, roster: false }, durable);
                    }
                }
                Message::Left { conn, request, handle } => self.left(conn, request, handle),
                Message::LeaveRefused { conn, request, group, code } => {
                    let refusal = Refusal::new(code, refusal_text(code)).field(&group);
                    self.refuse(conn, request, refusal);
                }
                Message::Acks(moves) => {
                    for moved in moves {
                        self.cursor_moved(&moved);
                    }
                }
                Message::Receipt { conn, receipt } => self.take_receipt(from, conn, &receipt),
                Message::ReceiptEnded { conn, handle, seq, read } => {
                    self.receipt_ended(Place { shard: from, conn }, handle, seq, read);
                }
                Message::Replaced { conn } => self.close_replaced(conn),
                Message::Dismissed { conn, handle } => self.dismissed(conn, handle),
                Message::Joined { conn, group, handle, epoch, accepted } => {
                    self.join_answered(conn);
                    let Some(&key) = self.by_name.get(&group) else { continue };
                    let replica = &mut self.groups[key as usize];
                    if replica.handle != handle {
                        replica.handle = handle;
                        replica.epoch = epoch;
                        replica.published = accepted.head;
                        self.by_handle.insert(handle, key);
                    }
                    replica.pending_joins -= 1;
                    // While the join waited for the owner's disk the last member here may have
                    // left; the owner announced nothing from then on.
                    if replica.published < accepted.head {
                        self.tail_ends_before(key, accepted.head);
                    }
                    self.add_member(conn, key, accepted);
                }
                Message::JoinRefused { conn, request, group, code, limit } => {
                    self.join_answered(conn);
                    if let Some(&key) = self.by_name.get(&group) {
                        let replica = &mut self.groups[key as usize];
                        replica.pending_joins -= 1;
                        if replica.members.is_empty() && replica.pending_joins == 0 {
                            self.forget_group(key);
                        }
                    }
                    let refusal = Refusal::new(code, refusal_text(code)).limit(limit);
                    self.refuse(conn, request, refusal.field(&group));
                }
                Message::Ask(asked) => self.questions.push(*asked),
                Message::Watch { handle, wants } => self.peer_watches(from, handle, wants),
                Message::Roster { handle, frame } => self.roster_announced(handle, frame),
                Message::Answer(answer) => self.take_answer(answer),
                Message::Credit { priority, bytes } => self.backpressure.credit(priority, bytes),
                Message::ExpireSealed => self.expire_sealed_asked(),
                Message::SealedRemoved { number, done } => {
                    self.sealed_is_removed(number, done);
                }
                Message::Published { conn, published } => {
                    self.control(conn, |out| published.encode(out));
                }
                Message::PublishRefused { conn, request, code, limit } => {
                    self.figures.refused += 1;
                    self.refuse(conn, request, Refusal::told(code, limit));
                }
                Message::Announce { handle, segments, published } => {
                    self.announced(handle, segments, published);
                }
                Message::Read { handle, from: seq } => {
                    self.reads.ask(For::Members(from), handle, seq);
                }
                Message::History(history) => self.history_arrived(history),
            }
        }
        for priority in Priority::ALL {
            let bytes = credit[priority.index()];
            if bytes > 0 {
                self.tell(from, Message::Credit { priority, bytes });
            }
        }
    }

    pub(super) fn tell(&mut self, shard: ShardId, message: Message) {
        if let Some(peer) = self.mesh.peer(shard) {
            peer.tell(message);
        }
    }

    /// Puts a forwarded publish into the inbox. Returns the bytes to give credit for at once;
    /// the rest is given when it leaves the inbox.
    fn take_forward(&mut self, from: ShardId, forward: &Forward, arena: &[u8]) -> u64 {
        let bytes = |range: &std::ops::Range<u32>| &arena[range.start as usize..range.end as usize];
        let (name, payload) = (bytes(&forward.group), bytes(&forward.payload));
        let origin = Origin { shard: from, conn: forward.conn, request: forward.request };
        let group = match self.group_to_publish(name, forward.producer_seq, forward.late) {
            Ok(group) => group,
            Err((code, limit)) => {
                self.refuse_publish(origin, code, limit);
                return FORWARD_OVERHEAD + payload.len() as u64;
            }
        };
        let default_level = self.config.level_of(self.groups[group as usize].class);
        let header = Header {
            origin,
            group: group as usize,
            priority: forward.priority,
            level: forward.level.unwrap_or(default_level),
            producer: forward.producer,
            producer_seq: forward.producer_seq,
            receipt: forward.receipt,
            late: forward.late,
        };
        self.inbox.push(header, bytes(&forward.sender), payload);
        self.count_waiting(group);
        0
    }

    /// The tail of a foreign group moved: the replica takes the owner's very bytes.
    fn announced(&mut self, handle: Handle, segments: Vec<Announced>, published: Seq) {
        let Some(&key) = self.by_handle.get(&handle) else { return };
        let group = &mut self.groups[key as usize];
        let before = segments.first().map_or(published, |first| Seq(first.first.0 - 1));
        if before != group.published {
            self.tail_ends_before(key, before);
        }
        for segment in segments {
            let segment = Segment::new(segment.bytes, segment.first, segment.last, &self.pins);
            self.push_tail(key, segment);
        }
    }

    /// The owner's tail moved on before this shard was told; members get what is missing up to
    /// `published` from the log.
    fn tail_ends_before(&mut self, key: u32, published: Seq) {
        let group = &mut self.groups[key as usize];
        self.tail_bytes -= group.tail.break_off();
        group.published = published;
        self.queue_scan(key);
    }

    /// Stage 6: for every peer with room in its ring, the segments since its cursor in every
    /// group that moved, and what else waits for it, as one batch.
    pub(super) fn tell_peers(&mut self, io: &mut impl Io) {
        for shard in (0..self.shards).map(ShardId) {
            if self.mesh.peer(shard).is_some_and(|peer| peer.has_room()) {
                self.tell_acks(shard);
            }
            let Some(peer) = self.mesh.peer(shard) else { continue };
            if !peer.has_output() {
                continue;
            }
            if !peer.has_room() {
                self.figures.mesh_full += 1;
                continue;
            }
            let dirty = std::mem::take(&mut peer.dirty);
            for &key in &dirty {
                self.announce(shard, key);
            }
            if let Some(peer) = self.mesh.peer(shard) {
                let mut dirty = dirty;
                dirty.clear();
                peer.dirty = dirty;
                self.figures.mesh_batches += 1;
                if peer.flush() == Some(true) {
                    self.figures.mesh_wakes += 1;
                    io.wake(shard);
                }
            }
        }
    }

    /// Tells a peer of every segment of an owned group since its cursor.
    pub(super) fn announce(&mut self, shard: ShardId, key: u32) {
        let Some(group) = self.groups.get_mut(key as usize) else { return };
        let (handle, tail) = (group.handle, &group.tail);
        let Role::Owner(sequencer) = &mut group.role else { return };
        let Some(cursor) = sequencer.peers.iter_mut().find(|peer| peer.shard == shard) else {
            return;
        };
        cursor.dirty = false;
        let segments: Vec<_> = (cursor.next.max(tail.base())..tail.end())
            .filter_map(|ordinal| tail.get(ordinal))
            .map(|s| Announced { bytes: s.bytes().clone(), first: s.first(), last: s.last() })
            .collect();
        let moved = cursor.next != tail.end();
        cursor.next = tail.end();
        let published = group.published;
        if moved {
            self.tell(shard, Message::Announce { handle, segments, published });
        }
    }
}
