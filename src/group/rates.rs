//! Bounds on how much of something there is in a second.

use crate::position::Nanos;

pub(crate) const SECOND_NS: u64 = 1_000_000_000;

/// A bound on something per second: as much at once as in one second, then at the rate. What is
/// larger than that goes through when nothing was used, and what follows waits longer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// All that was used is paid for then.
    paid_at: Nanos,
}

impl Bucket {
    /// Takes `cost` at `per_s` a second; 0 is no bound.
    ///
    /// # Errors
    /// In how many ms to try again.
    #[inline]
    pub fn take(&mut self, now: Nanos, cost: u64, per_s: u64) -> Result<(), u64> {
        self.check(now, per_s)?;
        if per_s > 0 {
            // Rounded up: as many as the rate says fill a second, and not one more.
            let takes = (u128::from(cost) * u128::from(SECOND_NS)).div_ceil(u128::from(per_s));
            let takes = u64::try_from(takes).unwrap_or(u64::MAX);
            self.paid_at = Nanos(self.paid_at.max(now).0.saturating_add(takes));
        }
        Ok(())
    }

    /// Whether something could be taken.
    ///
    /// # Errors
    /// In how many ms to try again.
    #[inline]
    pub fn check(&self, now: Nanos, per_s: u64) -> Result<(), u64> {
        match self.paid_at.since(now) {
            debt if per_s > 0 && debt >= SECOND_NS => {
                Err((debt - SECOND_NS).div_ceil(1_000_000).max(1))
            }
            _ => Ok(()),
        }
    }

    /// Whether all that was used is paid for.
    #[must_use]
    pub fn is_paid(&self, now: Nanos) -> bool {
        self.paid_at <= now
    }
}

/// What may be published in a second; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishRates {
    /// Messages.
    pub publishes_per_s: u64,
    /// Bytes of their payloads.
    pub bytes_per_s: u64,
}

/// What was published of late, by a member or to a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishCount {
    publishes: Bucket,
    bytes: Bucket,
}

impl PublishCount {
    /// Counts a publish of so many bytes.
    ///
    /// # Errors
    /// In how many ms to try again; it is not counted then.
    #[inline]
    pub fn take(&mut self, now: Nanos, bytes: u64, rates: PublishRates) -> Result<(), u64> {
        self.bytes.check(now, rates.bytes_per_s)?;
        self.publishes.take(now, 1, rates.publishes_per_s)?;
        self.bytes.take(now, bytes, rates.bytes_per_s)
    }

    /// Whether all that was used is paid for.
    #[must_use]
    pub fn is_paid(&self, now: Nanos) -> bool {
        self.publishes.is_paid(now) && self.bytes.is_paid(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_second_of_it_at_once_and_then_the_rate() {
        for per_s in [1, 7, 100, 900] {
            let mut bucket = Bucket::default();
            let at_once = (0..2_000).filter(|_| bucket.take(Nanos(5), 1, per_s).is_ok()).count();
            assert_eq!(at_once as u64, per_s);
            let tried = 1..10_001_u64;
            let later = tried.filter(|ms| bucket.take(Nanos(ms * MS), 1, per_s).is_ok()).count();
            let later = later as u64;
            assert!((10 * per_s - 1..=10 * per_s + 1).contains(&later), "{later} of {per_s}");
        }
    }

    #[test]
    fn it_says_when_to_try_again_and_then_takes_it() {
        let mut bucket = Bucket::default();
        for _ in 0..10 {
            assert_eq!(bucket.take(Nanos(0), 1, 10), Ok(()));
        }
        // The tenth is paid for after a second, and so there is room for one a tenth later.
        let mut now = Nanos(0);
        while let Err(retry_ms) = bucket.take(now, 1, 10) {
            assert!((1..=100).contains(&retry_ms));
            now = now.plus_ms(retry_ms);
        }
        assert!(now <= Nanos(101 * MS), "{now:?}");
    }

    #[test]
    fn one_that_is_larger_than_a_second_goes_through_and_is_paid_for() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(Nanos(0), 5_000, 1_000), Ok(()));
        assert_eq!(bucket.take(Nanos(0), 1, 1_000), Err(4_000));
        assert_eq!(bucket.take(Nanos(4_001 * MS), 1, 1_000), Ok(()));
        assert_eq!(Bucket::default().take(Nanos(0), u64::MAX, 1), Ok(()), "no overflow");
    }

    #[test]
    fn what_is_refused_for_one_bound_is_not_counted_in_the_other() {
        let rates = PublishRates { publishes_per_s: 100, bytes_per_s: 10 };
        let mut count = PublishCount::default();
        assert_eq!(count.take(Nanos(0), 20, rates), Ok(()));
        for _ in 0..1_000 {
            assert!(count.take(Nanos(0), 1, rates).is_err());
        }
        let only = PublishRates { publishes_per_s: 100, bytes_per_s: 0 };
        assert_eq!((0..200).filter(|_| count.take(Nanos(0), 1, only).is_ok()).count(), 99);
    }
}
