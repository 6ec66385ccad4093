//! The durable members of a group, on its owner shard: their acknowledged cursors, which of
//! them wait to be written to the log, and on which connections they are online.
//!
//! What is in here is on disk: a member comes in when its join is synced, and goes when its
//! leave is. The one exception are cursors, which reach the disk a little later; one that is
//! lost in a crash makes messages come again.

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;
use smallvec::SmallVec;

use super::mail::{Mail, Place};
use super::receipts::{Asked, Fulfilled, Receipts};
use super::roster_log::RosterLog;
use crate::position::{Epoch, ProducerId, Seq};
use crate::wal::{GroupState, MemberState, ReceiptState};
use crate::wire::Presence;

/// Names a durable member of a group as long as it is one. Other shards acknowledge with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RosterKey {
    /// Index in the roster.
    pub index: u32,
    /// Tells members apart that had this index one after another.
    pub generation: u32,
}

/// A durable member.
#[derive(Debug)]
pub struct Durable {
    /// Its id.
    pub id: Rc<[u8]>,
    /// Last message that had its place when the member joined: receipts of later ones count it.
    pub joined_at: Seq,
    /// Last message that it acknowledged, or after which it began: it goes on at the next.
    pub acked: Seq,
    /// Epoch of that message.
    pub acked_epoch: Epoch,
    /// Connections on which it is online; more than one only if the configuration allows it.
    pub online: SmallVec<[Place; 1]>,
    /// Its leave is on its way to the disk. It is a member until then, but a join is a new one.
    pub leaving: bool,
    generation: u32,
    /// Its cursor waits to be written to the log.
    dirty: bool,
}

impl Durable {
    /// What must outlive the server of it. Nothing beyond `synced` does.
    #[must_use]
    pub fn saved(&self, synced: Seq) -> MemberState {
        MemberState {
            joined_at: self.joined_at.min(synced),
            acked: self.acked.min(synced),
            acked_epoch: self.acked_epoch.max(Epoch(1)),
        }
    }

    /// The first message that receipts wait for.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.joined_at.max(self.acked).next()
    }
}

/// A durable member that comes in.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Its id.
    pub id: &'a [u8],
    /// See [`Durable::joined_at`].
    pub joined_at: Seq,
    /// See [`Durable::acked`].
    pub acked: Seq,
    /// See [`Durable::acked_epoch`].
    pub acked_epoch: Epoch,
}

/// The durable members of a group and the receipts that wait for them.
#[derive(Debug, Default)]
pub struct Roster {
    members: Slab<Durable>,
    by_id: HashMap<Rc<[u8]>, u32>,
    /// Members that are online on a connection at least.
    online: u32,
    next_generation: u32,
    dirty: Vec<u32>,
    /// Of these the part up to the disk was taken.
    ahead: Vec<u32>,
    /// How far those were written: they say nothing new until more is on disk.
    ahead_of: Seq,
    /// Version of the last join or leave that was staged for the log.
    pub staged_version: u64,
    /// Version of the last join or leave that is on disk and took effect.
    pub applied_version: u64,
    /// What changed last, for clients that want to know.
    pub log: RosterLog,
    /// Receipts that wait for acknowledgements.
    pub receipts: Receipts,
    /// Receipts that wait for their publishers.
    pub mail: Mail,
    /// A receipt was read since the log was told how far they are.
    pub receipts_moved: bool,
    /// All receipts up to this message were read, as the log has it.
    pub receipts_read: Seq,
}

impl Roster {
    /// The roster of a group that the log has; `None` if it never had one. At most
    /// `receipts_max` receipts wait again, the newest.
    #[must_use]
    pub fn restore(state: &GroupState, head: Seq, receipts_max: usize) -> Option<Self> {
        if state.roster_version == 0 && state.receipts.is_empty() {
            return None;
        }
        let version = state.roster_version;
        let mut roster =
            Self { staged_version: version, applied_version: version, ..Self::default() };
        let surplus = state.receipts.len().saturating_sub(receipts_max);
        for (&seq, receipt) in state.receipts.iter().skip(surplus) {
            let sender = roster.mail.asks(&receipt.sender, None);
            let (epoch, percent) = (receipt.epoch, receipt.percent);
            let producer_seq = receipt.producer_seq;
            let asked = Asked { seq, epoch, percent, sender, producer_seq };
            match receipt.done {
                None => roster.receipts.restore(asked),
                Some((acked, members)) => {
                    roster.mail.settle(Fulfilled { asked, acked, members }, receipts_max);
                }
            }
        }
        for (id, member) in &state.members {
            // One without a cursor goes on after its join.
            let known = member.acked_epoch > Epoch(0);
            roster.join(Incoming {
                id,
                joined_at: member.joined_at,
                acked: if known { member.acked } else { member.joined_at },
                acked_epoch: member.acked_epoch,
            });
        }
        let mut settled = Vec::new();
        roster.receipts.settle(head, &mut settled);
        roster.receipts.sweep(head, &mut settled);
        for receipt in settled {
            roster.mail.settle(receipt, receipts_max);
        }
        // Nobody knows a version yet.
        roster.log = RosterLog::default();
        Some(roster)
    }

    /// Writes down what must outlive the server. Nothing beyond `synced` does.
    #[cfg(test)]
    pub fn save(&self, synced: Seq, state: &mut GroupState) {
        state.roster_version = self.applied_version;
        let members = self.members.iter();
        let members = members.map(|(_, member)| (member.id.as_ref().into(), member.saved(synced)));
        state.members = members.collect();
        state.receipts = self.saved_receipts(synced).collect();
    }

    /// The receipts that must outlive the server.
    pub fn saved_receipts(&self, synced: Seq) -> impl Iterator<Item = (Seq, ReceiptState)> {
        let save = |asked: &Asked, done| {
            let receipt = ReceiptState {
                epoch: asked.epoch,
                producer: ProducerId::default(),
                producer_seq: asked.producer_seq,
                sender: self.mail.id(asked.sender).into(),
                percent: asked.percent,
                done,
            };
            (asked.seq, receipt)
        };
        let pending = self.receipts.waiting().map(move |asked| save(asked, None));
        let settled = self.mail.settled();
        let settled = settled.map(move |f| save(&f.asked, Some((f.acked, f.members))));
        pending.chain(settled).filter(move |(seq, _)| *seq <= synced)
    }

    /// Durable members.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.members.len() as u32
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many of them are online.
    #[must_use]
    pub fn online(&self) -> u32 {
        self.online
    }

    /// Places in the roster, taken or free; the index of each member is below it.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.members.capacity() as u32
    }

    /// The member at a place.
    #[must_use]
    pub fn at(&self, index: u32) -> Option<&Durable> {
        self.members.get(index as usize)
    }

    /// The member with this id.
    #[must_use]
    pub fn find(&self, id: &[u8]) -> Option<RosterKey> {
        let index = *self.by_id.get(id)?;
        let generation = self.members.get(index as usize)?.generation;
        Some(RosterKey { index, generation })
    }

    /// A member, if it still is one.
    #[must_use]
    pub fn get(&self, key: RosterKey) -> Option<&Durable> {
        self.members.get(key.index as usize).filter(|member| member.generation == key.generation)
    }

    fn get_mut(&mut self, key: RosterKey) -> Option<&mut Durable> {
        let member = self.members.get_mut(key.index as usize)?;
        (member.generation == key.generation).then_some(member)
    }

    /// Takes a member in whose join is on disk. One that is in already stays as it is.
    pub fn join(&mut self, incoming: Incoming<'_>) -> RosterKey {
        if let Some(key) = self.find(incoming.id) {
            return key;
        }
        let id: Rc<[u8]> = incoming.id.into();
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let member = Durable {
            id: id.clone(),
            joined_at: incoming.joined_at,
            acked: incoming.acked,
            acked_epoch: incoming.acked_epoch,
            online: SmallVec::new(),
            leaving: false,
            generation,
            dirty: false,
        };
        self.receipts.member_in(member.joined_at, member.position());
        let index = self.members.insert(member) as u32;
        self.log.note(Presence::Joined, &id);
        self.by_id.insert(id, index);
        RosterKey { index, generation }
    }

    /// Takes a member out whose leave is on disk.
    pub fn leave(&mut self, key: RosterKey) -> Option<Durable> {
        self.get(key)?;
        let member = self.members.remove(key.index as usize);
        self.by_id.remove(&member.id);
        self.receipts.member_out(member.joined_at, member.position());
        if !member.online.is_empty() {
            // It left on another one of its connections.
            self.online -= 1;
            self.log.note(Presence::Offline, &member.id);
        }
        self.log.note(Presence::Left, &member.id);
        if member.dirty {
            self.dirty.retain(|index| *index != key.index);
            self.ahead.retain(|index| *index != key.index);
        }
        Some(member)
    }

    /// A member is online on this connection. Whether it was online nowhere before.
    pub fn came(&mut self, key: RosterKey, place: Place) -> bool {
        let Some(member) = self.get_mut(key) else { return false };
        if member.online.contains(&place) {
            return false;
        }
        member.online.push(place);
        let (first, id) = (member.online.len() == 1, member.id.clone());
        if first {
            self.online += 1;
            self.log.note(Presence::Online, &id);
        }
        first
    }

    /// A member is no longer online on this connection. Whether it is online nowhere now.
    pub fn went(&mut self, key: RosterKey, place: Place) -> bool {
        let Some(member) = self.get_mut(key) else { return false };
        let Some(at) = member.online.iter().position(|p| *p == place) else { return false };
        member.online.swap_remove(at);
        let (last, id) = (member.online.is_empty(), member.id.clone());
        if last {
            self.online -= 1;
            self.log.note(Presence::Offline, &id);
        }
        last
    }

    /// The leave of a member is on its way to the disk. False if it was already, or if there
    /// is no such member.
    pub fn begin_leave(&mut self, key: RosterKey) -> bool {
        self.get_mut(key).is_some_and(|member| !std::mem::replace(&mut member.leaving, true))
    }

    /// Moves the cursor of a member; one that does not lie ahead says nothing. Epoch 0 stands
    /// for that of the cursor as it is: no message was acknowledged, it stepped over a gap.
    pub fn ack(&mut self, key: RosterKey, seq: Seq, epoch: Epoch) -> Acked {
        let Some(member) = self.get_mut(key) else { return Acked::Nothing };
        let epoch = if epoch == Epoch(0) { member.acked_epoch } else { epoch };
        if seq <= member.acked || epoch < member.acked_epoch {
            return Acked::Nothing;
        }
        let before = member.position();
        (member.acked, member.acked_epoch) = (seq, epoch);
        let after = member.position();
        let was_dirty = std::mem::replace(&mut member.dirty, true);
        self.receipts.moved(before, after);
        if was_dirty {
            return Acked::Moved;
        }
        self.dirty.push(key.index);
        if self.dirty() == 1 { Acked::FirstDirty } else { Acked::Moved }
    }

    /// Cursors that wait to be written.
    #[must_use]
    pub fn dirty(&self) -> usize {
        self.dirty.len() + self.ahead.len()
    }

    /// Takes a cursor that waits to be written: whose, the last message acknowledged and its
    /// epoch. No cursor is written beyond `synced`: after a crash the messages between would be
    /// others, and the member would miss them. Such a cursor goes on waiting.
    pub fn take_dirty(&mut self, synced: Seq) -> Option<(Rc<[u8]>, Seq, Epoch)> {
        if synced > self.ahead_of {
            self.ahead_of = synced;
            self.dirty.append(&mut self.ahead);
        }
        let index = self.dirty.pop()?;
        let member = self.members.get_mut(index as usize)?;
        if member.acked > synced {
            self.ahead.push(index);
        } else {
            member.dirty = false;
        }
        Some((member.id.clone(), member.acked.min(synced), member.acked_epoch))
    }
}

/// What an acknowledgement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// Nothing: it was not ahead, or the member is gone.
    Nothing,
    /// It moved the cursor.
    Moved,
    /// It moved the cursor, and no other one of the group waits to be written.
    FirstDirty,
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
