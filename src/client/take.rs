//! What frames of the server mean.

use std::sync::Arc;

use super::event::{
    Event, GroupName, JoinedGroup, Message, PublishError, PublishId, Published, Reason, Receipt,
    Refusal,
};
use super::group::{Delivered, Phase};
use super::producer::{Hold, Returned};
use super::session::{Conn, Request, Session};
use crate::position::{Nanos, Seq};
use crate::wire::{
    ClientFrame, Deliver, ErrorCode, ErrorFrame, Joined, Left, ServerFrame, VERSION, kind,
};

impl Session {
    /// Takes a frame that came at `now`.
    pub fn take(&mut self, frame: &ServerFrame<'_>, now: Nanos) -> Option<Event> {
        let greeted = self.conn == Conn::Open;
        match frame {
            ServerFrame::Deliver(d) => return self.deliver(d, now),
            ServerFrame::Welcome(w) if !greeted && w.version == VERSION => {
                self.welcomed(*w, now);
                return Some(Event::Connected(*w));
            }
            ServerFrame::Error(e) => return self.error(e, now),
            ServerFrame::Unknown { .. } => return None,
            _ if !greeted => return self.broken("a frame before WELCOME"),
            ServerFrame::Welcome(_) => return self.broken("a second WELCOME"),
            _ => {}
        }
        match frame {
            ServerFrame::Joined(j) => self.joined(j),
            ServerFrame::Authed(authed) => {
                self.authed(authed, now);
                None
            }
            ServerFrame::Left(l) => self.left(l),
            ServerFrame::Epoch(e) => {
                let index = self.by_handle(e.handle)?;
                let group = self.groups.get_mut(index)?;
                let was = group.epoch(e);
                let first = Seq(group.place().1.0.saturating_add(1));
                let name = Arc::clone(&group.name);
                self.list_move(index);
                let (before, last) = was?;
                Some(Event::EpochChanged { group: name, before, last, epoch: e.epoch, first })
            }
            ServerFrame::Gap(gap) => {
                let index = self.by_handle(gap.handle)?;
                let group = self.groups.get_mut(index)?;
                match group.gap(gap) {
                    Ok(news) => {
                        let (from, to) = news?;
                        let group = Arc::clone(&group.name);
                        Some(Event::Gap { group, from, to, epoch: gap.epoch, reason: gap.reason })
                    }
                    Err(what) => self.broken(what),
                }
            }
            ServerFrame::Redeliver(r) => {
                let index = self.by_handle(r.handle)?;
                let group = self.groups.get_mut(index)?;
                group.redelivers(r.from, r.epoch);
                let group = Arc::clone(&group.name);
                Some(Event::Redelivery { group, from: r.from, attempt: r.attempt })
            }
            ServerFrame::Published(p) => {
                let Some(Request::Publish { group: index, id }) =
                    self.requests.open.remove(&p.request)
                else {
                    return self.broken("a PUBLISHED that nobody waits for");
                };
                self.name_handle(index, p.handle);
                let group = self.groups.get_mut(index)?;
                group.handle.get_or_insert(p.handle);
                if group.producer.number_of(id) != Some(p.producer_seq) {
                    return self.broken("a PUBLISHED with the number of another publish");
                }
                group.held_told = false;
                let len = group.producer.taken(id)?;
                let group = Arc::clone(&group.name);
                self.publish_is_over(len);
                self.settle(index, now);
                self.list_send(index);
                Some(Event::Published(Published {
                    id,
                    group,
                    producer_seq: p.producer_seq,
                    epoch: p.epoch,
                    seq: p.seq,
                    level: p.level,
                }))
            }
            ServerFrame::Drain(d) => {
                self.drain = Some(now.plus_ms(u64::from(d.reconnect_after_ms)));
                Some(Event::Draining {
                    grace_ms: d.grace_ms,
                    reconnect_after_ms: d.reconnect_after_ms,
                })
            }
            ServerFrame::Probe { token } => {
                ClientFrame::encode_probed(&mut self.out, *token);
                None
            }
            ServerFrame::Receipt(r) => {
                let index = self.by_handle(r.handle);
                let group = index.and_then(|i| self.groups.get(i)).map(|g| Arc::clone(&g.name));
                Some(Event::Receipt(Receipt {
                    group,
                    handle: r.handle,
                    seq: r.seq,
                    epoch: r.epoch,
                    producer_seq: r.producer_seq,
                    acked: r.acked,
                    members: r.members,
                    percent: r.percent,
                }))
            }
            other => self.answer(other),
        }
    }

    pub fn broken(&mut self, what: &str) -> Option<Event> {
        self.close(Reason::Protocol(what.to_owned()));
        None
    }

    fn deliver(&mut self, d: &Deliver<'_>, now: Nanos) -> Option<Event> {
        let Some(index) = self.by_handle(d.handle) else {
            return self.broken("a DELIVER of a group that was not joined");
        };
        let group = self.groups.get_mut(index)?;
        match group.deliver(d.seq) {
            Ok(Delivered::New { epoch, missing: None }) => {
                Some(Event::Message(Message::new(&group.name, epoch, d)))
            }
            Ok(Delivered::New { epoch, missing: Some((from, to)) }) => {
                // The server should have said so.
                let name = Arc::clone(&group.name);
                let message = Event::Message(Message::new(&name, epoch, d));
                let reason = crate::wire::GapReason::Damaged;
                self.events.push_back(Event::Gap { group: name, from, to, epoch, reason });
                self.events.push_back(message);
                self.events.pop_front()
            }
            Ok(Delivered::Known) => {
                if group.handled_before(d.seq) {
                    self.handled(index, now);
                }
                None
            }
            Ok(Delivered::Dropped) => None,
            Err(what) => self.broken(what),
        }
    }

    fn joined(&mut self, j: &Joined<'_>) -> Option<Event> {
        let index = self.find(j.group);
        let asked = match self.requests.open.get_mut(&j.request) {
            Some(Request::Join(groups)) => index.filter(|index| {
                let at = groups.iter().position(|asked| asked == index);
                at.map(|at| groups.swap_remove(at)).is_some()
            }),
            _ => None,
        };
        let Some(index) = asked else { return self.broken("a JOINED that nobody waits for") };
        self.forget_if_answered(j.request);
        self.name_handle(index, j.handle);
        let group = self.groups.get_mut(index)?;
        let looking = group.is_looking_back();
        let skipped = group.joined(j);
        let again = std::mem::replace(&mut group.joined_before, true);
        let (name, wanted) = (Arc::clone(&group.name), group.wanted.is_some());
        self.list_move(index);
        (wanted && !looking).then_some(Event::Joined(JoinedGroup {
            group: name,
            handle: j.handle,
            epoch: j.epoch,
            head: j.head,
            first: j.first,
            cursor: j.cursor,
            again,
            skipped,
        }))
    }

    fn left(&mut self, l: &Left) -> Option<Event> {
        let index = self.by_handle(l.handle);
        // Nobody asked for it: a newer token does not allow this group.
        if l.request == 0
            && let Some(group) = index.and_then(|index| self.groups.get_mut(index))
        {
            group.put_out();
            return Some(Event::Left { group: Arc::clone(&group.name) });
        }
        let asked = match self.requests.open.get_mut(&l.request) {
            Some(Request::Leave(groups)) => index.filter(|index| {
                let at = groups.iter().position(|asked| asked == index);
                at.map(|at| groups.swap_remove(at)).is_some()
            }),
            _ => None,
        };
        let Some(index) = asked else { return self.broken("a LEFT that nobody waits for") };
        self.forget_if_answered(l.request);
        let group = self.groups.get_mut(index)?;
        let over = group.left();
        let group = Arc::clone(&group.name);
        self.list_move(index);
        over.then_some(Event::Left { group })
    }

    fn forget_if_answered(&mut self, request: u32) {
        if let Some(Request::Join(groups) | Request::Leave(groups)) =
            self.requests.open.get(&request)
            && groups.is_empty()
        {
            self.requests.open.remove(&request);
        }
    }

    /// Publishes of which nobody can tell any more whether they are in the group.
    pub fn give_up(&mut self, group: &GroupName, in_doubt: Vec<(PublishId, usize)>) {
        for (id, len) in in_doubt {
            let (group, error) = (Arc::clone(group), PublishError::InDoubt);
            self.events.push_back(Event::PublishFailed { id, group, error });
            self.publish_is_over(len);
        }
    }

    fn publish_is_over(&mut self, len: usize) {
        self.publishes = self.publishes.saturating_sub(1);
        self.publish_bytes = self.publish_bytes.saturating_sub(len);
    }

    fn error(&mut self, e: &ErrorFrame<'_>, now: Nanos) -> Option<Event> {
        let refusal = Refusal::of(e);
        if e.code < 100 {
            self.close(match refusal.known() {
                Some(ErrorCode::Replaced) => Reason::Replaced,
                _ => Reason::Server(refusal),
            });
            return None;
        }
        match self.requests.open.get_mut(&e.request) {
            None => self.server_error(refusal),
            Some(Request::Publish { group, id }) => {
                let (group, id) = (*group, *id);
                self.requests.open.remove(&e.request);
                self.publish_error(group, id, refusal, now)
            }
            Some(Request::Auth) => {
                self.requests.open.remove(&e.request);
                Some(Event::ServerError(refusal))
            }
            Some(Request::Query { .. }) => {
                let (id, group) = self.query(e.request, false)?;
                Some(Event::QueryFailed { id, group, error: Some(refusal) })
            }
            Some(Request::Join(_) | Request::Leave(_)) => {
                self.move_error(e.request, &refusal, now);
                self.events.pop_front()
            }
        }
    }

    /// An ERROR without a request.
    fn server_error(&mut self, refusal: Refusal) -> Option<Event> {
        if refusal.known() == Some(ErrorCode::UnknownFrame) {
            if refusal.limit == u64::from(kind::AUTH) {
                // It is older than tokens, and takes everybody.
                return None;
            }
            // An old server: what was asked for by this kind of frame has no other answer.
            let asked: Vec<u32> = self
                .requests
                .open
                .iter()
                .filter(|(_, r)| matches!(r, Request::Query { kind, sent: true, .. } if u64::from(*kind) == refusal.limit))
                .map(|(number, _)| *number)
                .collect();
            for request in asked {
                if let Some((id, group)) = self.query(request, false) {
                    let error = Some(refusal.clone());
                    self.events.push_back(Event::QueryFailed { id, group, error });
                }
            }
        }
        Some(Event::ServerError(refusal))
    }

    /// One group of a JOIN or LEAVE was refused, or all of them.
    fn move_error(&mut self, request: u32, refusal: &Refusal, now: Nanos) {
        let Some(Request::Join(groups) | Request::Leave(groups)) =
            self.requests.open.get_mut(&request)
        else {
            return;
        };
        let named = |index: &usize| {
            self.groups.get(*index).is_some_and(|group| group.name[..] == refusal.field[..])
        };
        let refused = match groups.iter().position(named) {
            Some(at) => vec![groups.swap_remove(at)],
            None => std::mem::take(groups),
        };
        self.forget_if_answered(request);
        for index in refused {
            let Some(group) = self.groups.get_mut(index) else { continue };
            let name = Arc::clone(&group.name);
            if group.phase == Phase::Leaving {
                // It is not in it: what was wanted.
                if group.left() {
                    self.events.push_back(Event::Left { group: name });
                }
            } else if refusal.known() == Some(ErrorCode::RateLimited) && group.wanted.is_some() {
                group.phase = Phase::Out;
                self.late_moves.push((now.plus_ms(wait_ms(refusal)), index));
                continue;
            } else if is_about_history(refusal) && group.goes_without_history() {
                group.phase = Phase::Out;
            } else {
                group.phase = Phase::Out;
                group.leaving = None;
                let was_wanted = group.wanted.take().is_some();
                let error = refusal.clone();
                self.events.push_back(if was_wanted {
                    Event::JoinFailed { group: name, error }
                } else {
                    Event::Left { group: name }
                });
            }
            self.list_move(index);
        }
    }

    fn publish_error(
        &mut self,
        index: usize,
        id: PublishId,
        refusal: Refusal,
        now: Nanos,
    ) -> Option<Event> {
        use ErrorCode as E;
        let limited = refusal.known() == Some(E::RateLimited);
        let hold_ms = if limited { wait_ms(&refusal) } else { self.hold_ms() };
        let group = self.groups.get_mut(index)?;
        let name = Arc::clone(&group.name);
        let hold = match refusal.known() {
            Some(
                E::StorageFull
                | E::StorageFailed
                | E::Indeterminate
                | E::TooManyProducers
                | E::RateLimited,
            ) => Some(Hold::Until(now.plus_ms(hold_ms))),
            Some(E::Draining) => Some(Hold::Reconnect),
            _ => None,
        };
        let (len, error) = match (refusal.known(), hold) {
            (known, Some(hold)) => {
                let why = match known {
                    Some(E::Indeterminate) => Returned::Indeterminate,
                    _ => Returned::Held,
                };
                group.producer.returned(id, why);
                group.producer.hold = hold;
                let told = std::mem::replace(&mut group.held_told, true);
                let timed = matches!(hold, Hold::Until(_));
                if timed && !self.holds.contains(&index) {
                    self.holds.push(index);
                }
                if !told {
                    self.events.push_back(Event::PublishHeld {
                        group: name,
                        error: refusal,
                        retry_in_ms: timed.then_some(hold_ms),
                    });
                }
                self.settle(index, now);
                return self.events.pop_front();
            }
            (Some(E::UnknownProducer), _) => {
                group.producer.returned(id, Returned::Unknown);
                self.settle(index, now);
                return self.events.pop_front();
            }
            (Some(E::ProducerTaken), _) => {
                group.producer.returned(id, Returned::Foreign);
                self.settle(index, now);
                return self.events.pop_front();
            }
            (Some(E::ProducerGap), _) => {
                group.producer.returned(id, Returned::Expected(refusal.limit));
                self.settle(index, now);
                return self.events.pop_front();
            }
            (Some(E::ProducerSeqTooOld), _) => {
                (group.producer.taken(id)?, PublishError::PlaceUnknown)
            }
            _ => match group.producer.refused(id)? {
                (len, true) => (len, PublishError::Refused(refusal)),
                (len, false) => (len, PublishError::InDoubt),
            },
        };
        self.publish_is_over(len);
        self.settle(index, now);
        self.list_send(index);
        self.events.push_back(Event::PublishFailed { id, group: name, error });
        self.events.pop_front()
    }

    /// Sends again what came back, once all publishes of the group have their answers.
    fn settle(&mut self, index: usize, now: Nanos) {
        let Some(group) = self.groups.get_mut(index) else { return };
        let settled = group.producer.settle();
        let name = Arc::clone(&group.name);
        self.give_up(&name, settled.in_doubt);
        self.renewing |= settled.forgotten;
        if settled.stuck {
            let hold_ms = self.hold_ms();
            if let Some(group) = self.groups.get_mut(index)
                && group.producer.hold == Hold::No
            {
                group.producer.hold = Hold::Until(now.plus_ms(hold_ms));
                self.holds.push(index);
            }
        }
        self.list_send(index);
    }
}

/// Longest wait that a server may ask for, in ms; a longer one is asked for again.
const WAIT_MAX_MS: u64 = 60_000;

fn wait_ms(refusal: &Refusal) -> u64 {
    refusal.limit.clamp(1, WAIT_MAX_MS)
}

/// Whether a JOIN was refused since the token does not allow to read history.
fn is_about_history(refusal: &Refusal) -> bool {
    /// Number of the right in PROTOCOL.md.
    const HISTORY: u64 = 3;
    refusal.known() == Some(ErrorCode::Forbidden) && refusal.limit == HISTORY
}
