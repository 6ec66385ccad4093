//! Timer wheel for connection deadlines. Entries are hints: when one fires the shard looks
//! at the connection's real deadline and arms it again if that lies ahead, so that hearing
//! from a member costs no wheel operation.

use super::ConnId;
use crate::position::Nanos;
use crate::slots::Slots;

const TICK_NS: u64 = 50_000_000;
const SLOTS: u64 = 512;
/// Ticks between those that [`Wheel::arm_loosely`] uses: a second.
const LOOSE: u64 = 20;
/// Looks at acknowledgements further ahead than this are loose: ten seconds.
const LOOSE_FROM: u64 = 200;

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Whether the peer of a connection is heard of.
    Conn(ConnId),
    /// Whether durable members on a connection acknowledge.
    Acks(ConnId),
    /// Whether the token of a connection has ended.
    Token(ConnId),
}

/// No entry.
const NONE: u32 = u32::MAX;

/// One of the entries of a tick. They are chained, since there is one for each connection: a
/// list for each tick would keep room for the most that it ever had.
#[derive(Debug)]
struct Entry {
    due: Due,
    next: u32,
}

/// Hashed wheel of [`SLOTS`] ticks; what lies further ahead fires early and is armed again.
#[derive(Debug)]
pub struct Wheel {
    entries: Slots<Entry>,
    /// The entry of each tick that was armed last.
    ticks: Vec<u32>,
    /// Next tick to fire.
    tick: u64,
    next: Option<u64>,
}

impl Wheel {
    /// An empty wheel that starts at `now`.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        let ticks = vec![NONE; SLOTS as usize];
        Self { entries: Slots::default(), ticks, tick: now.0 / TICK_NS, next: None }
    }

    /// Fires `conn` at or after `at`, at the latest one horizon from now.
    pub fn arm(&mut self, conn: ConnId, at: Nanos) {
        self.arm_tick(Due::Conn(conn), self.tick_of(at));
    }

    fn tick_of(&self, at: Nanos) -> u64 {
        at.0.div_ceil(TICK_NS).clamp(self.tick + 1, self.tick + SLOTS - 1)
    }

    /// Fires for the acknowledgements of `conn`, unless that is `armed` to come as early. What
    /// lies far ahead comes together with others. Returns when it fires.
    pub fn arm_acks(&mut self, conn: ConnId, at: Nanos, armed: Option<Nanos>) -> Nanos {
        let due = self.tick_of(at);
        let far = due > self.tick + LOOSE_FROM;
        let due = if far { self.loosely(at) } else { due };
        let fires = Nanos(due * TICK_NS);
        match armed {
            Some(armed) if armed <= fires => armed,
            _ => {
                self.arm_tick(Due::Acks(conn), due);
                fires
            }
        }
    }

    /// Fires for the token of `conn`, and says when: not after `at`, unless that is within a tick.
    /// What lies far ahead comes together with others, a second early, and is armed again.
    pub fn arm_token(&mut self, conn: ConnId, at: Nanos) -> Nanos {
        let due = self.tick_of(at);
        let far = due > self.tick + LOOSE_FROM;
        let early = Nanos(at.0.saturating_sub(LOOSE * TICK_NS));
        let due = if far { self.loosely(early) } else { due };
        self.arm_tick(Due::Token(conn), due);
        Nanos(due * TICK_NS)
    }

    /// The same up to a second later, together with others, for deadlines that lie far ahead:
    /// an idle shard wakes up once a second for them, not at every tick.
    pub fn arm_loosely(&mut self, conn: ConnId, at: Nanos) {
        self.arm_tick(Due::Conn(conn), self.loosely(at));
    }

    fn loosely(&self, at: Nanos) -> u64 {
        let due = at.0.div_ceil(TICK_NS).next_multiple_of(LOOSE);
        let last = (self.tick + SLOTS - 1) / LOOSE * LOOSE;
        due.clamp(self.tick + 1, last)
    }

    fn arm_tick(&mut self, what: Due, due: u64) {
        let last = &mut self.ticks[(due % SLOTS) as usize];
        *last = self.entries.insert(Entry { due: what, next: *last });
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
    }

    /// When the wheel wants to be looked at next.
    #[must_use]
    pub fn deadline(&self) -> Option<Nanos> {
        self.next.map(|tick| Nanos(tick * TICK_NS))
    }

    /// Moves everything that is due at `now` into `fired`.
    pub fn fire(&mut self, now: Nanos, fired: &mut Vec<Due>) {
        let until = now.0 / TICK_NS;
        let Some(next) = self.next.filter(|next| *next <= until) else {
            if self.entries.is_empty() {
                self.tick = self.tick.max(until);
            }
            return;
        };
        let last = until.min(next + SLOTS - 1);
        for tick in next..=last {
            let mut at = std::mem::replace(&mut self.ticks[(tick % SLOTS) as usize], NONE);
            while let Some(entry) = self.entries.remove(at) {
                fired.push(entry.due);
                at = entry.next;
            }
        }
        self.tick = until;
        self.next =
            (until + 1..until + SLOTS).find(|tick| self.ticks[(tick % SLOTS) as usize] != NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn conn(slot: u32) -> ConnId {
        ConnId { slot, generation: 0 }
    }

    #[test]
    fn nothing_fires_before_its_time_and_everything_within_a_tick_after_it() {
        let mut wheel = Wheel::new(Nanos(0));
        for i in 0..200 {
            wheel.arm(conn(i), Nanos(u64::from(i) * 37 * MS));
        }
        let mut seen = 0;
        for now in (0..9_000).step_by(10) {
            let mut fired = Vec::new();
            wheel.fire(Nanos(now * MS), &mut fired);
            for due in &fired {
                let Due::Conn(c) = due else { panic!("{due:?}") };
                let due = u64::from(c.slot) * 37;
                assert!(now >= due && now <= due + 110, "{due} fired at {now}");
            }
            seen += fired.len();
        }
        assert_eq!(seen, 200);
        assert_eq!(wheel.deadline(), None);
    }

    #[test]
    fn loose_deadlines_fire_together_and_never_early_within_the_horizon() {
        let mut wheel = Wheel::new(Nanos(0));
        for i in 0..200 {
            wheel.arm_loosely(conn(i), Nanos(u64::from(i) * 123 * MS));
        }
        let (mut seen, mut times) = (0, 0);
        for now in (0..26_000).step_by(10) {
            let mut fired = Vec::new();
            wheel.fire(Nanos(now * MS), &mut fired);
            for due in &fired {
                let Due::Conn(c) = due else { panic!("{due:?}") };
                let due = u64::from(c.slot) * 123;
                assert!(now >= due && now <= due + 1_060, "{due} fired at {now}");
            }
            seen += fired.len();
            times += u32::from(!fired.is_empty());
        }
        assert_eq!(seen, 200);
        assert!(times <= 26, "{times}");
        wheel.arm_loosely(conn(1), Nanos(3_600_000 * MS));
        assert!(wheel.deadline().unwrap_or_default() <= Nanos(26_000 * MS).plus_ms(25_600));
    }

    #[test]
    fn a_deadline_beyond_the_horizon_fires_early_not_never() {
        let mut wheel = Wheel::new(Nanos(0));
        wheel.arm(conn(1), Nanos(3_600_000 * MS));
        let mut fired = Vec::new();
        wheel.fire(wheel.deadline().unwrap_or_default(), &mut fired);
        assert_eq!(fired.len(), 1);
    }

    #[test]
    fn an_idle_wheel_that_slept_long_arms_in_the_future() {
        let mut wheel = Wheel::new(Nanos(0));
        let late = Nanos(86_400_000 * MS);
        wheel.fire(late, &mut Vec::new());
        wheel.arm(conn(1), late.plus_ms(100));
        assert!(wheel.deadline().unwrap_or_default() >= late.plus_ms(100));
        let mut fired = Vec::new();
        wheel.fire(late.plus_ms(90), &mut fired);
        assert!(fired.is_empty());
        wheel.fire(late.plus_ms(200), &mut fired);
        assert_eq!(fired.len(), 1);
    }
}
