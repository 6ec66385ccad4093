//! Axes with ticks where people look for them.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Ticks of a linear axis, about.
const TICKS: f64 = 6.0;
/// Above this ratio of the largest to the smallest an axis is logarithmic.
const LOG_FROM: f64 = 20.0;

/// How values are placed.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By their logarithm.
    Log,
    /// Values are 1/(1-p): p grows by nines, as in HdrHistogram's plots.
    Percentile,
    /// Number n is the n-th of these names, in the middle of its place.
    Names(Vec<String>),
}

/// An axis of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    from: f64,
    to: f64,
    ticks: Vec<f64>,
    scale: Scale,
}

impl Axis {
    /// An axis on which all of `values` have a place.
    pub fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let max = values.clone().fold(0.0, f64::max);
        match scale {
            Scale::Linear => {
                let step = step(if max > 0.0 { max } else { 1.0 });
                let to = (max / step - 1e-9).ceil().max(1.0) * step;
                let count = (to / step).round() as u32;
                let ticks = (0..=count).map(|i| f64::from(i) * step).collect();
                Self { from: 0.0, to, ticks, scale }
            }
            Scale::Log => {
                let min = values.filter(|v| *v > 0.0).fold(f64::MAX, f64::min).min(max);
                let (min, max) = if max > 0.0 { (min, max) } else { (1.0, 10.0) };
                let (low, high) = (min.log10().floor() as i32, max.log10().ceil() as i32);
                let all: Vec<f64> = (low..=high)
                    .flat_map(|decade| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(decade)))
                    .collect();
                let from = all.iter().copied().filter(|v| *v <= min).fold(all[0], f64::max);
                let to = all.iter().copied().find(|v| *v >= max && *v > from).unwrap_or(max * 2.0);
                let decades = (to / from).log10();
                let is_tick =
                    |v: &f64| decades <= 3.0 || (v.log10() - v.log10().round()).abs() < 1e-9;
                let inside = |v: &f64| (from..=to).contains(v);
                let ticks = all.into_iter().filter(inside).filter(is_tick).collect();
                Self { from, to, ticks, scale }
            }
            Scale::Percentile => {
                let nines = max.max(10.0).log10().ceil().clamp(1.0, 8.0) as i32;
                let ticks = (0..=nines).map(|n| 10f64.powi(n)).collect();
                Self { from: 1.0, to: 10f64.powi(nines), ticks, scale }
            }
            Scale::Names(ref names) => {
                let ticks = (0..names.len()).map(|n| n as f64 + 0.5).collect();
                Self { from: 0.0, to: names.len() as f64, ticks, scale }
            }
        }
    }

    /// An axis that is logarithmic if values differ much.
    pub fn fitting(values: impl Iterator<Item = f64> + Clone) -> Self {
        let max = values.clone().fold(0.0, f64::max);
        let min = values.clone().filter(|v| *v > 0.0).fold(f64::MAX, f64::min);
        Self::new(if max / min > LOG_FROM { Scale::Log } else { Scale::Linear }, values)
    }

    /// Where the axis begins.
    pub fn start(&self) -> f64 {
        self.from
    }

    /// Where the axis ends.
    pub fn end(&self) -> f64 {
        self.to
    }

    /// What to say of the axis beside its name.
    pub fn remark(&self) -> &'static str {
        if self.scale == Scale::Log { ", log scale" } else { "" }
    }

    fn share(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        match self.scale {
            Scale::Linear | Scale::Names(_) => (value - self.from) / (self.to - self.from),
            Scale::Log | Scale::Percentile => {
                (value / self.from).log10() / (self.to / self.from).log10()
            }
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (f64::from(limit.1 - limit.0) * self.share(*value)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        match &self.scale {
            Scale::Percentile => percentile(*value),
            Scale::Names(names) => names.get(*value as usize).cloned().unwrap_or_default(),
            Scale::Linear | Scale::Log => number(*value),
        }
    }
}

/// A round distance between ticks.
fn step(max: f64) -> f64 {
    let raw = max / TICKS;
    let decade = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * decade).find(|s| *s >= raw).unwrap_or(raw)
}

fn percentile(inverse: f64) -> String {
    let nines = inverse.log10().round() as usize;
    match nines {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        n => format!("99.{}%", "9".repeat(n - 2)),
    }
}

/// A short number.
pub fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 1.0 => 2,
        v => (2.0 - v.log10().floor()) as usize,
    };
    let text = format!("{value:.digits$}");
    let text =
        if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { text.as_str() };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_the_axis_holds_all_values() {
        let linear = Axis::new(Scale::Linear, [3.0, 47.0].into_iter());
        assert_eq!(linear.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let log = Axis::new(Scale::Log, [0.3, 45.0].into_iter());
        assert_eq!((log.from, log.to), (0.2, 50.0));
        assert_eq!(log.ticks.len(), 8);
        let wide = Axis::new(Scale::Log, [0.001, 900.0].into_iter());
        assert_eq!(wide.ticks, [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]);
        for nothing in [Scale::Linear, Scale::Log, Scale::Percentile] {
            let axis = Axis::new(nothing, std::iter::empty());
            assert!(axis.to > axis.from && !axis.ticks.is_empty(), "{axis:?}");
        }
    }

    #[test]
    fn percentiles_go_by_nines() {
        let axis = Axis::new(Scale::Percentile, [90_000.0].into_iter());
        let labels: Vec<String> = axis.ticks.iter().map(|t| axis.format_ext(t)).collect();
        assert_eq!(labels, ["0%", "90%", "99%", "99.9%", "99.99%", "99.999%"]);
        assert_eq!(axis.map(&1000.0, (0, 500)), 300);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.02, "0.02"),
            (1.5, "1.5"),
            (250.0, "250"),
            (2e4, "20 k"),
            (1.5e6, "1.5 M"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
