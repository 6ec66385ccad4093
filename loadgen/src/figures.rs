//! Figures out of reports, over several runs.

use serde::Serialize;
use serde_json::Value;

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Median; of an even number the mean of the two in the middle.
    pub median: f64,
    /// Lowest.
    pub lowest: f64,
    /// Highest.
    pub highest: f64,
}

impl Spread {
    /// Of some values; none of none.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        let (lowest, highest) = (*all.first()?, *all.last()?);
        let middle = all.len() / 2;
        let median = if all.len().is_multiple_of(2) {
            (all[middle - 1] + all[middle]) / 2.0
        } else {
            all[middle]
        };
        Some(Self { median, lowest, highest })
    }
}

/// A figure that runs are compared by.
pub struct Figure {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Whether more of it is better.
    pub more_is_better: bool,
    /// Takes it out of a report.
    pub of: fn(&Value) -> Option<f64>,
}

/// All of them.
pub const FIGURES: [Figure; 6] = [
    Figure {
        name: "deliveries/s",
        more_is_better: true,
        of: |report| report["deliveries_per_s"].as_f64(),
    },
    Figure {
        name: "p50 us",
        more_is_better: false,
        of: |report| latency(report, "delivery corrected", "p50_us"),
    },
    Figure {
        name: "p99 us",
        more_is_better: false,
        of: |report| latency(report, "delivery corrected", "p99_us"),
    },
    Figure {
        name: "p99 us uncorrected",
        more_is_better: false,
        of: |report| latency(report, "delivery", "p99_us"),
    },
    Figure {
        name: "server CPU ns/delivery",
        more_is_better: false,
        of: |report| report["server_cpu_ns_per_delivery"].as_f64(),
    },
    Figure {
        name: "loadgen CPU ns/delivery",
        more_is_better: false,
        of: |report| report["loadgen_cpu_ns_per_delivery"].as_f64(),
    },
];

/// A latency of a report in microseconds.
pub fn latency(report: &Value, what: &str, quantile: &str) -> Option<f64> {
    let all = report["latency"].as_array()?;
    all.iter().find(|l| l["what"] == what).and_then(|l| l[quantile].as_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn median_and_range_do_not_depend_on_the_order() {
        let s = Spread::of([3.0, 1.0, 2.0].into_iter()).unwrap();
        assert_eq!((s.median, s.lowest, s.highest), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).unwrap().median, 2.5);
        assert_eq!(Spread::of([f64::NAN].into_iter()), None);
    }
}
