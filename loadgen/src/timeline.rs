//! A run over time: latencies of each interval, taken from the threads while they go on. What is
//! kept does not grow with the length of the run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, Tag};
use serde::Serialize;

use crate::error::LoadError;
use crate::hdr_files::NS_PER_MS;
use crate::proc::Watched;
use crate::record::Histograms;
use crate::shared::Interval;

/// Points of a run. When there are more, two become one.
const POINTS_MAX: usize = 1024;
/// Intervals that are open: threads hand theirs over a little apart.
const OPEN_MAX: usize = 2;

/// One interval, or several in a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// From the start of the measured time to the end of the interval.
    pub at_s: f64,
    /// Deliveries of messages that were due in the measured time.
    pub deliveries_per_s: f64,
    /// Of deliveries, corrected; in several intervals the mean of theirs.
    pub p50_us: f64,
    /// The same; in several intervals the highest of theirs.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Resident memory of the server.
    pub server_resident: Option<u64>,
    /// Resident memory of this process.
    pub loadgen_resident: Option<u64>,
}

impl Point {
    /// This one, of so many times as many intervals as the other, and that.
    fn and(&self, times: u64, later: &Self) -> Self {
        let n = times as f64;
        let mean = |a: f64, b: f64| (n * a + b) / (n + 1.0);
        Self {
            at_s: later.at_s,
            deliveries_per_s: mean(self.deliveries_per_s, later.deliveries_per_s),
            p50_us: mean(self.p50_us, later.p50_us),
            p99_us: self.p99_us.max(later.p99_us),
            max_us: self.max_us.max(later.max_us),
            server_resident: self.server_resident.max(later.server_resident),
            loadgen_resident: self.loadgen_resident.max(later.loadgen_resident),
        }
    }

    /// The columns of [`Point::line`].
    pub fn head() -> String {
        format!(
            "{:>9} {:>14} {:>10} {:>10} {:>10} {:>14} {:>14}",
            "s", "deliveries/s", "p50 us", "p99 us", "max us", "server MiB", "loadgen MiB"
        )
    }

    /// A line of a long run.
    pub fn line(&self) -> String {
        let mib = |bytes: Option<u64>| {
            bytes.map_or_else(|| "-".to_owned(), |b| format!("{:.1}", b as f64 / 1_048_576.0))
        };
        format!(
            "{:>9.1} {:>14.0} {:>10.1} {:>10.1} {:>10.1} {:>14} {:>14}",
            self.at_s,
            self.deliveries_per_s,
            self.p50_us,
            self.p99_us,
            self.max_us,
            mib(self.server_resident),
            mib(self.loadgen_resident)
        )
    }
}

/// An HdrHistogram interval log, format 2: a tagged line per interval and latency.
pub type Log<'a> = IntervalLogWriter<'a, 'a, BufWriter<File>, V2DeflateSerializer>;

/// Starts such a log.
pub fn log<'a>(
    file: &'a mut BufWriter<File>,
    serializer: &'a mut V2DeflateSerializer,
    path: &Path,
) -> Result<Log<'a>, LoadError> {
    let now = SystemTime::now();
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("Latencies of loadgen, recorded in ns, maxima in ms")
        .with_start_time(now)
        .with_base_time(now)
        .with_max_value_divisor(NS_PER_MS)
        .begin_log_with(file, serializer)
        .map_err(LoadError::file(path))
}

/// What the threads have handed over.
pub struct Timeline<'a> {
    length: Duration,
    server: Option<Watched>,
    log: Option<(Log<'a>, &'a Path)>,
    prints: bool,
    open: BTreeMap<u64, Histograms>,
    points: Vec<Point>,
    /// Intervals in one point.
    intervals_per_point: u64,
    half: Option<(u64, Point)>,
    /// All of them together.
    pub total: Histograms,
}

impl<'a> Timeline<'a> {
    /// Intervals of `length`; `prints` a line for each.
    pub fn new(
        length: Duration,
        server: Option<Watched>,
        log: Option<(Log<'a>, &'a Path)>,
        prints: bool,
    ) -> Self {
        Self {
            length,
            server,
            log,
            prints,
            open: BTreeMap::new(),
            points: Vec::new(),
            intervals_per_point: 1,
            half: None,
            total: Histograms::new(),
        }
    }

    /// Members are there and the intervals begin.
    pub fn begin(&self) {
        if self.prints {
            println!("{}", Point::head());
        }
    }

    /// Takes what threads have handed over.
    pub fn take(&mut self, some: impl Iterator<Item = Interval>) -> Result<(), LoadError> {
        for interval in some {
            // One that comes too late counts to the oldest that is open.
            let oldest = self.open.first_key_value().map_or(0, |(number, _)| *number);
            let of = self.open.entry(interval.number.max(oldest));
            of.or_insert_with(Histograms::new).merge(&interval.histograms);
        }
        while self.open.len() > OPEN_MAX {
            self.finish_one()?;
        }
        Ok(())
    }

    /// The run is over.
    pub fn finish(&mut self) -> Result<(), LoadError> {
        while !self.open.is_empty() {
            self.finish_one()?;
        }
        if let Some((_, half)) = self.half.take() {
            self.points.push(half);
        }
        Ok(())
    }

    /// The run over time.
    pub fn points(self) -> (Vec<Point>, Histograms) {
        (self.points, self.total)
    }

    fn finish_one(&mut self) -> Result<(), LoadError> {
        let Some((number, histograms)) = self.open.pop_first() else { return Ok(()) };
        self.total.merge(&histograms);
        if let Some((log, path)) = &mut self.log {
            let at = self.length.mul_f64(number as f64);
            for (name, histogram) in histograms.named().filter(|(_, h)| !h.is_empty()) {
                log.write_histogram(histogram, at, self.length, Tag::new(&name))
                    .map_err(|e| LoadError::file(*path)(std::io::Error::other(e.to_string())))?;
            }
        }
        let delivery = &histograms.delivery.corrected;
        let us = |quantile| delivery.value_at_quantile(quantile) as f64 / 1e3;
        let seconds = self.length.as_secs_f64();
        let point = Point {
            at_s: (number + 1) as f64 * seconds,
            deliveries_per_s: delivery.len() as f64 / seconds,
            p50_us: us(0.5),
            p99_us: us(0.99),
            max_us: delivery.max() as f64 / 1e3,
            server_resident: self.server.and_then(Watched::resident),
            loadgen_resident: Watched { pid: std::process::id() }.resident(),
        };
        if self.prints {
            println!("{}", point.line());
        }
        self.push(point);
        Ok(())
    }

    fn push(&mut self, point: Point) {
        let (n, point) = match self.half.take() {
            Some((n, before)) => (n + 1, before.and(n, &point)),
            None => (1, point),
        };
        if n < self.intervals_per_point {
            self.half = Some((n, point));
            return;
        }
        self.points.push(point);
        if self.points.len() == POINTS_MAX {
            self.points =
                self.points.chunks(2).map(|two| two[0].and(1, &two[two.len() - 1])).collect();
            self.intervals_per_point *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn interval(number: u64, latency_ns: u64) -> Interval {
        let mut histograms = Box::new(Histograms::new());
        histograms.delivery.record(0, 0, latency_ns, 1);
        Interval { number, histograms }
    }

    fn point() -> Point {
        Point {
            at_s: 1.0,
            deliveries_per_s: 1.0,
            p50_us: 1.0,
            p99_us: 2.0,
            max_us: 3.0,
            server_resident: None,
            loadgen_resident: None,
        }
    }

    #[test]
    fn several_intervals_are_the_mean_of_theirs() {
        let mut timeline = Timeline::new(Duration::from_secs(1), None, None, false);
        timeline.intervals_per_point = 4;
        for deliveries_per_s in [10.0, 20.0, 30.0, 100.0] {
            timeline.push(Point { deliveries_per_s, ..point() });
        }
        assert_eq!(timeline.points.len(), 1);
        assert!((timeline.points[0].deliveries_per_s - 40.0).abs() < 1e-9);
    }

    #[test]
    fn threads_that_hand_over_apart_make_one_point_an_interval() {
        let mut timeline = Timeline::new(Duration::from_secs(1), None, None, false);
        for number in 0..5 {
            timeline.take([interval(number, 1_000_000)].into_iter()).unwrap();
            timeline.take([interval(number.saturating_sub(1), 2_000_000)].into_iter()).unwrap();
        }
        timeline.finish().unwrap();
        let (points, total) = timeline.points();
        assert_eq!(points.iter().map(|p| p.at_s as u64).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(total.delivery.corrected.len(), 10);
        assert!(points.iter().take(4).all(|p| (p.max_us - 2000.0).abs() < 2.0), "{points:?}");
    }

    #[test]
    fn long_runs_keep_no_more_points_and_no_maximum_is_lost() {
        let mut timeline = Timeline::new(Duration::from_secs(1), None, None, false);
        let lasting = 20 * POINTS_MAX as u64;
        for number in 0..lasting {
            let point = Point {
                at_s: (number + 1) as f64,
                p99_us: if number == 777 { 500.0 } else { 2.0 },
                ..point()
            };
            timeline.push(point);
            assert!(timeline.points.len() < POINTS_MAX);
        }
        timeline.finish().unwrap();
        let (points, _) = timeline.points();
        assert!(points.iter().any(|p| p.p99_us == 500.0));
        assert_eq!(points.last().unwrap().at_s as u64, lasting);
        assert!(points.iter().all(|p| p.deliveries_per_s == 1.0));
    }
}
