//! Receipts on their way: from the owner of a group, where members' acknowledgements settle
//! them, to a connection of the publisher, on whichever shard it is. The connection's shard
//! asks its client for proof that it has read them; until then the owner keeps them, and a
//! connection that ends without proof gives them back.

use super::conn::ConnState;
use super::{ConnId, Shard};
use crate::group::receipts::{Fulfilled, ReceiptRefused, SHARES_MAX};
use crate::group::{Group, Place, Sequencer};
use crate::mesh::Message;
use crate::position::{Handle, Seq, ShardId};
use crate::wal::Record;
use crate::wire::{ErrorCode, Receipt};

/// Receipts on one connection that wait for proof; of more the oldest is taken as read.
const UNPROVED_MAX: usize = 4096;

/// A receipt that a connection was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Token of the PROBE whose answer proves that it was read.
    token: u64,
    /// Owner of the group.
    owner: ShardId,
    handle: Handle,
    seq: Seq,
}

impl Shard {
    /// Whether a publish to an owned group may ask for a receipt.
    pub(super) fn may_ask_receipt(&self, key: usize, percent: u8) -> Result<(), (ErrorCode, u64)> {
        let group = &self.groups[key];
        if !self.config.receipts_of(group.class) {
            return Err((ErrorCode::ReceiptsRefused, 0));
        }
        let max = self.config.receipts_max;
        let crate::group::Role::Owner(sequencer) = &group.role else { return Ok(()) };
        let Some(roster) = &sequencer.roster else { return Ok(()) };
        let asked = roster.receipts.may_ask(percent, max as usize);
        asked.map_err(|why| match why {
            ReceiptRefused::TooMany => (ErrorCode::ReceiptsRefused, u64::from(max)),
            ReceiptRefused::TooManyShares => (ErrorCode::TooManyShares, SHARES_MAX as u64),
        })
    }

    fn receipts_of(&mut self, key: u32) -> Option<(Seq, &mut Sequencer)> {
        let group = self.groups.get_mut(key as usize)?;
        let published = group.published;
        Some((published, group.sequencer()?))
    }

    /// Something happened that may settle receipts of an owned group. `thoroughly` also finds
    /// those that are complete before an older one of the same share.
    pub(super) fn settle_receipts(&mut self, key: u32, thoroughly: bool) {
        let Some((published, sequencer)) = self.receipts_of(key) else { return };
        let Some(roster) = &mut sequencer.roster else { return };
        if roster.receipts.is_empty() {
            return;
        }
        let mut out = Vec::new();
        roster.receipts.settle(published, &mut out);
        if thoroughly {
            roster.receipts.sweep(published, &mut out);
        }
        self.hand_out(key, out);
    }

    /// Retention took messages that receipts wait for: they are sent as far as they came.
    pub(super) fn expire_receipts(&mut self, key: u32) {
        let Some((_, sequencer)) = self.receipts_of(key) else { return };
        let first_kept = sequencer.first_kept;
        let Some(roster) = &mut sequencer.roster else { return };
        let mut out = Vec::new();
        roster.receipts.expire(first_kept, &mut out);
        self.hand_out(key, out);
    }

    fn hand_out(&mut self, key: u32, settled: Vec<Fulfilled>) {
        let max = self.config.receipts_max as usize;
        for receipt in settled {
            let Some((_, sequencer)) = self.receipts_of(key) else { return };
            let roster = sequencer.roster();
            let dropped = roster.mail.dropped;
            let place = roster.mail.settle(receipt, max);
            self.figures.receipts_dropped += roster.mail.dropped - dropped;
            if let Some(place) = place {
                self.send_receipt(key, place, receipt);
            }
        }
    }

    /// A member joined an owned group or published to it: what was kept for it is sent.
    pub(super) fn sender_seen(&mut self, key: u32, member: &[u8], place: Place) {
        let Some((_, sequencer)) = self.receipts_of(key) else { return };
        let Some(roster) = &mut sequencer.roster else { return };
        let mut handed = Vec::new();
        roster.mail.seen(member, place, &mut handed);
        for (place, receipt) in handed {
            self.send_receipt(key, place, receipt);
        }
    }

    pub(super) fn send_receipt(&mut self, key: u32, place: Place, settled: Fulfilled) {
        let Fulfilled { asked, acked, members } = settled;
        let receipt = Receipt {
            handle: self.groups[key as usize].handle,
            seq: asked.seq,
            producer_seq: asked.producer_seq,
            epoch: asked.epoch,
            acked,
            members,
            percent: asked.percent,
        };
        let Place { shard, conn } = place;
        if shard == self.id {
            self.take_receipt(shard, conn, &receipt);
        } else {
            self.tell(shard, Message::Receipt { conn, receipt });
        }
    }

    /// A receipt for a connection of this shard.
    pub(super) fn take_receipt(&mut self, owner: ShardId, id: ConnId, receipt: &Receipt) {
        let Receipt { handle, seq, .. } = *receipt;
        if self.conn(id).is_none_or(|conn| conn.state != ConnState::Open) {
            return self.tell_receipt(owner, id, handle, seq, false);
        }
        self.figures.receipts += 1;
        self.control(id, |out| receipt.encode(out));
        let token = self.prove(id);
        let Some(watch) = self.watch(id) else { return };
        watch.receipts.push_back(Sent { token, owner, handle, seq });
        if watch.receipts.len() > UNPROVED_MAX
            && let Some(Sent { owner, handle, seq, .. }) = watch.receipts.pop_front()
        {
            self.figures.receipts_unproved += 1;
            self.tell_receipt(owner, id, handle, seq, true);
        }
    }

    /// The client has read everything before PROBE `token`.
    pub(super) fn receipts_are_read(&mut self, id: ConnId, token: u64) {
        while let Some(watch) = self.conn(id).and_then(|conn| conn.watch.as_deref_mut())
            && watch.receipts.front().is_some_and(|sent| sent.token <= token)
            && let Some(Sent { owner, handle, seq, .. }) = watch.receipts.pop_front()
        {
            self.tell_receipt(owner, id, handle, seq, true);
        }
    }

    /// A connection ends: what it was sent without proof goes back.
    pub(super) fn give_receipts_back(&mut self, id: ConnId) {
        let Some(watch) = self.conn(id).and_then(|conn| conn.watch.as_deref_mut()) else { return };
        for Sent { owner, handle, seq, .. } in std::mem::take(&mut watch.receipts) {
            self.tell_receipt(owner, id, handle, seq, false);
        }
    }

    fn tell_receipt(&mut self, owner: ShardId, conn: ConnId, handle: Handle, seq: Seq, read: bool) {
        if owner == self.id {
            let place = Place { shard: owner, conn };
            self.receipt_ended(place, handle, seq, read);
        } else {
            self.tell(owner, Message::ReceiptEnded { conn, handle, seq, read });
        }
    }

    /// A receipt of an owned group was read on a connection, or the connection ended before.
    pub(super) fn receipt_ended(&mut self, place: Place, handle: Handle, seq: Seq, read: bool) {
        let Some(&key) = self.by_handle.get(&handle) else { return };
        let Some((_, sequencer)) = self.receipts_of(key) else { return };
        let roster = sequencer.roster();
        if read {
            if roster.mail.read(seq) && !std::mem::replace(&mut roster.receipts_moved, true) {
                self.note_receipts_of(key, handle);
            }
        } else if let Some((newer, receipt)) = roster.mail.unread(seq, place) {
            self.send_receipt(key, newer, receipt);
        }
    }

    /// Stages how far receipts of a group have been read, if that has changed: after a restart
    /// those up to there are not sent again.
    pub(super) fn stage_receipts_of(&mut self, key: u32) {
        let group = self.groups.get_mut(key as usize).and_then(Group::sequencer);
        let Some(sequencer) = group else { return };
        let synced = sequencer.synced;
        let Some(roster) = &mut sequencer.roster else { return };
        if !std::mem::take(&mut roster.receipts_moved) {
            return;
        }
        let oldest = roster.receipts.oldest().into_iter().chain(roster.mail.oldest()).min();
        let read = oldest.map_or(synced, |oldest| Seq(oldest.0 - 1)).min(synced);
        if read > roster.receipts_read {
            roster.receipts_read = read;
            self.stage_record(key, &Record::ReceiptsRead { seq: read });
        }
    }
}
