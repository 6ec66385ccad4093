//! Redelivery: what a durable member does not acknowledge comes again.
//!
//! TCP loses nothing, so an acknowledgement that is missing means a client that lost its work or
//! its acknowledgements, or one that is slow. A slow one must not get the same again. So a
//! member is suspected after `ack_timeout`; the socket must then let go of everything that it was
//! given until then (SIOCOUTQ), and the member must have read that (PROBED) without moving its
//! cursor. New messages meanwhile do not put this off, or a member under steady traffic would
//! never be found out. Then the messages after the cursor are sent again, at most a window of
//! them until it moves.
//!
//! Members that have nothing to acknowledge cost nothing here, live ones never anything.

use tracing::info;

use super::conn::Membership;
use super::replies::Refusal;
use super::{ConnId, Io, Shard};
use crate::group::{Lag, Member, Proof};
use crate::position::{Epoch, Nanos, Seq};
use crate::wire::ErrorCode;

/// How long until a suspected member whose socket holds something is looked at again.
const BUSY_MS: u64 = 1_000;
/// The same for one that has not answered a PROBE: when it has, what comes next may be due soon.
const UNPROVED_MS: u64 = 2_000;
/// Longest time between two redeliveries.
const BACKOFF_MS_MAX: u64 = 30_000;

/// Time from redelivery `attempt` to the next one: 1, 2, 4 .. 30 s.
fn backoff_ms(attempt: u32) -> u64 {
    (1_000 << attempt.saturating_sub(1).min(5)).min(BACKOFF_MS_MAX)
}

impl Shard {
    /// A durable member has something to acknowledge from now on: has it looked at when that
    /// is overdue.
    pub(super) fn watch_acks(&mut self, id: ConnId, membership: Membership) {
        let timeout_ms = self.ack_timeout_ms(membership.group);
        self.look_at_acks_at(id, self.now.plus_ms(timeout_ms));
    }

    fn ack_timeout_ms(&self, group: u32) -> u64 {
        u64::from(self.config.ack_timeout_ms_of(self.groups[group as usize].class))
    }

    fn look_at_acks_at(&mut self, id: ConnId, at: Nanos) {
        let Some(armed) = self.watch(id).map(|watch| watch.armed_at) else { return };
        if armed.is_some_and(|armed| armed <= at) {
            return;
        }
        let fires = self.wheel.arm_acks(id, at, armed);
        if let Some(watch) = self.watch(id) {
            watch.armed_at = Some(fires);
        }
    }

    fn memberships(&mut self, id: ConnId) -> Vec<Membership> {
        self.conn(id).map(|conn| conn.memberships.to_vec()).unwrap_or_default()
    }

    fn member(&mut self, membership: Membership) -> Option<&mut Member> {
        self.groups.get_mut(membership.group as usize)?.members.get_mut(membership.member)
    }

    /// The wheel fired for the acknowledgements of a connection.
    pub(super) fn look_at_acks(&mut self, id: ConnId, now: Nanos, io: &mut impl Io) {
        let Some(watch) = self.watch(id) else { return };
        // The armed look is still to come: this one was armed before a sooner one took its place.
        if watch.armed_at.is_none_or(|armed| now < armed) {
            return;
        }
        watch.armed_at = None;
        let handed = watch.handed;
        let (mut next, mut query) = (None, false);
        for membership in self.memberships(id) {
            let timeout_ms = self.ack_timeout_ms(membership.group);
            let Some(member) = self.member(membership) else { continue };
            let caught_up = member.acked >= member.sent;
            let Some(again) = member.durable.as_mut().map(|durable| &mut durable.again) else {
                continue;
            };
            if !again.watched {
                continue;
            }
            if caught_up && again.attempt == 0 {
                again.watched = false;
                continue;
            }
            let mut at = match again.attempt {
                0 => again.since.plus_ms(timeout_ms),
                _ => again.next_at,
            };
            if at <= now {
                at = now.plus_ms(match again.proof {
                    Proof::None => {
                        again.proof = Proof::Leaving(handed);
                        query = true;
                        BUSY_MS
                    }
                    Proof::Leaving(_) => {
                        query = true;
                        BUSY_MS
                    }
                    Proof::Token(_) => UNPROVED_MS,
                });
            }
            next = Some(next.map_or(at, |next: Nanos| next.min(at)));
        }
        if query {
            self.ask_unsent(id, io);
        }
        if let Some(at) = next {
            self.look_at_acks_at(id, at);
        }
    }

    /// Asks the kernel what it holds, once at a time: the answer is compared with what had been
    /// written when it was asked for.
    fn ask_unsent(&mut self, id: ConnId, io: &mut impl Io) {
        let Some(conn) = self.conn(id) else { return };
        let in_flight = conn.in_flight;
        let Some(watch) = &mut conn.watch else { return };
        if watch.asked_at.is_none() {
            watch.asked_at = Some(watch.written(in_flight));
            io.query_unsent(id);
        }
    }

    /// What the socket of a connection still holds, or an errno if the kernel cannot tell:
    /// then PROBED alone must do.
    pub(super) fn unsent(&mut self, id: ConnId, result: Result<u32, i32>) {
        let Some(watch) = self.conn(id).and_then(|conn| conn.watch.as_deref_mut()) else { return };
        let Some(written) = watch.asked_at.take() else { return };
        // What was written after the question counts as held, so this is never too much.
        let left = written.saturating_sub(u64::from(result.unwrap_or(0)));
        let mut free = self.memberships(id);
        free.retain(|membership| {
            let durable = self.member(*membership).and_then(|member| member.durable.as_ref());
            matches!(durable.map(|d| d.again.proof), Some(Proof::Leaving(up_to)) if up_to <= left)
        });
        if free.is_empty() {
            return;
        }
        let token = self.prove(id);
        for membership in free {
            if let Some(durable) = self.member(membership).and_then(|m| m.durable.as_mut()) {
                durable.again.proof = Proof::Token(token);
                if let Some(gap) = &mut durable.gap {
                    gap.asked = true;
                }
            }
        }
    }

    /// The client has read everything before PROBE `token`: members of it whose cursor still
    /// stands get everything after it again.
    pub(super) fn redeliver_if_proved(&mut self, id: ConnId, token: u64) {
        for membership in self.memberships(id) {
            let Some(member) = self.member(membership) else { continue };
            let stands = member.acked < member.sent;
            let Some(durable) = &mut member.durable else { continue };
            if !matches!(durable.again.proof, Proof::Token(needed) if needed <= token) {
                continue;
            }
            durable.again.proof = Proof::None;
            if member.has_read_gap() {
                // Epoch 0: no message was acknowledged.
                self.tell_cursor(membership.group, membership.member, Epoch(0));
                self.progressed(membership);
            } else if stands && !self.redeliver(id, membership) {
                return;
            }
        }
    }

    /// Sends a member what follows its cursor again. False if it had its share: the connection
    /// is closed then.
    fn redeliver(&mut self, id: ConnId, membership: Membership) -> bool {
        let window = u64::from(self.config.redeliver_window);
        let now = self.now;
        let group = &self.groups[membership.group as usize];
        let (handle, max) = (group.handle, self.config.redeliver_max_of(group.class));
        let Some(member) = self.member(membership) else { return true };
        let (acked, sent, epoch) = (member.acked, member.sent, member.epoch);
        let Some(durable) = &mut member.durable else { return true };
        let again = &mut durable.again;
        if again.attempt >= max {
            let text = "what was sent came again as often as it may and was never acknowledged";
            let refusal = Refusal::new(ErrorCode::Stalled, text).limit(u64::from(max));
            info!(slot = id.slot, %handle, %acked, %sent, max, "closing a member that does not acknowledge");
            self.figures.unacknowledged += 1;
            self.refuse(id, 0, refusal);
            return false;
        }
        again.attempt += 1;
        again.announce = true;
        again.next_at = now.plus_ms(backoff_ms(again.attempt));
        again.hold_at = Some(Seq(acked.0 + window));
        if again.high.0 < sent {
            again.high = (sent, epoch);
        }
        member.sent = acked;
        self.figures.redeliveries += 1;
        self.reposition(membership);
        let at = now.plus_ms(1_000);
        self.look_at_acks_at(id, at);
        true
    }

    /// The cursor of a durable member moved: a redelivery that is under way ends.
    pub(super) fn progressed(&mut self, membership: Membership) {
        let now = self.now;
        let Some(member) = self.member(membership) else { return };
        let mut moved = member.sent < member.acked;
        member.sent = member.sent.max(member.acked);
        let Some(durable) = &mut member.durable else { return };
        let again = &mut durable.again;
        again.since = now;
        again.attempt = 0;
        again.proof = Proof::None;
        let held = again.hold_at.take().is_some();
        if std::mem::take(&mut again.announce) {
            // Nothing came again yet, and now nothing will.
            member.sent = member.sent.max(again.high.0);
            moved = true;
        }
        if moved || (held && matches!(member.lag, Lag::Held)) {
            self.reposition(membership);
        }
    }

    /// Puts a member where what follows `sent` is: on the tail, or behind it.
    fn reposition(&mut self, membership: Membership) {
        let Some(group) = self.groups.get_mut(membership.group as usize) else { return };
        let Some(member) = group.members.get(membership.member) else { return };
        let attached = group.attach(member.sent);
        let more = member.sent < group.published;
        let Some(member) = group.members.get_mut(membership.member) else { return };
        let was_live = matches!(member.lag, Lag::Live);
        (member.lag, member.next) = match attached {
            Some(next) => (Lag::Live, next),
            None => (Lag::Behind, 0),
        };
        let slot = member.conn;
        match (was_live, attached.is_some()) {
            (true, false) => {
                self.figures.catch_up_members += 1;
                self.begins_behind(slot);
            }
            (false, true) => {
                self.figures.catch_up_members -= 1;
                self.ends_behind(slot);
            }
            _ => {}
        }
        if more {
            self.mark_dirty(membership);
            self.make_ready(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redeliveries_come_after_1_2_4_to_30_seconds() {
        let times: Vec<_> = (1..=8).map(backoff_ms).collect();
        assert_eq!(times, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    }
}
