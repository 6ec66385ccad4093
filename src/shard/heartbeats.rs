//! When clients are to send PING. Left to themselves they would come one at a time, and each
//! would wake the shard for itself. So every connection gets one of a few moments of the
//! heartbeat period, by the shard's clock, and shares it with others: one wake-up serves them
//! all.

use crate::position::Nanos;

/// Moments lie at least this far apart.
const MOMENT_MS_MIN: u64 = 25;
/// Most moments of a period.
const MOMENTS_MAX: u64 = 128;
/// A moment is filled up to here before another one is begun: as many PONGs as one slice of
/// writes has sends. Once all moments are that full, they are filled evenly.
const PINGS_PER_MOMENT: u32 = crate::limits::SENDS_PER_TURN as u32;

/// A moment of the heartbeat period, held by a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u8);

/// The moments of a shard, and how many connections each has.
#[derive(Debug)]
pub struct Heartbeats {
    period_ms: u64,
    held: Vec<u32>,
}

impl Heartbeats {
    /// The moments of a period; none if it is 0.
    #[must_use]
    pub fn new(period_ms: u32) -> Self {
        let period_ms = u64::from(period_ms);
        let moments = match period_ms {
            0 => 0,
            _ => (period_ms / MOMENT_MS_MIN).clamp(1, MOMENTS_MAX),
        };
        Self { period_ms, held: vec![0; moments as usize] }
    }

    /// Gives a connection a moment, and says how many ms from `now` it comes first, from 1 up
    /// to the period.
    ///
    /// The fullest moment with room is taken, so that few are in use; if none has, the
    /// emptiest.
    pub fn take(&mut self, now: Nanos) -> Option<(Moment, u32)> {
        let room = |held: u32| held < PINGS_PER_MOMENT;
        let order = |&at: &usize| {
            let held = self.held[at];
            if room(held) { (false, PINGS_PER_MOMENT - held, at) } else { (true, held, at) }
        };
        let at = (0..self.held.len()).min_by_key(order)?;
        self.held[at] += 1;
        let after = at as u64 * self.period_ms / self.held.len() as u64;
        let (period_ns, after_ns) = (self.period_ms * 1_000_000, after * 1_000_000);
        let into = now.0 % period_ns;
        let wait_ns = if after_ns > into { after_ns - into } else { after_ns + period_ns - into };
        Some((Moment(at as u8), wait_ns.div_ceil(1_000_000) as u32))
    }

    /// A connection is gone.
    pub fn give_back(&mut self, moment: Moment) {
        if let Some(held) = self.held.get_mut(usize::from(moment.0)) {
            *held -= 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// The moments of the period, in ns by the shard's clock, at which a connection pings.
    fn phase(beats: &mut Heartbeats, now: Nanos, period_ms: u64) -> (Moment, u64) {
        let (moment, wait_ms) = beats.take(now).unwrap();
        assert!((1..=period_ms).contains(&u64::from(wait_ms)), "{wait_ms}");
        (moment, (now.0 + u64::from(wait_ms) * MS) % (period_ms * MS))
    }

    #[test]
    fn connections_that_come_at_any_time_ping_together() {
        let mut beats = Heartbeats::new(30_000);
        let mut phases = Vec::new();
        for i in 0..u64::from(PINGS_PER_MOMENT) {
            let now = Nanos(123_456_789_012 + i * 7_654_321_987);
            phases.push(phase(&mut beats, now, 30_000).1);
        }
        // Slots are told in whole ms, so together means within one.
        let (first, last) = (phases.iter().min().unwrap(), phases.iter().max().unwrap());
        assert!(last - first <= MS, "{first} to {last}");
    }

    #[test]
    fn ten_thousand_connections_are_spread_evenly_over_all_moments() {
        let mut beats = Heartbeats::new(30_000);
        for i in 0..10_000 {
            phase(&mut beats, Nanos(i * 977 * MS), 30_000);
        }
        assert_eq!(beats.held.len(), 128);
        let (min, max) = (beats.held.iter().min(), beats.held.iter().max());
        assert_eq!((min, max), (Some(&78), Some(&79)));
    }

    #[test]
    fn a_moment_that_is_given_back_is_used_before_a_new_one_is_begun() {
        let mut beats = Heartbeats::new(30_000);
        let mut held: Vec<_> = (0..100).map(|i| beats.take(Nanos(i * MS)).unwrap().0).collect();
        assert_eq!(beats.held.iter().filter(|held| **held > 0).count(), 2);
        for moment in held.drain(..10) {
            beats.give_back(moment);
        }
        for i in 0..10 {
            held.push(beats.take(Nanos(i)).unwrap().0);
        }
        assert_eq!(beats.held[..2], [64, 36]);
        for moment in held {
            beats.give_back(moment);
        }
        assert!(beats.held.iter().all(|held| *held == 0));
    }

    #[test]
    fn every_period_has_moments_that_lie_in_it() {
        for period_ms in [1, 10, 24, 25, 26, 100, 999, 1_000, 3_200, 3_201, 30_000, 3_600_000] {
            let mut beats = Heartbeats::new(period_ms);
            for i in 0..300 {
                phase(&mut beats, Nanos(i * 1_234_567_891), u64::from(period_ms));
            }
        }
        assert_eq!(Heartbeats::new(0).take(Nanos(5)), None);
    }

    /// PROTOCOL.md: PINGs at the slot and every period after it, one may be left out if
    /// something was sent within half a period before it.
    #[test]
    fn a_client_that_keeps_to_its_slot_is_never_silent_for_twice_the_period() {
        let period = 30_000;
        for (slot, sends_every) in [(1, 0), (29_999, 0), (30_000, 14_999), (10_000, 20_000)] {
            let (mut heard, mut longest) = (0, 0);
            let mut sends: Vec<u64> = match sends_every {
                0 => Vec::new(),
                every => (1..100).map(|i| i * every).filter(|at| *at < 400_000).collect(),
            };
            for ping in (slot..1_000_000).step_by(period as usize) {
                let last = sends.iter().rev().find(|at| **at <= ping).copied();
                if last.is_none_or(|at| ping - at > period / 2) {
                    sends.push(ping);
                    sends.sort_unstable();
                }
            }
            for at in sends {
                longest = longest.max(at - heard);
                heard = at;
            }
            assert!(longest <= period * 3 / 2, "silent for {longest}");
        }
    }
}
