//! Files that the tools around HdrHistogram read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::error::LoadError;
use crate::record::Histograms;
use crate::shared::Interval;

/// Latencies are recorded in ns; files show them in ms, as is usual for them.
const NS_PER_MS: f64 = 1e6;

/// The percentile distribution of `histogram` in the text format of HdrHistogram.
pub fn distribution(histogram: &Histogram<u64>, ticks_per_half: u32) -> String {
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    for v in histogram.iter_quantiles(ticks_per_half) {
        let value = v.value_iterated_to() as f64 / NS_PER_MS;
        let (quantile, count) =
            (v.quantile_iterated_to(), histogram.count_between(0, v.value_iterated_to()));
        let _ = if quantile < 1.0 {
            writeln!(out, "{value:12.6} {quantile:2.12} {count:10} {:14.2}", 1.0 / (1.0 - quantile))
        } else {
            writeln!(out, "{value:12.6} {quantile:2.12} {count:10}")
        };
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_MS, histogram.stdev() / NS_PER_MS);
    let max = histogram.max() as f64 / NS_PER_MS;
    let _ = writeln!(out, "#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]");
    let _ = writeln!(out, "#[Max     = {max:12.6}, Total count    = {:12}]", histogram.len());
    let _ = writeln!(out, "#[Buckets = {:12}, SubBuckets     = {:12}]", histogram.buckets(), 2048);
    out
}

/// Writes the distribution of each latency that was recorded to a file of its own.
pub fn write_hgrm(prefix: &Path, histograms: &Histograms) -> Result<(), LoadError> {
    for (what, pair) in histograms.each() {
        for (kind, histogram) in [("", &pair.uncorrected), ("-corrected", &pair.corrected)] {
            if histogram.is_empty() {
                continue;
            }
            let mut name = prefix.as_os_str().to_owned();
            name.push(format!(".{what}{kind}.hgrm"));
            let path = PathBuf::from(name);
            fs::write(&path, distribution(histogram, 5)).map_err(LoadError::file(path))?;
        }
    }
    Ok(())
}

/// Writes an interval log, format 2: a tagged line per interval and latency.
pub fn write_hlog(
    path: &Path,
    intervals: Vec<Interval>,
    length: Duration,
) -> Result<(), LoadError> {
    let mut by_number: BTreeMap<u64, Histograms> = BTreeMap::new();
    for interval in intervals {
        by_number
            .entry(interval.number)
            .or_insert_with(Histograms::new)
            .merge(&interval.histograms);
    }
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let failed =
        |e: String| LoadError::File { path: path.to_owned(), source: std::io::Error::other(e) };
    let ended = std::time::SystemTime::now();
    let spanned = by_number.last_key_value().map_or(0, |(last, _)| *last as u32 + 1);
    let start = ended.checked_sub(length * spanned).unwrap_or(ended);
    {
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("Latencies of loadgen, recorded in ns, maxima in ms")
            .with_start_time(start)
            .with_base_time(start)
            .with_max_value_divisor(NS_PER_MS)
            .begin_log_with(&mut out, &mut serializer)
            .map_err(|e| failed(e.to_string()))?;
        for (number, histograms) in &by_number {
            let at = length.mul_f64(*number as f64);
            for (what, pair) in histograms.each() {
                for (kind, histogram) in [("", &pair.uncorrected), ("-corrected", &pair.corrected)]
                {
                    let name = format!("{what}{kind}");
                    if !histogram.is_empty() {
                        log.write_histogram(histogram, at, length, Tag::new(&name))
                            .map_err(|e| failed(e.to_string()))?;
                    }
                }
            }
        }
    }
    fs::write(path, out).map_err(LoadError::file(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// By the specification that the Java classes, the plotting pages and the scripts share.
    #[test]
    fn distribution_has_the_columns_of_hdr_histogram() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        for n in 1..=1000 {
            histogram.record(n * 1_000_000).unwrap();
        }
        let text = distribution(&histogram, 5);
        let mut lines = text.lines();
        let head = "       Value     Percentile TotalCount 1/(1-Percentile)";
        assert_eq!(lines.next(), Some(head));
        assert_eq!(lines.next(), Some(""));
        let (rows, foot): (Vec<&str>, Vec<&str>) = lines.partition(|line| !line.starts_with('#'));
        let mut before = (0.0, 0.0, 0);
        for (i, row) in rows.iter().enumerate() {
            let words: Vec<f64> = row.split_whitespace().map(|w| w.parse().unwrap()).collect();
            let (value, quantile, count) = (words[0], words[1], words[2] as u64);
            assert!(value >= before.0 && quantile >= before.1 && count >= before.2, "{row}");
            // Values are of ns, shown in ms: 1 ms apart here, so that the count is the value.
            assert!((value - count as f64).abs() <= 0.001 * value + 1e-6, "{row}");
            if i + 1 < rows.len() {
                assert!((words[3] * (1.0 - quantile) - 1.0).abs() < 0.01, "{row}");
            } else {
                assert_eq!((quantile, count, words.len()), (1.0, 1000, 3), "{row}");
            }
            before = (value, quantile, count);
        }
        assert_eq!(foot.len(), 3);
        assert!(
            foot[0].starts_with("#[Mean    =   500.") && foot[0].contains(", StdDeviation   = ")
        );
        assert!(foot[1].starts_with("#[Max     = ") && foot[1].ends_with("1000]"));
        assert!(foot[2].starts_with("#[Buckets = ") && foot[2].ends_with("2048]"));
    }
}
