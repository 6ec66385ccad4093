//! Stage 4: what reached its level becomes visible. Tails move, replies are released.

use super::Shard;
use super::commit::{Reply, Run};
use crate::fanout::SegmentRef;
use crate::group::Role;
use crate::mesh::Message;

impl Shard {
    /// Publishes the commit that is on disk, if one came back in this turn.
    pub(super) fn publish(&mut self) {
        if !self.in_flight.as_ref().is_some_and(|commit| commit.synced) {
            return;
        }
        let Some(mut commit) = self.in_flight.take() else { return };
        debug_assert_eq!(commit.number, self.log.synced());
        self.filling.records.synced(commit.records);
        if commit.messages > 0 {
            self.distributions.published(commit.first_at, commit.messages, self.now);
        }
        for mut run in commit.runs.drain(..) {
            let group = &mut self.groups[run.group as usize];
            if let Some(sequencer) = group.sequencer() {
                sequencer.synced = run.segment.last();
                let bytes = (run.metas.len() + run.segment.bytes().len()) as u64;
                sequencer.index.note(run.segment.first(), commit.at, bytes, commit.newest_ms);
                if run.has_memory {
                    sequencer.memory_marked = commit.at.segment;
                    sequencer.used_memory = true;
                }
                if run.waits {
                    sequencer.unsynced_durable -= 1;
                }
            }
            self.filling.reuse_metas(std::mem::take(&mut run.metas));
            if run.waits {
                let key = run.group;
                self.publish_run(run);
                self.note_receipts_due(key);
            }
        }
        for reply in commit.replies.drain(..) {
            self.reply(reply);
        }
        self.filling.reuse(commit.runs, commit.replies);
        self.release_roster_changes();
        self.settle_published();
        self.release_held();
    }

    /// Publishes what has level memory and waits for nothing.
    pub(super) fn publish_early(&mut self) {
        if self.filling.early_replies.is_empty() {
            return;
        }
        let mut groups = std::mem::take(&mut self.filling.groups);
        groups.retain(|&key| {
            let waits = self.groups[key as usize].sequencer().is_some_and(|s| s.staged.waits);
            if !waits {
                self.show_early(key);
            }
            waits
        });
        self.filling.groups = groups;
        let mut replies = std::mem::take(&mut self.filling.early_replies);
        for reply in replies.drain(..) {
            self.reply(reply);
        }
        self.filling.early_replies = replies;
    }

    /// Shows what a group has staged, none of which waits for the disk.
    pub(super) fn show_early(&mut self, key: u32) {
        let Some(run) = self.freeze(key) else { return };
        let segment = run.segment.clone();
        self.filling.runs.push(run);
        self.push_tail(key, segment);
        self.note_receipts_due(key);
        self.make_peers_dirty(key);
    }

    fn publish_run(&mut self, run: Run) {
        self.push_tail(run.group, run.segment);
        self.make_peers_dirty(run.group);
    }

    /// Moves the tail of a group on this shard and queues the group for its local members.
    pub(super) fn push_tail(&mut self, key: u32, segment: SegmentRef) {
        let group = &mut self.groups[key as usize];
        debug_assert_eq!(group.published.next(), segment.first());
        self.tail_bytes += segment.bytes().len() as u64;
        group.published = segment.last();
        group.tail.push(segment);
        self.tail_order.push_back(key);
        self.pace.saw_live(self.now);
        self.queue_scan(key);
        self.evict();
    }

    /// Receipts of messages that were published, and kept ones for publishers that were seen:
    /// after the answers to their publishes.
    pub(super) fn settle_published(&mut self) {
        while let Some((key, place, receipt)) = self.receipts_kept.pop() {
            self.send_receipt(key, place, receipt);
        }
        while let Some(key) = self.receipts_due.pop() {
            self.settle_receipts(key, false);
        }
    }

    fn note_receipts_due(&mut self, key: u32) {
        if let Role::Owner(sequencer) = &self.groups[key as usize].role
            && sequencer.roster.as_ref().is_some_and(|roster| !roster.receipts.is_empty())
        {
            self.receipts_due.push(key);
        }
    }

    /// Has the local members of a group visited.
    pub(super) fn queue_scan(&mut self, key: u32) {
        let group = &mut self.groups[key as usize];
        if group.members.is_empty() {
            // Nobody to visit.
        } else if group.scan.queued {
            group.scan.again |= group.scan.next > 0;
        } else {
            group.scan.queued = true;
            group.scan.next = 0;
            self.queues.push_scan(group.priority, key);
        }
    }

    /// Keeps the tails of the shard within their bound, with all their encodings: the oldest
    /// segment of all goes first. One that is not on disk yet stays, since a member behind it could
    /// not be served.
    pub(super) fn evict(&mut self) {
        while self.tail_bytes + self.pins.encoded_bytes() > self.config.tail_bytes_max {
            let Some(&key) = self.tail_order.front() else { break };
            let Some(group) = self.groups.get_mut(key as usize) else {
                self.tail_order.pop_front();
                continue;
            };
            if let (Role::Owner(sequencer), Some(front)) = (&group.role, group.tail.front())
                && front.last() > sequencer.synced
            {
                break;
            }
            self.tail_order.pop_front();
            self.tail_bytes -= group.tail.evict().unwrap_or(0);
        }
    }

    fn make_peers_dirty(&mut self, key: u32) {
        let Some(sequencer) = self.groups[key as usize].sequencer() else { return };
        for cursor in &mut sequencer.peers {
            if !cursor.dirty
                && let Some(peer) = self.mesh.peer(cursor.shard)
            {
                cursor.dirty = true;
                peer.dirty.push(key);
            }
        }
    }

    pub(super) fn reply(&mut self, reply: Reply) {
        let Reply { origin, published } = reply;
        if origin.shard == self.id {
            self.control(origin.conn, |out| published.encode(out));
        } else {
            let conn = origin.conn;
            self.tell(origin.shard, Message::Published { conn, published });
        }
    }
}
