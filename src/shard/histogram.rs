//! Distributions that a shard keeps for its operator. Plain numbers that only the shard touches:
//! they are copied when somebody asks (see [`super::look`]), not published every turn.

use crate::position::Nanos;

/// Bounds of a histogram; what is above the last is counted apart.
pub const BUCKETS: usize = 21;

/// Counts of values by powers of two: bucket `i` has those up to `2^(FIRST + i)` and above the
/// bound before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram<const FIRST: u32> {
    counts: [u64; BUCKETS + 1],
    sum: u64,
}

impl<const FIRST: u32> Histogram<FIRST> {
    /// Counts a value.
    #[inline]
    pub fn observe(&mut self, value: u64) {
        // The power of two that is not below it.
        let log2 = 64 - value.saturating_sub(1).leading_zeros();
        let bucket = (log2.saturating_sub(FIRST) as usize).min(BUCKETS);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Upper bounds with the count of values up to each, the largest bound last.
    pub fn cumulated(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts[..BUCKETS].iter().enumerate().scan(0, |sum, (i, count)| {
            *sum += count;
            Some((1 << (FIRST as usize + i), *sum))
        })
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// Nanoseconds, from 8 us to 9 s.
pub type Times = Histogram<13>;
/// Bytes, from one block of the log to 4 GiB.
pub type Sizes = Histogram<12>;
/// Numbers, from 1.
pub type Numbers = Histogram<0>;

/// What a shard knows the distribution of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distributions {
    /// Time of a turn, without what it slept.
    pub turn: Times,
    /// Time of a commit: from the turn that handed it to the disk to the one that saw it there.
    pub commit: Times,
    /// From the turn in which the first message of a commit got its place to the one that
    /// published it.
    pub publish: Times,
    /// Bytes of a commit, padding included.
    pub commit_bytes: Sizes,
    /// Messages of a commit.
    pub commit_messages: Numbers,
}

impl Distributions {
    /// A commit of messages was published, the first of which got its place at `first_at`.
    pub fn published(&mut self, first_at: Option<Nanos>, messages: u64, now: Nanos) {
        if let Some(first_at) = first_at {
            self.publish.observe(now.since(first_at));
        }
        self.commit_messages.observe(messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_bucket_whose_bound_is_not_below_it() {
        let mut histogram = Histogram::<3>::default();
        for value in [0, 1, 8, 9, 16, 17, u64::MAX] {
            histogram.observe(value);
        }
        let buckets: Vec<_> = histogram.cumulated().take(3).collect();
        assert_eq!(buckets, [(8, 3), (16, 5), (32, 6)]);
        assert_eq!(histogram.cumulated().last(), Some((1 << 23, 6)));
        assert_eq!((histogram.count(), histogram.sum()), (7, u64::MAX));
    }
}
