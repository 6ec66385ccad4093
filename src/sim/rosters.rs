//! What is known of durable members and of receipts, from the clients' side.

use std::collections::{BTreeMap, BTreeSet};

use super::oracle::{Name, Oracle, Violation};
use super::presence::Names;
use super::trace::{Fault, Note};
use crate::position::{Epoch, Handle, Nanos, Seq};
use crate::wire::{Receipt, RosterHead};

/// One client in one group.
#[derive(Clone, Copy, Debug, Default)]
struct Membership {
    /// It was told that it is a member, at this time, and has not asked to leave since.
    since: Option<Nanos>,
    /// It was told that it is none any more.
    gone: Option<Nanos>,
    /// It may be one.
    perhaps: bool,
    acked: (Epoch, Seq),
}

/// All durable members.
#[derive(Debug, Default)]
pub(super) struct Rosters {
    members: BTreeMap<(usize, usize), Membership>,
    handles: BTreeMap<Handle, usize>,
    /// Messages whose receipt came, perhaps before anybody knew which message that is.
    receipts: BTreeSet<Name>,
    /// What rosters were, by group and version.
    seen: BTreeMap<(usize, u64), Names>,
    /// How many were on them, and how many online.
    counts: BTreeMap<(usize, u64), (u32, u32)>,
}

impl Rosters {
    fn member(&mut self, group: usize, client: usize) -> &mut Membership {
        self.members.entry((group, client)).or_default()
    }

    /// A join or a leave was sent.
    pub fn unsure(&mut self, group: usize, client: usize) {
        let member = self.member(group, client);
        member.since = None;
        member.gone = None;
        member.perhaps = true;
    }

    pub fn joined(&mut self, group: usize, client: usize, now: Nanos) {
        let member = self.member(group, client);
        member.since = member.since.or(Some(now));
        member.gone = None;
        member.perhaps = false;
    }

    pub fn left(&mut self, group: usize, client: usize, now: Nanos) {
        let member = self.member(group, client);
        member.since = None;
        member.gone = Some(now);
        member.perhaps = false;
    }

    pub fn acked(&mut self, group: usize, client: usize, epoch: Epoch, seq: Seq) {
        let member = self.member(group, client);
        member.acked = member.acked.max((epoch, seq));
    }

    /// The highest version of a roster that someone was told.
    pub fn told(&self, group: usize) -> u64 {
        let told = self.counts.range((group, 0)..(group + 1, 0)).next_back();
        told.map_or(0, |((_, version), _)| *version)
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
    /// A version of a roster has one number of members, and one of those online.
    pub fn roster_counts(&mut self, group: usize, head: &RosterHead) -> Result<(), Violation> {
        let told = (head.members, head.online);
        let known = *self.rosters.counts.entry((group, head.version)).or_insert(told);
        if known != told || head.online > head.members {
            return Err(format!("members and online at this version are {known:?}"));
        }
        Ok(())
    }

    /// A client knows a whole roster, and asked for it at `asked_at`.
    pub fn roster_is(
        &mut self,
        group: usize,
        head: &RosterHead,
        names: &Names,
        asked_at: Option<Nanos>,
    ) -> Result<(), Violation> {
        let online = names.values().filter(|online| **online).count();
        if (head.members as usize, head.online as usize) != (names.len(), online) {
            return Err(format!("the client has {names:?}"));
        }
        let seen = self.rosters.seen.entry((group, head.version)).or_insert_with(|| names.clone());
        if seen != names {
            return Err(format!("the client has {names:?}, another one {seen:?}"));
        }
        let Some(asked_at) = asked_at.filter(|_| !self.rotten) else { return Ok(()) };
        let before = |at: Option<Nanos>| at.is_some_and(|at| at <= asked_at);
        for ((_, client), member) in self.rosters.members.range((group, 0)..(group + 1, 0)) {
            let there = names.contains_key(client);
            if before(member.since) && !there || before(member.gone) && there {
                return Err(format!("client {client} is {member:?}, the roster is {names:?}"));
            }
        }
        let unknown = |client: &&usize| !self.rosters.members.contains_key(&(group, **client));
        match names.keys().find(unknown) {
            Some(client) => Err(format!("client {client} never joined")),
            None => Ok(()),
        }
    }

    /// A receipt came: it says no more than what members did.
    pub fn receipt(&mut self, client: usize, r: &Receipt) -> Result<(), Violation> {
        let Some(&group) = self.rosters.handles.get(&r.handle) else {
            return Err("a receipt of an unknown group".to_owned());
        };
        let (epoch, seq) = (r.epoch.0, r.seq.0);
        let name = (group, epoch, seq);
        let Some(known) = self.known.get(&name).copied() else {
            // The answer may have been lost with a connection; then it comes with the next try.
            let unanswered = self.faults.of(Fault::Crash) > 0
                || self.faults.of(Fault::ClientReset) > 0
                || self.faults.of(Fault::ClientClosed) > 0
                || self.faults.of(Fault::ClientVanished) > 0
                || self.faults.of(Fault::ServerClosed) > 0;
            if unanswered {
                self.rosters.receipts.insert(name);
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
        let unreadable = self.is_unreadable(r.handle, r.seq, r.seq);
        let passed = r.seq <= self.removed(r.handle) || self.rotten || unreadable;
        if acked > members || acked * 100 < members * u64::from(r.percent) && !passed {
            return Err("not the share that was asked for".to_owned());
        }
        let could = self.rosters.of(group).filter(|m| m.covers(epoch, seq)).count() as u64;
        if acked > could && !passed {
            return Err(format!("{could} members acknowledged it"));
        }
        let sure = || self.rosters.of(group).filter(|m| m.since.is_some_and(|at| at < first_sent));
        if passed {
            self.rosters.receipts.insert(name);
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
        self.rosters.receipts.insert(name);
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
        let missing = self.known.iter().find(|(name, known)| {
            let (group, epoch, seq) = *name;
            let sent = self.message(known.id);
            sent.receipt > 0
                && known.durable
                && sent.answered
                && Seq(*seq) > self.removed(known.handle)
                && !self.rosters.receipts.contains(name)
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
