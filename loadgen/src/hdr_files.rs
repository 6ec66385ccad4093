//! Files that the tools around HdrHistogram read.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};

use crate::error::LoadError;
use crate::record::Histograms;

/// Latencies are recorded in ns; files show them in ms, as is usual for them.
pub const NS_PER_MS: f64 = 1e6;

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
    for (what, histogram) in histograms.named().filter(|(_, h)| !h.is_empty()) {
        let mut name = prefix.as_os_str().to_owned();
        name.push(format!(".{what}.hgrm"));
        let path = PathBuf::from(name);
        fs::write(&path, distribution(histogram, 5)).map_err(LoadError::file(path))?;
    }
    Ok(())
}

/// A histogram as the tools of HdrHistogram exchange it: V2, deflated, in base64.
pub fn encoded(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Writing to memory does not fail, and our counts fit.
    let _ = V2DeflateSerializer::new().serialize(histogram, &mut bytes);
    STANDARD.encode(bytes)
}

/// Reads one back.
pub fn decoded(text: &str) -> Option<Histogram<u64>> {
    let bytes = STANDARD.decode(text).ok()?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn encoded_histogram_comes_back() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        histogram.record_n(123_456_789, 5).unwrap();
        assert_eq!(decoded(&encoded(&histogram)), Some(histogram));
        assert_eq!(decoded("no histogram"), None);
    }

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
