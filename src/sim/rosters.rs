//! What is known of durable members and of receipts, from the clients' side.

use std::collections::{BTreeMap, BTreeSet};

use super::oracle::{Oracle, Violation};
use super::trace::{Fault, Note};
use crate::position::{Epoch, Handle, Nanos, Seq};
use crate::wire::Receipt;

/// One client in one group.
#[derive(Clone, Copy, Debug, Default)]
struct Membership {
    /// It was told that it is a member, at this time, and has not asked to leave since.
    since: Option<Nanos>,
    /// It may be one.
    perhaps: bool,
    acked: (Epoch, Seq),
}

/// All durable members.
#[derive(Debug, Default)]
pub(super) struct Rosters {
    members: BTreeMap<(usize, usize), Membership>,
    handles: BTreeMap<Handle, usize>,
    /// Messages whose receipt came.
    receipts: BTreeSet<u64>,
}

impl Rosters {
    fn member(&mut self, group: usize, client: usize) -> &mut Membership {
        self.members.entry((group, client)).or_default()
    }

    /// A join or a leave was sent.
    pub fn unsure(&mut self, group: usize, client: usize) {
        let member = self.member(group, client);
        member.since = None;
        member.perhaps = true;
    }

    pub fn joined(&mut self, group: usize, client: usize, now: Nanos) {
        let member = self.member(group, client);
        member.since = member.since.or(Some(now));
        member.perhaps = false;
    }

    pub fn left(&mut self, group: usize, client: usize) {
        let member = self.member(group, client);
        member.since = None;
        member.perhaps = false;
    }

    pub fn acked(&mut self, group: usize, client: usize, epoch: Epoch, seq: Seq) {
        let member = self.member(group, client);
        member.acked = member.acked.max((epoch, seq));
    }

    pub fn group_has(&mut self, handle: Handle, group: usize) {
        self.handles.insert(handle, group);
    }

    fn of(&self, group: usize) -> impl Iterator<Item = &Membership> {
        self.members.range((group, 0)..(group + 1, 0)).map(|(_, member)| member)
    }
}

impl Membership {
    fn covers(&self, epoch: u32, seq: u64) -> bool {
        self.acked.0.0 >= epoch && self.acked.1.0 >= seq
    }
}

impl Oracle {
    /// A receipt came: it says no more than what members did.
    pub fn receipt(&mut self, client: usize, r: &Receipt) -> Result<(), Violation> {
        let Some(&group) = self.rosters.handles.get(&r.handle) else {
            return Err("a receipt of an unknown group".to_owned());
        };
        let (epoch, seq) = (r.epoch.0, r.seq.0);
        let Some(known) = self.known.get(&(group, epoch, seq)).copied() else {
            // The answer may have been lost with a connection; then it comes with the next try.
            let unanswered = self.faults.of(Fault::Crash) > 0
                || self.faults.of(Fault::ClientReset) > 0
                || self.faults.of(Fault::ClientClosed) > 0
                || self.faults.of(Fault::ClientVanished) > 0
                || self.faults.of(Fault::ServerClosed) > 0;
            if unanswered {
                return Ok(());
            }
            return Err("a receipt before PUBLISHED".to_owned());
        };
        let sent = self.message(known.id);
        if sent.client != client || sent.receipt != r.percent {
            return Err(format!("client {} asked for {} percent", sent.client, sent.receipt));
        }
        let first_sent = sent.first_sent;
        let (acked, members) = (u64::from(r.acked), u64::from(r.members));
        // Retention, and what cannot be read, move cursors over a message.
        let passed =
            r.seq <= self.removed(r.handle) || self.rotten || self.faults.of(Fault::ReadError) > 0;
        if acked > members || acked * 100 < members * u64::from(r.percent) && !passed {
            return Err("not the share that was asked for".to_owned());
        }
        let could = self.rosters.of(group).filter(|m| m.covers(epoch, seq)).count() as u64;
        if acked > could && !passed {
            return Err(format!("{could} members acknowledged it"));
        }
        let sure = || self.rosters.of(group).filter(|m| m.since.is_some_and(|at| at < first_sent));
        if passed {
            self.rosters.receipts.insert(known.id);
            self.fault(Fault::Receipt);
            return Ok(());
        }
        if members < sure().count() as u64 {
            return Err(format!("{} were members before it was sent", sure().count()));
        }
        if r.percent == 100 && !sure().all(|m| m.covers(epoch, seq)) {
            return Err("not all members acknowledged it".to_owned());
        }
        self.fault(Fault::Receipt);
        self.rosters.receipts.insert(known.id);
        let group = group as u64;
        self.note(Note::Receipt { client, group, seq, acked: r.acked, members: r.members });
        Ok(())
    }

    /// A message that everyone acknowledged and whose receipt never came, among those of
    /// clients that `listen` to their group.
    pub fn receipt_is_missing(&self, listens: impl Fn(usize, usize) -> bool) -> Option<u64> {
        if self.rotten {
            return None;
        }
        let missing = self.known.iter().find(|((group, epoch, seq), known)| {
            let sent = self.message(known.id);
            sent.receipt > 0
                && known.durable
                && sent.answered
                && Seq(*seq) > self.removed(known.handle)
                && !self.rosters.receipts.contains(&known.id)
                && listens(sent.client, *group)
                && self.rosters.members.range((*group, 0)..(*group + 1, 0)).all(|(of, m)| {
                    // One that is away may have acknowledged what a crash took.
                    let is_there = m.covers(*epoch, *seq) && listens(of.1, *group);
                    !m.perhaps && (m.since.is_none() || is_there)
                })
        });
        missing.map(|(_, known)| known.id)
    }
}
