//! A simulated client as a durable member: what it has handled, what it acknowledged, and what
//! it may be told of its cursor.

use std::collections::BTreeSet;

use super::client::{Client, Place, View};
use super::oracle::{Oracle, Violation};
use super::rng::Rng;
use super::trace::{Fault, Note};
use crate::position::{Epoch, Nanos, Seq, Stamp};
use crate::wire::{self, Ack, Acks, ClientFrame, Start};

/// Whether a client belongs to a group as a durable member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Belongs {
    #[default]
    No,
    /// A join or a leave was sent and had no answer.
    Perhaps,
    Yes,
}

/// What a durable member keeps of a group, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Durable {
    pub belongs: Belongs,
    /// The highest message it ever acknowledged, or began after.
    pub acked: Seq,
    pub acked_epoch: Epoch,
    /// Its cursor is at least there, whatever happens.
    pub confirmed: Seq,
    /// It must get everything from here on.
    pub from: Option<Seq>,
    handled: BTreeSet<(u32, u64)>,
    gaps: Vec<(Seq, Seq)>,
    /// What JOINED passed over was of later epochs than this one, up to this message. A crash may
    /// have taken what the member had there, so places that it knew are among them.
    passed: Vec<(Epoch, Seq)>,
    /// A connection ended while a join on it had no answer: the server may take it after what came
    /// on a later one.
    pub stale_join: bool,
    /// REDELIVER came, and says of which epoch the next message is.
    pub rewound: Option<Epoch>,
    /// Up to where messages had come on this connection before they came again.
    high: Seq,
    /// The cursor moved since REDELIVER, so the redelivery may have ended.
    moved: bool,
}

impl View {
    /// Whether a message is new to the member; then it has it from now on.
    pub fn handle_message(&mut self, seq: Seq) -> bool {
        self.durable.handled.insert((self.epoch.0, seq.0));
        if (self.epoch, seq) <= (self.last_epoch, self.last) {
            return false;
        }
        (self.last_epoch, self.last) = (self.epoch, seq);
        true
    }

    /// Up to where it has messages: a redelivery may have ended before it came there again.
    pub fn has(&self) -> Seq {
        let Durable { acked, acked_epoch, high, moved, .. } = self.durable;
        let acked = if acked_epoch == self.epoch { acked } else { Seq(0) };
        let before = if moved { high } else { Seq(0) };
        Seq(self.expect.0 - 1).max(acked).max(before)
    }

    /// An acknowledgement ends a redelivery: what follows comes after what was acknowledged, or
    /// after all that had come before.
    pub fn step_over_known(&mut self, to: Seq) {
        let Durable { acked, high, moved, .. } = self.durable;
        let known = if moved { acked.max(high) } else { acked };
        if to > self.expect && to <= known.next() {
            self.expect = to;
        }
    }

    /// A GAP moves the cursor too.
    pub fn missed(&mut self, from: Seq, to: Seq) {
        self.durable.gaps.push((from, to));
        self.durable.moved = true;
        self.durable.acked = self.durable.acked.max(to);
    }
}

impl Client {
    /// JOINED for a durable member: its cursor is what it acknowledged, or less.
    pub(super) fn joined_durable(
        &mut self,
        group: usize,
        joined: &wire::Joined<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let view = &mut self.views[group];
        let durable = &mut view.durable;
        durable.rewound = None;
        (durable.high, durable.moved) = (Seq(0), false);
        let cursor = joined.cursor;
        if cursor > joined.head && !oracle.rotten {
            return Err("the cursor is above the head".to_owned());
        }
        if durable.belongs == Belongs::Yes && oracle.rotten {
            // The damage may have taken the record of its join, and then it begins after the head as
            // a new member, with places among those passed that it knew in an earlier epoch. JOINED
            // tells it so by the epoch. Where nothing rots this is not allowed.
            if joined.epoch > durable.acked_epoch {
                durable.passed.push((durable.acked_epoch, cursor));
            }
            if cursor > durable.acked {
                durable.gaps.push((durable.acked.next(), cursor));
                durable.acked = cursor;
            }
        } else if durable.belongs == Belongs::Yes {
            // Retention moves cursors that it passes, and so does what cannot be read.
            let (handle, next) = (joined.handle, durable.acked.next());
            if cursor > durable.acked.max(oracle.removed(handle)) {
                if !oracle.is_unreadable(handle, next, cursor) {
                    return Err(format!("the member acknowledged up to {}", durable.acked));
                }
                oracle.may_be_missing(handle, next, cursor)?;
            }
            // Then JOINED tells the member what it will not get.
            if cursor > durable.acked {
                durable.gaps.push((durable.acked.next(), cursor));
                durable.passed.push((durable.acked_epoch, cursor));
                (durable.acked, durable.acked_epoch) = (cursor, joined.epoch);
            }
            if cursor < durable.confirmed.min(joined.head) {
                return Err(format!("the cursor was at {}", durable.confirmed));
            }
            oracle.fault(Fault::Resumed);
            if joined.first != cursor.min(joined.head).next() {
                return Err("the first message is not the one after the cursor".to_owned());
            }
        } else {
            if view.start == Start::Cursor && cursor > joined.head {
                return Err("a new member begins after the head".to_owned());
            }
            durable.belongs = Belongs::Yes;
            durable.from = Some(joined.first);
            if cursor > durable.acked || oracle.rotten {
                (durable.acked, durable.acked_epoch) = (cursor, joined.epoch);
            }
            oracle.rosters.joined(group, self.index, oracle.now);
        }
        Ok(())
    }

    /// Acknowledges what it has, or not yet.
    pub(super) fn ack(&mut self, now: Nanos, calm: bool, rng: &mut Rng, oracle: &mut Oracle) {
        if !calm && self.profile.durable && rng.chance(3_000) {
            self.lazy_until = now.plus_ms(rng.between(500, 3_000));
        }
        if !calm && now < self.lazy_until {
            return;
        }
        let mut acks = Vec::new();
        for (group, view) in self.views.iter_mut().enumerate() {
            let due = view.unacked > 16 || view.unacked > 0 && (calm || rng.chance(60_000));
            if view.place != Place::In || !due {
                continue;
            }
            view.unacked = 0;
            let (seq, epoch) = (Seq(view.expect.0 - 1), view.epoch);
            acks.push(Ack { handle: view.handle, seq, epoch });
            if self.profile.durable {
                let durable = &mut view.durable;
                durable.moved = true;
                if seq > durable.acked {
                    durable.acked_epoch = epoch;
                    durable.acked = seq;
                }
                oracle.rosters.acked(group, self.index, epoch, seq);
                oracle.note(Note::Ack { client: self.index, group, seq: seq.0 });
            }
        }
        if !acks.is_empty() {
            Acks::encode(&mut self.out, &acks);
        }
    }

    /// The server asks whether the member has read everything.
    pub(super) fn probe(&mut self, token: u64, oracle: &mut Oracle) -> Result<(), Violation> {
        if !self.profile.durable && self.profile.receipt_ppm == 0 {
            return Err("a live member that asked for no receipt is asked".to_owned());
        }
        oracle.fault(Fault::Probed);
        self.probed += 1;
        ClientFrame::encode_probed(&mut self.out, token);
        Ok(())
    }

    /// Messages come again.
    pub(super) fn redeliver(
        &mut self,
        r: &wire::Redeliver,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let group = self.member_of(r.handle)?;
        let probed = self.probed;
        let removed = oracle.removed(r.handle);
        let view = &mut self.views[group];
        if !self.profile.durable || probed == 0 {
            return Err("redelivery without a probe".to_owned());
        }
        // Retention moves cursors that it passes.
        if r.from > view.durable.acked.max(removed).next() || r.from > view.expect {
            return Err(format!(
                "the member acknowledged up to {} and expects {}",
                view.durable.acked, view.expect
            ));
        }
        oracle.fault(Fault::Redelivered);
        view.durable.rewound = Some(r.epoch);
        view.durable.high = view.durable.high.max(Seq(view.expect.0 - 1));
        view.durable.moved = false;
        view.expect = r.from;
        view.stamp = Stamp(0);
        let (from, attempt) = (r.from.0, r.attempt);
        oracle.note(Note::Redeliver { client: self.index, group, from, attempt });
        Ok(())
    }

    /// Everything that is in the groups in which it is a durable member was handled, or
    /// announced as missing.
    pub(super) fn has_all<'a>(
        &self,
        mut found: impl Iterator<Item = &'a (usize, u32, u64)>,
    ) -> Result<(), Violation> {
        let missed = found.find(|(group, epoch, seq)| {
            let view = &self.views[*group];
            let durable = &view.durable;
            let since = durable.from.filter(|_| durable.belongs == Belongs::Yes);
            view.place == Place::In
                && since.is_some_and(|from| Seq(*seq) >= from)
                && !durable.handled.contains(&(*epoch, *seq))
                && !durable.gaps.iter().any(|(from, to)| (*from..=*to).contains(&Seq(*seq)))
                && !durable.passed.iter().any(|(before, to)| *epoch > before.0 && Seq(*seq) <= *to)
        });
        match missed {
            Some(name) => Err(format!("client {} never got {name:?}", self.index)),
            None => Ok(()),
        }
    }

    /// From now on its cursors must not be found below what it acknowledged.
    pub(super) fn confirm_cursors(&mut self) {
        for view in &mut self.views {
            if view.durable.belongs == Belongs::Yes && view.place == Place::In && view.unacked == 0
            {
                view.durable.confirmed = view.durable.acked;
            }
        }
    }
}
