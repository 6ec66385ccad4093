//! What a client does by the clock, and the frames that it sends.

use super::event::Reason;
use super::group::Phase;
use super::producer::Hold;
use super::session::{Conn, Request, Session};
use crate::limits::{FRAME_ENTRIES_MAX, FRAME_MAX};
use crate::position::Nanos;
use crate::wire::{Acks, ClientFrame, FRAME_HEADER, Join, Leave, Publish};

/// With more than this waiting to be sent no publishes are added.
const OUT_ENOUGH: usize = 256 * 1024;
/// Publishes of one group before the next group has its turn.
const SENDS_PER_TURN: usize = 64;

impl Session {
    /// Does what is due at `now` and encodes what can be sent.
    pub fn advance(&mut self, now: Nanos) {
        match self.conn {
            Conn::Greeting { until } if now >= until => {
                self.close(Reason::Silent { ms: self.options.answer_timeout_ms });
            }
            Conn::Open => {
                self.heartbeat(now);
                self.renew_token(now);
                self.move_late(now);
            }
            _ => {}
        }
        if self.closing.is_some() {
            return;
        }
        if self.conn == Conn::Open || self.options.eager && self.is_greeting() {
            self.join_and_leave();
        }
        if self.conn != Conn::Open {
            return;
        }
        while let Some((number, bytes)) = self.waiting.pop_front() {
            if let Some(Request::Query { sent, .. }) = self.requests.open.get_mut(&number) {
                *sent = true;
                self.out.extend_from_slice(&bytes);
            }
        }
        while let Some((at, index)) = self.clock.front().copied()
            && at <= now
        {
            self.clock.pop_front();
            if let Some(group) = self.groups.get_mut(index) {
                group.timed = false;
                if group.unacked > 0 {
                    self.list_ack(index);
                }
            }
        }
        self.acknowledge(now);
        if self.drain.is_none() {
            self.release(now);
            if self.renew_if_settled() {
                self.acknowledge_all(now);
                return self.close(Reason::Renewed);
            }
            self.publish(now);
        } else if self.requests.open.is_empty() {
            self.acknowledge_all(now);
            self.close(Reason::Drained);
        }
    }

    fn is_greeting(&self) -> bool {
        matches!(self.conn, Conn::Greeting { .. })
    }

    /// Joins groups again that had to wait.
    fn move_late(&mut self, now: Nanos) {
        while let Some(at) = self.late_moves.iter().position(|(at, _)| *at <= now) {
            let (_, index) = self.late_moves.swap_remove(at);
            self.list_move(index);
        }
    }

    fn heartbeat(&mut self, now: Nanos) {
        if self.silent_at.is_some_and(|at| at <= now) {
            self.close(Reason::Silent { ms: self.options.answer_timeout_ms });
        }
        let (Some(at), Some(welcome)) = (self.ping_at, &self.welcome) else { return };
        if at > now {
            return;
        }
        // The slots stay where the server laid them, also when this comes late.
        let every = u64::from(welcome.heartbeat_ms.max(1)) * 1_000_000;
        let missed = now.since(at) / every;
        self.ping_at = Some(Nanos(at.0.saturating_add((missed + 1).saturating_mul(every))));
        // The server has just heard of it.
        if self.acked_at.is_some_and(|acked| at.since(acked) < every / 2) {
            return;
        }
        if self.options.quiet_pings {
            return ClientFrame::encode_quiet_ping(&mut self.out, now.0);
        }
        ClientFrame::encode_ping(&mut self.out, now.0);
        let silent_at = now.plus_ms(self.options.answer_timeout_ms);
        self.silent_at.get_or_insert(silent_at);
    }

    fn frame_max(&self) -> usize {
        self.welcome.map_or(FRAME_MAX, |w| w.frame_max as usize)
    }

    /// Joins and leaves groups, many in one frame.
    fn join_and_leave(&mut self) {
        let room = self.frame_max().min(FRAME_MAX).saturating_sub(2 * FRAME_HEADER);
        while !self.moves.is_empty() {
            let (mut joins, mut leaves, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(index) = self.moves.front().copied()
                && joins.len().max(leaves.len()) < FRAME_ENTRIES_MAX
            {
                let Some(group) = self.groups.get_mut(index) else { break };
                let len = 16 + group.name.len();
                if bytes + len > room && bytes > 0 {
                    break;
                }
                bytes += len;
                self.moves.pop_front();
                group.listed = false;
                match (group.has_to_move(), group.phase) {
                    (true, Phase::Out) => {
                        group.phase = Phase::Joining;
                        group.leaving = group.wanted.or(group.leaving);
                        joins.push(index);
                    }
                    (true, Phase::In) => {
                        group.phase = Phase::Leaving;
                        leaves.push(index);
                    }
                    _ => {}
                }
            }
            if !joins.is_empty() {
                let request = self.requests.add(Request::Join(joins.clone()));
                let entries: Vec<_> = joins
                    .iter()
                    .filter_map(|index| self.groups.get(*index)?.join_entry())
                    .collect();
                Join::encode(&mut self.out, request, &entries);
            }
            if !leaves.is_empty() {
                let request = self.requests.add(Request::Leave(leaves.clone()));
                let names: Vec<_> = leaves
                    .iter()
                    .filter_map(|index| self.groups.get(*index).map(|group| &*group.name))
                    .collect();
                Leave::encode(&mut self.out, request, &names);
            }
        }
    }

    fn acknowledge(&mut self, now: Nanos) {
        if self.acks.is_empty() {
            return;
        }
        self.acked_at = Some(now);
        self.spread_acks();
        let mut acks = Vec::with_capacity(self.acks.len().min(FRAME_ENTRIES_MAX));
        for index in std::mem::take(&mut self.acks) {
            if let Some(group) = self.groups.get_mut(index) {
                group.ack_listed = false;
                acks.extend(group.ack());
            }
            if acks.len() == FRAME_ENTRIES_MAX {
                Acks::encode(&mut self.out, &acks);
                acks.clear();
            }
        }
        if !acks.is_empty() {
            Acks::encode(&mut self.out, &acks);
        }
    }

    /// Acknowledges all that was handled, now.
    pub fn acknowledge_all(&mut self, now: Nanos) {
        if self.conn != Conn::Open {
            return;
        }
        for index in 0..self.groups.len() {
            if self.groups.get(index).is_some_and(|group| group.unacked > 0) {
                self.list_ack(index);
            }
        }
        self.acknowledge(now);
    }

    /// Lets groups publish again whose time has come.
    fn release(&mut self, now: Nanos) {
        let mut holds = std::mem::take(&mut self.holds);
        holds.retain(|index| {
            let Some(group) = self.groups.get_mut(*index) else { return false };
            match group.held_until() {
                Some(at) if at > now => return true,
                Some(_) => group.producer.hold = Hold::No,
                None => {}
            }
            self.list_send(*index);
            false
        });
        self.holds = holds;
    }

    fn publish(&mut self, now: Nanos) {
        let window = self.welcome.map_or(1, |w| w.publish_window.max(1) as usize);
        while self.out.len() < OUT_ENOUGH
            && let Some(index) = self.sends.pop_front()
        {
            let mut more = false;
            for n in 0..=SENDS_PER_TURN {
                if n == SENDS_PER_TURN || self.out.len() >= OUT_ENOUGH {
                    more = true;
                    break;
                }
                let Some(group) = self.groups.get_mut(index) else { break };
                let Some((producer_seq, entry)) =
                    group.producer.send_next(window, self.renewing, now)
                else {
                    break;
                };
                let request = Request::Publish { group: index, id: entry.id };
                let request = self.requests.add(request);
                Publish {
                    request,
                    level: entry.how.level,
                    receipt: entry.how.receipt_percent,
                    producer_seq,
                    group: &group.name,
                    payload: &entry.payload,
                }
                .encode(&mut self.out);
            }
            if let Some(group) = self.groups.get_mut(index) {
                group.send_listed = more;
                if more {
                    self.sends.push_back(index);
                }
            }
        }
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Nanos> {
        if self.closing.is_some() {
            // Only its last words are left, which wait for room and not for a time.
            return None;
        }
        let conn = match self.conn {
            Conn::Down { at } | Conn::Greeting { until: at } => Some(at),
            Conn::Open | Conn::Over => None,
        };
        let clock = self.clock.front().map(|(at, _)| *at);
        // Where they are not released, the time of one that is over would be due without end.
        let released = self.conn == Conn::Open && self.drain.is_none();
        let holds = self.holds.iter().filter(|_| released);
        let holds = holds.filter_map(|i| self.groups.get(*i)?.held_until()).min();
        let late = self.late_moves.iter().map(|(at, _)| *at).min();
        let due = [conn, clock, holds, late, self.renew_at, self.ping_at, self.silent_at];
        due.into_iter().flatten().min()
    }
}
