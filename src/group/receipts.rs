//! Receipts: how many durable members have a message, without ever going through the members.
//!
//! A member stands at position p: the first message that it has not acknowledged and that it
//! was a member for. The receipts that wait are in order of their messages, and each counts
//! the members whose position lies between the receipt before it and itself. So a member is
//! counted at the first receipt that it holds up, an acknowledgement moves it from one count to
//! another, and the first receipt is complete when its count is 0: everything before it is
//! complete too, so receipts from all members come in order. The places are found by halving
//! among the receipts that wait, of which there are at most twice `max`, so an acknowledgement
//! costs a bounded number of steps, however many members the group has and however many
//! messages lie between the receipts.
//!
//! A receipt from a share of the members can be complete while members hold up earlier ones.
//! For each share in use the oldest receipt keeps running counts; a later one that is complete
//! before it is found by [`Receipts::sweep`].

use std::collections::VecDeque;

use crate::position::{Epoch, Seq};

/// Different shares (other than all members) that receipts of a group may ask for at a time.
pub const SHARES_MAX: usize = 8;
/// Receipts that are done are kept among the others until they are this many.
const DONE_KEPT: usize = 32;

/// A receipt that a publisher asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The message.
    pub seq: Seq,
    /// Its epoch.
    pub epoch: Epoch,
    /// Share of the members that must have it, 1 to 100.
    pub percent: u8,
    /// Key of its publisher.
    pub sender: u32,
    /// The publisher's number of it.
    pub producer_seq: u64,
}

/// A receipt that is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fulfilled {
    /// What was asked for.
    pub asked: Asked,
    /// Members that have the message.
    pub acked: u32,
    /// Members that it was for.
    pub members: u32,
}

/// Why no receipt can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptRefused {
    /// As many wait as may.
    TooMany,
    /// Too many different shares at a time.
    TooManyShares,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    asked: Asked,
    /// It is settled; it stays until those before it are.
    done: bool,
    /// Members for which this is the first receipt that they hold up.
    here: u32,
    /// Members who joined after the receipt before this one and before its message.
    joined: u32,
}

/// The oldest receipt of one share, with running counts.
#[derive(Clone, Copy, Debug)]
struct Share {
    percent: u8,
    at: Seq,
    behind: u32,
    members: u32,
}

/// The receipts of a group that wait.
#[derive(Debug, Default)]
pub struct Receipts {
    pending: VecDeque<Pending>,
    done: usize,
    shares: Vec<Share>,
    /// Durable members.
    members: u32,
    /// Sum of all `here`.
    waiting: u32,
    /// Sum of all `joined`.
    joined: u32,
    /// Steps taken to find places and to move on, for the test that they are few.
    #[cfg(test)]
    pub work: std::cell::Cell<u64>,
}

fn reached(percent: u8, acked: u32, members: u32) -> bool {
    u64::from(acked) * 100 >= u64::from(percent) * u64::from(members)
}

impl Receipts {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len() - self.done
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message of the oldest one that waits.
    #[must_use]
    pub fn oldest(&self) -> Option<Seq> {
        self.pending.iter().find(|p| !p.done).map(|p| p.asked.seq)
    }

    /// Those that wait, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &Asked> {
        self.pending.iter().filter(|p| !p.done).map(|p| &p.asked)
    }

    fn step(&self) {
        #[cfg(test)]
        self.work.set(self.work.get() + 1);
    }

    /// Index of the first receipt of a message at or after `position`.
    fn place(&self, position: Seq) -> usize {
        // Members who are up to date, most of them, need no search.
        match self.pending.back() {
            Some(last) if last.asked.seq >= position => self.pending.partition_point(|p| {
                self.step();
                p.asked.seq < position
            }),
            _ => self.pending.len(),
        }
    }

    /// Counts a member in that joined after `joined_at` and stands at `position`.
    pub fn member_in(&mut self, joined_at: Seq, position: Seq) {
        self.members += 1;
        let at = self.place(position);
        if let Some(pending) = self.pending.get_mut(at) {
            pending.here += 1;
            self.waiting += 1;
        }
        let at = self.place(joined_at.next());
        if let Some(pending) = self.pending.get_mut(at) {
            pending.joined += 1;
            self.joined += 1;
        }
        for share in &mut self.shares {
            share.behind += u32::from(position <= share.at);
            share.members += u32::from(joined_at < share.at);
        }
    }

    /// Counts a member out.
    pub fn member_out(&mut self, joined_at: Seq, position: Seq) {
        self.members -= 1;
        let at = self.place(position);
        if let Some(pending) = self.pending.get_mut(at) {
            pending.here -= 1;
            self.waiting -= 1;
        }
        let at = self.place(joined_at.next());
        if let Some(pending) = self.pending.get_mut(at) {
            pending.joined -= 1;
            self.joined -= 1;
        }
        for share in &mut self.shares {
            share.behind -= u32::from(position <= share.at);
            share.members -= u32::from(joined_at < share.at);
        }
    }

    /// A member moved on by an acknowledgement.
    pub fn moved(&mut self, from: Seq, to: Seq) {
        debug_assert!(from <= to);
        let (before, after) = (self.place(from), self.place(to));
        if before == after {
            return;
        }
        self.pending[before].here -= 1;
        match self.pending.get_mut(after) {
            Some(pending) => pending.here += 1,
            None => self.waiting -= 1,
        }
        for share in &mut self.shares {
            share.behind -= u32::from(from <= share.at && share.at < to);
        }
    }

    /// Whether a receipt can be asked for when at most `max` may wait.
    ///
    /// # Errors
    /// Why not.
    pub fn may_ask(&self, percent: u8, max: usize) -> Result<(), ReceiptRefused> {
        if self.len() >= max {
            return Err(ReceiptRefused::TooMany);
        }
        let known = percent >= 100 || self.shares.iter().any(|s| s.percent == percent);
        if known || self.shares.len() < SHARES_MAX {
            Ok(())
        } else {
            Err(ReceiptRefused::TooManyShares)
        }
    }

    /// Waits for a receipt of a message that no member can have acknowledged yet: it has just
    /// got its place. [`Receipts::may_ask`] was asked.
    pub fn ask(&mut self, asked: Asked) {
        debug_assert!(self.pending.back().is_none_or(|last| last.asked.seq < asked.seq));
        let here = self.members - self.waiting;
        let joined = self.members - self.joined;
        self.pending.push_back(Pending { asked, done: false, here, joined });
        self.waiting = self.members;
        self.joined = self.members;
        let (percent, at) = (asked.percent, asked.seq);
        if percent < 100 && self.shares.iter().all(|s| s.percent != percent) {
            self.shares.push(Share { percent, at, behind: self.members, members: self.members });
        }
    }

    /// Waits for receipts again after a restart: each in order of its message, before the
    /// members are counted in.
    pub fn restore(&mut self, asked: Asked) {
        debug_assert!(self.members == 0);
        self.ask(asked);
    }

    /// Gives out what is complete of messages up to `published`.
    pub fn settle(&mut self, published: Seq, out: &mut Vec<Fulfilled>) {
        while let Some(front) = self.pending.front().copied() {
            if front.asked.seq > published || (!front.done && front.here > 0) {
                break;
            }
            self.step();
            if !front.done {
                let (acked, members) = (front.joined, front.joined);
                out.push(Fulfilled { asked: front.asked, acked, members });
                self.mark_done(0);
            }
            self.pop();
        }
        let mut at = 0;
        while let Some(share) = self.shares.get(at).copied() {
            let acked = share.members - share.behind;
            if share.at > published || !reached(share.percent, acked, share.members) {
                at += 1;
                continue;
            }
            self.step();
            let index = self.place(share.at);
            let asked = self.pending[index].asked;
            out.push(Fulfilled { asked, acked, members: share.members });
            // The share goes to the next receipt, or away; the place `at` is looked at again.
            self.mark_done(index);
        }
        self.compact();
    }

    /// Gives out what is complete although an older receipt of the same share is not.
    pub fn sweep(&mut self, published: Seq, out: &mut Vec<Fulfilled>) {
        if self.shares.is_empty() {
            return;
        }
        let (mut behind, mut members) = (0, 0);
        for index in 0..self.pending.len() {
            let pending = self.pending[index];
            behind += pending.here;
            members += pending.joined;
            if pending.asked.seq > published {
                break;
            }
            let acked = members - behind;
            if !pending.done && reached(pending.asked.percent, acked, members) {
                out.push(Fulfilled { asked: pending.asked, acked, members });
                self.mark_done(index);
            }
        }
        self.settle(published, out);
    }

    /// Gives up receipts of messages before `first_kept`: nobody else can get them any more.
    /// They are given out as far as they came.
    pub fn expire(&mut self, first_kept: Seq, out: &mut Vec<Fulfilled>) {
        while let Some(front) = self.pending.front().copied()
            && front.asked.seq < first_kept
        {
            if !front.done {
                let (acked, members) = (front.joined - front.here, front.joined);
                out.push(Fulfilled { asked: front.asked, acked, members });
                self.mark_done(0);
            }
            self.pop();
        }
    }

    /// The receipt at `index` is settled; if it is the oldest of its share, the next one is.
    fn mark_done(&mut self, index: usize) {
        let Asked { seq, percent, .. } = self.pending[index].asked;
        self.pending[index].done = true;
        self.done += 1;
        let Some(at) = self.shares.iter().position(|s| s.percent == percent && s.at == seq) else {
            return;
        };
        let mut share = self.shares[at];
        for next in self.pending.iter().skip(index + 1) {
            self.step();
            share.behind += next.here;
            share.members += next.joined;
            if !next.done && next.asked.percent == percent {
                share.at = next.asked.seq;
                self.shares[at] = share;
                return;
            }
        }
        self.shares.swap_remove(at);
    }

    /// Removes the first receipt; whoever it counted is counted at the next.
    fn pop(&mut self) {
        let Some(front) = self.pending.pop_front() else { return };
        self.done -= 1;
        match self.pending.front_mut() {
            Some(next) => {
                next.here += front.here;
                next.joined += front.joined;
            }
            None => {
                self.waiting -= front.here;
                self.joined -= front.joined;
            }
        }
    }

    /// Removes what is settled in the middle once it is most of all.
    fn compact(&mut self) {
        if self.done <= DONE_KEPT || self.done * 2 <= self.pending.len() {
            return;
        }
        let (mut here, mut joined) = (0, 0);
        self.pending.retain_mut(|pending| {
            here += pending.here;
            joined += pending.joined;
            if pending.done {
                return false;
            }
            (pending.here, pending.joined) =
                (std::mem::take(&mut here), std::mem::take(&mut joined));
            true
        });
        self.waiting -= here;
        self.joined -= joined;
        self.done = 0;
    }
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
