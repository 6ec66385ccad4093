//! Stage 3: publishes get their place in their group's order.

use super::drain::Drain;
use super::inbox::{Header, Origin};
use super::peers::FORWARD_OVERHEAD;
use super::replies::Refusal;
use super::{ConnId, Io, Shard};
use crate::auth::Right;
use crate::config::{ClassId, Priority, ShardConfig};
use crate::group::receipts::{Asked, Fulfilled};
use crate::group::{self, Attempt, Group, Place, Sequencer, Verdict};
use crate::limits::GROUP_NAME_MAX;
use crate::mesh::{Forward, Message};
use crate::position::{Epoch, Level, Nanos, Seq, ShardId};
use crate::wire::{ErrorCode, Publish};

/// Bytes of a commit that a run takes beside its messages, at most.
const RUN_OVERHEAD: usize = 64 + GROUP_NAME_MAX;

impl Shard {
    /// Takes a PUBLISH from a connection: into the inbox, or on to the owner of its group.
    pub(super) fn enqueue(&mut self, id: ConnId, publish: &Publish<'_>) {
        let origin = Origin { shard: self.id, conn: id, request: publish.request };
        let payload_max = u64::from(self.config.payload_max);
        if publish.payload.len() as u64 > payload_max {
            let text = format!("the payload has {} bytes; split it", publish.payload.len());
            let refusal = Refusal::new(ErrorCode::PayloadTooLong, &text).limit(payload_max);
            self.figures.refused += 1;
            return self.refuse(id, publish.request, refusal);
        }
        if !self.tokens.may(id, Right::Publish, publish.group) {
            return self.forbid(id, publish.request, Right::Publish, publish.group);
        }
        if let Err(retry_ms) = self.count_publish(id, publish.payload.len()) {
            return self.refuse_rate(id, publish.request, retry_ms, b"member");
        }
        let owner = self.owner_of(publish.group);
        // A shard that said that it is drained pushes nothing to the others any more.
        if owner != self.id && self.drain.as_ref().is_some_and(Drain::is_over) {
            return self.refuse_publish(origin, ErrorCode::Draining, 0);
        }
        if owner == self.id {
            self.enqueue_local(origin, publish);
        } else {
            self.forward(owner, id, publish);
        }
    }

    fn enqueue_local(&mut self, origin: Origin, publish: &Publish<'_>) {
        let late = self.drain.is_some();
        let group = match self.group_to_publish(publish.group, publish.producer_seq, late) {
            Ok(group) => group,
            Err((code, limit)) => return self.refuse_publish(origin, code, limit),
        };
        let Group { class, priority, .. } = self.groups[group as usize];
        self.throttle_if_full(origin.conn, priority);
        let default_level = self.config.level_of(class);
        let Some(conn) = self.conns.get(origin.conn.slot) else { return };
        let header = Header {
            origin,
            group: group as usize,
            priority,
            level: publish.level.unwrap_or(default_level),
            producer: conn.producer,
            producer_seq: publish.producer_seq,
            receipt: publish.receipt,
            late,
        };
        self.inbox.push(header, &conn.member, publish.payload);
        self.count_waiting(group);
    }

    /// The group that a publish goes to. One that is not there yet is created only for what
    /// can be taken: a producer's first message, while the log takes messages and the server does
    /// not stop.
    pub(super) fn group_to_publish(
        &mut self,
        name: &[u8],
        producer_seq: u64,
        late: bool,
    ) -> Result<u32, (ErrorCode, u64)> {
        if let Some(&key) = self.by_name.get(name) {
            return Ok(key);
        }
        if late {
            return Err((ErrorCode::Draining, 0));
        }
        self.may_publish()?;
        if producer_seq != 1 {
            return Err((ErrorCode::UnknownProducer, 1));
        }
        let max = u64::from(self.config.groups_max);
        self.owned_group(name).ok_or((ErrorCode::TooManyGroups, max))
    }

    fn forward(&mut self, owner: ShardId, id: ConnId, publish: &Publish<'_>) {
        let late = self.drain.is_some();
        let priority = self.priority_of_foreign(publish.group);
        self.throttle_if_full(id, priority);
        let Some(conn) = self.conns.get(id.slot) else { return };
        let Some(peer) = self.mesh.peer(owner) else { return };
        let forward = Forward {
            conn: id,
            request: publish.request,
            priority,
            level: publish.level,
            producer: conn.producer,
            producer_seq: publish.producer_seq,
            receipt: publish.receipt,
            late,
            group: peer.carry(publish.group),
            sender: peer.carry(&conn.member),
            payload: peer.carry(publish.payload),
        };
        peer.tell(Message::Forward(forward));
        self.backpressure.forwarded(priority, FORWARD_OVERHEAD + publish.payload.len() as u64);
    }

    /// Whether the log takes messages.
    pub(super) fn may_publish(&self) -> Result<(), (ErrorCode, u64)> {
        if self.log.is_poisoned() {
            Err((ErrorCode::StorageFailed, 0))
        } else if self.log.is_full() {
            Err((ErrorCode::StorageFull, 0))
        } else {
            Ok(())
        }
    }

    /// Tells a publisher, here or on another shard, that its message was not accepted.
    pub(super) fn refuse_publish(&mut self, origin: Origin, code: ErrorCode, limit: u64) {
        let Origin { shard, conn, request } = origin;
        if shard == self.id {
            self.figures.refused += 1;
            self.refuse(conn, request, Refusal::told(code, limit));
        } else {
            self.tell(shard, Message::PublishRefused { conn, request, code, limit });
        }
    }

    /// Whether the commit being filled has room for a publish to a group of this priority.
    pub(super) fn can_sequence(&self, priority: Priority) -> bool {
        self.filling.staged_bytes < self.config.commit_staged_max()
            && self.filling.staged_by[priority.index()] < self.commit_share(priority)
    }

    /// Whether a publish waits that could be sequenced now.
    pub(super) fn has_sequenceable(&self) -> bool {
        Priority::ALL.into_iter().any(|p| self.inbox.has(p) && self.can_sequence(p))
    }

    /// Gives the publishes of the inbox their place, until the commit being filled is full.
    /// Bulk goes before normal, since its share is so small that it takes nothing from it.
    pub(super) fn sequence(&mut self, io: &mut impl Io) {
        for priority in [Priority::Realtime, Priority::Bulk, Priority::Normal] {
            if self.inbox.has(priority) {
                self.sequence_lane(priority, io);
            }
        }
        self.publish_early();
        self.settle_published();
        self.unthrottle(io);
    }

    fn sequence_lane(&mut self, priority: Priority, io: &mut impl Io) {
        let wall_ms = io.wall_ms();
        let now_ms = io.now().0 / 1_000_000;
        let limits = self.config.producer_limits();
        // What a log that takes nothing refuses need not wait for room in a commit.
        let open = self.may_publish();
        while self.can_sequence(priority) || open.is_err() {
            let Some((header, sender, payload)) = self.inbox.front(priority) else { break };
            let bytes = payload.len() as u64;
            let group = &mut self.groups[header.group];
            let (handle, epoch, class) = (group.handle, group.epoch, group.class);
            let Some(sequencer) = group.sequencer() else {
                self.done(&header, bytes);
                continue;
            };
            let attempt = Attempt {
                producer: &header.producer,
                member: sender,
                producer_seq: header.producer_seq,
                now_ms,
            };
            let slot = match sequencer.producers.judge(attempt, sequencer.synced, &limits) {
                Verdict::Fresh(slot) if open.is_ok() && !header.late => slot,
                verdict => {
                    // A receipt that was asked for goes to where it is asked for again.
                    if let (Some(roster), Verdict::Duplicate { .. }) =
                        (&mut sequencer.roster, verdict)
                    {
                        let place = Place { shard: header.origin.shard, conn: header.origin.conn };
                        let mut handed = Vec::new();
                        roster.mail.seen(sender, place, &mut handed);
                        let key = header.group as u32;
                        let handed = handed.into_iter();
                        self.receipts_kept.extend(handed.map(|(at, r)| (key, at, r)));
                    }
                    self.done(&header, bytes);
                    self.not_fresh(&header, verdict);
                    continue;
                }
            };
            if self.config.groups_are_bounded
                && let Err((code, limit)) = within(sequencer, &self.config, class, self.now, bytes)
            {
                self.figures.rate_limited += u64::from(code == ErrorCode::RateLimited);
                self.done(&header, bytes);
                self.refuse_publish(header.origin, code, limit);
                self.forget_unused(header.group as u32);
                continue;
            }
            if header.receipt > 0
                && let Err((code, limit)) = self.may_ask_receipt(header.group, header.receipt)
            {
                self.done(&header, bytes);
                self.refuse_publish(header.origin, code, limit);
                self.forget_unused(header.group as u32);
                continue;
            }
            let Some(sequencer) = self.groups[header.group].sequencer() else { continue };
            // Level memory is shown before it is on disk only if nothing before it waits,
            // and if the log already tells recovery that this group does so.
            let shown_early = header.level == Level::Memory
                && !sequencer.has_waiting()
                && sequencer.memory_marked == self.log.active();
            if !shown_early && sequencer.staged.count > 0 && !sequencer.staged.waits {
                // What is staged is answered in this turn. In one run with this message it would be
                // shown only after the commit, and never if that failed.
                let key = header.group as u32;
                self.show_early(key);
                continue;
            }
            self.stamp = self.stamp.tick(wall_ms);
            if sequencer.staged.count == 0 {
                self.filling.first_at.get_or_insert(self.now);
                self.filling.groups.push(header.group as u32);
                self.filling.add(priority, RUN_OVERHEAD);
                sequencer.staged.begin(self.filling.metas_buf());
            }
            let before = sequencer.staged.bytes();
            let message = group::Message {
                handle,
                stamp: self.stamp,
                node: self.node,
                shard: self.id,
                level: header.level,
                producer: header.producer,
                producer_seq: header.producer_seq,
                receipt: header.receipt,
                sender,
                payload,
            };
            let seq = sequencer.stage(&message, shown_early);
            sequencer.producers.accept(slot, attempt, (seq, epoch), &limits);
            self.filling.add(priority, sequencer.staged.bytes() - before);
            note_sender(sequencer, &header, sender, (seq, epoch), &mut self.receipts_kept);
            let level = if shown_early { Level::Memory } else { Level::Durable };
            let reply = header.reply(handle, (seq, epoch), level);
            if shown_early {
                self.filling.early_replies.push(reply);
            } else {
                self.filling.replies.push(reply);
            }
            self.figures.messages += 1;
            self.done(&header, bytes);
        }
    }

    /// A publish to an owned group was put into the inbox.
    pub(super) fn count_waiting(&mut self, group: u32) {
        if let Some(sequencer) = self.groups[group as usize].sequencer() {
            sequencer.inbox += 1;
        }
    }

    /// The oldest publish of its priority is dealt with.
    fn done(&mut self, header: &Header, payload: u64) {
        let priority = header.priority;
        self.inbox.pop(priority);
        if let Some(sequencer) = self.groups[header.group].sequencer() {
            sequencer.inbox -= 1;
        }
        if header.origin.shard != self.id {
            let bytes = FORWARD_OVERHEAD + payload;
            self.tell(header.origin.shard, Message::Credit { priority, bytes });
        }
    }
}

/// Whether a group may take a message of so many bytes now.
fn within(
    sequencer: &mut Sequencer,
    config: &ShardConfig,
    class: ClassId,
    now: Nanos,
    bytes: u64,
) -> Result<(), (ErrorCode, u64)> {
    let longest = config.payload_max_of(class);
    if bytes > u64::from(longest) {
        return Err((ErrorCode::PayloadTooLong, u64::from(longest)));
    }
    let taken = sequencer.published.take(now, bytes, config.publish_rates_of(class));
    taken.map_err(|retry_ms| (ErrorCode::RateLimited, retry_ms))
}

/// A publisher is seen, and may ask for a receipt. Nothing as long as nobody asks for any.
fn note_sender(
    sequencer: &mut Sequencer,
    header: &Header,
    sender: &[u8],
    (seq, epoch): (Seq, Epoch),
    kept: &mut Vec<(u32, Place, Fulfilled)>,
) {
    if header.receipt == 0 && sequencer.roster.is_none() {
        return;
    }
    let place = Place { shard: header.origin.shard, conn: header.origin.conn };
    let roster = sequencer.roster();
    if roster.mail.has_senders() {
        let mut handed = Vec::new();
        roster.mail.seen(sender, place, &mut handed);
        kept.extend(handed.into_iter().map(|(at, receipt)| (header.group as u32, at, receipt)));
    }
    if header.receipt > 0 {
        let (percent, producer_seq) = (header.receipt, header.producer_seq);
        let sender = roster.mail.asks(sender, Some(place));
        roster.receipts.ask(Asked { seq, epoch, percent, sender, producer_seq });
    }
}
