//! How much a member may do in a second, and how many connections it may have. Off unless the
//! operator sets bounds. Members are counted on each shard, by their connections there; the
//! bounds of groups are kept by their owners.

use std::collections::{HashMap, VecDeque};

use super::conn::ConnState;
use super::replies::Refusal;
use super::{ConnId, Shard};
use crate::config::ShardConfig;
use crate::group::rates::{Bucket, PublishCount, PublishRates, SECOND_NS};
use crate::position::{MemberId, Nanos};
use crate::slots::Slots;
use crate::wire::ErrorCode;

/// Members without a connection that are remembered until what they used is paid for, so that a
/// new connection does not make them new. Above this the one that went first is forgotten.
const GONE_MAX: usize = 65_536;

/// What a member has used on this shard.
#[derive(Debug, Default)]
struct Account {
    connections: u32,
    /// When the last connection went.
    gone_at: Nanos,
    published: PublishCount,
    joins: Bucket,
}

/// The members of a shard's connections, if anything of them is bounded.
#[derive(Debug, Default)]
pub struct Rates {
    on: bool,
    accounts: Slots<Account>,
    by_member: HashMap<MemberId, u32>,
    /// Account of each connection, by its slot.
    of_conn: Slots<u32>,
    /// Members whose last connection went, and when they are looked at.
    gone: VecDeque<(Nanos, MemberId)>,
}

/// Whether anything of a member is bounded.
fn is_bounded(config: &ShardConfig) -> bool {
    config.member_connections_max > 0
        || config.member_publishes_per_s > 0
        || config.member_bytes_per_s > 0
        || config.member_joins_per_s > 0
}

impl Rates {
    /// For these bounds.
    #[must_use]
    pub fn new(config: &ShardConfig) -> Self {
        Self { on: is_bounded(config), ..Self::default() }
    }

    /// Goes on with these bounds; whether members are counted from now on that were not.
    fn configure(&mut self, config: &ShardConfig) -> bool {
        let on = is_bounded(config);
        if !on {
            *self = Self::default();
        }
        !std::mem::replace(&mut self.on, on) && on
    }

    /// Notes a connection of a member, unless it has `max`; 0 is no bound.
    fn enter(&mut self, id: ConnId, member: &MemberId, max: u32, now: Nanos) -> bool {
        self.forget_paid(now);
        let key = match self.by_member.get(member) {
            Some(key) => *key,
            None => {
                let key = self.accounts.insert(Account::default());
                self.by_member.insert(member.clone(), key);
                key
            }
        };
        let Some(account) = self.accounts.get_mut(key) else { return true };
        if max > 0 && account.connections >= max {
            return false;
        }
        account.connections += 1;
        self.of_conn.put(id.slot, key);
        true
    }

    /// A connection is gone.
    pub fn leave(&mut self, id: ConnId, member: &MemberId, now: Nanos) {
        if !self.on {
            return;
        }
        if let Some(key) = self.of_conn.remove(id.slot)
            && let Some(account) = self.accounts.get_mut(key)
        {
            account.connections -= 1;
            if account.connections == 0 {
                account.gone_at = now;
                self.gone.push_back((now, member.clone()));
            }
        }
        self.forget_paid(now);
    }

    /// Forgets members that have been away for a second and owe nothing.
    fn forget_paid(&mut self, now: Nanos) {
        for _ in 0..self.gone.len() {
            let full = self.gone.len() > GONE_MAX;
            let due = |(at, _): &(Nanos, MemberId)| now.since(*at) > SECOND_NS;
            if !full && !self.gone.front().is_some_and(due) {
                return;
            }
            let Some((at, member)) = self.gone.pop_front() else { return };
            let Some(key) = self.by_member.get(&member).copied() else { continue };
            let Some(account) = self.accounts.get_mut(key) else { continue };
            if account.connections > 0 || account.gone_at != at {
                // It came back; if it went again, that has an entry of its own.
                continue;
            }
            let paid = account.published.is_paid(now) && account.joins.is_paid(now);
            if !(full || paid) {
                account.gone_at = now;
                self.gone.push_back((now, member));
                continue;
            }
            self.by_member.remove(&member);
            self.accounts.remove(key);
        }
    }

    fn of(&mut self, id: ConnId) -> Option<&mut Account> {
        let key = *self.of_conn.get(id.slot)?;
        self.accounts.get_mut(key)
    }
}

impl Shard {
    /// Bounds members by another configuration. Who is here keeps the connections it has.
    pub(super) fn bound_members(&mut self) {
        if self.rates.configure(&self.config) {
            let here = self.conns.iter().filter(|conn| conn.state == ConnState::Open);
            for conn in here.filter(|conn| !conn.member.is_empty()) {
                self.rates.enter(conn.id, &conn.member, 0, self.now);
            }
        }
    }

    /// Whether the member of a connection may have it; refuses it otherwise.
    pub(super) fn may_connect(&mut self, id: ConnId) -> bool {
        if !self.rates.on {
            return true;
        }
        let max = self.config.member_connections_max;
        let Some(conn) = self.conns.get(id.slot) else { return false };
        if self.rates.enter(id, &conn.member, max, self.now) {
            return true;
        }
        self.figures.rate_limited += 1;
        let text = "the member has as many connections as it may; close one first";
        let refusal = Refusal::new(ErrorCode::TooManyConnectionsOfMember, text);
        self.refuse_last(id, 0, refusal.limit(u64::from(max)));
        false
    }

    /// Counts a publish of the member of this connection.
    ///
    /// # Errors
    /// In how many ms to try again.
    #[inline]
    pub(super) fn count_publish(&mut self, id: ConnId, bytes: usize) -> Result<(), u64> {
        if !self.rates.on {
            return Ok(());
        }
        let rates = PublishRates {
            publishes_per_s: u64::from(self.config.member_publishes_per_s),
            bytes_per_s: self.config.member_bytes_per_s,
        };
        let now = self.now;
        self.rates.of(id).map_or(Ok(()), |member| member.published.take(now, bytes as u64, rates))
    }

    /// Counts a join of the member of this connection.
    ///
    /// # Errors
    /// In how many ms to try again.
    pub(super) fn count_join(&mut self, id: ConnId) -> Result<(), u64> {
        if !self.rates.on {
            return Ok(());
        }
        let (now, per_s) = (self.now, u64::from(self.config.member_joins_per_s));
        self.rates.of(id).map_or(Ok(()), |member| member.joins.take(now, 1, per_s))
    }

    /// Says that a member does too much at a time.
    #[cold]
    pub(super) fn refuse_rate(&mut self, id: ConnId, request: u32, retry_ms: u64, field: &[u8]) {
        self.figures.rate_limited += 1;
        let text = "the member does more in a second than it may; try again after limit ms";
        let refusal = Refusal::new(ErrorCode::RateLimited, text).limit(retry_ms);
        self.refuse(id, request, refusal.field(field));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    fn conn(slot: u32) -> ConnId {
        ConnId { slot, generation: 0 }
    }

    fn name(n: u32) -> MemberId {
        MemberId::from(&n.to_le_bytes()[..])
    }

    #[test]
    fn a_member_that_comes_back_at_once_is_the_same() {
        let mut rates = Rates { on: true, ..Rates::default() };
        assert!(rates.enter(conn(1), &name(1), 2, Nanos(0)));
        assert!(rates.enter(conn(2), &name(1), 2, Nanos(0)));
        assert!(!rates.enter(conn(3), &name(1), 2, Nanos(0)), "a third one");
        let large = PublishRates { publishes_per_s: 0, bytes_per_s: 10 };
        rates.of(conn(1)).unwrap().published.take(Nanos(0), 100, large).unwrap();
        let mut now = Nanos(0);
        for slot in 1..=2 {
            rates.leave(conn(slot), &name(1), now);
        }
        for _ in 0..9 {
            now = now.plus_ms(1_001);
            assert!(rates.enter(conn(9), &name(9), 0, now));
            rates.leave(conn(9), &name(9), now);
            assert!(rates.by_member.contains_key(&name(1)), "it owes until 10 s");
        }
        assert!(rates.enter(conn(4), &name(1), 2, now));
        assert!(rates.of(conn(4)).unwrap().published.take(now, 1, large).is_ok());
        let owes = rates.of(conn(4)).unwrap().published.take(now, 1, large).is_err();
        assert!(owes, "a new member could take a second's worth at once");
    }

    #[test]
    fn members_that_went_are_forgotten_after_a_second_and_never_more_than_the_bound_are_kept() {
        let mut rates = Rates { on: true, ..Rates::default() };
        for n in 2..100_000 {
            assert!(rates.enter(conn(n), &name(n), 2, Nanos(u64::from(n))));
            rates.leave(conn(n), &name(n), Nanos(u64::from(n)));
        }
        assert!(rates.accounts.len() <= GONE_MAX + 1);
        assert!(rates.enter(conn(1), &name(0), 0, Nanos(3 * SECOND_NS)));
        assert_eq!((rates.accounts.len(), rates.by_member.len()), (1, 1));
    }
}
