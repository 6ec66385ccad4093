//! What a simulated client is told, and whether it may be told that.

use super::client::{Client, Pending, Place, State, View};
use super::durable::Belongs;
use super::oracle::{Oracle, Violation};
use super::trace::{Fault, Note};
use crate::position::{Epoch, Handle, Seq, Stamp};
use crate::wire::{self, Start};

impl Client {
    /// Takes what came from the server.
    pub fn receive(&mut self, bytes: &[u8], oracle: &mut Oracle) -> Result<(), Violation> {
        self.partial.extend_from_slice(bytes);
        let buf = std::mem::take(&mut self.partial);
        let mut used = 0;
        while let Some((frame, len)) =
            wire::split(&buf[used..], usize::MAX).map_err(|e| e.to_string())?
        {
            let frame = wire::ServerFrame::decode(frame).map_err(|e| e.to_string())?;
            self.frame(frame, oracle)
                .map_err(|why| format!("client {}: {why}, frame {frame:?}", self.index))?;
            used += len;
        }
        self.partial.extend_from_slice(&buf[used..]);
        Ok(())
    }

    fn frame(
        &mut self,
        frame: wire::ServerFrame<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        use wire::ServerFrame as F;
        if self.state == State::Greeting {
            return match frame {
                F::Welcome(welcome) => {
                    self.state = State::Open;
                    self.heartbeat_ms = u64::from(welcome.heartbeat_ms);
                    self.payload_max = welcome.payload_max as usize;
                    Ok(())
                }
                F::Error(error) if error.code < 100 => Ok(()),
                _ => Err("WELCOME must come first".to_owned()),
            };
        }
        match frame {
            F::Welcome(_) => Err("a second WELCOME".to_owned()),
            F::Joined(joined) => self.joined(&joined, oracle),
            F::Left(left) => self.left(&left, oracle),
            F::Epoch(epoch) => self.epoch(&epoch, oracle),
            F::Deliver(deliver) => self.deliver(&deliver, oracle),
            F::Published(published) => self.published(&published, oracle),
            F::Pong { token } => {
                let asked = self.pings.pop_front();
                if asked == Some(token) { Ok(()) } else { Err(format!("expected {asked:?}")) }
            }
            F::Error(error) => self.error(&error, oracle),
            F::Gap(gap) => self.gap(&gap, oracle),
            F::Drain(_) => Ok(()),
            F::Receipt(receipt) => oracle.receipt(self.index, &receipt),
            F::Probe { token } => self.probe(token, oracle),
            F::Redeliver(redeliver) => self.redeliver(&redeliver, oracle),
            F::Fetched(page) => self.fetched(&page, oracle),
            F::StateSet(set) => self.state_set(&set, oracle),
            F::Conflict(conflict) => self.conflict(&conflict, oracle),
            F::State(state) => self.synced(&state, oracle),
            F::Roster(roster) => self.roster(&roster, oracle),
            F::Authed(_) => Err("AUTHED without an AUTH".to_owned()),
            F::Unknown { kind } => Err(format!("kind {kind} is not known")),
        }
    }

    fn joined(&mut self, joined: &wire::Joined<'_>, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = group_of(joined.group).ok_or("JOINED for an unknown group")?;
        take_request(&mut self.joins, joined.request, group)?;
        let view = &mut self.views[group];
        view.place = Place::In;
        view.head = joined.head;
        view.joined_at = oracle.now;
        view.handle = joined.handle;
        view.epoch = Epoch(0);
        view.stamp = Stamp(0);
        view.unacked = 0;
        view.expect = joined.first;
        let first = match view.start {
            // It begins where the group was when its join was taken, not when it was on disk.
            Start::Tail | Start::Cursor if self.profile.durable => joined.first,
            Start::Tail | Start::Cursor => joined.head.next(),
            Start::Seq(seq) => seq.min(joined.head.next()),
        };
        if joined.first != first {
            return Err(format!("message {first} should be the first"));
        }
        oracle.rosters.group_has(joined.handle, group);
        oracle.group_is_in(group, joined.handle, joined.epoch.0)?;
        let view = &self.views[group];
        if joined.head < view.last && joined.epoch <= view.last_epoch {
            return Err(format!(
                "the group ends at {} in epoch {}, the member has {} of epoch {}",
                joined.head, joined.epoch, view.last, view.last_epoch
            ));
        }
        if self.profile.durable {
            self.joined_durable(group, joined, oracle)?;
        }
        let (epoch, head) = (joined.epoch.0, joined.head.0);
        oracle.note(Note::Joined { client: self.index, group, epoch, head });
        Ok(())
    }

    fn left(&mut self, left: &wire::Left, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(left.handle)?;
        take_request(&mut self.leaves, left.request, group)?;
        self.views[group].place = Place::Out;
        self.views[group].head = Seq(0);
        if self.profile.durable {
            let durable = &mut self.views[group].durable;
            if durable.stale_join {
                durable.belongs = Belongs::Perhaps;
            } else {
                durable.belongs = Belongs::No;
                oracle.rosters.left(group, self.index, oracle.now);
            }
        }
        oracle.note(Note::Left { client: self.index, group });
        Ok(())
    }

    /// The group with this handle, if frames about it may come now.
    pub(super) fn member_of(&self, handle: Handle) -> Result<usize, Violation> {
        let inside = |v: &View| matches!(v.place, Place::In | Place::Leaving);
        let found = self.views.iter().position(|v| inside(v) && v.handle == handle);
        found.ok_or_else(|| "the client is not in this group".to_owned())
    }

    fn epoch(&mut self, epoch: &wire::EpochStart, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(epoch.handle)?;
        let view = &mut self.views[group];
        view.step_over_known(epoch.first);
        if epoch.first != view.expect {
            return Err(format!("message {} is next", view.expect));
        }
        if epoch.epoch <= view.epoch && view.durable.rewound != Some(epoch.epoch) {
            return Err(format!("epoch {} has begun before", view.epoch));
        }
        if view.last_epoch != Epoch(0) && view.last_epoch != epoch.epoch {
            oracle.fault(Fault::EpochChanged);
        }
        view.epoch = epoch.epoch;
        oracle.group_is_in(group, epoch.handle, epoch.epoch.0)?;
        let (epoch, first) = (epoch.epoch.0, epoch.first.0);
        oracle.note(Note::Epoch { client: self.index, group, epoch, first });
        Ok(())
    }

    fn deliver(&mut self, d: &wire::Deliver<'_>, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(d.handle)?;
        let view = &mut self.views[group];
        if view.epoch == Epoch(0) {
            return Err("no EPOCH came before".to_owned());
        }
        view.step_over_known(d.seq);
        if d.seq != view.expect {
            return Err(format!("message {} is next", view.expect));
        }
        if d.stamp <= view.stamp {
            return Err(format!("its stamp is not above {:?}", view.stamp));
        }
        if let Some(epoch) = view.durable.rewound.take()
            && epoch != view.epoch
        {
            return Err(format!("REDELIVER said epoch {epoch}, this is {}", view.epoch));
        }
        view.expect = d.seq.next();
        view.stamp = d.stamp;
        view.unacked += 1;
        let is_new = view.handle_message(d.seq);
        let name = (group, view.epoch.0, d.seq.0);
        let id = oracle.delivered(name, d.handle, d.stamp, d.sender, d.payload)?;
        if is_new && view.joined_at < oracle.message(id).sent_at {
            oracle.in_time(id)?;
        }
        if self.profile.reader {
            self.found.insert(name, id);
        }
        oracle.note(Note::Deliver { client: self.index, group, seq: d.seq.0, id });
        Ok(())
    }

    fn gap(&mut self, gap: &wire::Gap, oracle: &mut Oracle) -> Result<(), Violation> {
        let group = self.member_of(gap.handle)?;
        let view = &mut self.views[group];
        view.step_over_known(gap.from);
        if gap.from != view.expect || gap.to < gap.from {
            return Err(format!("message {} is next", view.expect));
        }
        oracle.gap(gap)?;
        view.expect = gap.to.next();
        view.last = gap.to.max(view.last);
        view.missed(gap.from, gap.to);
        let (from, to) = (gap.from.0, gap.to.0);
        oracle.note(Note::Gap { client: self.index, group, from, to });
        Ok(())
    }

    fn published(&mut self, p: &wire::Published, oracle: &mut Oracle) -> Result<(), Violation> {
        if self.second_answered(p, oracle)? {
            return Ok(());
        }
        let Some(Pending { group, id }) = self.publishes.remove(&p.request) else {
            return Err("nobody waits for this answer".to_owned());
        };
        self.line_answered(group, p, oracle)?;
        let before = self.answered.insert(group, (p.request, p.seq));
        if let Some((request, seq)) = before
            && ((request < p.request) != (seq < p.seq))
        {
            return Err(format!("request {request} got {seq}: not in the order of sending"));
        }
        oracle.in_time(id)?;
        if self.profile.reader {
            self.views[group].head = p.seq.max(self.views[group].head);
        }
        oracle.answered((group, p.epoch.0, p.seq.0), p.handle, id, p.level)?;
        let (request, seq) = (p.request, p.seq.0);
        oracle.note(Note::Published { client: self.index, group, request, seq, id });
        Ok(())
    }

    fn error(&mut self, e: &wire::ErrorFrame<'_>, oracle: &mut Oracle) -> Result<(), Violation> {
        use wire::ErrorCode as E;
        oracle.note(Note::Refused { client: self.index, request: e.request, code: e.code });
        let code = E::from_number(e.code).ok_or("an unknown code")?;
        if self.second.remove(&e.request).is_some() {
            return Ok(());
        }
        if let Some(pending) = self.publishes.remove(&e.request) {
            if self.profile.reader {
                return Err("a probe was refused".to_owned());
            }
            return self.line_refused(pending, e, oracle);
        }
        if self.question_refused(e, code) || self.refused_place(e, code) {
            return Ok(());
        }
        match code {
            E::UnknownFrame | E::Malformed | E::FrameTooLong | E::FrameTooShort
                if self.garbage_sent =>
            {
                Ok(())
            }
            // Its own connection before this one may join later than this one.
            E::Replaced if self.profile.durable => Ok(()),
            E::HeartbeatTimeout | E::HandshakeTimeout | E::ShuttingDown if e.request == 0 => Ok(()),
            _ => Err(format!("an unexpected refusal with {code:?}")),
        }
    }
}

impl Client {
    /// A join or a leave was refused because the log takes nothing.
    fn refused_place(&mut self, e: &wire::ErrorFrame<'_>, code: wire::ErrorCode) -> bool {
        use wire::ErrorCode as E;
        let Some(group) = group_of(e.field) else { return false };
        let no_log =
            matches!(code, E::StorageFull | E::StorageFailed | E::Indeterminate | E::Draining);
        if !self.profile.durable || !no_log {
            return false;
        }
        let joins = take_request(&mut self.joins, e.request, group).is_ok();
        let leaves = take_request(&mut self.leaves, e.request, group).is_ok();
        self.views[group].place = Place::Out;
        self.views[group].head = Seq(0);
        joins || leaves
    }
}

fn take_request(
    pending: &mut Vec<(u32, usize)>,
    request: u32,
    group: usize,
) -> Result<(), Violation> {
    let found = pending.iter().position(|entry| *entry == (request, group));
    pending.swap_remove(found.ok_or("nobody waits for this answer")?);
    Ok(())
}

fn group_of(name: &[u8]) -> Option<usize> {
    std::str::from_utf8(name).ok()?.strip_prefix("group-")?.parse().ok()
}
