//! Isolation by behaviour: how fast each connection drains, how it stands beside the others of
//! its shard, and a circuit breaker for those that keep falling behind.
//!
//! Everything that happens per write is a few additions. What is normal is asked once a second
//! from a bounded sample, so that a shard on which everyone is slow calls nobody slow.

use super::Shard;
use super::conn::{Conn, Membership};
use crate::group::Lag;
use crate::position::Nanos;

/// How often the medians are taken, at most.
const MEDIAN_EVERY_MS: u64 = 1_000;
/// Connections in a sample, and slots looked at to find them.
const SAMPLE: usize = 64;
const SAMPLE_SLOTS: u32 = 1024;
/// A write is slow if it takes this many times the median ...
const SLOW_TIMES: u64 = 8;
/// ... and more than this: what is faster waited for no reader.
const SLOW_FLOOR_NS: u64 = 10_000_000;
/// Slow writes, less the others since, from which a connection is lagging.
const STRIKES_LAGGING: u8 = 2;
/// The same to trip the breaker. Falling off a tail counts as two.
const STRIKES_TRIP: u8 = 4;
/// Bound of the count, so that recovery takes no longer than this many good writes.
const STRIKES_MAX: u8 = 8;
/// Share of a new write in the averages: one in eight.
const EWMA_SHARE: f32 = 0.125;

/// How a connection keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It has what its groups have published, or gets it with the next write.
    Live,
    /// Its writes take long.
    Lagging,
    /// In a group it is served from the log.
    CatchUp,
    /// Its write does not move.
    Stalled,
}

impl Health {
    /// Its name in figures and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Lagging => "lagging",
            Self::CatchUp => "catch_up",
            Self::Stalled => "stalled",
        }
    }
}

/// What is known of how a connection drains.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drainage {
    /// Whether it is counted, and as what. Nothing before HELLO.
    health: Option<Health>,
    /// Slow writes, less others since.
    strikes: u8,
    /// Memberships that are served from the log.
    behind: u32,
    /// Bytes of the write in flight.
    sending: u32,
    /// When it was started.
    started_at: Nanos,
    /// Averages over its last writes.
    bytes: f32,
    nanos: f32,
}

impl Drainage {
    /// Bytes per second that it took while there were some for it; `None` before its first
    /// write ended.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        (self.nanos > 0.0).then(|| (f64::from(self.bytes) / f64::from(self.nanos) * 1e9) as u64)
    }

    /// How it keeps up.
    #[must_use]
    pub fn health(&self) -> Option<Health> {
        self.health
    }

    /// A write was started.
    pub fn started(&mut self, now: Nanos, bytes: u64) {
        self.started_at = now;
        self.sending = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// The write ended; `slow_ns` is what is slow on this shard now. Returns whether there is
    /// something to conclude from that: nothing from one more good write after others.
    pub fn finished(&mut self, now: Nanos, slow_ns: u64) -> bool {
        // A write that ended in the turn that started it took some time too.
        let nanos = now.since(self.started_at).max(1_000);
        let share = if self.nanos > 0.0 { EWMA_SHARE } else { 1.0 };
        self.bytes += (self.sending as f32 - self.bytes) * share;
        self.nanos += (nanos as f32 - self.nanos) * share;
        if nanos > slow_ns {
            self.strike(1);
            return true;
        }
        let struck = self.strikes > 0;
        self.strikes -= u8::from(struck);
        struck
    }

    /// Memberships that are not served from the tail.
    pub fn behind(&self) -> u32 {
        self.behind
    }

    /// A membership is not served from the tail.
    pub fn begins_behind(&mut self) {
        self.behind += 1;
    }

    /// A membership fell off the tail.
    pub fn fell(&mut self) {
        self.begins_behind();
        self.strike(2);
    }

    /// A membership is on the tail again.
    pub fn caught_up(&mut self) {
        self.behind = self.behind.saturating_sub(1);
    }

    fn strike(&mut self, count: u8) {
        self.strikes = (self.strikes + count).min(STRIKES_MAX);
    }

    fn seen(&self) -> Health {
        match self {
            Self { behind: 1.., .. } => Health::CatchUp,
            Self { strikes: STRIKES_LAGGING.., .. } => Health::Lagging,
            _ => Health::Live,
        }
    }
}

/// What is normal on this shard.
#[derive(Debug)]
pub struct Normal {
    /// When it is asked for again.
    due_at: Nanos,
    /// Slot at which the next sample starts.
    slot: u32,
    /// Median time of a write.
    pub write_ns: u64,
    /// Median of the drain rates.
    pub rate: u64,
}

impl Normal {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self { due_at: now, slot: 0, write_ns: 0, rate: 0 }
    }

    /// How long a write takes that is slow here.
    #[must_use]
    pub fn slow_ns(&self) -> u64 {
        self.write_ns.saturating_mul(SLOW_TIMES).max(SLOW_FLOOR_NS)
    }
}

impl Shard {
    /// A connection may be judged from now on.
    pub(super) fn begin_health(&mut self, slot: u32) {
        self.set_health(slot, Some(Health::Live));
    }

    /// A connection goes away.
    pub(super) fn end_health(&mut self, slot: u32) {
        self.set_health(slot, None);
        if let Some(conn) = self.conns.get_mut(slot)
            && std::mem::take(&mut conn.tripped)
        {
            self.figures.members_tripped -= 1;
        }
    }

    /// Memberships of a connection that are not served from the tail, counted anew.
    pub(super) fn behind(&self, conn: &Conn) -> u32 {
        let member = |m: &Membership| self.groups.get(m.group as usize)?.members.get(m.member);
        let behind = |m: &&Membership| member(m).is_some_and(|m| !matches!(m.lag, Lag::Live));
        conn.memberships.iter().filter(behind).count() as u32
    }

    /// A membership of the connection begins behind the tail.
    pub(super) fn begins_behind(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot) {
            conn.drainage.begins_behind();
            self.judge(slot);
        }
    }

    /// A membership of the connection that was behind the tail is gone.
    pub(super) fn ends_behind(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot) {
            conn.drainage.caught_up();
            self.judge(slot);
        }
    }

    /// The write of the connection has not moved for too long.
    pub(super) fn has_stalled(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && conn.drainage.health.is_some_and(|health| health != Health::Stalled)
        {
            conn.drainage.strike(STRIKES_TRIP);
            self.set_health(slot, Some(Health::Stalled));
            self.trip(slot);
        }
    }

    /// Draws the conclusions from what was noted of a connection.
    pub(super) fn judge(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else { return };
        let Drainage { health: Some(before), strikes, .. } = conn.drainage else { return };
        let seen = conn.drainage.seen();
        let tripped = conn.tripped;
        if seen != before {
            self.set_health(slot, Some(seen));
        }
        if !tripped && strikes >= STRIKES_TRIP {
            self.trip(slot);
        } else if tripped && strikes == 0 && seen == Health::Live {
            self.recover(slot);
        }
    }

    fn trip(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && !std::mem::replace(&mut conn.tripped, true)
        {
            self.figures.members_tripped += 1;
            self.figures.trips += 1;
        }
    }

    fn recover(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && std::mem::take(&mut conn.tripped)
        {
            self.figures.members_tripped -= 1;
            // It may be waiting in the lane of bulk for what is urgent again.
            self.make_ready(slot);
        }
    }

    fn set_health(&mut self, slot: u32, health: Option<Health>) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let before = std::mem::replace(&mut conn.drainage.health, health);
        let figures = &mut self.figures;
        let mut count = |health: Option<Health>, by: i64| {
            let figure = match health {
                None => return,
                Some(Health::Live) => &mut figures.members_live,
                Some(Health::Lagging) => &mut figures.members_lagging,
                Some(Health::CatchUp) => &mut figures.members_catch_up,
                Some(Health::Stalled) => &mut figures.members_stalled,
            };
            *figure = figure.wrapping_add_signed(by);
        };
        count(before, -1);
        count(health, 1);
    }

    /// Asks a sample of the connections what is normal, once in a while. It wakes nobody: a
    /// shard without turns has nothing to judge.
    pub(super) fn take_medians(&mut self, now: Nanos) {
        if now < self.normal.due_at {
            return;
        }
        self.normal.due_at = now.plus_ms(MEDIAN_EVERY_MS);
        let (mut times, mut rates, mut count) = ([0; SAMPLE], [0; SAMPLE], 0);
        let slots = self.conns.end();
        let start = self.normal.slot;
        for n in 0..slots.min(SAMPLE_SLOTS) {
            let slot = (start + n) % slots;
            self.normal.slot = slot + 1;
            let Some(conn) = self.conns.get(slot) else { continue };
            // Who is served last is no measure for the others.
            if let (Some(rate), false) = (conn.drainage.rate(), conn.tripped) {
                (times[count], rates[count]) = (conn.drainage.nanos as u64, rate);
                count += 1;
                if count == SAMPLE {
                    break;
                }
            }
        }
        if count > 0 {
            let median = |values: &mut [u64]| *values.select_nth_unstable((count - 1) / 2).1;
            self.normal.write_ns = median(&mut times[..count]);
            self.normal.rate = median(&mut rates[..count]);
        }
    }

    /// Whether a write that is in flight is taken for stalled: an eighth of the time after
    /// which it is given up, and more than what is slow here.
    pub(super) fn seems_stalled(&self, conn: &Conn, now: Nanos) -> bool {
        let patience = u64::from(self.config.stall_timeout_ms) * 1_000_000 / 8;
        conn.in_flight && now.since(conn.progress_at) > patience.max(self.normal.slow_ns())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn write(d: &mut Drainage, at: &mut u64, bytes: u64, took: u64, slow_ns: u64) {
        d.started(Nanos(*at), bytes);
        *at += took;
        d.finished(Nanos(*at), slow_ns);
    }

    #[test]
    fn the_drain_rate_follows_what_the_reader_takes() {
        let (mut d, mut at) = (Drainage::default(), 0);
        assert_eq!(d.rate(), None);
        for _ in 0..10 {
            write(&mut d, &mut at, 1_000_000, 10 * MS, MS);
        }
        assert_eq!(d.rate().map(|rate| rate / 1_000_000), Some(100));
        for _ in 0..60 {
            write(&mut d, &mut at, 1_000_000, 100 * MS, MS);
        }
        assert_eq!(d.rate().map(|rate| rate / 1_000_000), Some(10));
    }

    #[test]
    fn a_single_slow_write_is_forgiven_and_repeated_ones_are_counted_up_to_a_bound() {
        let (mut d, mut at) = (Drainage::default(), 0);
        write(&mut d, &mut at, 1, 20 * MS, 10 * MS);
        assert_eq!(d.seen(), Health::Live);
        write(&mut d, &mut at, 1, 20 * MS, 10 * MS);
        assert_eq!(d.seen(), Health::Lagging);
        for _ in 0..100 {
            write(&mut d, &mut at, 1, 20 * MS, 10 * MS);
        }
        for _ in 0..STRIKES_MAX {
            write(&mut d, &mut at, 1, MS, 10 * MS);
        }
        assert_eq!((d.seen(), d.strikes), (Health::Live, 0));
    }

    #[test]
    fn what_is_slow_follows_the_median() {
        let mut normal = Normal::new(Nanos(0));
        assert_eq!(normal.slow_ns(), SLOW_FLOOR_NS);
        normal.write_ns = 50 * MS;
        assert_eq!(normal.slow_ns(), 400 * MS);
    }
}
