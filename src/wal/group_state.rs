//! What is durable of a group beside its messages: durable members and their cursors, what
//! producers have published, the group's state, and receipts that were asked for. Plain data:
//! recovery folds it from the log, a snapshot holds it, and the owner shard makes its live
//! structures from it.

use std::collections::{BTreeMap, VecDeque};

use super::record::Record;
use super::run::Meta;
use crate::limits::{PRODUCERS_KEPT_MAX, PUBLISH_WINDOW_MAX, RECEIPTS_KEPT_MAX};
use crate::position::{Epoch, MemberId, ProducerId, Seq, Stamp};

/// The durable state of one group. Maps are ordered, so that everything made from it is the
/// same each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Version of the roster: it grows by one with each join and leave of a durable member.
    pub roster_version: u64,
    /// The durable members.
    pub members: BTreeMap<MemberId, MemberState>,
    /// Version of the group's state: that of its newest change.
    pub state_version: u64,
    /// The keys of the group's state, deleted ones included.
    pub entries: BTreeMap<Box<[u8]>, StateEntry>,
    /// What each producer has published.
    pub producers: BTreeMap<ProducerId, ProducerState>,
    /// Receipts that were asked for, by the message they are about. After a crash some of them
    /// may have been sent before.
    pub receipts: BTreeMap<Seq, ReceiptState>,
}

/// A durable member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberState {
    /// Head of the group when it joined.
    pub joined_at: Seq,
    /// Last message it acknowledged; 0 if none.
    pub acked: Seq,
    /// Epoch of that message.
    pub acked_epoch: Epoch,
}

/// A key of the group's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateEntry {
    /// Version of its last change.
    pub version: u64,
    /// Stamp of its last change.
    pub stamp: Stamp,
    /// That change deleted it.
    pub deleted: bool,
    /// Its value; empty if it is deleted.
    pub data: Box<[u8]>,
}

/// A producer in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerState {
    /// The member that it is bound to.
    pub member: MemberId,
    /// Its last producer seq that the group has.
    pub last: u64,
    /// Places of its last messages: the back is that of `last`, the one before it that of
    /// `last` - 1, and so on. At most [`PUBLISH_WINDOW_MAX`].
    pub window: VecDeque<(Seq, Epoch)>,
}

/// A receipt that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiptState {
    /// Epoch of the message.
    pub epoch: Epoch,
    /// Who published it.
    pub producer: ProducerId,
    /// The producer's number of it.
    pub producer_seq: u64,
    /// The member that published it.
    pub sender: MemberId,
    /// Share of the members that must have it, 1 to 100.
    pub percent: u8,
    /// How it was fulfilled, if it was and could not be sent: acked, members.
    pub done: Option<(u32, u32)>,
}

impl ProducerState {
    /// Place of the message with this producer seq, if the window still has it.
    #[must_use]
    pub fn find(&self, producer_seq: u64) -> Option<(Seq, Epoch)> {
        let back = self.last.checked_sub(producer_seq)?;
        let index = self.window.len().checked_sub(1 + usize::try_from(back).ok()?)?;
        self.window.get(index).copied()
    }

    fn newest(&self) -> Seq {
        self.window.back().map_or(Seq(0), |(seq, _)| *seq)
    }
}

impl GroupState {
    /// Takes one record in. Taking it in again later changes nothing.
    pub fn apply_record(&mut self, record: &Record<'_>) {
        match *record {
            Record::MemberJoined { member, joined_at, roster }
                if roster > self.roster_version || self.members.contains_key(member) =>
            {
                // A member that is known already has a snapshot's cursor, which the cursors
                // before this join must not touch; those after it come again.
                self.roster_version = self.roster_version.max(roster);
                let joined = MemberState { joined_at, ..MemberState::default() };
                self.members.insert(member.into(), joined);
            }
            Record::MemberLeft { member, roster } if roster > self.roster_version => {
                self.roster_version = roster;
                self.members.remove(member);
            }
            Record::Cursor { member, acked, epoch } => {
                if let Some(state) = self.members.get_mut(member)
                    && (epoch, acked) > (state.acked_epoch, state.acked)
                {
                    (state.acked_epoch, state.acked) = (epoch, acked);
                }
            }
            Record::State { key, version, stamp, deleted, data } => {
                self.state_version = self.state_version.max(version);
                let entry = self.entries.entry(key.into()).or_default();
                if version > entry.version {
                    *entry = StateEntry { version, stamp, deleted, data: data.into() };
                }
            }
            Record::ReceiptsRead { seq } => {
                self.receipts = self.receipts.split_off(&Seq(seq.0.saturating_add(1)));
            }
            Record::MemberJoined { .. } | Record::MemberLeft { .. } | Record::Unknown { .. } => {}
        }
    }

    /// Takes one message in; taking it in again later changes nothing. Returns false if its
    /// producer seq has a place in the group already: the first one counts.
    pub fn apply_message(&mut self, meta: &Meta, seq: Seq, epoch: Epoch, sender: &[u8]) -> bool {
        if (1..=100).contains(&meta.receipt) {
            self.receipts.entry(seq).or_insert_with(|| ReceiptState {
                epoch,
                producer: meta.producer,
                producer_seq: meta.producer_seq,
                sender: sender.into(),
                percent: meta.receipt,
                done: None,
            });
            if self.receipts.len() > RECEIPTS_KEPT_MAX {
                self.receipts.pop_first();
            }
        }
        let producer = self.producers.entry(meta.producer).or_default();
        if seq <= producer.newest() {
            // It was taken in before, or belongs to a life of the producer that is over.
            let earlier_life = producer.window.front().is_some_and(|(first, _)| seq < *first);
            let known = producer.find(meta.producer_seq);
            return earlier_life || known.is_none_or(|(known, _)| known == seq);
        }
        let follows = meta.producer_seq == producer.last.saturating_add(1);
        // A producer that the server forgot begins again at 1, and only there.
        let begins = producer.window.is_empty() || meta.producer_seq == 1;
        if !follows && !begins && meta.producer_seq <= producer.last {
            return false;
        }
        if !follows || begins {
            producer.window.clear();
            producer.member = sender.into();
        }
        producer.last = meta.producer_seq;
        producer.window.push_back((seq, epoch));
        if producer.window.len() > PUBLISH_WINDOW_MAX {
            producer.window.pop_front();
        }
        if self.producers.len() > 2 * PRODUCERS_KEPT_MAX {
            self.forget_producers();
        }
        true
    }

    /// Keeps the producers that published last.
    fn forget_producers(&mut self) {
        let mut newest: Vec<Seq> = self.producers.values().map(ProducerState::newest).collect();
        let at = newest.len() - PRODUCERS_KEPT_MAX;
        let (_, oldest_kept, _) = newest.select_nth_unstable(at);
        let oldest_kept = *oldest_kept;
        self.producers.retain(|_, producer| producer.newest() >= oldest_kept);
    }

    /// Messages after `head` are not there, or not those that members knew: no position may
    /// stand beyond it.
    pub fn cut_after(&mut self, head: Seq) {
        for member in self.members.values_mut() {
            member.joined_at = member.joined_at.min(head);
            member.acked = member.acked.min(head);
        }
        self.receipts.split_off(&head.next());
        self.producers.retain(|_, producer| {
            while producer.newest() > head {
                producer.window.pop_back();
                producer.last = producer.last.saturating_sub(1);
            }
            // One whose last places are gone goes on where they were.
            producer.last > 0
        });
    }

    /// The last message that some position in here speaks of.
    #[must_use]
    pub fn last_known(&self) -> Seq {
        let members = self.members.values().map(|member| member.acked.max(member.joined_at));
        let producers = self.producers.values().map(ProducerState::newest);
        let receipts = self.receipts.last_key_value().map(|(seq, _)| *seq);
        members.chain(producers).chain(receipts).max().unwrap_or_default()
    }

    /// Whether there is nothing in here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
#[path = "group_state_tests.rs"]
mod tests;
