//! Latency histograms.

use hdrhistogram::Histogram;

/// Longest latency that is told apart; longer ones count as this.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// One latency, measured from the actual and from the intended start.
pub struct Pair {
    /// From when it was sent.
    pub uncorrected: Histogram<u64>,
    /// From when it should have been sent.
    pub corrected: Histogram<u64>,
}

impl Pair {
    fn new() -> Self {
        Self { uncorrected: histogram(), corrected: histogram() }
    }

    /// Counts `n` events at `now`.
    pub fn record(&mut self, sent: u64, intended: u64, now: u64, n: u64) {
        self.uncorrected.saturating_record_n(now.saturating_sub(sent), n);
        self.corrected.saturating_record_n(now.saturating_sub(intended), n);
    }

    fn merge(&mut self, other: &Self) {
        // Same bounds on both sides, so neither can fail.
        let _ = self.uncorrected.add(&other.uncorrected);
        let _ = self.corrected.add(&other.corrected);
    }
}

#[allow(clippy::expect_used, reason = "constant bounds; a test makes one")]
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds are valid")
}

/// All histograms of a thread, of an interval, or of a run.
pub struct Histograms {
    /// Send to arrival at one member, once per member.
    pub delivery: Pair,
    /// Send to PUBLISHED.
    pub ack: Pair,
    /// Send to arrival at the last member.
    pub completion: Pair,
    /// Send to RECEIPT.
    pub receipt: Pair,
    /// Connect to last JOINED.
    pub join: Pair,
    /// The same of a member that comes back after all dropped.
    pub back: Pair,
    /// Until it has what it missed.
    pub caught_up: Pair,
}

impl Histograms {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            delivery: Pair::new(),
            ack: Pair::new(),
            completion: Pair::new(),
            receipt: Pair::new(),
            join: Pair::new(),
            back: Pair::new(),
            caught_up: Pair::new(),
        }
    }

    /// Adds the counts of another thread.
    pub fn merge(&mut self, other: &Self) {
        self.delivery.merge(&other.delivery);
        self.ack.merge(&other.ack);
        self.completion.merge(&other.completion);
        self.receipt.merge(&other.receipt);
        self.join.merge(&other.join);
        self.back.merge(&other.back);
        self.caught_up.merge(&other.caught_up);
    }

    /// Each histogram with the name that files have for it.
    pub fn named(&self) -> impl Iterator<Item = (String, &Histogram<u64>)> {
        self.each().into_iter().flat_map(|(what, pair)| {
            [(what.to_owned(), &pair.uncorrected), (format!("{what}-corrected"), &pair.corrected)]
        })
    }

    /// Name and pair of each.
    pub fn each(&self) -> [(&'static str, &Pair); 7] {
        [
            ("delivery", &self.delivery),
            ("ack", &self.ack),
            ("completion", &self.completion),
            ("receipt", &self.receipt),
            ("join", &self.join),
            ("back", &self.back),
            ("caught-up", &self.caught_up),
        ]
    }
}

/// Which messages count: those that were due in the measured time.
#[derive(Clone, Copy, Default)]
pub struct Measured {
    /// First nanosecond.
    pub from: u64,
    /// First nanosecond after it.
    pub to: u64,
}

impl Measured {
    /// Whether a message that was due at `intended` counts.
    pub fn covers(self, intended: u64) -> bool {
        (self.from..self.to).contains(&intended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrected_latency_includes_the_wait_before_the_send() {
        let mut h = Histograms::new();
        h.delivery.record(2_000, 1_000, 5_000, 7);
        assert_eq!(h.delivery.uncorrected.max() / 10, 300);
        assert_eq!(h.delivery.corrected.max() / 10, 400);
        assert_eq!(h.delivery.corrected.len(), 7);
    }

    #[test]
    fn percentiles_of_known_latencies_are_within_the_precision_on_both_sides() {
        // 1 us to 100 ms in steps of 1 us, in an order in which neither end comes first.
        let us: Vec<u64> = (0..100_000).map(|n| n * 61 % 100_000 + 1).collect();
        let mut halves = [Histograms::new(), Histograms::new()];
        let (sent, late) = (1_000_000_000, 2_000_000);
        for (n, us) in us.iter().enumerate() {
            let pair = &mut halves[n % 2].delivery;
            pair.record(sent, sent - late, sent + us * 1_000, 1);
        }
        let [mut all, half] = halves;
        all.merge(&half);
        for (pair, added) in [(&all.delivery.uncorrected, 0), (&all.delivery.corrected, late)] {
            let is = |seen: f64, known: u64, what: &str| {
                let known = (known + added) as f64;
                assert!((seen / known - 1.0).abs() <= 0.001, "{what}: {seen}, is {known}");
            };
            assert_eq!(pair.len(), 100_000);
            for (quantile, known) in
                [(0.5, 50_000_000), (0.9, 90_000_000), (0.99, 99_000_000), (0.9999, 99_990_000)]
            {
                let seen = pair.value_at_quantile(quantile) as f64;
                is(seen, known, &format!("quantile {quantile}"));
            }
            is(pair.mean(), 50_000_500, "mean");
            is(pair.max() as f64, 100_000_000, "max");
        }
    }
}
